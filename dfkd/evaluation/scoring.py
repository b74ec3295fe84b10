"""Score models: accuracy per domain and class on data that no other stage uses.

A model is anything that maps pixels to distances [N, M]; it answers with the nearest class.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dfkd.config.distillation import Model
from dfkd.config.manifest import Manifest
from dfkd.config.methods import Method
from dfkd.dataset.published import PublishedVersion
from dfkd.distillation.embedding import encode_classes
from dfkd.distillation.student_store import (
    StudentLocation,
    load_located,
    locate_students,
    require_replaceable_classes,
)
from dfkd.distillation.text_only import class_vectors
from dfkd.errors import DfkdError, ManifestError, as_utf8
from dfkd.evaluation.data import Domains, Item, open_data
from dfkd.evaluation.results import CLASSIFIER, ZERO_SHOT, ResultRow, results, row, write_results
from dfkd.models.teacher import Teacher, check_classes, distances
from dfkd.prompts.styles import class_text_embeddings
from dfkd.storage.base import Storage, in_order
from dfkd.storage.local import open_storage
from dfkd.utils.device import pick_device
from dfkd.utils.hardware import cpu_count
from dfkd.utils.images import USUAL, Resizing, decode_image
from dfkd.utils.pixels import from_bytes
from dfkd.utils.progress import bar

GROUP = 8
"""Models that take the same pixels and are scored together, so that an image is decoded once."""
BATCH = 64
"""Images that a model answers at once; 64 of 224 px fit into any GPU's memory."""
PREFETCH_BATCHES = 2
"""Batches that are decoded in advance while a model works on one. The limit bounds memory."""

DistanceFunction = Callable[[Tensor], Tensor]
"""Pixels [N, 3, H, W] float32 in [0, 1] to distances [N, M]; smaller is closer."""


@dataclass(frozen=True)
class Classifier:
    """A model to score, with the names that its rows get."""

    model: Model
    method: str
    seed: int
    image_size: int
    """Side in pixels of the images that the model takes."""
    distances: DistanceFunction
    device: torch.device
    parameters: int
    """Of the student, or of the tower that answers."""
    resizing: Resizing = USUAL
    """How a picture becomes a square for the model."""

    @property
    def title(self) -> str:
        """The model's name on a progress bar."""
        if self.model == "teacher":
            return f"teacher {self.method}"
        return f"{self.model} {self.method} seed {self.seed}"


@dataclass(frozen=True)
class Scores:
    """Rows of one or more models, and the images that could not be scored."""

    rows: tuple[ResultRow, ...]
    unreadable: tuple[str, ...]
    """`name: reason` of each image that no decoder could read, sorted."""
    parameters: dict[str, int]
    """Number of parameters by model; those of one model have the same."""


@dataclass(frozen=True)
class Evaluated:
    """The scores of all models of a manifest, which have been written."""

    results: dict[str, Any]
    """The content of `results.json`, as `dfkd.evaluation.results` describes it."""
    location: str
    """Location of `results.json`, for display."""
    versions: dict[Method, PublishedVersion]
    """The data set that the students of each method learned from; empty without students."""
    sheet: str = ""
    """Location of the contact sheet of these versions; empty if none was written."""


def evaluate(
    manifest: Manifest,
    threads: int = 0,
    version: str = "",
    folder: str = "",
    classes: tuple[str, ...] = (),
) -> Evaluated:
    """Score the models that a manifest names and write `results.json`.

    The teacher classifies zero-shot with the prompts of `teacher.template`. The students are those
    of every method and seed. The text-only classifier of each seed is trained unless it is stored.
    Models run in float32, and every call scores them again, because that is cheap.

    Args:
        manifest: the run's manifest; all its students must be finished.
        threads: threads that decode images; 0 means one for each processor.
        version: id of the version whose students are scored; empty for the current ones.
        folder: folder under the root for the results; empty for the root itself.
        classes: classes to score instead of the manifest's, which need students of embeddings.

    Raises:
        ManifestError: unusable data, a missing student or one that knows only its own classes;
            nothing has been scored.
        CorruptionError: a student is damaged.
    """
    # Whatever is missing is refused here, before the first model is loaded.
    scored = manifest.with_classes(classes) if classes else manifest
    data = open_data(scored.evaluation, scored.classes)
    students: list[StudentLocation] = []
    if "student" in manifest.evaluation.models:
        students = locate_students(manifest, version=version)
    for found in students:
        if not found.finished:
            raise ManifestError(
                "evaluation.models",
                f"needs the student of method {found.method} seed {found.seed} at {found.location}",
                list(manifest.evaluation.models),
                "run dfkd distill with this manifest, or set evaluation.models=teacher",
            )
        if classes:
            require_replaceable_classes(manifest, found.method, found.version)
    root = open_storage(manifest.storage.root)
    classifiers = _load_classifiers(scored, root, students, manifest.classes)
    scores = score(classifiers, data, threads)
    names, average = [student.name for student in students], manifest.evaluation.average
    content = results(data, scores.rows, scores.unreadable, scores.parameters, names, average)
    location = write_results(root.child(folder) if folder else root, content)
    return Evaluated(content, location, {s.method: s.version for s in students})


def _load_classifiers(
    manifest: Manifest,
    root: Storage,
    students: Sequence[StudentLocation],
    own_classes: tuple[str, ...],
) -> Iterator[Classifier]:
    """Yield the models of `evaluation.models` one by one, so that few are in memory at a time.

    Args:
        manifest: with the classes to score.
        own_classes: the classes that the students were trained for; others replace them.
    """
    device, wanted = pick_device(), manifest.evaluation.models
    if {"teacher", "text-only"} & set(wanted):
        teacher = Teacher.load(manifest.teacher, device, cache=manifest.cache)
        check_classes(teacher, manifest.meanings, manifest.teacher.template)
        if "teacher" in wanted:
            vectors = class_text_embeddings(manifest, teacher)
            yield _tower_classifier("teacher", ZERO_SHOT, 0, teacher, vectors)
        for seed in manifest.distillation.seeds if "text-only" in wanted else ():
            vectors = class_vectors(manifest, manifest.teacher, teacher, seed, root)
            yield _tower_classifier("text-only", CLASSIFIER, seed, teacher, vectors)
        del teacher
    replaced = students and manifest.classes != own_classes
    texts = encode_classes(manifest, manifest.classes) if replaced else None
    for location in students:
        student, card = load_located(location, own_classes, device)
        if texts is not None:
            student = student.with_classes(texts)
        size = card["image_size"]
        about = location.method, location.seed, size, student, device, parameters(student)
        yield Classifier("student", *about)


def _tower_classifier(
    model: Model, method: str, seed: int, tower: Teacher, vectors: Tensor
) -> Classifier:
    """An image tower that answers with the nearest of the classes' unit vectors [M, E]."""
    return Classifier(
        model,
        method,
        seed,
        tower.image_size,
        lambda pixels: distances(tower.encode_image(pixels), vectors),
        tower.device,
        parameters(tower.visual),
        tower.resizing,
    )


def score(
    classifiers: Iterable[Classifier],
    data: Domains,
    threads: int = 0,
) -> Scores:
    """Score models on every domain.

    Args:
        classifiers: the models. Of a lazy iterable at most two groups of `GROUP` are held.
        data: the images, with classes in the order of the models' outputs.
        threads: threads that decode images; 0 means one for each processor.

    Returns:
        A row for each model and each domain with a readable image.

    Raises:
        DfkdError: a model's output is not finite or not [N, M], or no image can be read.
    """
    rows: list[ResultRow] = []
    unreadable: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for classifier, domains in confusions(classifiers, data, threads, unreadable):
        about = (classifier.model, classifier.method, classifier.seed)
        sizes[classifier.model] = classifier.parameters
        rows += [
            row(*about, domain, data.classes, confusion)
            for domain, confusion in domains.items()
            if confusion.any()  # a domain without a readable image has no accuracy
        ]
    problems = (f"{name}: {reason}" for name, reason in sorted(unreadable.items()))
    return Scores(tuple(rows), tuple(problems), sizes)


def parameters(module: nn.Module) -> int:
    """The number of parameters of a module."""
    return sum(tensor.numel() for tensor in module.parameters())


def confusions(
    classifiers: Iterable[Classifier], data: Domains, threads: int, unreadable: dict[str, str]
) -> Iterator[tuple[Classifier, dict[str, npt.NDArray[np.int64]]]]:
    """Yield each model with its confusion counts [M, M] (true x predicted) on each domain.

    Adds the reason for each image that cannot be read to `unreadable`, by the image's name. Other
    arguments and errors are those of `score`.
    """
    # Models in a row that take the same pixels are scored together.
    for _, same in groupby(classifiers, lambda each: (each.image_size, each.resizing)):
        while group := tuple(islice(same, GROUP)):
            yield from zip(group, _confusions(group, data, threads, unreadable), strict=True)
            if unreadable and len(unreadable) == len(data.items):
                name, reason = min(unreadable.items())
                raise DfkdError(
                    f"evaluation.data: none of {len(data.items)} images can be read, the first "
                    f"being {name} ({reason}); check {data.source}"
                )


def _confusions(
    group: Sequence[Classifier],
    data: Domains,
    threads: int,
    unreadable: dict[str, str],
) -> list[dict[str, npt.NDArray[np.int64]]]:
    """The confusion counts [M, M] (true x predicted) of each domain, for each model of a group.

    Adds the reason for each image that cannot be read to `unreadable`, by the image's name.
    """
    M = len(data.classes)
    counts = [{name: np.zeros((M, M), dtype=np.int64) for name in data.names} for _ in group]
    title = group[0].title if len(group) == 1 else f"scores of {len(group)} models"
    size, resizing = group[0].image_size, group[0].resizing
    with bar(title, len(data.items), "img") as progress:
        for chunk, images in decode_items(data.items, size, threads, resizing):
            # An unreadable image comes as the text of its error.
            readable = []
            for item, image in zip(chunk, images, strict=True):
                if isinstance(image, str):
                    unreadable[as_utf8(item.name)] = image
                else:
                    readable.append((item, image))
            if readable:
                items, arrays = zip(*readable, strict=True)
                for classifier, domains in zip(group, counts, strict=True):
                    for item, answer in zip(items, _predict(classifier, arrays, M), strict=True):
                        domains[item.domain][item.class_index, answer] += 1
            failures = f"{len(unreadable)} unreadable" if unreadable else ""
            progress.set_postfix_str(failures, refresh=False)
            progress.update(len(chunk))
    return counts


def _predict(
    classifier: Classifier, images: Sequence[npt.NDArray[np.uint8]], classes: int
) -> list[int]:
    """The predicted class of each image [S, S, 3] uint8."""
    batch = torch.from_numpy(np.stack(images)).to(classifier.device)
    with torch.inference_mode():
        distances = classifier.distances(from_bytes(batch).contiguous())
    shape = (len(images), classes)
    # `argmin` takes NaN for the smallest distance, so it must not get that far.
    if distances.shape != shape or not torch.isfinite(distances).all():
        raise DfkdError(
            f"{classifier.model} {classifier.method} seed {classifier.seed}: must give finite "
            f"distances {shape}, got {tuple(distances.shape)} or NaN; train it again"
        )
    answers: list[int] = distances.argmin(dim=1).tolist()
    return answers


Decoded = npt.NDArray[np.uint8] | str
"""An image, or why there is none."""


def decode_items(
    items: Sequence[Item], image_size: int, threads: int, resizing: Resizing = USUAL
) -> Iterator[tuple[Sequence[Item], list[Decoded]]]:
    """Yield the items in batches of `BATCH`, each with its pixels, in the order of `items`.

    Threads, as many as there are processors if `threads` is 0, decode up to `PREFETCH_BATCHES`
    batches in advance. An image is uint8 [S, S, 3] with S = `image_size`, or a text that says why
    it cannot be read.
    """
    ahead = PREFETCH_BATCHES * BATCH
    workers = threads or cpu_count()
    decoded = in_order(lambda item: _decode(item, image_size, resizing), items, workers, ahead)
    for start in range(0, len(items), BATCH):
        chunk = items[start : start + BATCH]
        yield chunk, list(islice(decoded, len(chunk)))


def _decode(item: Item, image_size: int, resizing: Resizing) -> Decoded:
    """An item's pixels, or why it cannot be read: one bad image must not end an evaluation."""
    try:
        return decode_image(item.read(), image_size, resizing)
    except (OSError, ValueError) as error:
        return " ".join(str(error).split())
