"""Speed of distillation: what is made for the ranks to read."""

from pathlib import Path

import pytest

from dfkd.benchmarks import distillation
from dfkd.config.manifest import Manifest
from dfkd.dataset.loader import steps_per_epoch
from tests.helpers.tiny_version import write_manifest


@pytest.mark.parametrize(("per_class", "made"), [(4, 43), (64, 64)])
def test_a_version_has_the_images_of_the_largest_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_class: int, made: int
) -> None:
    """As PACS needs it: few classes, and batches that are large beside them."""
    sizes: dict[int, int] = {}

    def run_ranks(manifest: Manifest, version: str, count: int) -> dict[str, float]:
        images = manifest.synthesis.images_per_class * len(manifest.classes)
        batch_size = manifest.distillation.batch_size
        assert steps_per_epoch(images, batch_size) > 0
        sizes[batch_size] = manifest.synthesis.images_per_class
        return {"images_per_s": float(count), "waiting": 0.5}

    monkeypatch.setattr(distillation, "_run_ranks", run_ranks)
    manifest = Manifest.read(
        write_manifest(tmp_path, distillation={"batch_size": 32}), ("classes=[cat, dog, car]",)
    )
    found = distillation.ranks(manifest, per_class, (1, 4), 1)
    assert sizes == {32: made, 128: made}
    assert [figure.ratio for figure in found["figures"]] == [None, 2.0] * 2
