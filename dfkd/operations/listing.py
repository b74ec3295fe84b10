"""The objects of a root, grouped by the version, student or regeneration that they belong to.

Garbage collection removes only what is listed here.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from dfkd.config.plugins import NAME
from dfkd.errors import ManifestError
from dfkd.storage import layout
from dfkd.storage.base import Storage, StoredObject
from dfkd.storage.lease import LEASE

METHOD = f"(?P<method>{NAME.pattern}(?:-{NAME.pattern})?)"
"""A prompt method, with its source of images where that is not the generator."""
ID = "(?P<id>[0-9a-f]{16})"
VERSION_NAME = re.compile(f"{METHOD}/{ID}")
"""`{method}/{id}` of a version."""
VERSION = re.compile(f"{layout.DATA}{METHOD}/{layout.VERSIONS}{ID}/(?P<name>.+)")
STUDENT = re.compile(f"{layout.STUDENTS}(?P<id>{METHOD}-s[0-9]+-[0-9a-f]{{12}})/(?P<name>.+)")
LABELS = re.compile(rf"{layout.LABELS}{ID}-[0-9a-f]{{12}}\.safetensors")
REGENERATION = re.compile(
    f"{layout.REGENERATIONS}(?P<id>[0-9]{{8}})/"
    r"(?P<name>(?!(?:claim|decision|finished)\.json$).+)"
)
"""What an attempt has written about its challenger; its claim and its decision stay."""

Objects = Mapping[str, StoredObject]
"""Entries by their names within a folder."""
Groups = dict[str, dict[str, StoredObject]]
"""The objects of each version, student or regeneration."""


@dataclass
class Listing:
    """The objects of a root by what they belong to."""

    versions: Groups = field(default_factory=lambda: defaultdict(dict))
    """By `{method}/{id}`."""
    students: Groups = field(default_factory=lambda: defaultdict(dict))
    """By the name of the student's folder."""
    regenerations: Groups = field(default_factory=lambda: defaultdict(dict))
    """By the number of the attempt, eight digits."""
    labels: Groups = field(default_factory=lambda: defaultdict(dict))
    """The moments of other labellers, by the id of the version, and by their keys."""
    leases: list[StoredObject] = field(default_factory=list)

    @classmethod
    def read(cls, root: Storage) -> "Listing":
        """List a root once; raises `ManifestError` if it is one of studies."""
        found = cls()
        # Everything in a folder that dfkd makes belongs to it. All other keys are left alone.
        for entry in root.entries():
            if match := VERSION.fullmatch(entry.key):
                found.versions[f"{match['method']}/{match['id']}"][match["name"]] = entry
            elif match := STUDENT.fullmatch(entry.key):
                found.students[match["id"]][match["name"]] = entry
            elif match := REGENERATION.fullmatch(entry.key):
                found.regenerations[match["id"]][match["name"]] = entry
            elif match := LABELS.fullmatch(entry.key):
                found.labels[match["id"]][entry.key] = entry
            elif LEASE.fullmatch(entry.key):
                found.leases.append(entry)
            elif entry.key.startswith(layout.CELLS):
                raise ManifestError(
                    "storage.root",
                    "must not hold studies, whose cells need every version under it",
                    root.location(),
                    "remove it as a whole once they are done",
                )
        return found


def folder(version: str) -> str:
    """The folder of the version `{method}/{id}`, relative to the root."""
    method, _, name = version.partition("/")
    return f"{layout.data(method)}/{layout.version(name)}"


def age(objects: Objects) -> float:
    """Age of the youngest object in seconds; a mark of removal does not count."""
    ages = (entry.age for name, entry in objects.items() if name != layout.REMOVING)
    return min(ages, default=0.0)
