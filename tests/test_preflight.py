"""What is refused before the hours of synthesis."""

from pathlib import Path

import pytest

from dfkd.errors import ManifestError
from dfkd.manifest import Manifest
from dfkd.preflight import check_batches, check_synthesis
from surrogates import write_manifest


def read(folder: Path, *settings: str) -> Manifest:
    return Manifest.read(write_manifest(folder), settings)


def test_a_batch_that_no_epoch_will_fill_is_refused(tmp_path: Path) -> None:
    check_batches(read(tmp_path))
    with pytest.raises(ManifestError, match=r"batch_size: must not exceed the \d+ images"):
        check_batches(read(tmp_path, "distillation.batch_size=100000"))


def test_prompts_that_could_not_be_read_again_are_refused(tmp_path: Path) -> None:
    miniature = ("teacher={model: miniature, weights: miniature}", "classes=[dog, house]")
    large = ("synthesis.images_per_class=10000000", "synthesis.shard_size=10000000")
    with pytest.raises(ManifestError, match=r"synthesis\.shard_size: .*must fit into \d+ bytes"):
        check_synthesis(read(tmp_path, *miniature, *large))
