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
                 few (`dfkd.lab.few_shot.split`)
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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from dfkd.config.distillation import Average
from dfkd.evaluation.results import Spread, domain_means, over_seeds, selected, spread
from dfkd.lab.few_shot.settings import Start
from dfkd.storage.base import Storage
from dfkd.utils import strict_json

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
