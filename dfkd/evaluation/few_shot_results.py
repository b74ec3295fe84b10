"""Rows of few-shot accuracy: their schema, their summary, and `fewshot/results.json`.

`results.json` (schema 1), keys sorted, no dates, so that the same scores are the same bytes:

    schema       1
    architecture of every curve: a torchvision ResNet or timm:NAME
    classes      [name, ...]: what every classifier chose among, in the order of the counts
    data         {source, domains: [name, ...], notes: [line, ...], unreadable: [line, ...]}
    curves       {name: text}: what was fine-tuned, "student" | "library" | "scratch", and beside
                 the student "untouched": as it was before, on the same test images
    rows         one per curve, domain, shots and seed:
      curve, domain
      shots      k; 0, with all images tested, of "untouched" only
      seed       of `fewshot.seeds`
      trained    [count, ...]: images of each class that were learned from; fewer than k of a class
                 that has too few (`dfkd.evaluation.few_shot_split`)
      tested     [count, ...]: the rest of the domain
      right      [count, ...]: of those, answered rightly
      accuracy   sum of right / sum of tested, 0-1
      class_mean mean over the classes that were tested, 0-1
    summary      one per curve and shots:
      curve, shots, seeds: [int, ...]
      domains    {name: {mean, std}} of accuracy over seeds
      mean, std  of the mean over domains, over seeds; std (n - 1) is null for one seed
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Literal, NoReturn, get_args

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from dfkd.config.distillation import Start
from dfkd.errors import CorruptionError
from dfkd.evaluation.results import Spread, as_json, spread
from dfkd.storage.local import Storage
from dfkd.utils import strict_json
from dfkd.utils.types import CHECKED, Natural

FOLDER = "fewshot"
KEY = f"{FOLDER}/results.json"
LIMIT = 1 << 28
"""Bytes; the results of a million trainings are smaller."""

Curve = Literal["untouched"] | Start
CURVES: tuple[Curve, ...] = ("untouched", *get_args(Start))
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Counts = tuple[Natural, ...]
"""Images of each class."""


@dataclass(frozen=True, config=CHECKED)
class FewShotRow:
    """One training's scores; the fields are described above."""

    curve: Curve
    domain: str
    shots: Natural
    seed: Natural
    trained: Counts
    tested: Counts
    right: Counts
    accuracy: Share
    class_mean: Share


@dataclass(frozen=True, config=CHECKED)
class Band:
    """Mean and standard deviation (n - 1) over seeds; the latter is None for one seed."""

    mean: Share
    std: Share | None


@dataclass(frozen=True, config=CHECKED)
class Point:
    """One curve and number of shots over domains and seeds; the fields are described above."""

    curve: Curve
    shots: Natural
    seeds: tuple[Natural, ...]
    domains: dict[str, Band]
    mean: Share
    std: Share | None


@dataclass(frozen=True, config=CHECKED)
class FewShotData:
    """What was drawn from, and what could not be read."""

    source: str
    domains: tuple[str, ...]
    notes: tuple[str, ...]
    unreadable: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class FewShotResults:
    """The content of `results.json`; the fields are described above."""

    schema: Literal[1] = 1
    architecture: str
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    data: FewShotData
    curves: dict[Curve, str]
    rows: Annotated[tuple[FewShotRow, ...], Field(min_length=1)]
    summary: tuple[Point, ...]


RESULTS = TypeAdapter(FewShotResults)


def curves(starts: Sequence[Start]) -> tuple[Curve, ...]:
    """What is shown of some starts."""
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
    """The row that follows from counts by class, of which at least one image was tested."""
    shares = [done / all_ for done, all_ in zip(right, tested, strict=True) if all_]
    counts = (tuple(trained), tuple(tested), tuple(right))
    accuracy = sum(right) / sum(tested)
    return FewShotRow(curve, domain, shots, seed, *counts, accuracy, statistics.fmean(shares))


def sort_rows(rows: Sequence[FewShotRow]) -> list[FewShotRow]:
    """By curve, domain, shots and seed."""
    return sorted(rows, key=lambda row: (CURVES.index(row.curve), row.domain, row.shots, row.seed))


def summarise(rows: Sequence[FewShotRow]) -> list[Point]:
    """Mean over domains, mean and standard deviation over seeds, for each curve and k."""
    groups: dict[tuple[Curve, int], list[FewShotRow]] = {}
    for found in rows:
        groups.setdefault((found.curve, found.shots), []).append(found)
    keys = sorted(groups, key=lambda key: (CURVES.index(key[0]), key[1]))
    return [_point(*key, groups[key]) for key in keys]


def _point(curve: Curve, shots: int, rows: Sequence[FewShotRow]) -> Point:
    names = sorted({row.domain for row in rows})
    means = _means(rows)
    domains = {
        name: Band(**spread([row.accuracy for row in rows if row.domain == name])) for name in names
    }
    return Point(curve, shots, tuple(means), domains, **spread([*means.values()]))


def _means(rows: Sequence[FewShotRow]) -> dict[int, float]:
    """By seed, the mean accuracy over the domains of `rows`."""
    return {
        seed: statistics.fmean(row.accuracy for row in rows if row.seed == seed)
        for seed in sorted({row.seed for row in rows})
    }


def gains(rows: Sequence[FewShotRow]) -> dict[int, Spread]:
    """By shots, what training adds to the student: its accuracy less that of the untouched one.

    Both are means over the domains of `rows`; the standard deviation over seeds is that of the
    difference, since each seed has its own test images.
    """
    found = {}
    for shots in sorted({row.shots for row in rows if row.curve == "student"}):
        after, before = (
            _means([row for row in rows if (row.curve, row.shots) == (curve, shots)])
            for curve in ("student", "untouched")
        )
        found[shots] = spread([after[seed] - before[seed] for seed in after])
    return found


def write(storage: Storage, results: FewShotResults) -> str:
    """Write `fewshot/results.json` under a run's root; returns its place."""
    _check(results)
    storage.put(KEY, as_json(asdict(results)).encode())
    return storage.location(KEY)


def read(storage: Storage) -> FewShotResults:
    """The few-shot results of a run.

    Args:
        storage: the run's root.

    Raises:
        CorruptionError: there are none, or they are not what `write` writes.
    """
    data = storage.get(KEY, LIMIT)
    try:
        strict_json.parse(data)
        results = RESULTS.validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        _refuse(".".join(map(str, first["loc"])) or "the whole", first["msg"])
    except ValueError as error:
        _refuse("the whole", str(error))
    _check(results)
    return results


def _check(results: FewShotResults) -> None:
    """Refuse figures that do not follow from the counts, and curves with a gap."""
    domains, curves = set(results.data.domains), set(results.curves)
    seeds: dict[tuple[Curve, int, str], list[int]] = {}
    for number, found in enumerate(results.rows):
        _check_row(f"rows.{number}", found, len(results.classes))
        seeds.setdefault((found.curve, found.shots, found.domain), []).append(found.seed)
    if not _whole(seeds, domains, curves):
        _refuse("rows", "each curve, domain, shots and seed must be there once")
    if list(results.summary) != summarise(results.rows):
        _refuse("summary", "does not follow from the rows")


def _check_row(place: str, found: FewShotRow, classes: int) -> None:
    counts = (found.trained, found.tested, found.right)
    if any(len(each) != classes for each in counts) or not any(found.tested):
        _refuse(place, f"needs {classes} counts, and images that were tested")
    if any(right > tested for right, tested in zip(found.right, found.tested, strict=True)):
        _refuse(place, "more are right than were tested")
    if found != row(found.curve, found.domain, found.shots, found.seed, *counts):
        _refuse(place, "the accuracies do not follow from the counts")


def _whole(
    seeds: Mapping[tuple[Curve, int, str], list[int]], domains: set[str], curves: set[Curve]
) -> bool:
    """Whether every curve has every k, domain and seed once, and "untouched" also 0 shots."""
    wanted = sorted(next(iter(seeds.values())))
    shots = {k for _, k, _ in seeds} - {0}
    pairs = {(curve, k) for curve in curves for k in shots}
    if "untouched" in curves:
        pairs.add(("untouched", 0))
    return (
        len(set(wanted)) == len(wanted)
        and ("untouched" in curves) == ("student" in curves)
        and seeds.keys() == {(*pair, domain) for pair in pairs for domain in domains}
        and all(sorted(found) == wanted for found in seeds.values())
    )


def _refuse(place: str, problem: str) -> NoReturn:
    raise CorruptionError(f"{KEY} {place}: {problem}; run jobs/fewshot.py again")
