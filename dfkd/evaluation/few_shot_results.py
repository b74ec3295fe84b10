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
      seed       one of `fewshot.seeds`
      trained    [count, ...]: training images of each class; fewer than k if the class has too
                 few (`dfkd.evaluation.few_shot_split`)
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
from dataclasses import asdict
from typing import Annotated, Literal, NoReturn, get_args

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from dfkd.config.distillation import Average, Start
from dfkd.errors import CorruptionError
from dfkd.evaluation.results import Spread, domain_means, over_seeds, selected, spread
from dfkd.storage.base import Storage
from dfkd.utils import strict_json
from dfkd.utils.types import CHECKED, Fraction, Natural, first_problem

FOLDER = "fewshot"
KEY = f"{FOLDER}/results.json"
LIMIT = 1 << 28
"""Largest accepted file in bytes; the results of a million trainings are smaller."""

Curve = Literal["untouched"] | Start
CURVES: tuple[Curve, ...] = ("untouched", *get_args(Start))
Counts = tuple[Natural, ...]
"""Number of images of each class."""


@dataclass(frozen=True, config=CHECKED)
class FewShotRow:
    """The scores of one training; the module's docstring describes the fields."""

    curve: Curve
    domain: str
    shots: Natural
    seed: Natural
    trained: Counts
    tested: Counts
    right: Counts
    accuracy: Fraction
    class_mean: Fraction


@dataclass(frozen=True, config=CHECKED)
class Point:
    """Summary of a curve at one k; the module's docstring describes the fields."""

    curve: Curve
    shots: Natural
    seeds: tuple[Natural, ...]
    domains: dict[str, Spread]
    mean: Fraction
    std: Fraction | None


@dataclass(frozen=True, config=CHECKED)
class FewShotData:
    """The data of the trainings, and the images that could not be read."""

    source: str
    domains: tuple[str, ...]
    notes: tuple[str, ...]
    unreadable: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class FewShotResults:
    """The content of `results.json`; the module's docstring describes the fields."""

    schema: Literal[1] = 1
    architecture: str
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    data: FewShotData
    curves: dict[Curve, str]
    rows: Annotated[tuple[FewShotRow, ...], Field(min_length=1)]
    average: Average = "images"
    summary: tuple[Point, ...]


RESULTS = TypeAdapter(FewShotResults)


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
    _check(results)
    storage.put(KEY, strict_json.indented(asdict(results)))
    return storage.location(KEY)


def read(storage: Storage) -> FewShotResults:
    """The few-shot results of a run.

    Args:
        storage: the run's root.

    Raises:
        CorruptionError: there are none, or `write` would not have written them.
    """
    data = storage.get(KEY, LIMIT)
    try:
        strict_json.parse(data)  # refuses repeated keys, which pydantic accepts
        results = RESULTS.validate_json(data, strict=True)
    except ValidationError as error:
        field, rule, _ = first_problem(error)
        _refuse(field, rule)
    except ValueError as error:
        _refuse("the whole", str(error))
    _check(results)
    return results


def _check(results: FewShotResults) -> None:
    """Raise `CorruptionError` if figures do not follow from the counts, or a curve has a gap."""
    domains, curves = set(results.data.domains), set(results.curves)
    seeds: dict[tuple[Curve, int, str], list[int]] = {}
    for number, entry in enumerate(results.rows):
        _check_row(f"rows.{number}", entry, len(results.classes))
        seeds.setdefault((entry.curve, entry.shots, entry.domain), []).append(entry.seed)
    if not _whole(seeds, domains, curves):
        _refuse("rows", "each curve, domain, shots and seed must be there once")
    # The summary is computed again, so nobody can edit a mean alone.
    if list(results.summary) != summarise(results.rows, results.average):
        _refuse("summary", "does not follow from the rows")


def _check_row(field: str, entry: FewShotRow, classes: int) -> None:
    """Raise `CorruptionError` unless a row's accuracies follow from its counts."""
    counts = (entry.trained, entry.tested, entry.right)
    if any(len(by_class) != classes for by_class in counts) or not any(entry.tested):
        _refuse(field, f"needs {classes} counts, and images that were tested")
    if any(right > tested for right, tested in zip(entry.right, entry.tested, strict=True)):
        _refuse(field, "more are right than were tested")
    if entry != row(entry.curve, entry.domain, entry.shots, entry.seed, *counts):
        _refuse(field, "the accuracies do not follow from the counts")


def _whole(
    seeds: Mapping[tuple[Curve, int, str], list[int]], domains: set[str], curves: set[Curve]
) -> bool:
    """Whether each curve has each k, domain and seed once, and "untouched" also 0 shots.

    `untouched` must be there exactly if `student` is.
    """
    # All curves must have the seeds of the first one.
    expected = sorted(next(iter(seeds.values())))
    # 0 shots belong to the untouched student alone.
    shots = {k for _, k, _ in seeds} - {0}
    pairs = {(curve, k) for curve in curves for k in shots}
    if "untouched" in curves:
        pairs.add(("untouched", 0))
    return (
        len(set(expected)) == len(expected)
        and ("untouched" in curves) == ("student" in curves)
        and seeds.keys() == {(*pair, domain) for pair in pairs for domain in domains}
        and all(sorted(present) == expected for present in seeds.values())
    )


def _refuse(field: str, problem: str) -> NoReturn:
    raise CorruptionError(f"{KEY} {field}: {problem}; run jobs/fewshot.py again")
