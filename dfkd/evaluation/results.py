"""Rows of accuracy, their summary, and the file `results.json`.

`results.json` (schema 1), keys sorted, no dates, so that the same scores are the same bytes:

    schema     1
    classes    [name, ...]: the classes of every model, in the order of `confusion`
    average    "images" | "classes": whether `summary` uses `accuracy` or `class_mean` of rows
    data       {source, domains: [name, ...], unscored: [class, ...], notes: [line, ...],
                unreadable: [line, ...]}: the scored data, with domains in display order
    parameters {model: count}: parameters of the whole student, or of the image tower of the teacher
               or of the text-only classifier
    labeller   [name, ...]: the models that the students learned from and whose zero-shot scores are
               those of model "teacher"; their architectures, or "teacher". Older files lack it
    students   [name, ...]: folders under students/ of the scored students
    rows       one per model, method, seed and domain:
        model      "teacher" | "text-only" | "student"
        method     "zero-shot" for a tower, "classifier" for the text-only classifier, else the
                   synthesis method of the student's images
        seed       seed of the student's distillation or of the classifier; 0 for "zero-shot"
        domain     name
        images     number of scored images
        accuracy   correct / images, 0-1
        class_mean mean of `per_class`, 0-1 (VisDA's figure)
        per_class  {class name: accuracy}, only classes with an image in this domain
        confusion  M x M counts: row = true class, column = predicted class
    summary    one per model and method:
        model, method, seeds: [int, ...]
        domains    {name: {mean, std}} over seeds, of the accuracy that `average` selects
        mean, std  over seeds, of the mean over domains; std (n - 1) is null for one seed
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NoReturn, NotRequired, get_args

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from dfkd.config.distillation import Average, Model
from dfkd.errors import CorruptionError, ManifestError
from dfkd.evaluation.data import Domains
from dfkd.storage import layout
from dfkd.storage.base import Storage
from dfkd.utils import strict_json
from dfkd.utils.strict_json import first_problem
from dfkd.utils.types import CHECKED, Count, Fraction, Printable, Seed

ZERO_SHOT, CLASSIFIER = "zero-shot", "classifier"
"""Values of `method` for models that need no synthesised images."""
MODELS = get_args(Model)
ORDER = (ZERO_SHOT, CLASSIFIER, "vanilla", "mix", "random", "contrastive")
"""Display order of the methods; others follow by name."""


@with_config(CHECKED)
class ResultRow(TypedDict):
    """The scores of a model on a domain; the module's docstring describes the fields."""

    model: Model
    method: Printable
    seed: Seed
    domain: Printable
    images: Count
    accuracy: Fraction
    class_mean: Fraction
    per_class: dict[str, Fraction]
    confusion: list[list[Annotated[int, Field(ge=0, lt=1 << 32)]]]  # sums must fit into int64


class Spread(TypedDict):
    """Mean and standard deviation (n - 1) over seeds; `std` is None for one seed."""

    mean: float
    std: float | None


class Summary(TypedDict):
    """A model and method over domains and seeds; the module's docstring describes the fields."""

    model: str
    method: str
    seeds: list[int]
    domains: dict[str, Spread]
    mean: float
    std: float | None


class _Data(TypedDict):
    """The scored data; the module's docstring describes the fields."""

    source: str
    domains: list[str]
    unscored: NotRequired[list[str]]
    notes: list[str]
    unreadable: list[str]


class _Results(TypedDict):
    """What a `results.json` must hold; the module's docstring describes the fields."""

    schema: Literal[1]
    classes: list[Printable]
    average: Average
    data: _Data
    parameters: dict[str, Count]
    labeller: NotRequired[list[str]]
    students: list[str]
    rows: Annotated[list[ResultRow], Field(min_length=1)]
    summary: list[Summary]


RESULTS = TypeAdapter(_Results)


def row(
    model: Model,
    method: str,
    seed: int,
    domain: str,
    classes: Sequence[str],
    confusion: npt.NDArray[np.int64],
) -> ResultRow:
    """The row computed from M x M counts (true x predicted), which must not all be zero."""
    totals, correct = confusion.sum(axis=1), confusion.diagonal()
    # A class without images has no accuracy; 0 would lower the mean over classes.
    per_class = {
        name: int(correct[index]) / int(totals[index])
        for index, name in enumerate(classes)
        if totals[index]
    }
    return ResultRow(
        model=model,
        method=method,
        seed=seed,
        domain=domain,
        images=int(totals.sum()),
        accuracy=int(correct.sum()) / int(totals.sum()),
        class_mean=statistics.fmean(per_class.values()),
        per_class=per_class,
        confusion=confusion.tolist(),
    )


def sort_rows(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """The rows sorted by model (as in `MODELS`), method (as in the paper), seed and domain."""
    return sorted(
        rows,
        key=lambda row: (
            MODELS.index(row["model"]),
            ORDER.index(row["method"]) if row["method"] in ORDER else len(ORDER),
            row["method"],
            row["seed"],
            row["domain"],
        ),
    )


def selected(accuracy: float, class_mean: float, average: Average) -> float:
    """The accuracy over images, or the mean over classes, as `average` says; 0-1."""
    return class_mean if average == "classes" else accuracy


def accuracy_of(row: ResultRow, average: Average) -> float:
    """The accuracy of a row that `average` selects, 0-1."""
    return selected(row["accuracy"], row["class_mean"], average)


def summarise(rows: Sequence[ResultRow], average: Average = "images") -> list[Summary]:
    """A summary for each model and method: mean over domains, mean and deviation over seeds."""
    summaries = []
    groups: dict[tuple[str, str], list[ResultRow]] = {}
    for row in sort_rows(rows):
        groups.setdefault((row["model"], row["method"]), []).append(row)
    for (model, method), group in groups.items():
        by_seed: dict[int, dict[str, float]] = {}
        for row in group:
            by_seed.setdefault(row["seed"], {})[row["domain"]] = accuracy_of(row, average)
        domains, overall = over_seeds(by_seed)
        seeds = sorted(by_seed)
        summaries.append(
            Summary(model=model, method=method, seeds=seeds, domains=domains, **overall)
        )
    return summaries


def over_seeds(by_seed: Mapping[int, Mapping[str, float]]) -> tuple[dict[str, Spread], Spread]:
    """Summarise accuracies over seeds.

    Args:
        by_seed: the accuracy on each domain, for each of at least one seed.

    Returns:
        The spread of each domain, sorted by name, and that of the mean over domains. The latter
        first averages each seed over domains, so its deviation is that of the mean in a table.
    """
    names = sorted({name for accuracies in by_seed.values() for name in accuracies})
    domains = {
        name: spread([by_domain[name] for by_domain in by_seed.values() if name in by_domain])
        for name in names
    }
    return domains, spread(list(domain_means(by_seed).values()))


def domain_means(by_seed: Mapping[int, Mapping[str, float]]) -> dict[int, float]:
    """The mean accuracy over domains of each seed, in the order of the seeds."""
    return {seed: statistics.fmean(by_seed[seed].values()) for seed in sorted(by_seed)}


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation (n - 1) of one value for each seed."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.fmean(values), std=std)


def results(
    data: Domains,
    rows: Sequence[ResultRow],
    unreadable: Sequence[str],
    parameters: Mapping[str, int],
    students: Sequence[str],
    average: Average = "images",
    labeller: Sequence[str] = ("teacher",),
) -> dict[str, Any]:
    """The content of `results.json`.

    Args:
        data: the scored data.
        rows: at least one.
        unreadable: `name: reason` of each image that could not be read.
        parameters: number of parameters of each model in `rows`.
        students: names of the folders of the students in `rows`.
        average: the accuracy that the summary uses.
        labeller: names of the models that labelled.
    """
    return {
        "schema": 1,
        "classes": list(data.classes),
        "average": average,
        "data": {
            "source": data.source,
            "domains": list(data.names),
            "unscored": list(data.unscored),
            "notes": list(data.notes),
            "unreadable": sorted(unreadable),
        },
        "parameters": dict(parameters),
        "labeller": list(labeller),
        "students": list(students),
        "rows": sort_rows(rows),
        "summary": summarise(rows, average),
    }


def images_of(results: Mapping[str, Any]) -> dict[str, int]:
    """The number of scored images of each domain, in display order."""
    # Every model is scored on the same images, so any of a domain's rows has their number.
    images = {row["domain"]: row["images"] for row in sort_rows(results["rows"])}
    order = dict.fromkeys([*results["data"]["domains"], *images])
    return {name: images[name] for name in order if name in images}


def write_results(storage: Storage, results: Mapping[str, Any]) -> str:
    """Write `results.json` atomically; its presence says that the run is finished.

    Returns its location.
    """
    storage.put(layout.RESULTS, strict_json.indented(results))
    return storage.location(layout.RESULTS)


def require_finished(storage: Storage) -> None:
    """Raise `ManifestError` if there is no `results.json` under a root."""
    if not storage.exists(layout.RESULTS):
        raise ManifestError(
            "storage.root",
            "must hold a finished run, with results.json",
            storage.location(),
            "run dfkd pipeline first, with labelled images (evaluation.data)",
        )


def read_results(storage: Storage) -> dict[str, Any]:
    """The content of `results.json` under a root.

    Raises:
        ManifestError: there is none, because the run is not finished.
        CorruptionError: it is damaged.
    """
    require_finished(storage)
    place = storage.location(layout.RESULTS)
    try:
        content: dict[str, Any] = strict_json.parse(storage.get(layout.RESULTS))
    except ValueError as error:
        raise CorruptionError(f"{place}: {error}; score again with dfkd evaluate") from None
    validate_results(content, f"{place}: results")
    return content


def validate_results(results: Mapping[str, Any], place: str = "results") -> None:
    """Check that `results` has schema 1 and that its figures follow from its counts.

    Args:
        place: what an error names before the field.

    Raises:
        CorruptionError: the first field that is wrong.
    """
    try:
        checked = RESULTS.validate_python(results, strict=True)
    except ValidationError as error:
        wrong, rule, found = first_problem(error)
        _refuse(f"{place} {wrong}", rule, found)
    keys = set()
    size = len(checked["classes"])
    for number, entry in enumerate(checked["rows"]):
        field = f"{place} rows.{number}"
        if [len(line) for line in entry["confusion"]] != [size] * size:
            _refuse(f"{field}.confusion", f"must be {size} x {size} counts", "another")
        counts = np.array(entry["confusion"], dtype=np.int64)
        if not counts.any():
            _refuse(f"{field}.confusion", "must count at least one image", 0)
        key = (entry["model"], entry["method"], entry["seed"], entry["domain"])
        # Every figure is computed again, so nobody can edit one alone.
        for name, value in row(*key, checked["classes"], counts).items():
            if (given := dict(entry)[name]) != value:
                _refuse(f"{field}.{name}", "must follow from the confusion counts", given)
        if key in keys:
            _refuse(field, "model, method, seed and domain must occur once", key)
        keys.add(key)
    # Tables show the size of every model.
    models = {entry["model"] for entry in checked["rows"]}
    if not models <= checked["parameters"].keys():
        _refuse(
            f"{place} parameters", f"must have {', '.join(sorted(models))}", checked["parameters"]
        )
    if checked["summary"] != summarise(checked["rows"], checked["average"]):
        _refuse(f"{place} summary", "must follow from the rows", "other figures")


def _refuse(field: str, rule: str, value: object) -> NoReturn:
    raise CorruptionError(f"{field}: {rule}, got {value!r:.80}; score again with dfkd evaluate")
