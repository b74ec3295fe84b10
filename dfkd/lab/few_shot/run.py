"""Few-shot learning (section 4.3, Fig. 5): fine-tuning each start on k labelled images a class.

There is one training for each start, domain, number of shots and seed. All starts train on the same
images. The untouched student is scored on the same test images. Each score is stored as a cell
under the run's root,

    fewshot/cells/{curve}-k{shots}-s{seed}-{hash16}.json

    [correctly classified test images of a class, ...]

whose hash covers everything that can change its counts: weights, pixels, split and settings. The
same command after a kill therefore makes only the missing cells and ends in the same results.
"""

import copy
import hashlib
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.errors import CorruptionError, DfkdError, ManifestError, as_utf8
from dfkd.evaluation.data import Domains, Item, open_data
from dfkd.evaluation.image_lists import FIELD
from dfkd.evaluation.public_data_sets import normalise_name
from dfkd.evaluation.scoring import decode_items
from dfkd.lab.few_shot.results import (
    FOLDER,
    Curve,
    FewShotData,
    FewShotResults,
    FewShotRow,
    markdown,
    picture,
    row,
    sort_rows,
    summarise,
    write,
)
from dfkd.lab.few_shot.settings import FewShot
from dfkd.lab.few_shot.tuning import (
    FewShotSplit,
    InitialWeights,
    LabelledImages,
    check_starts,
    curve_captions,
    initial_weights,
    learning_rates,
    predict,
    split_domain,
    training_count,
    tune_on_split,
)
from dfkd.models.student import Student
from dfkd.storage.base import Storage
from dfkd.storage.local import open_storage
from dfkd.utils.device import pick_device
from dfkd.utils.hardware import thread_limit
from dfkd.utils.progress import Bar, bar
from dfkd.utils.strict_json import canonical, read_as
from dfkd.utils.types import Natural

CELLS = f"{FOLDER}/cells"
CELL_LIMIT = 1 << 20
"""Largest accepted cell in bytes."""


SCHEMA = 2
"""Part of each cell's hash; increase it with every code change that changes counts."""

RIGHT = TypeAdapter(tuple[Natural, ...])
"""The content of a cell."""


@dataclass(frozen=True)
class Domain:
    """The readable images of a domain, decoded."""

    name: str
    images: LabelledImages
    """Images and labels. The pixels are mapped from a temporary file to save memory."""
    sha256: str
    """Digest of pixels and labels."""
    unreadable: tuple[str, ...]
    """`name: reason` of each image that could not be read."""


def few_shot(manifest: Manifest, config: FewShot, threads: int = 0) -> FewShotResults:
    """Run every training that has no cell yet, and write the results of all.

    Args:
        manifest: the run's manifest; its students must be finished if they are among the starts.
        config: the settings of the trainings.
        threads: CPU threads for the models and for decoding; 0 uses all that the process may use.

    Returns:
        All results, also written to `results.json` in `fewshot/` under the run's root, with
        `table.md`, `curves.svg` and `curves.png` beside it.

    Raises:
        ManifestError: unusable data, or a start is missing or does not fit; raised before any
            training.
        CorruptionError: a student or a cell is damaged.
        DfkdError: a training diverged.
    """
    device = pick_device()
    data, names = select_domains(manifest, config)
    check_starts(manifest, config, device)
    root = open_storage(manifest.storage.root)
    origins = [
        (seed, initial_weights(manifest, start, seed, device))
        for start in config.starts
        for seed in config.seeds
    ]
    rows: list[FewShotRow] = []
    unreadable: list[str] = []
    with (
        thread_limit(threads) as thread_count,
        bar("few-shot", len(names) * count_trainings(config), "training") as progress,
    ):
        # One domain at a time: only one is decoded, and its disk space is freed with it.
        for name in names:
            domain = read_domain(manifest, data, name, thread_count)
            unreadable += domain.unreadable
            for seed, origin in origins:
                experiment = _Experiment(manifest, config, root.child(CELLS), domain, origin, seed)
                rows += experiment.rows(progress)
    # The same in whatever order rows and names come.
    average = manifest.evaluation.average
    remarks = (*data.notes, *notes(config, data, names))
    results = FewShotResults(
        architecture=manifest.distillation.student,
        classes=manifest.classes,
        data=FewShotData(data.source, tuple(names), remarks, tuple(sorted(unreadable))),
        curves=curve_captions(manifest, config),
        rows=tuple(sort_rows(rows)),
        average=average,
        summary=tuple(summarise(rows, average)),
    )
    storage = root.child(FOLDER)
    storage.put("table.md", markdown(results).encode())
    curves = picture(results)
    storage.put("curves.svg", curves.svg)
    storage.put("curves.png", curves.png)
    write(root, results)
    return results


def select_domains(manifest: Manifest, config: FewShot) -> tuple[Domains, tuple[str, ...]]:
    """The evaluation data and the domains to train on; reads names only.

    Raises:
        ManifestError: unusable data, an unknown domain, or one that is too small to train on.
    """
    data = open_data(manifest.evaluation, manifest.classes)
    known = {normalise_name(name): name for name in data.names}
    selected = set()
    for name in config.domains or data.names:
        if normalise_name(name) not in known:
            raise unknown_domain("--domains", data, name)
        selected.add(known[normalise_name(name)])
    for name in sorted(selected):
        require_trainable("--domains", data, name)
    return data, tuple(sorted(selected))


def unknown_domain(field: str, data: Domains, name: str) -> ManifestError:
    """The error about a `field` with a domain `name` that `data` do not have."""
    return ManifestError(
        field,
        f"must be among those of evaluation.data ({', '.join(data.names)})",
        name,
        "name one of them",
    )


def _single_label_items(data: Domains, name: str) -> list[Item]:
    """Items of a domain whose image is listed under one class only.

    ImageCLEF-DA lists nine images under two classes. Such an image could be in the training set
    with one label and in the test set with the other.
    """
    items = [item for item in data.items if item.domain == name]
    classes = Counter(item.name for item in items)
    return [item for item in items if classes[item.name] == 1]


def _counts(data: Domains, name: str) -> Counter[int]:
    """The number of usable images of each class index in a domain."""
    return Counter(item.class_index for item in _single_label_items(data, name))


def require_trainable(field: str, data: Domains, name: str) -> None:
    """Raise `ManifestError` about `field` if a domain has too few images to train on."""
    _require_two(field, _counts(data, name), name)


def _require_two(field: str, counts: Counter[int], name: str) -> None:
    """Raise `ManifestError` unless two classes have training images.

    One class would leave nothing to distinguish and too few images for batch norm.
    """
    if sum(count > 1 for count in counts.values()) < 2:
        raise ManifestError(
            field,
            "a domain to train on needs two classes with two readable images or more",
            name,
            "add images, or name another domain",
        )


def notes(config: FewShot, data: Domains, names: Sequence[str]) -> Iterator[str]:
    """Yield a line for each domain with too few images of a class, or with ambiguous ones."""
    shots = max(config.shots)
    for name in names:
        counts = _counts(data, name)
        if left_out := sum(item.domain == name for item in data.items) - counts.total():
            yield f"domain {name}: {left_out} entries of images with several classes are left out"
        short = [index for index, count in counts.items() if training_count(shots, count) < shots]
        if short:
            least = min(short, key=lambda index: (counts[index], index))
            yield (
                f"domain {name}: too few images for {shots} shots in {len(short)} of {len(counts)} "
                f"classes, {counts[least]} of {data.classes[least]}; all but one are trained on"
            )


def count_trainings(config: FewShot) -> int:
    """The number of trainings in one domain: starts x shots x seeds."""
    return len(config.seeds) * len(config.shots) * len(config.starts)


def read_domain(manifest: Manifest, data: Domains, name: str, threads: int) -> Domain:
    """Decode a domain's images into a temporary file, with `threads` (0: one a processor).

    Raises:
        ManifestError: too few images can be read.
    """
    items = _single_label_items(data, name)
    size = manifest.synthesis.image_size
    # Pixels are decoded once for all trainings; 55,000 images of 224 px are 8 GB, so not in memory.
    pixels = _mapped((len(items), size, size, 3))
    labels: list[int] = []
    unreadable = []
    digest = hashlib.sha256()
    for chunk, images in decode_items(items, size, threads):
        for item, image in zip(chunk, images, strict=True):
            if isinstance(image, str):
                unreadable.append(as_utf8(f"{item.name}: {image}"))  # `image` is the reason
                continue
            pixels[len(labels)] = image
            labels.append(item.class_index)
            # The digest covers decoded pixels, because another decoder changes the scores.
            digest.update(image.tobytes() + item.class_index.to_bytes(4, "big"))
    _require_two(FIELD, Counter(labels), name)
    readable = torch.from_numpy(pixels[: len(labels)]).permute(0, 3, 1, 2)
    return Domain(
        name, LabelledImages(readable, torch.tensor(labels)), digest.hexdigest(), tuple(unreadable)
    )


def _mapped(shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """A zero array in an unnamed file, deleted with the array; `OSError` if the disk is full."""
    with tempfile.TemporaryFile(prefix="dfkd-fewshot-") as stream:
        # Reserve the space now: a full disk would kill the process at a later write to the map.
        os.posix_fallocate(stream.fileno(), 0, math.prod(shape))
        return np.memmap(stream, np.uint8, "r+", shape=shape)


@dataclass(frozen=True)
class _Experiment:
    """The trainings of one start and seed on one domain."""

    manifest: Manifest
    config: FewShot
    cells: Storage
    domain: Domain
    origin: InitialWeights
    seed: int

    @cached_property
    def classifier(self) -> Student:
        """The classifier before any training."""
        return self.origin.make()

    @cached_property
    def initial_answers(self) -> Tensor:
        """The untrained classifier's predictions for all images, int64 [N]."""
        return self._answers(self.classifier, torch.arange(len(self.domain.images)))

    def rows(self, progress: Bar) -> Iterator[FewShotRow]:
        """Yield the rows of the untouched student, if it is the start, and then of each training.

        A row comes from its cell, or from a training that runs now.
        """
        config = self.config
        if self.origin.start == "student":
            # With k = 0 all images are tested, as `jobs/evaluate.py` does.
            for shots in (0, *config.shots):
                yield self._row("untouched", shots, {})
        settings = {"epochs": config.epochs, "rates": learning_rates(config, self.origin.start)}
        for shots in config.shots:
            yield self._row(self.origin.start, shots, settings)
            progress.update(1)

    def _row(self, curve: Curve, shots: int, settings: dict[str, Any]) -> FewShotRow:
        """The row of a curve at k = `shots`; makes its cell if there is none.

        Args:
            settings: everything in the configuration that changes this training.
        """
        labels, classes = self.domain.images.labels, self.manifest.classes
        split = split_domain(labels.tolist(), classes, self.domain.name, shots, self.seed)
        trained, tested = (
            torch.bincount(labels[list(part)], minlength=len(classes)).tolist()
            for part in (split.train, split.test)
        )
        key = self._key(curve, shots, settings)
        # The key covers all that changes the counts, so an existing cell needs no training.
        if not self.cells.exists(key):
            right = labels[self._correct(curve, split, shots)]
            counts = torch.bincount(right, minlength=len(classes)).tolist()
            self.cells.put_if_absent(key, canonical(counts))
        # Read back in any case, so a new and an old cell give the same row.
        stored = self._read(key, tested)
        return row(curve, self.domain.name, shots, self.seed, trained, tested, stored)

    def _key(self, curve: Curve, shots: int, settings: dict[str, Any]) -> str:
        """The cell's key, with a hash of everything that can change its counts."""
        identity = {
            "schema": SCHEMA,
            "settings": settings,
            "architecture": self.manifest.distillation.student,
            "weights": self.origin.weights,
            "classes": self.manifest.classes,
            "domain": self.domain.name,
            "pixels": self.domain.sha256,
            "shots": shots,
            "seed": self.seed,
        }
        digest = hashlib.sha256(canonical(identity)).hexdigest()[:16]
        return f"{curve}-k{shots}-s{self.seed}-{digest}.json"

    def _correct(self, curve: Curve, split: FewShotSplit, shots: int) -> Tensor:
        """Positions int64 [C] of the correctly classified test images; trains if needed."""
        images, start, test = self.domain.images, self.origin.start, torch.tensor(split.test)
        if curve == "untouched":
            # One pass over the domain serves every k, because only the choice of images differs.
            answers = self.initial_answers[test]
        else:
            # Each k starts from the same weights, so the training works on a copy.
            classifier = copy.deepcopy(self.classifier)
            tune_on_split(classifier, images, split, self.config, start)
            answers = self._answers(classifier, test)
            # Counted as wrong answers, NaN logits would pass for a poor start.
            if (answers < 0).any():
                raise DfkdError(
                    f"few-shot training of {start} on {self.domain.name!r} with {shots} "
                    f"shots and seed {self.seed} diverged; lower --learning-rate"
                )
        return test[answers == images.labels[test]]

    def _answers(self, classifier: Student, indices: Tensor) -> Tensor:
        """The predicted class of some of the domain's images, int64."""
        return predict(classifier, self.domain.images.pixels, indices)

    def _read(self, key: str, tested: Sequence[int]) -> tuple[int, ...]:
        """The correct counts of a cell; `CorruptionError` unless `tested` images can have them."""
        counts: tuple[int, ...] = ()
        data = self.cells.get(key, CELL_LIMIT)
        try:
            counts = read_as(RIGHT, data)
            fits = all(right <= total for right, total in zip(counts, tested, strict=True))
        except ValueError:  # no such cell, or counts of another number of classes
            fits = False
        if not fits:
            raise CorruptionError(
                f"{self.cells.location(key)}: is not the cell that was written; delete it and run "
                "the same command again, which makes it anew"
            )
        return counts
