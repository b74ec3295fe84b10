"""`comparison.html`: two runs side by side, and in what they differ."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dfkd.report.facts import URIS, Facts, ScoredModel, collect
from dfkd.report.gallery import thinned
from dfkd.report.page import accuracy_charts, slots_of, template
from dfkd.report.wording import figures, headline
from dfkd.storage.local import Storage

PAGE = "comparison.html"
SECTIONS = [
    ("accuracy", "Accuracy"), ("charts", "Means"), ("settings", "What differs"),
    ("images", "Images"), ("provenance", "Provenance"),
]  # fmt: skip
MARKS = ("A", "B")


@dataclass(frozen=True)
class AccuracyPair:
    """A model's accuracy on one domain in both runs, 0-1; None where it was not scored."""

    first: float | None
    second: float | None

    @property
    def points(self) -> float | None:
        """Percentage points of the second run more than the first."""
        if self.first is None or self.second is None:
            return None
        return 100 * (self.second - self.first)


def write(first: Storage, second: Storage) -> str:
    """Write comparison.html under the root of the first of two finished runs; returns its place.

    Raises:
        ManifestError: one of them is not finished.
        CorruptionError: something that they left is damaged.
    """
    text = render(collect(first), collect(second))
    first.put(PAGE, text.encode())
    return first.location(PAGE)


def render(first: Facts, second: Facts, verdict: Sequence[tuple[str, str, str, str]] = ()) -> str:
    """The page about two runs; the same facts give the same text.

    Args:
        verdict: rule, current value, candidate's value and whether it holds, of a regeneration.
    """
    runs = [_halved(facts) for facts in (first, second)]
    slots = slots_of(first, second)
    domains = list(dict.fromkeys([*first.images, *second.images, ""]))
    domains.sort(key=lambda name: name == "")
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
    return facts.images, facts.classes, facts.average


def _halved(facts: Facts) -> Facts:
    """The facts with half of the images' bytes, as one page shows two runs."""
    galleries = thinned([made.gallery for made in facts.made], URIS // 2)
    made = [dataclasses.replace(m, gallery=g) for m, g in zip(facts.made, galleries, strict=True)]
    return dataclasses.replace(facts, made=made)


def differences(
    first: Facts, second: Facts, domains: Sequence[str]
) -> list[tuple[str, list[AccuracyPair]]]:
    """For the teacher and each method a cell for each domain; '' is the mean over domains."""
    labels = dict.fromkeys(model.label for facts in (first, second) for model in facts.scored)
    return [
        (
            label,
            [
                AccuracyPair(_mean(first, label, name), _mean(second, label, name))
                for name in domains
            ],
        )
        for label in labels
    ]


Pair = tuple[float | None, float | None]


def sizes(first: Facts, second: Facts) -> dict[str, tuple[Pair, Pair]]:
    """By label the megabytes and the milliseconds in both runs; None where it was not scored."""
    labels = dict.fromkeys(model.label for facts in (first, second) for model in facts.scored)
    found = {}
    for label in labels:
        one, two = (_size(_model(facts, label)) for facts in (first, second))
        found[label] = ((one[0], two[0]), (one[1], two[1]))
    return found


def _size(model: ScoredModel | None) -> Pair:
    return (model.megabytes, model.ms) if model else (None, None)


def _model(facts: Facts, label: str) -> ScoredModel | None:
    return next((model for model in facts.scored if model.label == label), None)


def _mean(facts: Facts, label: str, domain: str) -> float | None:
    model = _model(facts, label)
    if model is None:
        return None
    found = model.summary["domains"].get(domain) if domain else model.summary
    return found["mean"] if found else None


def settings(first: Facts, second: Facts) -> list[tuple[str, str, str]]:
    """Key and both values of all that differs in the manifests and in the data sets' identities."""
    one, two = _flat(first), _flat(second)
    return [
        (key, _shown(one, key), _shown(two, key))
        for key in sorted(one.keys() | two.keys())
        if one.get(key) != two.get(key)
    ]


def _flat(facts: Facts) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    if facts.origin:
        _add(flat, "", facts.origin.manifest)
    for made in facts.made:
        for key, value in made.version.manifest["identity"].items():
            if not facts.origin or key.endswith(".sha256"):
                flat[f"{made.method}: {key}"] = value
    return flat


def _add(flat: dict[str, Any], prefix: str, tree: Mapping[str, Any]) -> None:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            _add(flat, f"{prefix}{key}.", value)
        else:
            flat[f"{prefix}{key}"] = value


def _shown(flat: Mapping[str, Any], key: str) -> str:
    value = flat.get(key, "-")
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
