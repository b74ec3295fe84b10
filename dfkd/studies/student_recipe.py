"""The study of the student's recipe: which SGD settings learn a CLIP's distances best?

Each cell trains a student in this process with the settings of its recipe. It is measured twice: by
its agreement with the teacher on held-out synthetic images, and by its accuracy on the evaluation
data. Labels may also be rescaled to the mean and standard deviation of a real CLIP's distances,
which no manifest can do.
"""

import dataclasses
import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as checked
from torch import nn

from dfkd.config.manifest import Manifest
from dfkd.config.presets import PRESETS
from dfkd.dataset.loader import Stream
from dfkd.dataset.published import PublishedVersion, open_version
from dfkd.distillation.distiller import Distiller, LabelScale, Schedule, TargetFunction
from dfkd.distillation.labels import target_function
from dfkd.errors import ManifestError
from dfkd.evaluation.data import open_data
from dfkd.evaluation.results import spread
from dfkd.evaluation.scoring import BATCH, Candidate, score
from dfkd.models.student import build, fold
from dfkd.storage import layout
from dfkd.storage.checkpoints import Checkpoints
from dfkd.storage.local import MissingObject, Storage, open_storage
from dfkd.studies.tables import Cell as Figure
from dfkd.studies.tables import Grid
from dfkd.utils.device import CPU, use_threads
from dfkd.utils.paired import difference
from dfkd.utils.strict_json import canonical
from dfkd.utils.types import CHECKED, Count, Name, Natural, Positive, require_unique
from dfkd.utils.yaml import check, expand_preset, merge, read_tree

Settings = dict[str, Any]


@checked(frozen=True, kw_only=True, config=CHECKED)
class LabelSpread:
    """Rescale labels to this mean and standard deviation."""

    mean: float
    std: Positive


@checked(frozen=True, kw_only=True, config=CHECKED)
class Recipe:
    """One way to train."""

    settings: Settings
    """Values for the section `distillation`, applied to the base's."""
    labels: LabelSpread | None = None
    """None leaves the teacher's distances unchanged."""
    against: Name | None = None
    """The row that this one is compared with."""


@checked(frozen=True, kw_only=True, config=CHECKED)
class RecipeStudy:
    """The content of the study's file."""

    name: Name
    title: Name
    base: Name
    """Path of the manifest that all cells start from, relative to the study's file."""
    settings: Settings = dataclasses.field(default_factory=dict)
    """Settings of all cells, applied to the base."""
    held_out_images: Count = 12
    """Images per class in the separate data set that measures agreement."""
    rows: Annotated[dict[Name, Recipe], Field(min_length=1)]
    seeds: Annotated[tuple[Natural, ...], Field(min_length=1)]
    """Each seed makes one data set, and one student of it for each row."""
    notes: tuple[Name, ...] = ()
    """Sentences shown below the table."""

    def as_dict(self) -> dict[str, Any]:
        """The file's content with every default, as plain values."""
        tree: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return tree

    def __post_init__(self) -> None:
        require_unique("seeds", self.seeds)
        for name, row in self.rows.items():
            if row.against is not None and row.against not in self.rows:
                raise ManifestError(
                    f"rows.{name}.against", "must be among rows", row.against, "name one of them"
                )


@dataclass(frozen=True)
class RecipeCell:
    """A row with a seed."""

    row: str
    seed: int
    manifest: Manifest
    """A manifest of one method and one student."""
    labels: LabelSpread | None
    version: str
    """Id of the training data set."""
    held_out: str
    """Id of the data set that measures agreement."""

    @property
    def folder(self) -> str:
        """Folder relative to the root; its name contains a hash of everything that can change
        the result.
        """
        about = self.manifest.as_dict() | {"evaluation": None, "storage": None, "name": None}
        spread = dataclasses.asdict(self.labels) if self.labels else None
        content = canonical([about, self.seed, spread, self.version, self.held_out])
        return f"recipe/{hashlib.sha256(content).hexdigest()[:16]}"


@dataclass(frozen=True)
class RecipeResult:
    """The result of a cell."""

    agreement: float
    """Share of held-out images for which student and teacher choose the same class, 0-1."""
    accuracy: dict[str, float]
    """Accuracy by domain of the evaluation data, 0-1."""

    @property
    def mean(self) -> float:
        """Mean accuracy over domains, 0-1."""
        return sum(self.accuracy.values()) / len(self.accuracy)


def manifest_of(study: RecipeStudy, folder: Path, row: Recipe, **changes: Any) -> Manifest:
    """The manifest of a row: base, settings of all cells, settings of the row, then `changes`."""
    tree = merge(read_tree(folder / study.base), study.settings)
    tree = merge(tree, {"distillation": row.settings})
    return check(Manifest, expand_preset(merge(tree, changes), PRESETS))


def train(cell: RecipeCell) -> RecipeResult:
    """Train and score a cell, or return its stored result; a killed training resumes.

    Uses one thread, so as many cells as there are processors can train in parallel.
    """
    use_threads(1)
    home = open_storage(cell.manifest.storage.root)
    storage = home.child(cell.folder)
    if stored := _stored_result(storage):
        return stored
    data = home.child(layout.data(cell.manifest.method))
    version, held_out = (open_version(data, name) for name in (cell.version, cell.held_out))
    distiller = _distiller(cell, version)
    checkpoints = Checkpoints(storage.child("checkpoints"))
    if newest := checkpoints.newest():
        distiller.restore(checkpoints.read(newest))
    stream = _stream(cell, version)
    steps = distiller.schedule.steps_per_epoch
    while not distiller.done:
        for batch in stream.batches(distiller.epoch, distiller.step % steps):
            distiller.advance(batch)
        if distiller.epoch % cell.manifest.distillation.checkpoint_epochs == 0:
            checkpoints.write(distiller.step, distiller.state())
    # The student learned standardised distances; fold their scale into the last layer.
    student = fold(distiller.student, distiller.scale.mean, distiller.scale.std).eval()
    outcome = RecipeResult(agreement(student, _stream(cell, held_out)), _accuracy(cell, student))
    storage.put_if_absent("outcome.json", canonical(dataclasses.asdict(outcome)))
    checkpoints.clear()
    return outcome


def _stored_result(storage: Storage) -> RecipeResult | None:
    try:
        return RecipeResult(**json.loads(storage.get("outcome.json")))
    except MissingObject:
        return None


def _stream(cell: RecipeCell, version: PublishedVersion) -> Stream:
    manifest = cell.manifest
    size, batch = manifest.synthesis.image_size, manifest.distillation.batch_size
    return Stream(version, size, batch, cell.seed)


def _distiller(cell: RecipeCell, version: PublishedVersion) -> Distiller:
    config, manifest = cell.manifest.distillation, cell.manifest
    label = target_function(manifest, CPU)
    if label is None:
        raise ManifestError(
            "distillation.labels", "must be live in this study", config.labels, "change it"
        )
    mean, std = version.manifest["label_mean"], version.manifest["label_std"]
    if cell.labels:
        label = rescaled(label, LabelSpread(mean=mean, std=std), cell.labels)
        mean, std = cell.labels.mean, cell.labels.std
    return Distiller(
        build(config, len(manifest.classes), manifest.synthesis.image_size, cell.seed),
        config,
        Schedule.of(config, _stream(cell, version).steps),
        cell.seed,
        label,
        LabelScale(mean, std) if config.standardise else LabelScale(),
    )


def rescaled(label: TargetFunction, current: LabelSpread, target: LabelSpread) -> TargetFunction:
    """Labels with mean and standard deviation `target` instead of `current`: t.mean + t.std * (d
    - c.mean) / c.std. The nearest class is unchanged.
    """
    return lambda views: target.mean + target.std * (label(views) - current.mean) / current.std


@torch.no_grad()
def agreement(student: nn.Module, stream: Stream) -> float:
    """Share of a stream's images for which the student and the stored distances choose the same
    class.
    """
    same = [
        student(batch.pixels.float() / 255).argmin(1) == batch.distances.argmin(1)
        for batch in stream.batches(0)
    ]
    return float(torch.cat(same).float().mean())


def _accuracy(cell: RecipeCell, student: nn.Module) -> dict[str, float]:
    manifest = cell.manifest
    size = manifest.synthesis.image_size
    candidate = Candidate("student", manifest.method, cell.seed, size, student, CPU)
    data = open_data(manifest.evaluation, manifest.classes)
    scores = score([candidate], data, BATCH, threads=1)
    return {row["domain"]: row["accuracy"] for row in scores.rows}


def cells(study: RecipeStudy, folder: Path, make: Callable[[Manifest], str]) -> list[RecipeCell]:
    """Every row with every seed, seed by seed.

    Args:
        folder: of the study's file.
        make: makes or reuses the data set of a manifest; returns the id of its version.

    Raises:
        ManifestError: the settings of a row do not make a valid manifest.
    """
    manifests = {name: manifest_of(study, folder, row) for name, row in study.rows.items()}
    plain = Recipe(settings={})
    # Salts: the held-out data set has the base's, seed n has that plus 1 + n.
    salt = manifest_of(study, folder, plain).salt
    held_out_settings = {"images_per_class": study.held_out_images}
    held_out = make(manifest_of(study, folder, plain, salt=salt, synthesis=held_out_settings))
    all_cells = []
    for seed in study.seeds:
        training_set = make(manifest_of(study, folder, plain, salt=salt + 1 + seed))
        for name, row in study.rows.items():
            all_cells.append(
                RecipeCell(name, seed, manifests[name], row.labels, training_set, held_out)
            )
    return all_cells


def run(cells: Sequence[RecipeCell], processes: int) -> Iterator[tuple[RecipeCell, RecipeResult]]:
    """Train cells in parallel, one process each; yields each cell with its result as it
    finishes.
    """
    # Spawn, because a forked process can hang if torch has already started threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        futures = {pool.submit(train, cell): cell for cell in cells}
        for future in as_completed(futures):
            yield futures[future], future.result()


def grid(study: RecipeStudy, outcomes: Mapping[tuple[str, int], RecipeResult]) -> Grid:
    """The table: one line for each row, each figure over the finished seeds.

    Args:
        outcomes: results by row and seed.
    """
    by_row = {
        name: {seed: outcomes[name, seed] for seed in study.seeds if (name, seed) in outcomes}
        for name in study.rows
    }
    domains = list(next(iter(outcomes.values())).accuracy)
    lines: list[tuple[Figure, ...]] = []
    for name, row_results in by_row.items():
        runs = list(row_results.values())
        if not runs:
            continue
        lines.append(
            (
                name,
                spread([each.agreement for each in runs]),
                *(spread([each.accuracy[domain] for each in runs]) for domain in domains),
                spread([each.mean for each in runs]),
                *_compared(row_results, by_row.get(study.rows[name].against or "", {})),
            )
        )
    return Grid(
        title=study.title,
        head=("Recipe", "agreement", *domains, "mean", "difference", "share"),
        names=1,
        rows=tuple(lines),
        notes=(
            "Accuracy in percent, mean ± standard deviation over seeds, a data set each.",
            "difference: from the row that a row is compared with, with its 95 % interval, paired "
            "by seed; share: the mean in percent of that row's.",
            "agreement: share of held-out synthetic images that student and teacher name alike.",
            *study.notes,
        ),
    )


def _compared(
    row_results: Mapping[int, RecipeResult], reference_results: Mapping[int, RecipeResult]
) -> tuple[Figure | None, Figure | None]:
    """Difference and ratio of mean accuracies over the seeds that both rows have; None if there
    are none.
    """
    ours, theirs = (
        {seed: run.mean for seed, run in runs.items()} for runs in (row_results, reference_results)
    )
    ratios = [ours[seed] / theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    return difference(ours, theirs), spread(ratios) if ratios else None
