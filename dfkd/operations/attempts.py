"""Regenerations: numbered attempts at a better version of the data set, and the gate for each.

    regenerations/{n:08d}/claim.json      written once: the identity of the challenger, and its base
                          decision.json   written once: the gate's numbers and its verdict
                          finished.json   written once: nothing is left to do
                          ...             results and pages about the challenger

The number is the challenger's salt. It is claimed by put-if-absent, so no two attempts share one.
The same command resumes the newest attempt if it has no `finished.json`.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter

from dfkd.config.hashing import fingerprint
from dfkd.config.identity import refuse_difference
from dfkd.config.manifest import Manifest, Regeneration
from dfkd.config.methods import method_of
from dfkd.config.stored_identity import StoredIdentity
from dfkd.dataset.published import PublishedVersion, current
from dfkd.errors import CorruptionError, ManifestError
from dfkd.prompts.diversity import pair_cosines
from dfkd.storage import layout
from dfkd.storage.base import SMALL_OBJECT, Storage
from dfkd.utils.strict_json import canonical, read_as

T = TypeVar("T")

CLAIM = re.compile(rf"{layout.REGENERATIONS}(?P<number>[0-9]{{8}})/claim\.json")
MAX_NUMBER = 10**8
"""Numbers of attempts have eight digits."""
CHALLENGER, CURRENT = "challenger", "current"
"""Folders of an attempt with the results of the challenger and of the version it challenges."""

MINIMUM_PER_CLASS = 1
"""Images of every class that a challenger must have."""
SHARDS_PER_CLASS = 3
"""Maximum number of shards read to measure a class's diversity."""
EMBEDDINGS = 200
"""Maximum number of images of a class used to measure its diversity."""


@dataclass(frozen=True)
class Attempt:
    """One regeneration that has been claimed or is about to be."""

    root: Storage
    number: int
    """Number of the attempt; also the challenger's salt."""

    @property
    def storage(self) -> Storage:
        """Storage of this attempt's own objects."""
        return self.root.child(self.folder)

    @property
    def folder(self) -> str:
        """Folder of the attempt, relative to the root."""
        return layout.regeneration(self.number)

    @property
    def claimed(self) -> bool:
        """Whether this number is an attempt's."""
        return self.storage.exists("claim.json")

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Identity of the challenger, from `claim.json`."""
        return _read(self.storage, "claim.json", Claim).identity

    @property
    def method(self) -> str:
        """Method of the challenger."""
        return method_of(self.identity)

    @property
    def challenger(self) -> str:
        """Id of the version that this attempt makes."""
        return fingerprint(self.identity)[:16]

    @property
    def base(self) -> str:
        """Fingerprint of the version whose shards are carried over; empty if there is none."""
        return str(self.identity.get("carried.from", ""))

    @property
    def finished(self) -> bool:
        """Whether the attempt was accepted, refused or abandoned."""
        return self.storage.exists("finished.json")

    @property
    def decision(self) -> "Decision | None":
        """The gate's decision; None before the gate has run."""
        if not self.storage.exists("decision.json"):
            return None
        return _read(self.storage, "decision.json", Decision)

    def decide(self, decision: "Decision") -> "Decision":
        """Write the gate's decision once; returns the decision that is stored."""
        # The first decision holds, so a resumed attempt that measures anew cannot change it.
        self.storage.put_if_absent("decision.json", canonical(asdict(decision)))
        return _read(self.storage, "decision.json", Decision)

    def finish(self) -> None:
        """Mark the attempt as finished, so that the next call begins a new one."""
        self.storage.put_if_absent("finished.json", canonical({"number": self.number}))


@dataclass(frozen=True)
class Claim:
    """Content of `claim.json`."""

    identity: StoredIdentity
    """Identity of the challenger."""


@dataclass(frozen=True)
class Rule:
    """A rule of the gate, and whether the challenger keeps it."""

    text: str
    before: str
    """The value of the current version; empty if that does not matter."""
    value: str
    """The value of the challenger."""
    holds: bool


@dataclass(frozen=True)
class Decision:
    """The gate's rules and verdict; accuracies are means over domains and seeds, 0-1."""

    challenger: str
    """Id of the challenger."""
    current: str
    """Id of the version that the challenger would replace; empty if there is none."""
    accuracy: float
    current_accuracy: float | None
    rules: tuple[Rule, ...]

    @property
    def accepted(self) -> bool:
        """Whether the challenger becomes current."""
        return all(rule.holds for rule in self.rules)


def _read(storage: Storage, key: str, schema: type[T]) -> T:
    """The content of an attempt's object; `CorruptionError` if it is something else."""
    try:
        return read_as(TypeAdapter(schema), storage.get(key, SMALL_OBJECT))
    except ValueError as error:
        raise CorruptionError(
            f"{storage.location(key)}: not what dfkd wrote ({error}); restore it, or delete its "
            "folder and run again"
        ) from None


def attempts(root: Storage) -> list[Attempt]:
    """All regenerations of a root, oldest first."""
    # Keys are listed in ascending order, so the newest attempt is the last one.
    matches = (CLAIM.fullmatch(key) for key in root.list(layout.REGENERATIONS))
    return [Attempt(root, int(match["number"])) for match in matches if match]


def unfinished(root: Storage) -> Attempt | None:
    """The attempt to resume, or None. Only the newest attempt can be unfinished."""
    known = attempts(root)
    return known[-1] if known and not known[-1].finished else None


def next_number(root: Storage, current_version: PublishedVersion | None, manifest: Manifest) -> int:
    """The first unused salt; the manifest's own salt if nothing is published or claimed yet."""
    # A number is never used twice, because it is a salt: the same one would give the same images.
    used = [attempt.number for attempt in attempts(root)]
    number = manifest.salt
    if current_version is not None or used:
        published = current_version.facts["identity"].get("salt", 0) if current_version else 0
        number = max([*used, published, manifest.salt]) + 1
    # The names of attempts sort by number only if all have the same number of digits.
    if number >= MAX_NUMBER:
        raise ManifestError(
            "salt",
            f"must be below {MAX_NUMBER} to regenerate, which counts on from it and from the salt "
            "of the current version",
            number,
            "use a small number, and a new storage.root if the current version's is large",
        )
    return number


def begin(root: Storage, number: int, identity: Mapping[str, Any]) -> Attempt:
    """Claim a number for a challenger's identity; an existing claim of the same identity is reused.

    Raises:
        FingerprintError: the number is claimed for another identity; the text shows the difference.
    """
    attempt = Attempt(root, number)
    attempt.storage.put_if_absent("claim.json", canonical(asdict(Claim(dict(identity)))))
    # Put-if-absent may have lost against an earlier claim, so compare with what is stored.
    refuse_difference(attempt.identity, identity, attempt.storage.location())
    return attempt


def require_comparable(manifest: Manifest) -> None:
    """Refuse (`ManifestError`) a manifest with several methods or without students."""
    methods = manifest.methods
    if len(methods) != 1:
        raise ManifestError(
            "prompts.method and synthesis.source",
            "must make one method to regenerate",
            list(methods),
            "name one of each",
        )
    if "student" not in manifest.evaluation.models:
        raise ManifestError(
            "evaluation.models",
            "must name student to regenerate",
            list(manifest.evaluation.models),
            "add it",
        )
    if not manifest.evaluation.scored:
        raise ManifestError(
            "evaluation.data",
            "must be labelled images to regenerate, because the new students are compared with the "
            "old ones",
            manifest.evaluation.data,
            "name a folder, a list file or bundled",
        )


def require_same_settings(base: PublishedVersion, identity: Mapping[str, Any]) -> None:
    """Refuse (`ManifestError`) to carry over images that were made with other settings."""
    published = base.facts["identity"]
    # The salt and the list of carried shards differ between any two versions.
    changeable = {"salt", *(key for key in [*published, *identity] if key.startswith("carried."))}
    for key in sorted((published.keys() | identity.keys()) - changeable):
        if published.get(key) != identity.get(key):
            raise ManifestError(
                key,
                f"must be that of the current version {base.id} ({published.get(key)!r}) "
                "to carry over",
                identity.get(key),
                "regenerate all (regeneration.classes=[], regeneration.share=1) or set it back",
            )


def gate(
    config: Regeneration,
    challenger: PublishedVersion,
    file: str,
    accuracy: float,
    current_version: PublishedVersion | None,
    current_accuracy: float | None,
) -> Decision:
    """Decide whether a challenger may become current, by the rules in the manifest.

    Args:
        file: name of the shipped model and precision, for people.
        accuracy: of this file as exported of the challenger's students, mean over domains and
            seeds, 0-1.
        current_version: the current version, if there is one.
        current_accuracy: accuracy of its students, measured in the same way.
    """
    # 0.14 - 0.02 is a little above 0.12, which must pass: no rounding is as large as 1e-9.
    least = -1.0 if current_accuracy is None else current_accuracy - config.tolerance - 1e-9
    fewest, class_name = min(
        zip(challenger.facts["class_samples"], challenger.classes, strict=True), key=itemgetter(0)
    )
    measured = diversity(challenger)
    return Decision(
        challenger=challenger.id,
        current=current_version.id if current_version else "",
        accuracy=accuracy,
        current_accuracy=current_accuracy,
        # All rules, also after one has failed, so that a person reads all reasons at once.
        rules=(
            Rule(
                f"mean accuracy of {file}, at most {100 * config.tolerance:g} points less",
                "" if current_accuracy is None else f"{100 * current_accuracy:.2f} %",
                f"{100 * accuracy:.2f} %",
                accuracy >= least,
            ),
            Rule(
                f"images of each class, at least {MINIMUM_PER_CLASS}",
                "",
                f"{fewest} of {class_name}",
                fewest >= MINIMUM_PER_CLASS,
            ),
            Rule(
                f"diversity, at least {config.diversity_floor:g}",
                "",
                f"{measured:.4f}",
                measured >= config.diversity_floor,
            ),
        ),
    )


def diversity(version: PublishedVersion) -> float:
    """The mean over classes of 1 - (mean cosine between the teacher's embeddings of two images).

    Ranges from 0 (all images alike) to about 1. Only a few shards of each class are read. A class
    with fewer than two images counts as 0.
    """
    shards = defaultdict(list)
    # A block has shards of every class.
    for block in version.blocks[:: -(-len(version.blocks) // SHARDS_PER_CLASS) or 1]:
        for receipt in version.block_receipts(block):
            if receipt.samples:
                shards[receipt.class_index].append(receipt)
    by_class = []
    for receipts in shards.values():
        # Evenly spaced shards and images: all pairs of a large class would take too long.
        step = -(-len(receipts) // SHARDS_PER_CLASS)
        samples = (s for receipt in receipts[::step] for s in version.samples(receipt))
        rows = [sample.arrays["embedding"].astype(np.float64) for sample in samples]
        # An embedding of zeros has no direction, so it has no cosine with another one.
        rows = [row for row in rows[:: -(-len(rows) // EMBEDDINGS)] if row.any()]
        too_few = len(rows) < 2
        cosine = (
            1.0 if too_few else pair_cosines(np.stack(rows), np.zeros(len(rows), int))[0].mean()
        )
        by_class.append(1.0 - float(cosine))
    return sum(by_class) / len(version.classes)


def current_of(root: Storage, method: str) -> PublishedVersion | None:
    """The current version of a method; None if nothing is published."""
    return current(root.child(layout.data(method)))
