"""Rows of accuracy: their schema, their summary, and `results.json` and `results.parquet`.

`results.json` (schema 1), keys sorted, no dates, so that the same scores are the same bytes:

    schema     1
    classes    [name, ...]: what every model chose among, in the order of `confusion`
    data       {source, domains: [name, ...], unscored: [class, ...], notes: [line, ...],
                unreadable: [name, ...]}: what was scored, and what could not be
    rows       one per model, method, seed and domain:
        model      "teacher" | "student"
        method     "zero-shot" for the teacher, else the prompt method the student learned from
        seed       the student's distillation seed; 0 for the teacher, which has none
        domain     name
        images     how many were scored
        accuracy   right / images, 0-1
        class_mean mean of `per_class`, 0-1 (VisDA's figure)
        per_class  {class name: accuracy}, classes with an image in this domain only
        confusion  M x M counts: row = true class, column = predicted class
    summary    one per model and method:
        model, method, seeds: [int, ...]
        domains    {name: {mean, std}} of accuracy over seeds
        mean, std  of the mean over domains, over seeds; std (n - 1) is null for one seed

`results.parquet` holds `rows` with the same column names.
"""

import io
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypedDict, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from dfkd.domains import Domains
from dfkd.errors import CorruptionError
from dfkd.manifest import Method
from dfkd.storage import Storage

SCHEMA = 1
ZERO_SHOT = "zero-shot"
ORDER = (ZERO_SHOT, *get_args(Method))

COLUMNS = pa.schema(
    [
        ("model", pa.string()),
        ("method", pa.string()),
        ("seed", pa.int64()),
        ("domain", pa.string()),
        ("images", pa.int64()),
        ("accuracy", pa.float64()),
        ("class_mean", pa.float64()),
        ("per_class", pa.map_(pa.string(), pa.float64())),
        ("confusion", pa.list_(pa.list_(pa.int64()))),
    ]
)


class Row(TypedDict):
    """One model's scores on one domain; the fields are described above."""

    model: str
    method: str
    seed: int
    domain: str
    images: int
    accuracy: float
    class_mean: float
    per_class: dict[str, float]
    confusion: list[list[int]]


class Spread(TypedDict):
    """Mean and standard deviation (n - 1) over seeds; the latter is None for one seed."""

    mean: float
    std: float | None


class Summary(TypedDict):
    """One model and method over domains and seeds; the fields are described above."""

    model: str
    method: str
    seeds: list[int]
    domains: dict[str, Spread]
    mean: float
    std: float | None


def row(
    model: str,
    method: str,
    seed: int,
    domain: str,
    classes: Sequence[str],
    confusion: npt.NDArray[np.int64],
) -> Row:
    """The row that follows from M x M counts (true x predicted), of which one is not zero."""
    totals, right = confusion.sum(axis=1), confusion.diagonal()
    per_class = {
        name: int(right[index]) / int(totals[index])
        for index, name in enumerate(classes)
        if totals[index]
    }
    return Row(
        model=model,
        method=method,
        seed=seed,
        domain=domain,
        images=int(totals.sum()),
        accuracy=int(right.sum()) / int(totals.sum()),
        class_mean=statistics.fmean(per_class.values()),
        per_class=per_class,
        confusion=confusion.tolist(),
    )


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Teacher first, then the methods as the paper lists them, then seed and domain."""
    return sorted(
        rows,
        key=lambda row: (
            row["model"] != "teacher",
            ORDER.index(row["method"]) if row["method"] in ORDER else len(ORDER),
            row["method"],
            row["seed"],
            row["domain"],
        ),
    )


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """Mean over domains, mean and standard deviation over seeds, for each model and method."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in ordered(rows):
        groups.setdefault((row["model"], row["method"]), []).append(row)
    return [_summary(model, method, group) for (model, method), group in groups.items()]


def _summary(model: str, method: str, rows: Sequence[Row]) -> Summary:
    seeds = sorted({row["seed"] for row in rows})
    names = sorted({row["domain"] for row in rows})
    overall = spread(
        [statistics.fmean(row["accuracy"] for row in rows if row["seed"] == seed) for seed in seeds]
    )
    domains = {
        name: spread([row["accuracy"] for row in rows if row["domain"] == name]) for name in names
    }
    return Summary(
        model=model,
        method=method,
        seeds=seeds,
        domains=domains,
        mean=overall["mean"],
        std=overall["std"],
    )


def spread(values: Sequence[float]) -> Spread:
    """Of one value or more."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.fmean(values), std=std)


def results(data: Domains, rows: Sequence[Row], unreadable: Sequence[str]) -> dict[str, Any]:
    """The content of `results.json`."""
    return {
        "schema": SCHEMA,
        "classes": list(data.classes),
        "data": {
            "source": data.source,
            "domains": list(data.names),
            "unscored": list(data.unscored),
            "notes": list(data.notes),
            "unreadable": sorted(unreadable),
        },
        "rows": ordered(rows),
        "summary": summarise(rows),
    }


def write_results(storage: Storage, results: Mapping[str, Any]) -> str:
    """Write `results.json` and `results.parquet`, each whole or not at all.

    Returns:
        The place of `results.json`, for display.
    """
    validate_results(results)
    stream = io.BytesIO()
    table = pa.Table.from_pylist(
        [{**row, "per_class": list(row["per_class"].items())} for row in results["rows"]], COLUMNS
    )
    pq.write_table(table, stream)
    storage.put("results.parquet", stream.getvalue())
    storage.put("results.json", _json(results).encode())
    return storage.location("results.json")


def _json(results: Mapping[str, Any]) -> str:
    """Indented JSON with each list of counts on one line (a raw newline never is inside a text)."""
    text = json.dumps(results, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    lists = re.compile(r"\[\n[\d,\s]+\]")
    return (
        lists.sub(
            lambda found: " ".join(found[0].split()).replace("[ ", "[").replace(" ]", "]"), text
        )
        + "\n"
    )


def validate_results(results: Mapping[str, Any]) -> None:
    """Check that `results` has schema 1 and that its figures follow from its counts.

    Raises:
        CorruptionError: naming the first thing that does not fit.
    """
    if results.get("schema") != SCHEMA:
        _refuse("schema", f"must be {SCHEMA}", results.get("schema"))
    classes, rows = results.get("classes"), results.get("rows")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        _refuse("classes", "must be a list of names", classes)
    if not isinstance(rows, list) or not rows:
        _refuse("rows", "must be a list with at least one row", rows)
    keys = set()
    for number, found in enumerate(rows):
        _validate_row(f"rows[{number}]", found, classes)
        key = (found["model"], found["method"], found["seed"], found["domain"])
        if key in keys:
            _refuse(f"rows[{number}]", "model, method, seed and domain must occur once", key)
        keys.add(key)
    if results.get("summary") != summarise(rows):
        _refuse("summary", "must follow from the rows", "other figures")


def _validate_row(place: str, found: Any, classes: list[str]) -> None:
    types = Row.__annotations__.keys()
    if not isinstance(found, dict) or found.keys() != types:
        _refuse(place, f"must have the fields {', '.join(types)}", found)
    if found["model"] not in ("teacher", "student"):
        _refuse(f"{place}.model", "must be teacher or student", found["model"])
    for key, kind in (("method", str), ("domain", str), ("seed", int), ("images", int)):
        if type(found[key]) is not kind:
            _refuse(f"{place}.{key}", f"must be {kind.__name__}", found[key])
    confusion = found["confusion"]
    square = isinstance(confusion, list) and len(confusion) == len(classes)
    if not square or any(
        not isinstance(line, list)
        or len(line) != len(classes)
        or any(type(count) is not int or count < 0 for count in line)
        for line in confusion
    ):
        _refuse(f"{place}.confusion", f"must be {len(classes)} x {len(classes)} counts", "another")
    counts = np.array(confusion, dtype=np.int64)
    if not counts.any():
        _refuse(f"{place}.confusion", "must count at least one image", 0)
    model, method, seed, domain = (found[key] for key in ("model", "method", "seed", "domain"))
    expected = row(model, method, seed, domain, classes, counts)
    for key in types:
        if found[key] != expected[key]:  # type: ignore[literal-required]
            _refuse(f"{place}.{key}", "must follow from the confusion counts", found[key])


def _refuse(place: str, rule: str, value: object) -> NoReturn:
    raise CorruptionError(
        f"results {place}: {rule}, got {value!r}; score again with jobs/evaluate.py"
    )
