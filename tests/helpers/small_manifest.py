"""The smallest valid manifest: two classes, and the models that the package ships."""

from pathlib import Path
from typing import Any

import yaml

from dfkd.config.manifest import Manifest


def vqgan(**settings: Any) -> dict[str, Any]:
    """The section of the bundled VQGAN with these settings."""
    return {"kind": "vqgan", "vqgan": {"config": "miniature", "weights": "miniature", **settings}}


SMALLEST: dict[str, Any] = {
    "name": "small",
    "classes": ["dog", "cat"],
    "storage": {"root": "unused"},
    "teacher": {"model": "miniature", "weights": "miniature"},
    "generator": vqgan(),
}


def write(folder: Path, **keys: Any) -> Path:
    """The path of a manifest with these top-level keys in the place of, or beside, the smallest."""
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump(SMALLEST | keys))
    return path


def read(folder: Path, *overrides: str, **keys: Any) -> Manifest:
    """The manifest that `write` writes, with `overrides` as `--set` takes them."""
    return Manifest.read(write(folder, **keys), overrides)
