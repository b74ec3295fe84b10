"""`comparison.html`: two runs next to each other, and their differences."""

from collections.abc import Mapping, Sequence
from typing import Any

from dfkd.config.identity import flatten
from dfkd.report.facts import Facts, ScoredModel, collect
from dfkd.report.page import accuracy_charts, slots_of, template
from dfkd.report.wording import figures, headline
from dfkd.storage import layout
from dfkd.storage.base import Storage

SECTIONS = [
    ("accuracy", "Accuracy"), ("charts", "Means"), ("settings", "What differs"),
    ("images", "Images"), ("provenance", "Provenance"),
]  # fmt: skip
MARKS = ("A", "B")
"""Names of the first and the second run on the page."""


def write(first: Storage, second: Storage) -> str:
    """Write comparison.html under the first run's root; returns its location.

    Raises:
        ManifestError: one of the runs is not finished.
        CorruptionError: an object of a run is damaged.
    """
    text = render(collect(first), collect(second))
    first.put(layout.COMPARISON, text.encode())
    return first.location(layout.COMPARISON)


def render(first: Facts, second: Facts, verdict: Sequence[tuple[str, str, str, bool]] = ()) -> str:
    """The page about two runs; the same facts give the same text.

    Args:
        verdict: for a regeneration: rule, current value, challenger's value, and whether it holds.
    """
    slots = slots_of(first, second)
    # The mean '' comes last, after the domains of both runs.
    domains = [*dict.fromkeys([*first.images, *second.images]), ""]
    names = _names(first, second)
    return template("compare.html.jinja").render(
        title=" and ".join(names),
        sections=SECTIONS,
        runs=[
            {
                "mark": mark,
                "name": name,
                "facts": facts,
                "headline": headline(facts),
                "numbers": figures(facts),
                "chart": accuracy_charts(facts, slots, panels=0)[0][2],
            }
            for mark, name, facts in zip(MARKS, names, (first, second), strict=True)
        ],
        slots=slots,
        verdict=verdict,
        domains=domains,
        comparable=_measured(first) == _measured(second),
        models=compared_models(first, second, domains),
        settings=settings(first, second),
        manifests=bool(first.origin and second.origin),
    )


def _names(first: Facts, second: Facts) -> tuple[str, str]:
    """The names of the runs, with their locations if they are called the same."""
    if first.name != second.name:
        return first.name, second.name
    return f"{first.name} ({first.location})", f"{second.name} ({second.location})"


def _measured(facts: Facts) -> tuple[Any, ...]:
    """What accuracies are about: only runs with the same can be compared."""
    return facts.images, facts.classes, facts.average


ComparedModel = tuple[str, list[tuple[float | None, float | None]]]
"""A model's label, and its accuracy (0-1) in the first and the second run on each domain; None for
a run that did not score it there."""


def compared_models(first: Facts, second: Facts, domains: Sequence[str]) -> list[ComparedModel]:
    """Each model of the two runs, on these domains; the domain '' stands for their mean."""
    scored = [{model.label: model for model in facts.scored} for facts in (first, second)]
    return [
        (
            label,
            [
                (_accuracy(scored[0].get(label), domain), _accuracy(scored[1].get(label), domain))
                for domain in domains
            ],
        )
        for label in dict.fromkeys([*scored[0], *scored[1]])
    ]


def _accuracy(model: ScoredModel | None, domain: str) -> float | None:
    """A model's accuracy on a domain; None if the run scored no such model there."""
    spread = model.on(domain) if model else None
    return spread["mean"] if spread else None


def settings(first: Facts, second: Facts) -> list[tuple[str, str, str]]:
    """Key and both values wherever the manifests or the identities of the data sets differ.

    Manifests are compared if both runs have kept theirs.
    """
    manifests = bool(first.origin and second.origin)
    methods = [{images.method for images in facts.method_images} for facts in (first, second)]
    # Manifests tell which methods only one run has, and such a data set differs in every key.
    shown = methods[0] & methods[1] if manifests else methods[0] | methods[1]
    flat: list[dict[str, Any]] = []
    for facts in (first, second):
        flat.append(flatten(facts.origin.manifest) if manifests and facts.origin else {})
        for images in facts.method_images:
            if images.method in shown:
                identity = images.version.facts["identity"]
                flat[-1] |= {f"{images.method}: {key}": value for key, value in identity.items()}
    keys = {key for key in flat[0].keys() | flat[1].keys() if flat[0].get(key) != flat[1].get(key)}
    # What differs in the manifests need not be told of each method's data set again.
    told = sorted(key for key in keys if key.partition(": ")[2] not in keys)
    return [(key, _shown(flat[0], key), _shown(flat[1], key)) for key in told]


def _shown(flat: Mapping[str, Any], key: str) -> str:
    """The text of a setting; a dash for a run that does not have it."""
    value = flat.get(key, "-")
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
