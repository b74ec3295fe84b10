"""`report.html`: one self-contained page about a run.

`facts.py` collects what the page shows. Each function here computes one part of it for the template
`page.html.jinja`.
"""

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib import metadata, resources
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from dfkd.config.identity import as_stored, changed_settings
from dfkd.config.manifest import Manifest
from dfkd.distillation.student_store import locate_students
from dfkd.errors import ManifestError
from dfkd.evaluation.results import read_results
from dfkd.export.choice import answer, points, read_candidates
from dfkd.prompts.diversity import NEAR_DUPLICATE_COSINE
from dfkd.report import frontier
from dfkd.report.facts import Facts, collect, commit, note_origin
from dfkd.report.gallery import shown_classes
from dfkd.report.tables import HEADS
from dfkd.report.wording import FILTERS, figures, headline, verdict
from dfkd.storage import layout
from dfkd.storage.base import Storage
from dfkd.storage.local import open_storage
from dfkd.utils.yaml import dump

SLOTS = {"teacher": 0, "labeller": 0, "vanilla": 1, "mix": 2, "random": 3, "contrastive": 4}
"""The number of each model's colour on the page."""
OTHER_SLOTS = (5, 6, 7)
"""Colours of further methods, by name; when they run out, those of absent methods are used."""
CLASS_LINES = 200
"""Maximum number of rows in the table of classes."""
MATRIX_CLASSES = 100
"""Maximum number of classes for a confusion matrix."""
CONFUSIONS = 4
"""Number of most frequent confusions listed for each model."""
PANELS = 24
"""Maximum number of domains with their own chart; the table shows all domains."""

FRAME = ("WIDTH", "HEIGHT", "LEFT", "RIGHT", "TOP", "BOTTOM")
"""What a template needs to know of the picture of the candidates."""

SECTIONS = {
    "ship": "What to ship", "accuracy": "Accuracy", "confusion": "Confusions", "classes": "Classes",
    "images": "Images", "doubtful": "Least certain images", "prompts": "Diversity",
    "cost": "Time and cost", "provenance": "Provenance",
}  # fmt: skip
"""Anchor and heading of each section, in the order of the page."""


def write(manifest: Manifest, command: str) -> str:
    """Write report.html about the finished run of a manifest; returns its location.

    Args:
        manifest: of the run.
        command: command that repeats the run; the page shows it.

    Raises:
        ManifestError: the run is not finished, or its results are of other students.
        CorruptionError: an object of the run is damaged.
    """
    storage = open_storage(manifest.storage.root)
    # Before report.json is written.
    if manifest.evaluation.scored:
        _require_scored(manifest, read_results(storage)["students"])
    else:
        read_candidates(storage)
    note_origin(storage, manifest, command)
    return write_stored(storage)


def _require_scored(manifest: Manifest, scored: Collection[str]) -> None:
    """Refuse a manifest whose students are not those that results.json scores, or whose settings
    are not those of their versions: the page would show what is not of one run.
    """
    wanted = "student" in manifest.evaluation.scored
    locations = locate_students(manifest) if wanted else []
    names = {location.name for location in locations}
    if different := names.symmetric_difference(scored):
        raise ManifestError(
            "manifest",
            "must be that of the students that results.json scores",
            sorted(different)[0],
            "run dfkd evaluate with this manifest first",
        )
    # Students are found on the current version, whatever the manifest says of its synthesis.
    for location in locations:
        stored = location.version.facts["identity"]
        single = manifest.with_method(location.method)
        for key in changed_settings(single, stored):
            raise ManifestError(
                key,
                f"must be that of version {location.version.id}, {stored.get(key)!r}",
                as_stored(single, stored).get(key),
                "give the manifest of the run, or run dfkd pipeline with this one",
            )


def write_stored(storage: Storage) -> str:
    """Write report.html about the run under `storage`; see `write`."""
    storage.put(layout.REPORT, render(collect(storage)).encode())
    return storage.location(layout.REPORT)


def render(facts: Facts) -> str:
    """The page about a run; the same facts give the same text."""
    slots = slots_of(facts)
    # All versions of a run share weights and libraries.
    weights: dict[str, str] = {}
    environment: dict[str, str] = {}
    for images in facts.method_images:
        weights |= images.version.facts["weights"]
        environment |= images.version.facts["environment"]
    # Sections without content are left out together with their links.
    found = facts.candidates
    files = points(found) if found else []
    chosen = answer(found) if found else None
    present = {
        "ship": bool(found),
        **dict.fromkeys(("accuracy", "confusion", "classes"), bool(facts.scored)),
        **dict.fromkeys(("images", "doubtful", "prompts"), bool(facts.method_images)),
    }  # fmt: skip
    return template("page.html.jinja").render(
        title=facts.name,
        sections=[(key, name) for key, name in SECTIONS.items() if present.get(key, True)],
        facts=facts,
        candidates=found,
        answer=chosen,
        chosen=[choice.point.name for choice in chosen.choices] if chosen else [],
        files=sorted(files, key=lambda point: -point.mean),
        intervals=any(point.half is not None for point in files),
        frontiers=frontier.panels(found, chosen) if found and chosen else [],
        slots=slots,
        headline=headline(facts) if facts.scored else None,
        verdict=verdict(facts.candidates) if facts.candidates else None,
        numbers=figures(facts),
        spread=any(model.summary["std"] is not None for model in facts.scored),
        accuracy=accuracy_charts(facts, slots),
        best=_best(facts),
        matrices=_matrices(facts),
        open_matrix=(facts.best or facts.scored[0]).label if facts.scored else "",
        confusions=_confusions(facts),
        per_class=_per_class(facts) if facts.scored else [],
        diversities=_diversities(facts),
        twin=NEAR_DUPLICATE_COSINE,
        heads=HEADS,
        entries=sorted(
            facts.entries, key=lambda each: (each.stage != "synthesize", slots.get(each.method, 0))
        ),
        longest=max((entry.seconds for entry in facts.entries), default=0) or 1,
        weights=sorted(weights.items()),
        environment=sorted(environment.items()),
        manifest=dump(facts.origin.manifest) if facts.origin else None,
        commit=commit(),
    )


def slots_of(*runs: Facts) -> dict[str, int]:
    """Colour numbers of the teacher and of all methods in the runs."""
    labels = {model.label for facts in runs for model in facts.scored}
    labels |= {images.method for facts in runs for images in facts.method_images}
    # A method keeps its colour on every page, so only colours of absent methods are given away.
    free = [*OTHER_SLOTS, *(slot for name, slot in SLOTS.items() if slot and name not in labels)]
    others = sorted(labels - SLOTS.keys())
    return SLOTS | {name: free[i % len(free)] for i, name in enumerate(others)}


@functools.cache
def _environment() -> jinja2.Environment:
    """The templates of this package with their filters and globals; loaded once."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dfkd.report", "."),
        autoescape=True,  # names of classes, domains and files come from strangers
        undefined=jinja2.StrictUndefined,  # a misspelt name is an error and not an empty place
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS | {"shade": shade}
    package = resources.files("dfkd.report")
    environment.globals |= {
        "css": Markup((package / "page.css").read_text("utf-8")),  # noqa: S704 - our own
        "js": Markup((package / "page.js").read_text("utf-8")),  # noqa: S704 - our own
        "version": metadata.version("dfkd"),
        "shown": _shown,
        **{name.lower(): getattr(frontier, name) for name in FRAME},
    }
    return environment


def template(name: str) -> jinja2.Template:
    """A template of this package; it escapes all values."""
    return _environment().get_template(name)


def _shown(facts: Facts) -> list[int]:
    """Indices of the classes with at least one image on the page."""
    return [
        c
        for c in shown_classes(facts.classes)
        if any(images.gallery.strips.get(c) for images in facts.method_images)
    ]


def shade(share: float) -> str:
    """How strong the colour of a cell is for a share from 0 to 1: text is readable on all."""
    return f"{5 + round(45 * share)}%"


@dataclass(frozen=True)
class ModelBar:
    """A model's accuracy in a bar chart, in percent."""

    name: str
    slot: int
    """Number of its colour."""
    mean: float
    std: float | None
    low: float
    high: float
    """Ends of the line of ± one standard deviation."""


def band(mean: float, std: float | None) -> tuple[float, float]:
    """One standard deviation below and above an accuracy 0-1, in percent; None counts as 0."""
    # A band that leaves 0 to 100 % would stretch the axis.
    return 100 * max(mean - (std or 0), 0), 100 * min(mean + (std or 0), 1)


def accuracy_charts(
    facts: Facts, slots: Mapping[str, int], panels: int = PANELS
) -> list[tuple[str, str, list[ModelBar]]]:
    """Title, remark and bars of the mean and of at most `panels` domains."""
    domains = list(facts.images)
    chart_list = []
    for domain in ["", *domains[:panels]]:
        bars = []
        for model in facts.scored:
            if found := model.on(domain):
                mean, std = found["mean"], found["std"]
                low, high = band(mean, std)
                percent = None if std is None else 100 * std
                slot = slots[model.label]
                bars.append(ModelBar(model.label, slot, 100 * mean, percent, low, high))
        title = domain.replace("_", " ") if domain else f"Mean of {len(domains)} domains"
        aside = f"{facts.images[domain]:,} images" if domain else ""
        chart_list.append((title, aside, bars))
    return chart_list


def _best(facts: Facts) -> dict[str, set[str]]:
    """Labels of the best students by domain, '' for the mean; empty for fewer than two students."""
    if len(facts.students) < 2:
        return {}
    best_labels: dict[str, set[str]] = {}
    for domain in ["", *facts.images]:
        means = {s.label: spread["mean"] for s in facts.students if (spread := s.on(domain))}
        highest = max(means.values(), default=0.0)
        best_labels[domain] = {label for label, mean in means.items() if mean == highest}
    return best_labels


def _matrices(facts: Facts) -> list[dict[str, Any]]:
    """Each model's confusion counts, with the row's share; empty for very many classes."""
    if len(facts.classes) > MATRIX_CLASSES:
        return []
    matrices = []
    for model in facts.scored:
        sums = np.maximum(model.confusion.sum(axis=1), 1)
        lines = [
            [(count, count / total) for count in line]
            for line, total in zip(model.confusion.tolist(), sums.tolist(), strict=True)
        ]
        right, total = int(model.confusion.trace()), int(model.confusion.sum())
        matrices.append({"label": model.label, "lines": lines, "right": right, "total": total})
    return matrices


def _confusions(facts: Facts) -> list[tuple[str, int, int, int, float]]:
    """Label, true class, answer, count and share of the class, of each model's top confusions."""
    confusions = []
    for model in facts.scored:
        wrong = model.confusion.copy()
        np.fill_diagonal(wrong, 0)
        sums = model.confusion.sum(axis=1)
        for cell in np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS].tolist():
            true, answer = divmod(cell, len(facts.classes))
            if wrong[true, answer]:
                times = int(wrong[true, answer])
                confusions.append((model.label, true, answer, times, times / int(sums[true])))
    return confusions


def _per_class(facts: Facts) -> list[dict[str, Any]]:
    """A row for each class; of very many, those that the best student recognises least."""
    accuracies = [_recall(model.confusion) for model in facts.scored]
    leading = facts.best or facts.scored[0]
    order = np.arange(len(facts.classes))
    if len(order) > CLASS_LINES:
        recall = _recall(leading.confusion)
        order = np.argsort(np.nan_to_num(recall, nan=2.0), kind="stable")[:CLASS_LINES]
    # Images made, images failed, and mean confidence of each class, over all methods.
    made, failed, confidences, read = np.zeros((4, len(facts.classes)))
    for images in facts.method_images:
        # Counts come from the version, because the index may have been read in part.
        made += images.version.facts["class_samples"]
        failed += images.version.facts["class_failed"]
        np.add.at(confidences, images.index.class_index, images.index.confidence)
        np.add.at(read, images.index.class_index, 1)
    # The confusion matrix is a sum over seeds, so each image was counted once for each seed.
    runs = max(len(leading.summary["seeds"]), 1)
    return [
        {
            "name": facts.classes[c],
            "images": int(leading.confusion[c].sum()) // runs,
            "accuracies": [
                None if np.isnan(recall[c]) else float(recall[c]) for recall in accuracies
            ],
            "made": int(made[c]),
            "failed": int(failed[c]),
            "confidence": float(confidences[c] / read[c]) if read[c] else None,
        }
        for c in order.tolist()
    ]  # fmt: skip


def _recall(confusion: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The share [M] of each true class that is answered right; NaN for a class without images."""
    sums = confusion.sum(axis=1).astype(np.float64)
    shares: npt.NDArray[Any] = np.full(len(sums), np.nan)
    np.divide(confusion.diagonal(), sums, out=shares, where=sums > 0)
    return shares


def _diversities(facts: Facts) -> list[dict[str, Any]]:
    """A row for each method: statistics of its prompts and images, and its students' scores."""
    summaries = {scored.label: scored.summary for scored in facts.students}
    rows = []
    for images in facts.method_images:
        manifest, shown = images.version.facts, images.gallery
        made, others = manifest["samples"], manifest["inconsistent"]
        rows.append(
            {
                "method": images.method,
                "prompts": images.prompts,
                "cosine": float(shown.within.mean()) if len(shown.within) else None,
                "vendi": shown.vendi,
                "twins": shown.twins,
                "own_class": 1 - others / made if made else None,
                "students": summaries.get(images.method),
            }
        )
    return rows
