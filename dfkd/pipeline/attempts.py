"""Regenerations: numbered attempts at a better version, each with a claim, a gate and an end.

    regenerations/{n:08d}/claim.json      written once: the identity of the candidate, and its base
                          decision.json   written once: the gate's numbers and its verdict
                          finished.json   written once: nothing is left to be done
                          ...             results and pages about the candidate

The number is the salt. It is taken by put-if-absent, so that no two attempts share one; the newest
without an end is taken up again by the same command.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dfkd.config import fingerprint as fingerprints
from dfkd.config.manifest import Manifest, Regeneration
from dfkd.dataset.published import read_json
from dfkd.dataset.versions import PublishedVersion, current
from dfkd.errors import LeaseError, ManifestError
from dfkd.prompts.diversity import pair_cosines
from dfkd.storage import layout
from dfkd.storage.local import Storage
from dfkd.utils.strict_json import canonical

CLAIM = re.compile(r"regenerations/(?P<number>[0-9]{8})/claim\.json")
SHARDS_PER_CLASS = 3
"""Shards that are read for a class's diversity."""
EMBEDDINGS = 200
"""Images of a class that its diversity is computed from."""


@dataclass(frozen=True)
class Attempt:
    """One regeneration, begun."""

    root: Storage
    number: int
    """Also the candidate's salt."""

    @property
    def storage(self) -> Storage:
        """Its own objects."""
        return self.root.child(self.folder)

    @property
    def folder(self) -> str:
        """Of its objects, under the root."""
        return f"{layout.REGENERATIONS}{self.number:08d}"

    @cached_property
    def claim(self) -> dict[str, Any]:
        """`identity` of the candidate."""
        return read_json(self.storage, "claim.json")

    @property
    def method(self) -> str:
        """The method whose version it makes."""
        return fingerprints.method_of(self.claim["identity"])

    @property
    def candidate(self) -> str:
        """Id of the version that it makes."""
        return fingerprints.fingerprint(self.claim["identity"])[:16]

    @property
    def base(self) -> str:
        """Fingerprint of the version that it carries over from; empty without one."""
        return str(self.claim["identity"].get("carried.from", ""))

    @property
    def finished(self) -> bool:
        """Whether it was accepted, refused or abandoned."""
        return self.storage.exists("finished.json")

    @property
    def decision(self) -> "Decision | None":
        """What the gate said, once it has."""
        if not self.storage.exists("decision.json"):
            return None
        tree = read_json(self.storage, "decision.json")
        return Decision(**{**tree, "reasons": tuple(tree["reasons"])})

    def decide(self, decision: "Decision") -> "Decision":
        """Write what the gate says, once; returns the decision that holds."""
        self.storage.put_if_absent("decision.json", canonical(asdict(decision)))
        held = self.decision
        assert held is not None  # noqa: S101 - written above
        return held

    def finish(self) -> None:
        """Nothing is left to be done: the next call begins the next one."""
        self.storage.put_if_absent("finished.json", canonical({"number": self.number}))


@dataclass(frozen=True)
class Decision:
    """The gate's numbers; accuracies are means over domains and seeds, 0-1."""

    candidate: str
    """Id of the version."""
    current: str
    """Id of the version that it is to follow; empty without one."""
    accuracy: float
    current_accuracy: float | None
    fewest: int
    """Images of the class that has the fewest."""
    diversity: float
    reasons: tuple[str, ...]
    """Why it is refused; none of them accepts it."""

    @property
    def accepted(self) -> bool:
        """Whether the candidate becomes current."""
        return not self.reasons


def attempts(root: Storage) -> list[Attempt]:
    """All regenerations of a root, oldest first."""
    matches = (CLAIM.fullmatch(key) for key in root.list(layout.REGENERATIONS))
    return [Attempt(root, int(match["number"])) for match in matches if match]


def unfinished(root: Storage) -> Attempt | None:
    """The regeneration that is to be taken up again: at most the newest can be one."""
    found = attempts(root)
    return found[-1] if found and not found[-1].finished else None


def next_number(root: Storage, held: PublishedVersion | None, manifest: Manifest) -> int:
    """The first salt that nobody has used; the manifest's own where nothing is published."""
    used = [attempt.number for attempt in attempts(root)]
    if held is None and not used:
        return manifest.salt
    published = held.manifest["identity"]["salt"] if held else 0
    return max([*used, int(published), manifest.salt]) + 1


def begin(root: Storage, number: int, identity: Mapping[str, Any]) -> Attempt:
    """Claim a number for the candidate of an identity, or find it claimed for the same.

    Raises:
        FingerprintError: it is claimed for another one; the text shows the difference.
        LeaseError: another process claimed it, which can only be one that has taken the lease.
    """
    attempt = Attempt(root, number)
    attempt.storage.put_if_absent("claim.json", canonical({"identity": dict(identity)}))
    wanted = canonical({"identity": dict(identity)})
    if canonical(attempt.claim) != wanted:
        found = attempt.claim["identity"]
        fingerprints.refuse_difference(found, dict(identity), attempt.storage.location())
        raise LeaseError(f"{attempt.storage.location()}: was claimed by another; run again")
    return attempt


def require_comparable(manifest: Manifest) -> None:
    """Refuse (`ManifestError`) what a gate cannot compare: several methods, or no students."""
    methods = manifest.methods
    if len(methods) != 1:
        field = "prompts.method" if len(manifest.prompts.method) > 1 else "synthesis.method"
        raise ManifestError(field, "must be one method to regenerate", list(methods), "name one")
    if "student" not in manifest.evaluation.models:
        raise ManifestError(
            "evaluation.models",
            "must name student to regenerate",
            list(manifest.evaluation.models),
            "add it",
        )


def require_same_settings(base: PublishedVersion, identity: Mapping[str, Any]) -> None:
    """Refuse (`ManifestError`) to carry over images that were made with other settings."""
    found = base.manifest["identity"]
    ours = {"salt", *(key for key in [*found, *identity] if key.startswith("carried."))}
    for key in sorted((found.keys() | identity.keys()) - ours):
        if found.get(key) != identity.get(key):
            raise ManifestError(
                key,
                f"must be that of the current version {base.id}, {found.get(key)!r}, to carry over",
                identity.get(key),
                "regenerate all (regeneration.classes=[], regeneration.share=1) or set it back",
            )


def gate(
    config: Regeneration,
    candidate: PublishedVersion,
    accuracy: float,
    held: PublishedVersion | None,
    held_accuracy: float | None,
) -> Decision:
    """What the rules of the manifest say about a candidate that was trained on and scored.

    Args:
        accuracy: of its students, the mean over domains and seeds.
        held: the current version, if there is one, with the accuracy of its students.
    """
    fewest, name = fewest_images(candidate)
    varied = diversity(candidate)
    reasons = []
    if held_accuracy is not None and accuracy < held_accuracy - config.tolerance:
        reasons.append(
            f"accuracy {accuracy:.4f}, at least {held_accuracy - config.tolerance:.4f} "
            f"(current {held_accuracy:.4f} - tolerance {config.tolerance:g})"
        )
    if fewest < config.minimum_per_class:
        reasons.append(f"{fewest} images of {name}, at least {config.minimum_per_class}")
    if varied < config.diversity_floor:
        reasons.append(f"diversity {varied:.4f}, at least {config.diversity_floor:g}")
    return Decision(
        candidate=candidate.id,
        current=held.id if held else "",
        accuracy=accuracy,
        current_accuracy=held_accuracy,
        fewest=fewest,
        diversity=varied,
        reasons=tuple(reasons),
    )


def rules(config: Regeneration, decision: Decision) -> list[tuple[str, str, str, str]]:
    """Rule, value of the current version, value of the candidate and verdict, for people."""
    before = decision.current_accuracy
    least = -1.0 if before is None else before - config.tolerance
    return [
        (
            f"mean accuracy, at most {100 * config.tolerance:g} points less",
            "-" if before is None else f"{100 * before:.2f} %",
            f"{100 * decision.accuracy:.2f} %",
            _verdict(decision.accuracy >= least),
        ),
        (
            f"images of each class, at least {config.minimum_per_class}",
            "",
            str(decision.fewest),
            _verdict(decision.fewest >= config.minimum_per_class),
        ),
        (
            f"diversity, at least {config.diversity_floor:g}",
            "",
            f"{decision.diversity:.4f}",
            _verdict(decision.diversity >= config.diversity_floor),
        ),
    ]


def _verdict(holds: bool) -> str:
    return "holds" if holds else "refused"


def fewest_images(version: PublishedVersion) -> tuple[int, str]:
    """How many images the class has that has the fewest, and its name."""
    counts = dict.fromkeys(range(len(version.classes)), 0)
    for receipt in version.shards:
        counts[int(receipt.task.partition("-")[0])] += receipt.samples
    fewest = min(counts, key=counts.__getitem__)
    return counts[fewest], version.classes[fewest]


def diversity(version: PublishedVersion) -> float:
    """The mean over classes of 1 - the mean cosine between the teacher's embeddings of its images.

    From 0 (all alike) to about 1; of a few shards of each class. A class of one image counts 0.
    """
    shards = defaultdict(list)
    for receipt in version.shards:
        if receipt.samples:
            shards[receipt.task.partition("-")[0]].append(receipt)
    found = []
    for receipts in shards.values():
        step = -(-len(receipts) // SHARDS_PER_CLASS)
        samples = (s for receipt in receipts[::step] for s in version.samples(receipt))
        rows = [sample.arrays["embedding"].astype(np.float64) for sample in samples]
        rows = [row for row in rows[:: -(-len(rows) // EMBEDDINGS)] if row.any()]
        alone = len(rows) < 2
        within = 1.0 if alone else pair_cosines(np.stack(rows), np.zeros(len(rows), int))[0].mean()
        found.append(1.0 - float(within))
    return sum(found) / len(version.classes)


def current_of(root: Storage, method: str) -> PublishedVersion | None:
    """The version of a method that readers use."""
    return current(root.child(layout.data(method)))
