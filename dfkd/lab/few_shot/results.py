"""Rows of few-shot accuracy: their schema, their summary, and `fewshot/results.json`.

`results.json` (schema 1), keys sorted, no dates, so that the same scores are the same bytes:

    schema       1
    architecture the architecture of every curve: a torchvision ResNet or timm:NAME
    classes      [name, ...]: the classes of every classifier, in the order of the counts
    data         {source, domains: [name, ...], notes: [line, ...], unreadable: [line, ...]}
    curves       {name: text}: fine-tuned starts "student", "library", "scratch"; with "student"
                 also "untouched", the student before any training
    rows         one per curve, domain, shots and seed:
      curve, domain
      shots      k; "untouched" also has 0, with all images tested
      seed       one of `--seeds`
      trained    [count, ...]: training images of each class; fewer than k if the class has too
                 few (`dfkd.lab.few_shot.tuning`)
      tested     [count, ...]: test images of each class, the rest of the domain
      right      [count, ...]: correct predictions among these
      accuracy   sum of right / sum of tested, 0-1
      class_mean mean accuracy over the classes with test images, 0-1
    average      "images" | "classes": whether `summary` uses `accuracy` or `class_mean` of rows
    summary      one per curve and shots:
      curve, shots, seeds: [int, ...]
      domains    {name: {mean, std}} over seeds, of the accuracy that `average` selects
      mean, std  over seeds, of the mean over domains; std (n - 1) is null for one seed
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from dfkd.config.distillation import Average
from dfkd.evaluation.results import Spread, domain_means, over_seeds, selected, spread
from dfkd.lab.charts import RenderedChart, Series
from dfkd.lab.charts import curve as curve_chart
from dfkd.lab.few_shot.settings import Start
from dfkd.report.tables import HEADS
from dfkd.storage.base import Storage
from dfkd.utils import strict_json
from dfkd.utils.markdown import escape, table

FOLDER = "fewshot"
KEY = f"{FOLDER}/results.json"

Curve = Literal["untouched"] | Start
CURVES: tuple[Curve, ...] = ("untouched", *get_args(Start))
Counts = tuple[int, ...]
"""Number of images of each class."""


@dataclass(frozen=True)
class FewShotRow:
    """The scores of one training; the module's docstring describes the fields."""

    curve: Curve
    domain: str
    shots: int
    seed: int
    trained: Counts
    tested: Counts
    right: Counts
    accuracy: float
    class_mean: float


@dataclass(frozen=True)
class Point:
    """Summary of a curve at one k; the module's docstring describes the fields."""

    curve: Curve
    shots: int
    seeds: tuple[int, ...]
    domains: dict[str, Spread]
    mean: float
    std: float | None


@dataclass(frozen=True)
class FewShotData:
    """The data of the trainings, and the images that could not be read."""

    source: str
    domains: tuple[str, ...]
    notes: tuple[str, ...]
    unreadable: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FewShotResults:
    """The content of `results.json`; the module's docstring describes the fields."""

    schema: Literal[1] = 1
    architecture: str
    classes: tuple[str, ...]
    data: FewShotData
    curves: dict[Curve, str]
    rows: tuple[FewShotRow, ...]
    average: Average = "images"
    summary: tuple[Point, ...]


def curves(starts: Sequence[Start]) -> tuple[Curve, ...]:
    """The curves of some starts: these, and `untouched` if the student is among them."""
    return ("untouched", *starts) if "student" in starts else tuple(starts)


def row(
    curve: Curve,
    domain: str,
    shots: int,
    seed: int,
    trained: Sequence[int],
    tested: Sequence[int],
    right: Sequence[int],
) -> FewShotRow:
    """The row computed from counts by class; at least one image must be tested."""
    # Classes without a test image have no accuracy and are left out of the mean.
    shares = [correct / total for correct, total in zip(right, tested, strict=True) if total]
    counts = (tuple(trained), tuple(tested), tuple(right))
    accuracy = sum(right) / sum(tested)
    return FewShotRow(curve, domain, shots, seed, *counts, accuracy, statistics.fmean(shares))


def sort_rows(rows: Sequence[FewShotRow]) -> list[FewShotRow]:
    """The rows sorted by curve, domain, shots and seed."""
    return sorted(rows, key=lambda row: (CURVES.index(row.curve), row.domain, row.shots, row.seed))


def summarise(rows: Sequence[FewShotRow], average: Average = "images") -> list[Point]:
    """One point for each curve and k: mean over domains, mean and deviation over seeds."""
    groups: dict[tuple[Curve, int], list[FewShotRow]] = {}
    for entry in rows:
        groups.setdefault((entry.curve, entry.shots), []).append(entry)
    points = []
    for curve, shots in sorted(groups, key=lambda key: (CURVES.index(key[0]), key[1])):
        by_seed = _by_seed(groups[curve, shots], average)
        domains, overall = over_seeds(by_seed)
        points.append(Point(curve, shots, tuple(sorted(by_seed)), domains, **overall))
    return points


def _by_seed(rows: Sequence[FewShotRow], average: Average) -> dict[int, dict[str, float]]:
    """The accuracy that `average` selects on each domain, by seed."""
    accuracies: dict[int, dict[str, float]] = {}
    for row in rows:
        accuracy = selected(row.accuracy, row.class_mean, average)
        accuracies.setdefault(row.seed, {})[row.domain] = accuracy
    return accuracies


def gains(rows: Sequence[FewShotRow], average: Average = "images") -> dict[int, Spread]:
    """The gain of fine-tuning by shots: accuracy of the student minus that before training.

    Both are means over the domains of `rows`. The standard deviation over seeds is that of the
    difference, since each seed has its own test images.
    """
    by_shots = {}
    # The untouched student also has a row for 0 shots, with which there is nothing to compare.
    for shots in sorted({row.shots for row in rows if row.curve == "student"}):
        after, before = (
            domain_means(
                _by_seed([row for row in rows if (row.curve, row.shots) == (curve, shots)], average)
            )
            for curve in ("student", "untouched")
        )
        by_shots[shots] = spread([after[seed] - before[seed] for seed in after])
    return by_shots


def write(storage: Storage, results: FewShotResults) -> str:
    """Write `fewshot/results.json` under a run's root; returns its location for display."""
    storage.put(KEY, strict_json.indented(asdict(results)))
    return storage.location(KEY)


AXIS = "training images of each class (0: before any training)"

Bands = Mapping[tuple[Curve, int], Spread]
"""Mean and deviation by curve and number of shots."""


def markdown(results: FewShotResults) -> str:
    """Mean accuracy over domains in percent, the same of each domain, and notes, as Markdown.

    A table has a column for each number of shots. Its last rows are the gain of training over the
    untrained student, and how many images one seed's trainings used and were tested on.
    """
    names = results.data.domains
    means = _grid(results, _bands(results), names)
    parts = [
        f"# Few-shot {HEADS[results.average]}, of {escape(results.architecture)}",
        "Mean and standard deviation over seeds: each draws the labelled images and random weights "
        "anew and, if several students are named below, takes another one. 0 images is before any "
        "training. Figures of one column share their test images, those of two columns do not. "
        "The gain is what training adds to the student, with the standard deviation of that "
        "difference.",
        "\n".join(f"- {c}: {escape(results.curves[c])}" for c in CURVES if c in results.curves),
        f"## {escape(names[0]) if len(names) == 1 else f'Mean of {len(names)} domains'}",
        table(means[0], means[1:]),
    ]
    for name in names if len(names) > 1 else ():
        grid = _grid(results, _bands(results, name), [name])
        parts += [f"## {escape(name)}", table(grid[0], grid[1:])]
    remarks = [*results.data.notes, *(f"unreadable: {line}" for line in results.data.unreadable)]
    if remarks:
        parts += ["## Notes", "\n".join(f"- {escape(remark)}" for remark in remarks)]
    return "\n\n".join(parts) + "\n"


def _bands(results: FewShotResults, domain: str | None = None) -> Bands:
    """The accuracies on a domain, or the means over domains for None."""
    return {
        (point.curve, point.shots): (
            Spread(mean=point.mean, std=point.std) if domain is None else point.domains[domain]
        )
        for point in results.summary
    }


def _grid(results: FewShotResults, bands: Bands, names: Sequence[str]) -> list[list[str]]:
    """The cells of a table, the label of a row first, with one column for each number of shots.

    Args:
        bands: figures of the curves.
        names: domains that the figures are over.
    """
    rows = [row for row in results.rows if row.domain in names]
    ticks = sorted({point.shots for point in results.summary})
    # Every curve has the largest number of shots, but only one has 0.
    curves = [curve for curve, shots in bands if shots == max(ticks)]
    grid = [[curve, *(_figure(bands.get((curve, shots))) for shots in ticks)] for curve in curves]
    if added := gains(rows, results.average):
        grid.append(["gain", *(_figure(added.get(shots), sign="+") for shots in ticks)])
    # All seeds use the same number of images, so those of one seed are counted.
    for label, trained in (("trained on", True), ("tested on", False)):
        images = {
            (row.shots, row.domain): sum(row.trained if trained else row.tested)
            for row in rows
            if row.seed == rows[0].seed
        }
        counts = (sum(images[shots, name] for name in names) for shots in ticks)
        grid.append([label, *map(str, counts)])
    return [["images a class", *map(str, ticks)], *grid]


def _figure(figure: Spread | None, sign: str = "") -> str:
    """Mean and deviation in percent; a dash for None.

    Args:
        sign: "+" writes the sign of a positive mean too.
    """
    if figure is None:
        return "-"
    deviation = "" if figure["std"] is None else f" ±{100 * figure['std']:.1f}"
    return f"{100 * figure['mean']:{sign}.1f}{deviation}"


def picture(results: FewShotResults) -> RenderedChart:
    """The means over domains as a line for each curve, with bars of ± one standard deviation."""
    figures, kind = _bands(results), HEADS[results.average]
    series = [
        Series(
            f"{curve}: {results.curves[curve]}",
            tuple((shots, figure) for (name, shots), figure in figures.items() if name == curve),
        )
        for curve in CURVES
        if curve in results.curves
    ]
    names = results.data.domains
    averaged = names[0] if len(names) == 1 else f"mean of {len(names)} domains"
    title = f"{results.architecture}: {averaged}"
    return curve_chart(title, AXIS, f"{kind}, on the rest of a domain", series, first_is_mean=False)
