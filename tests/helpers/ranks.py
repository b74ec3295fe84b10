"""A version for two real ranks to train on."""

from pathlib import Path

from dfkd.config.manifest import Manifest
from tests.helpers.tiny_version import publish, write_manifest


def prepare(folder: Path, **distillation: object) -> Manifest:
    """The manifest of a published version, for two ranks unless told otherwise."""
    manifest = Manifest.read(write_manifest(folder, distillation={"workers": 2, **distillation}))
    publish(manifest)
    return manifest
