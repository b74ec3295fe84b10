"""`comparison.html`: two runs next to each other, and their differences."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfkd.config.fingerprint import flatten
from dfkd.report.facts import MAX_URI_CHARACTERS, Facts, ScoredModel, collect
from dfkd.report.gallery import reduced_to_budget
from dfkd.report.page import accuracy_charts, slots_of, template
from dfkd.report.wording import figures, headline
from dfkd.storage.local import Storage

PAGE = "comparison.html"
SECTIONS = [
    ("accuracy", "Accuracy"), ("charts", "Means"), ("settings", "What differs"),
    ("images", "Images"), ("provenance", "Provenance"),
]  # fmt: skip
MARKS = ("A", "B")
"""Names of the first and the second run on the page."""


@dataclass(frozen=True)
class AccuracyPair:
    """A model's accuracy on one domain in both runs, 0-1; None for a run that did not score it."""

    first: float | None
    second: float | None

    @property
    def points(self) -> float | None:
        """The second run's accuracy minus the first's, in percentage points."""
        if self.first is None or self.second is None:
            return None
        return 100 * (self.second - self.first)


def write(first: Storage, second: Storage) -> str:
    """Write comparison.html under the first run's root; returns its location.

    Raises:
        ManifestError: one of the runs is not finished.
        CorruptionError: an object of a run is damaged.
    """
    text = render(collect(first), collect(second))
    first.put(PAGE, text.encode())
    return first.location(PAGE)


def render(first: Facts, second: Facts, verdict: Sequence[tuple[str, str, str, str]] = ()) -> str:
    """The page about two runs; the same facts give the same text.

    Args:
        verdict: for a regeneration: rule, current value, candidate's value, and whether it holds.
    """
    runs = [_with_half_the_images(facts) for facts in (first, second)]
    slots = slots_of(first, second)
    # The mean '' comes last, after the domains of both runs.
    domains = [*dict.fromkeys([*first.images, *second.images]), ""]
    return template("compare.html.jinja").render(
        title=f"{first.name} and {second.name}",
        sections=SECTIONS,
        runs=[
            {
                "mark": mark,
                "facts": facts,
                "headline": headline(facts),
                "numbers": figures(facts),
                "chart": accuracy_charts(facts, slots, panels=0)[0][2],
            }
            for mark, facts in zip(MARKS, runs, strict=True)
        ],
        slots=slots,
        verdict=verdict,
        domains=domains,
        comparable=_measured(first) == _measured(second),
        differences=differences(first, second, domains),
        sizes=sizes(first, second),
        settings=settings(first, second),
        manifests=bool(first.origin and second.origin),
    )


def _measured(facts: Facts) -> tuple[Any, ...]:
    """What accuracies are about: only runs with the same can be compared."""
    return facts.images, facts.classes, facts.average


def _with_half_the_images(facts: Facts) -> Facts:
    """The facts with half the bytes of images, because one page shows two runs."""
    galleries = reduced_to_budget(
        [images.gallery for images in facts.method_images], MAX_URI_CHARACTERS // 2
    )
    reduced = [
        dataclasses.replace(images, gallery=gallery)
        for images, gallery in zip(facts.method_images, galleries, strict=True)
    ]
    return dataclasses.replace(facts, method_images=reduced)


def differences(
    first: Facts, second: Facts, domains: Sequence[str]
) -> list[tuple[str, list[AccuracyPair]]]:
    """One pair for each model and domain; the domain '' stands for their mean."""
    return [
        (
            label,
            [
                AccuracyPair(_mean(first, label, name), _mean(second, label, name))
                for name in domains
            ],
        )
        for label in _labels(first, second)
    ]


def _labels(*runs: Facts) -> list[str]:
    """The models that any of the runs has scored, each once."""
    return list(dict.fromkeys(model.label for facts in runs for model in facts.scored))


Pair = tuple[float | None, float | None]
"""A figure of the first and of the second run; None where it is unknown."""


def sizes(first: Facts, second: Facts) -> dict[str, tuple[Pair, Pair]]:
    """Megabytes and milliseconds in both runs, by label; None where a model was not scored."""
    by_label = {}
    for label in _labels(first, second):
        before, after = (_size(_model(facts, label)) for facts in (first, second))
        by_label[label] = ((before[0], after[0]), (before[1], after[1]))
    return by_label


def _size(model: ScoredModel | None) -> Pair:
    """Megabytes and milliseconds of a model."""
    return (model.megabytes, model.ms) if model else (None, None)


def _model(facts: Facts, label: str) -> ScoredModel | None:
    """The model with a label; None if the run did not score it."""
    return next((model for model in facts.scored if model.label == label), None)


def _mean(facts: Facts, label: str, domain: str) -> float | None:
    """A model's accuracy on a domain, or the mean over domains for ''."""
    model = _model(facts, label)
    spread = model.on(domain) if model else None
    return spread["mean"] if spread else None


def settings(first: Facts, second: Facts) -> list[tuple[str, str, str]]:
    """Key and both values wherever the manifests or the identities of the data sets differ."""
    first_flat, second_flat = _flat_settings(first), _flat_settings(second)
    return [
        (key, _shown(first_flat, key), _shown(second_flat, key))
        for key in sorted(first_flat.keys() | second_flat.keys())
        if first_flat.get(key) != second_flat.get(key)
    ]


def _flat_settings(facts: Facts) -> dict[str, Any]:
    """The manifest's keys, written with dots, and the identity of each method's version."""
    flat = flatten(facts.origin.manifest) if facts.origin else {}
    for images in facts.method_images:
        for key, value in images.version.manifest["identity"].items():
            # The manifest already has all settings of an identity except the hashes of weights.
            if not facts.origin or key.endswith(".sha256"):
                flat[f"{images.method}: {key}"] = value
    return flat


def _shown(flat: Mapping[str, Any], key: str) -> str:
    """The text of a setting; a dash for a run that does not have it."""
    value = flat.get(key, "-")
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
