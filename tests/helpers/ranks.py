"""Two real ranks on a Ray of this machine, and a version for them to train on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray

from dfkd.config.manifest import Manifest
from tests.helpers.tiny_version import publish, write_manifest

ROOT = Path(__file__).parents[2]


@contextmanager
def two_cpus() -> Iterator[None]:
    """A Ray whose workers know the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20
        )
        yield
        ray.shutdown()


def prepare(folder: Path, **distillation: object) -> Manifest:
    """The manifest of a published version, for two ranks unless told otherwise."""
    manifest = Manifest.read(write_manifest(folder, distillation={"workers": 2, **distillation}))
    publish(manifest)
    return manifest
