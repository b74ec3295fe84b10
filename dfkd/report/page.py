"""`report.html`: one self-contained page about a run, for people."""

import functools
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata, resources
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from dfkd.config.manifest import Manifest
from dfkd.distillation.student_store import place
from dfkd.evaluation.results import ClassSummary, summarise_classes
from dfkd.prompts.diversity import NEAR_DUPLICATE_COSINE
from dfkd.report import charts, diversity
from dfkd.report.diversity import MEASURES, diversities, rank_correlation
from dfkd.report.facts import Facts, collect, label_of, note_origin, require_finished
from dfkd.report.gallery import shown_classes
from dfkd.report.tables import HEADS
from dfkd.report.wording import FILTERS, figures, headline
from dfkd.storage.cost_records import CostRecord
from dfkd.storage.local import Storage, open_storage
from dfkd.utils.yaml import dump

PAGE = "report.html"
SLOTS = {"teacher": 0, "vanilla": 1, "mix": 2, "random": 3, "contrastive": 4}
"""Which of the page's colours is whose, everywhere."""
OTHER_SLOTS = (5, 6, 7)
"""Of methods without a colour of their own, by name; further ones take those of absent methods."""
MATRIX_CLASSES = 100
"""Classes that a confusion matrix, or a table with a column for each, is shown of."""
CLASS_LINES = 200
CONFUSIONS = 4
"""Most frequent confusions of each model."""
PANELS = 24
"""Domains with a chart of their own; the table has all."""

SECTIONS = {
    "accuracy": "Accuracy", "confusion": "Confusions", "classes": "Classes",
    "images": "Images", "doubtful": "Worst and rejected", "prompts": "Diversity",
    "training": "Training", "cost": "Time and cost", "takehome": "Take-home student",
    "provenance": "Provenance",
}  # fmt: skip


def write(manifest: Manifest, command: str) -> str:
    """Write report.html about the finished run of a manifest; returns its place, for display.

    Args:
        manifest: of the run.
        command: that makes the run again, or finds it made; shown as it is.

    Raises:
        ManifestError: the run is not finished.
        CorruptionError: something that it left is damaged.
    """
    storage = open_storage(manifest.storage.root)
    require_finished(storage)
    students = []
    if "student" in manifest.evaluation.models:
        students = [
            place(manifest, method, seed).name
            for method in manifest.methods
            for seed in manifest.distillation.seeds
        ]
    note_origin(storage, manifest, command, students)
    return write_stored(storage)


def write_stored(storage: Storage) -> str:
    """Write report.html and diversity.json about the run under `storage`; see `write`."""
    facts = collect(storage)
    diversity.write(storage, diversities(facts))
    storage.put(PAGE, render(facts).encode())
    return storage.location(PAGE)


def render(facts: Facts) -> str:
    """The page about a run: the same facts give the same text."""
    slots = slots_of(facts)
    present = {
        "images": bool(facts.made), "doubtful": bool(facts.made), "prompts": bool(facts.made),
        "takehome": facts.takehome is not None,
    }  # fmt: skip
    return template("page.html.jinja").render(
        title=facts.name,
        sections=[(key, name) for key, name in SECTIONS.items() if present.get(key, True)],
        facts=facts,
        slots=slots,
        headline=headline(facts),
        numbers=figures(facts),
        spread=any(model.summary["std"] is not None for model in facts.scored),
        accuracy=accuracy_charts(facts, slots),
        best=_best(facts),
        matrices=_matrices(facts),
        confusions=_confusions(facts),
        per_class=_per_class(facts),
        by_class=_by_class(facts),
        image_charts=_image_charts(facts, slots),
        diversity=_diversity(facts, slots),
        diversities=diversities(facts),
        twin=NEAR_DUPLICATE_COSINE,
        measures=MEASURES,
        heads=HEADS,
        training=_training(facts, slots),
        longest=max((entry.seconds for entry in facts.entries), default=0) or 1,
        takehome=facts.takehome,
        **_provenance(facts),
    )


def slots_of(*runs: Facts) -> dict[str, int]:
    """The colour of the teacher and of each method of some runs."""
    found = {model.label for facts in runs for model in facts.scored}
    found |= {made.method for facts in runs for made in facts.made}
    free = [*OTHER_SLOTS, *(slot for name, slot in SLOTS.items() if slot and name not in found)]
    others = sorted(found - SLOTS.keys())
    return SLOTS | {name: free[i % len(free)] for i, name in enumerate(others)}


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dfkd.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS | {"by_stage": _by_stage, "level": level}
    package = resources.files("dfkd.report")
    environment.globals |= {
        "css": Markup((package / "page.css").read_text("utf-8")),  # noqa: S704 - our own
        "js": Markup((package / "page.js").read_text("utf-8")),  # noqa: S704 - our own
        "version": metadata.version("dfkd"),
        "shown": _shown,
        "label_of": label_of,
        "own_class": _own_class,
        "rank_correlation": rank_correlation,
    }
    return environment


def template(name: str) -> jinja2.Template:
    """A template of this package; all that it is given is escaped."""
    return _environment().get_template(name)


def _shown(facts: Facts) -> list[int]:
    """Classes with an image on the page."""
    return [
        c
        for c in shown_classes(facts.classes)
        if any(made.gallery.strips.get(c) for made in facts.made)
    ]


def _own_class(made: Any) -> str:
    share = made.prompts.statistics.get("own_class") if made.prompts else None
    return f"{100 * share:.1f} %" if isinstance(share, float | int) else "-"


def level(share: float) -> int:
    """The shade 1 to 9 of a share from 0 to 1."""
    return min(1 + int(9 * share), 9)


def accuracy_charts(
    facts: Facts, slots: Mapping[str, int], panels: int = PANELS
) -> list[tuple[str, str, Markup]]:
    """Title, aside and bars of each model: of the mean, and of at most `panels` domains."""
    found = []
    domains = list(facts.images)
    for domain in ["", *domains[:panels]]:
        bars = []
        for model in facts.scored:
            spread = model.summary["domains"].get(domain) if domain else model.summary
            if spread:
                bars.append(
                    charts.ModelBar(model.label, slots[model.label], spread["mean"], spread["std"])
                )
        title = domain.replace("_", " ") if domain else f"Mean of {len(domains)} domains"
        aside = f"{facts.images[domain]:,} images" if domain else ""
        found.append((title, aside, charts.bars(title, bars)))
    return found


def _best(facts: Facts) -> dict[str, set[str]]:
    """The best students of each domain, and of the mean under ''; none where there is one only."""
    if len(facts.students) < 2:
        return {}
    found: dict[str, set[str]] = {}
    for domain in ["", *facts.images]:
        means = {
            s.label: (s.summary["domains"][domain] if domain else s.summary)["mean"]
            for s in facts.students
            if not domain or domain in s.summary["domains"]
        }
        highest = max(means.values(), default=0.0)
        found[domain] = {label for label, mean in means.items() if mean == highest}
    return found


def _matrices(facts: Facts) -> list[dict[str, Any]]:
    """Counts of each model with their shades, a row's share each; none of very many classes."""
    if len(facts.classes) > MATRIX_CLASSES:
        return []
    matrices = []
    for model in facts.scored:
        sums = np.maximum(model.confusion.sum(axis=1), 1)
        lines = [
            [(count, level(count / total)) for count in line]
            for line, total in zip(model.confusion.tolist(), sums.tolist(), strict=True)
        ]
        right, total = int(model.confusion.trace()), int(model.confusion.sum())
        matrices.append({"label": model.label, "lines": lines, "right": right, "total": total})
    return matrices


def _confusions(facts: Facts) -> list[tuple[str, int, int, int, float]]:
    """Label, true class, answer, count and share of the class: the commonest of each model."""
    found = []
    for model in facts.scored:
        wrong = model.confusion.copy()
        np.fill_diagonal(wrong, 0)
        sums = model.confusion.sum(axis=1)
        for cell in np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS].tolist():
            true, answer = divmod(cell, len(facts.classes))
            if wrong[true, answer]:
                times = int(wrong[true, answer])
                found.append((model.label, true, answer, times, times / int(sums[true])))
    return found


def _per_class(facts: Facts) -> list[dict[str, Any]]:
    """A line for each class; of very many, the ones that the best student knows least."""
    accuracies = [_recall(model.confusion) for model in facts.scored]
    leading = facts.best or facts.scored[0]
    order = np.arange(len(facts.classes))
    if len(order) > CLASS_LINES:
        recall = _recall(leading.confusion)
        order = np.argsort(np.nan_to_num(recall, nan=2.0), kind="stable")[:CLASS_LINES]
    made, failed, confidence = _synthesised(facts)
    runs = max(len(leading.summary["seeds"]), 1)
    return [
        {
            "name": facts.classes[c],
            "images": int(leading.confusion[c].sum()) // runs,
            "accuracies": [
                None if np.isnan(recall[c]) else float(recall[c]) for recall in accuracies
            ],
            "made": made[c],
            "failed": failed[c],
            "confidence": confidence[c],
        }
        for c in order.tolist()
    ]  # fmt: skip


def _by_class(facts: Facts) -> dict[str, list[ClassSummary]]:
    """Of each domain, where accuracy is the mean over classes and these are not very many."""
    if facts.average != "classes" or len(facts.classes) > MATRIX_CLASSES:
        return {}
    return {domain: summarise_classes(facts.rows, domain) for domain in facts.images}


def _recall(confusion: npt.NDArray[Any]) -> npt.NDArray[Any]:
    sums = confusion.sum(axis=1).astype(np.float64)
    shares: npt.NDArray[Any] = np.full(len(sums), np.nan)
    np.divide(confusion.diagonal(), sums, out=shares, where=sums > 0)
    return shares


def _synthesised(facts: Facts) -> tuple[list[int], list[int], list[float | None]]:
    """Images made and failed, and mean confidence, of each class over all methods."""
    M = len(facts.classes)
    made, failed = [0] * M, [0] * M
    total, count = np.zeros(M), np.zeros(M)
    for one in facts.made:
        for receipt in one.version.shards:
            c = int(receipt.task.partition("-")[0])
            made[c] += receipt.samples
            failed[c] += len(receipt.failed)
        np.add.at(total, one.index.class_index, one.index.confidence)
        np.add.at(count, one.index.class_index, 1)
    means = [float(t / n) if n else None for t, n in zip(total, count, strict=True)]
    return made, failed, means


def _image_charts(facts: Facts, slots: Mapping[str, int]) -> list[tuple[str, Markup]]:
    if not any(made.index.rows for made in facts.made):
        return []

    def chart(
        title: str, values: Callable[[Any], npt.NDArray[Any]], span: tuple[float, float]
    ) -> Markup:
        groups = [(m.method, slots[m.method], values(m.index)) for m in facts.made]
        return charts.histogram(title, groups, *span)

    losses = np.concatenate([made.index.loss for made in facts.made])
    low, high = float(losses.min()), float(losses.max())
    edge = max((high - low) * 0.02, 1e-3)
    return [
        ("Teacher's confidence in the class", chart("confidence", lambda i: i.confidence, (0, 1))),
        ("Final loss", chart("loss", lambda i: i.loss, (low - edge, high + edge))),
    ]


def _diversity(facts: Facts, slots: Mapping[str, int]) -> list[tuple[str, Markup, Markup]]:
    with_prompts = [made.prompts for made in facts.made if made.prompts]
    low = min(
        (float(v.min()) for p in with_prompts for v in (p.within, p.across) if len(v)), default=0.0
    )
    low = np.floor(10 * low) / 10
    return [
        (
            p.method,
            charts.histogram(
                "cosine",
                [("within a class", slots[p.method], p.within), ("across classes", 0, p.across)],
                min(low, 0.9),
                1.0,
            ),
            charts.prompt_map(p, facts.classes),
        )
        for p in with_prompts
    ]


def _training(facts: Facts, slots: Mapping[str, int]) -> list[tuple[str, Markup]]:
    found = [(t.curve, slots[t.method]) for t in facts.trained if t.curve and t.curve.steps]
    if not found:
        return []
    return [
        ("Loss", charts.curves("loss", found)),
        ("Agreement with the teacher", charts.curves("agreement", found)),
    ]


def _by_stage(entries: Sequence[CostRecord]) -> list[CostRecord]:
    order = ("synthesize", "distill", "evaluate")
    return sorted(entries, key=lambda entry: order.index(entry.stage))


def _provenance(facts: Facts) -> dict[str, Any]:
    """Weights, libraries and manifest; of the versions, which are made by the same ones."""
    weights: dict[str, str] = {}
    environment: dict[str, str] = {}
    for made in facts.made:
        weights |= {str(k): str(v) for k, v in made.version.manifest["weights"].items()}
        environment |= {str(k): str(v) for k, v in made.version.manifest["environment"].items()}
    manifest = facts.origin.manifest if facts.origin else None
    return {
        "weights": sorted(weights.items()),
        "environment": sorted(environment.items()),
        "manifest": manifest and dump(manifest),
    }
