"""Workers of a synthesis in the process of the test."""

from typing import TypeVar

from dfkd.cluster.worker import Worker
from dfkd.config.manifest import Manifest
from dfkd.dataset.versions import Version

W = TypeVar("W", bound=Worker)


def own_worker(manifest: Manifest, version: Version, kind: type[W]) -> W:
    """A worker of one CPU that works on a version."""
    made = kind(1.0)
    made.work_on(manifest, version)
    return made
