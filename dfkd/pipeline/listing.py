"""The objects of a root, grouped by the version, student or regeneration that they belong to.

Garbage collection removes only what is listed here, so a key must match the layout in full.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from dfkd.errors import ManifestError
from dfkd.pipeline.attempts import CANDIDATE, CURRENT
from dfkd.storage import layout
from dfkd.storage.base import Storage, StoredObject

FIELDS = {
    "METHOD": r"(?P<method>[a-z]+(?:-bn)?)",
    "VERSION": r"(?P<id>[0-9a-f]{16})",
    "STUDENT": r"(?P<id>(?P<method>[a-z]+(?:-bn)?)-s[0-9]+-[0-9a-f]{12})",
    "ATTEMPT": "(?P<id>[0-9]{8})",
    "STEP": "[0-9]{10}",
    "TASK": layout.TASK,
    "PART": layout.PART,
    "FILE": "[^/]+",
}
"""What a word in capitals stands for in the keys that `_pattern` takes."""
VERSION_NAME = re.compile(f"{FIELDS['METHOD']}/{FIELDS['VERSION']}")
"""`{method}/{id}` of a version."""


def _pattern(folder: str, *names: str) -> re.Pattern[str]:
    """Matches the keys of dfkd's own layout in `folder` that have one of `names` there."""

    def expression(key: str) -> str:
        """The regular expression for a key with words of `FIELDS` in it."""
        return re.sub("|".join(FIELDS), lambda word: FIELDS[word[0]], re.escape(key))

    choices = "|".join(map(expression, names))
    return re.compile(f"{expression(folder)}/(?P<name>{choices})")


VERSION = _pattern(
    f"{layout.data('METHOD')}/{layout.version('VERSION')}",
    layout.IDENTITY,
    layout.MANIFEST,
    layout.PROMPTS_SUMMARY,
    layout.INDEX,
    layout.CARD,
    layout.ABANDONED,
    layout.REMOVING,
    layout.prompts("PART"),
    f"{layout.STATES}STEP.safetensors",
    layout.receipt("TASK"),
    layout.shard("TASK"),
    layout.quarantined("TASK"),
    layout.quarantined("prompts"),
)
STUDENT = _pattern(
    layout.student("STUDENT"),
    layout.STUDENT_CARD,
    layout.STUDENT_WEIGHTS,
    layout.REMOVING,
    f"{layout.CHECKPOINTS}STEP.safetensors",
    f"{layout.TENSORBOARD}FILE",
)
REGENERATION = _pattern(
    f"{layout.REGENERATIONS}ATTEMPT",
    *(
        f"{folder}{name}"
        for folder in ("", f"{CANDIDATE}/", f"{CURRENT}/")
        for name in (layout.RESULTS, layout.REPORT_FACTS, layout.COMPARISON, layout.CONTACT_SHEET)
    ),
)

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
    leases: list[StoredObject] = field(default_factory=list)

    @classmethod
    def read(cls, root: Storage) -> "Listing":
        """List a root once; raises `ManifestError` if it is one of studies."""
        found = cls()
        # A key that matches nothing was not written by dfkd, so it is left out and never removed.
        for entry in root.entries():
            if match := VERSION.fullmatch(entry.key):
                found.versions[f"{match['method']}/{match['id']}"][match["name"]] = entry
            elif match := STUDENT.fullmatch(entry.key):
                found.students[match["id"]][match["name"]] = entry
            elif match := REGENERATION.fullmatch(entry.key):
                found.regenerations[match["id"]][match["name"]] = entry
            elif entry.key.startswith(layout.LEASES):
                found.leases.append(entry)
            elif entry.key.startswith(layout.CELLS):
                raise ManifestError(
                    "storage.root",
                    "must not hold studies, whose cells need every version under it",
                    root.location(),
                    "remove it as a whole once they are done",
                )
        return found
