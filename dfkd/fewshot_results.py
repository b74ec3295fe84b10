"""Rows of few-shot accuracy: their schema, their summary, and `fewshot/results.json`.

`results.json` (schema 1), keys sorted, no dates, so that the same scores are the same bytes:

    schema       1
    architecture of every start: a torchvision ResNet or timm:NAME
    classes      [name, ...]: what every classifier chose among, in the order of the counts
    data         {source, domains: [name, ...], notes: [line, ...], unreadable: [line, ...]}
    starts       {name: text}: what was fine-tuned, "student" | "library" | "scratch"
    rows         one per start, domain, shots and seed:
      start, domain
      shots      k; 0 is before any training, of the student only
      seed       of `fewshot.seeds`
      trained    [count, ...]: images of each class that were learned from; fewer than k of a class
                 that has too few (`dfkd.draw`)
      tested     [count, ...]: the rest of the domain
      right      [count, ...]: of those, answered rightly
      accuracy   sum of right / sum of tested, 0-1
      class_mean mean over the classes that were tested, 0-1
    summary      one per start and shots:
      start, shots, seeds: [int, ...]
      domains    {name: {mean, std}} of accuracy over seeds
      mean, std  of the mean over domains, over seeds; std (n - 1) is null for one seed
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Literal, NoReturn, get_args

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from dfkd import strict_json
from dfkd.errors import CorruptionError
from dfkd.fields import CHECKED, Natural
from dfkd.results import as_json, spread
from dfkd.storage import Storage
from dfkd.training import Start

FOLDER = "fewshot"
KEY = f"{FOLDER}/results.json"
LIMIT = 1 << 28
"""Bytes; the results of a million trainings are smaller."""

STARTS = get_args(Start)
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Counts = tuple[Natural, ...]
"""Images of each class."""


@dataclass(frozen=True, config=CHECKED)
class Row:
    """One training's scores; the fields are described above."""

    start: Start
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
    """One start and number of shots over domains and seeds; the fields are described above."""

    start: Start
    shots: Natural
    seeds: tuple[Natural, ...]
    domains: dict[str, Band]
    mean: Share
    std: Share | None


@dataclass(frozen=True, config=CHECKED)
class Data:
    """What was drawn from, and what could not be read."""

    source: str
    domains: tuple[str, ...]
    notes: tuple[str, ...]
    unreadable: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Results:
    """The content of `results.json`; the fields are described above."""

    schema: Literal[1] = 1
    architecture: str
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    data: Data
    starts: dict[Start, str]
    rows: Annotated[tuple[Row, ...], Field(min_length=1)]
    summary: tuple[Point, ...]


RESULTS = TypeAdapter(Results)


def row(
    start: Start,
    domain: str,
    shots: int,
    seed: int,
    trained: Sequence[int],
    tested: Sequence[int],
    right: Sequence[int],
) -> Row:
    """The row that follows from counts by class, of which at least one image was tested."""
    shares = [done / all_ for done, all_ in zip(right, tested, strict=True) if all_]
    counts = (tuple(trained), tuple(tested), tuple(right))
    accuracy = sum(right) / sum(tested)
    return Row(start, domain, shots, seed, *counts, accuracy, statistics.fmean(shares))


def ordered(rows: Sequence[Row]) -> list[Row]:
    """By start as the manifest's documentation names them, domain, shots and seed."""
    return sorted(rows, key=lambda row: (STARTS.index(row.start), row.domain, row.shots, row.seed))


def summarise(rows: Sequence[Row]) -> list[Point]:
    """Mean over domains, mean and standard deviation over seeds, for each start and k."""
    groups: dict[tuple[Start, int], list[Row]] = {}
    for found in rows:
        groups.setdefault((found.start, found.shots), []).append(found)
    keys = sorted(groups, key=lambda key: (STARTS.index(key[0]), key[1]))
    return [_point(*key, groups[key]) for key in keys]


def _point(start: Start, shots: int, rows: Sequence[Row]) -> Point:
    seeds = sorted({row.seed for row in rows})
    names = sorted({row.domain for row in rows})
    means = [statistics.fmean(row.accuracy for row in rows if row.seed == seed) for seed in seeds]
    domains = {
        name: Band(**spread([row.accuracy for row in rows if row.domain == name])) for name in names
    }
    return Point(start, shots, tuple(seeds), domains, **spread(means))


def write(storage: Storage, results: Results) -> str:
    """Write `fewshot/results.json` under a run's root; returns its place."""
    _check(results)
    storage.put(KEY, as_json(asdict(results)).encode())
    return storage.location(KEY)


def read(storage: Storage) -> Results:
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


def _check(results: Results) -> None:
    """Refuse figures that do not follow from the counts, and curves with a gap."""
    domains, starts = set(results.data.domains), set(results.starts)
    seeds: dict[tuple[Start, int, str], list[int]] = {}
    for number, found in enumerate(results.rows):
        _check_row(f"rows.{number}", found, len(results.classes))
        seeds.setdefault((found.start, found.shots, found.domain), []).append(found.seed)
    if not _whole(seeds, domains, starts):
        _refuse("rows", "each start, domain, shots and seed must be there once")
    if list(results.summary) != summarise(results.rows):
        _refuse("summary", "does not follow from the rows")


def _check_row(place: str, found: Row, classes: int) -> None:
    counts = (found.trained, found.tested, found.right)
    if any(len(each) != classes for each in counts) or not any(found.tested):
        _refuse(place, f"needs {classes} counts, and images that were tested")
    if any(right > tested for right, tested in zip(found.right, found.tested, strict=True)):
        _refuse(place, "more are right than were tested")
    if found != row(found.start, found.domain, found.shots, found.seed, *counts):
        _refuse(place, "the accuracies do not follow from the counts")


def _whole(
    seeds: Mapping[tuple[Start, int, str], list[int]], domains: set[str], starts: set[Start]
) -> bool:
    """Whether every start, at each k that it has, has every domain with the same seeds once."""
    wanted = sorted(next(iter(seeds.values())))
    pairs = {(start, shots) for start, shots, _ in seeds}
    return (
        len(set(wanted)) == len(wanted)
        and {start for start, _ in pairs} == starts
        and seeds.keys() == {(*pair, domain) for pair in pairs for domain in domains}
        and all(sorted(found) == wanted for found in seeds.values())
    )


def _refuse(place: str, problem: str) -> NoReturn:
    raise CorruptionError(f"{KEY} {place}: {problem}; run jobs/fewshot.py again")
