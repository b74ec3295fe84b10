"""A run that a job is given by its manifest, or by the folder or bucket that it is in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfkd.config.manifest import Manifest
from dfkd.config.paths import manifest_file
from dfkd.errors import ManifestError
from dfkd.storage import layout
from dfkd.storage.base import Storage, split_root
from dfkd.storage.local import open_existing

RUN = "YAML file of a run, or the folder or bucket in which it is"


@dataclass(frozen=True)
class Run:
    """A finished run: its root, and its manifest if it was named by one."""

    root: str
    manifest: Manifest | None

    def as_dict(self) -> dict[str, Any]:
        """The manifest; for a folder only its location."""
        return self.manifest.as_dict() if self.manifest else {"storage": {"root": self.root}}

    def open(self) -> Storage:
        """The run's storage.

        Raises:
            ManifestError: no run was finished there; nothing is created.
        """
        from dfkd.evaluation.results import require_finished

        storage = open_existing(self.root, "run dfkd pipeline first")
        if not storage.exists(layout.CANDIDATES):  # alone in a run without labelled images
            require_finished(storage)
        return storage


def read(source: str, overrides: tuple[str, ...]) -> Run:
    """The run that a manifest, a folder or a bucket's prefix names.

    Raises:
        ManifestError: no storage can serve the location, the manifest breaks a rule, or a folder is
            given with overrides.
    """
    scheme, _, _ = split_root("manifest", source)
    if scheme or Path(source).is_dir():
        if overrides:
            raise ManifestError(
                "--set", "belongs to a manifest, not to a folder", source, "leave it out"
            )
        return Run(source, None)
    if not manifest_file(source).exists():
        rule = "must be a manifest, or the folder or bucket of a run"
        raise ManifestError("manifest", rule, source, "check the path")
    manifest = Manifest.read(source, overrides)
    return Run(manifest.storage.root, manifest)
