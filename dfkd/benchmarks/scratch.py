"""Runs that are made only to be timed: their manifests, and a place for what they build."""

import dataclasses
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dfkd.manifest import Manifest, Storage
from dfkd.storage import open_storage


def changed(manifest: Manifest, **sections: Mapping[str, Any]) -> Manifest:
    """The manifest with other values for some keys of some sections, by the section's name.

    Raises:
        TypeError: a section has no such key.
        ManifestError: the values break a rule.
    """
    others = {
        name: dataclasses.replace(getattr(manifest, name), **values)
        for name, values in sections.items()
    }
    return dataclasses.replace(manifest, **others)


@contextmanager
def scratch(manifest: Manifest) -> Iterator[Manifest]:
    """The manifest with a new folder of `benchmarks/` as its root, which is deleted at the end."""
    root, folder = manifest.storage.root.rstrip("/"), f"benchmarks/{uuid.uuid4().hex}"
    home = open_storage(root)
    try:
        yield dataclasses.replace(manifest, storage=Storage(root=f"{root}/{folder}"))
    finally:
        for key in list(home.list(f"{folder}/")):
            home.delete(key)
        shutil.rmtree(home.location(folder), ignore_errors=True)  # on a disk, folders are left
