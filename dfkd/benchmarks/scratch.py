"""A place for what is built only to be timed."""

import dataclasses
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from dfkd.manifest import Manifest, Storage
from dfkd.storage import open_storage


@contextmanager
def scratch(manifest: Manifest) -> Iterator[Manifest]:
    """The manifest with a new folder of `benchmarks/` as its root, which is deleted at the end."""
    root, folder = manifest.storage.root, f"benchmarks/{uuid.uuid4().hex}"
    home = open_storage(root)
    try:
        yield dataclasses.replace(manifest, storage=Storage(root=f"{root}/{folder}"))
    finally:
        for key in list(home.list(f"{folder}/")):
            home.delete(key)
        shutil.rmtree(home.location(folder), ignore_errors=True)  # on a disk, folders are left
