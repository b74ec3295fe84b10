"""Few-shot learning (section 4.3, Fig. 5): what k labelled images of a domain make of each start.

Each start, domain, number of shots and seed is one training, from the same first weights, on the
same images for all starts. Beside the student's trainings the untouched student is scored on the
same test images. Each of these scores is a cell under the run's root,

    fewshot/cells/{curve}-k{shots}-s{seed}-{hash16}.json

    {"schema": 1, curve, domain, shots, seed, right: [count by class, ...]}

whose hash covers all that can change its counts: weights, pixels, draw and settings. So the same
command after a kill makes the missing ones only, and ends in the same results.
"""

import copy
import hashlib
import math
import operator
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.config.plan import derive_seed
from dfkd.errors import CorruptionError, DfkdError, ManifestError
from dfkd.evaluation import few_shot_starts
from dfkd.evaluation.data import Domains, open_data
from dfkd.evaluation.few_shot_results import (
    FOLDER,
    Curve,
    FewShotData,
    FewShotResults,
    FewShotRow,
    row,
    sort_rows,
    summarise,
    write,
)
from dfkd.evaluation.few_shot_split import FewShotSplit, split_domain, training_count
from dfkd.evaluation.few_shot_starts import InitialWeights
from dfkd.evaluation.few_shot_tuning import LabelledImages, fine_tune, learning_rates, predict
from dfkd.evaluation.scoring import BATCH, decode_items
from dfkd.models.student import Student
from dfkd.storage.local import Storage, open_storage
from dfkd.utils.device import pick_device
from dfkd.utils.hardware import cpus
from dfkd.utils.progress import bar
from dfkd.utils.strict_json import canonical
from dfkd.utils.types import CHECKED, Natural

CELLS = f"{FOLDER}/cells"
CELL_LIMIT = 1 << 20
"""Bytes of one cell at the most."""


@checked(frozen=True, config=CHECKED)
class FewShotCell:
    """What one training leaves, or the untouched student."""

    curve: Curve
    domain: str
    shots: int
    seed: int
    right: tuple[Natural, ...]
    """Test images of each class that were answered rightly."""
    schema: Literal[1] = 1
    """Raised whenever a change of code changes what a training gives; part of the cell's hash."""


CELL_ADAPTER = TypeAdapter(FewShotCell)


@dataclass(frozen=True)
class Domain:
    """A domain's readable images, decoded."""

    name: str
    images: LabelledImages
    """The pixels are mapped from a temporary file, so that a large domain needs no memory."""
    sha256: str
    """Of pixels and labels."""
    unreadable: tuple[str, ...]
    """`name: reason` of the images that are left out."""


def few_shot(manifest: Manifest, threads: int | None = None) -> FewShotResults:
    """Train and test every start, domain, number of shots and seed that has no cell yet.

    Args:
        manifest: of the run; the students are to be finished if they are among the starts.
        threads: that decode images; None is one for each processor.

    Returns:
        All of them, also written to `fewshot/results.json` under the run's root.

    Raises:
        ManifestError: unusable data, or a start that is missing or does not fit; nothing has been
            trained.
        CorruptionError: a student or a cell is not what was written.
        DfkdError: a training diverged.
    """
    config, device = manifest.fewshot, pick_device()
    data, names = select_domains(manifest)
    few_shot_starts.check_starts(manifest, device)
    root = open_storage(manifest.storage.root)
    cells = root.child(CELLS)
    origins = {
        start: [
            few_shot_starts.initial_weights(manifest, start, seed, device) for seed in config.seeds
        ]
        for start in config.starts
    }
    rows: list[FewShotRow] = []
    unreadable: list[str] = []
    with bar("few-shot", len(names) * count_trainings(manifest), "training") as progress:
        for name in names:
            domain = read_domain(manifest, data, name, threads or cpus())
            unreadable += domain.unreadable
            for start in config.starts:
                for origin, seed in zip(origins[start], config.seeds, strict=True):
                    bench = _Experiment(manifest, cells, domain, origin, seed)
                    rows += bench.untouched() if start == "student" else []
                    for shots in config.shots:
                        rows.append(bench.trained(shots))
                        progress.update(1)
    found = _results(manifest, data, names, rows, unreadable)
    write(root, found)
    return found


def _results(
    manifest: Manifest,
    data: Domains,
    names: Sequence[str],
    rows: Sequence[FewShotRow],
    unreadable: Sequence[str],
) -> FewShotResults:
    remarks = (*data.notes, *notes(manifest, data, names))
    return FewShotResults(
        architecture=manifest.distillation.student,
        classes=manifest.classes,
        data=FewShotData(data.source, tuple(names), remarks, tuple(sorted(unreadable))),
        curves=few_shot_starts.curve_captions(manifest),
        rows=tuple(sort_rows(rows)),
        summary=tuple(summarise(rows)),
    )


def select_domains(manifest: Manifest) -> tuple[Domains, tuple[str, ...]]:
    """The evaluation data, and the domains of it that are drawn from; looks at names only.

    Raises:
        ManifestError: unusable data, no such domain, or one that is too small to train on.
    """
    data = open_data(manifest.evaluation, manifest.classes)
    wanted = manifest.fewshot.domains or data.names
    for name in wanted:
        if name not in data.names:
            raise ManifestError(
                "fewshot.domains",
                f"must be among those of evaluation.data ({', '.join(data.names)})",
                name,
                "name one of them",
            )
    for name in wanted:
        _require_two(_counts(data, name), name)
    return data, tuple(sorted(wanted))


def _counts(data: Domains, name: str) -> Counter[int]:
    """Images of each class index in a domain."""
    return Counter(item.class_index for item in data.items if item.domain == name)


def _require_two(counts: Counter[int], name: str) -> None:
    """Two classes to train on: with less there is nothing to tell apart, and no batch norm."""
    if sum(count > 1 for count in counts.values()) < 2:
        raise ManifestError(
            "fewshot.domains",
            "each needs two classes with two readable images or more",
            name,
            "add images, or name the other domains",
        )


def notes(manifest: Manifest, data: Domains, names: Sequence[str]) -> Iterator[str]:
    """One line for each domain in which a class has too few images for the most shots."""
    shots = max(manifest.fewshot.shots)
    for name in names:
        counts = _counts(data, name)
        short = [index for index, count in counts.items() if training_count(shots, count) < shots]
        if short:
            least = min(short, key=lambda index: (counts[index], index))
            yield (
                f"domain {name}: too few images for {shots} shots in {len(short)} of {len(counts)} "
                f"classes, {counts[least]} of {data.classes[least]}; all but one are trained on"
            )


def count_trainings(manifest: Manifest) -> int:
    """Of one domain: every start at each k and seed."""
    config = manifest.fewshot
    return len(config.seeds) * len(config.shots) * len(config.starts)


def read_domain(manifest: Manifest, data: Domains, name: str, threads: int) -> Domain:
    """Decode a domain's images into a temporary file.

    Raises:
        ManifestError: too few of them can be read.
    """
    items = [item for item in data.items if item.domain == name]
    size = manifest.synthesis.image_size
    pixels = _mapped((len(items), size, size, 3))
    labels: list[int] = []
    unreadable = []
    digest = hashlib.sha256()
    for chunk, images in decode_items(items, size, BATCH, threads):
        for item, image in zip(chunk, images, strict=True):
            if isinstance(image, str):
                unreadable.append(f"{item.name}: {image}")
                continue
            pixels[len(labels)] = image
            labels.append(item.class_index)
            digest.update(image.tobytes() + item.class_index.to_bytes(4, "big"))
    _require_two(Counter(labels), name)
    seen = torch.from_numpy(pixels[: len(labels)]).permute(0, 3, 1, 2)
    return Domain(
        name, LabelledImages(seen, torch.tensor(labels)), digest.hexdigest(), tuple(unreadable)
    )


def _mapped(shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Zeros in a file without a name, that goes with its last user; OSError if the disk is full."""
    with tempfile.TemporaryFile(prefix="dfkd-fewshot-") as stream:
        os.posix_fallocate(stream.fileno(), 0, math.prod(shape))
        return np.memmap(stream, np.uint8, "r+", shape=shape)


@dataclass(frozen=True)
class _Experiment:
    """A domain, and what one start makes of it under one seed."""

    manifest: Manifest
    cells: Storage
    domain: Domain
    origin: InitialWeights
    seed: int

    @cached_property
    def classifier(self) -> Student:
        """Before any training."""
        return self.origin.make()

    @cached_property
    def answered(self) -> Tensor:
        """What the classifier says of all images before any training: int64 [N]."""
        return self._answers(self.classifier, torch.arange(len(self.domain.images)))

    def untouched(self) -> list[FewShotRow]:
        """The scores before any training, on all images and on the test images of each k."""
        return [self._row("untouched", k, {}) for k in (0, *self.manifest.fewshot.shots)]

    def trained(self, shots: int) -> FewShotRow:
        """The scores at k = `shots`, of a training that is done now or was done before."""
        config = self.manifest.fewshot
        settings = {"epochs": config.epochs, "rates": learning_rates(config, self.origin.start)}
        return self._row(self.origin.start, shots, settings)

    def _row(self, curve: Curve, shots: int, settings: dict[str, Any]) -> FewShotRow:
        labels, classes = self.domain.images.labels, self.manifest.classes
        drawn = split_domain(labels.tolist(), classes, self.domain.name, shots, self.seed)
        trained, tested = (
            torch.bincount(labels[list(part)], minlength=len(classes)).tolist()
            for part in (drawn.train, drawn.test)
        )
        about = (curve, self.domain.name, shots, self.seed)
        key = self._key(curve, shots, settings)
        if not self.cells.exists(key):
            right = labels[self._rightly(curve, drawn, shots)]
            counts = tuple(torch.bincount(right, minlength=len(classes)).tolist())
            self.cells.put_if_absent(key, canonical(asdict(FewShotCell(*about, counts))))
        return row(*about, trained, tested, self._read(key, about, tested))

    def _key(self, curve: Curve, shots: int, settings: dict[str, Any]) -> str:
        """The cell's, by all that can change its counts."""
        identity = {
            "schema": FewShotCell.schema,
            "settings": settings,
            "architecture": self.manifest.distillation.student,
            "stem": self.manifest.distillation.stem,
            "weights": self.origin.weights,
            "classes": self.manifest.classes,
            "domain": self.domain.name,
            "pixels": self.domain.sha256,
            "shots": shots,
            "seed": self.seed,
        }
        digest = hashlib.sha256(canonical(identity)).hexdigest()[:16]
        return f"{curve}-k{shots}-s{self.seed}-{digest}.json"

    def _rightly(self, curve: Curve, drawn: FewShotSplit, shots: int) -> Tensor:
        """Positions int64 of the test images that are answered rightly."""
        images, start, test = self.domain.images, self.origin.start, torch.tensor(drawn.test)
        if curve == "untouched":
            answered = self.answered[test]
        else:
            classifier, train = copy.deepcopy(self.classifier), torch.tensor(drawn.train)
            seed = derive_seed("fewshot", self.seed, self.domain.name, shots)
            chosen = LabelledImages(images.pixels[train], images.labels[train])
            fine_tune(classifier, chosen, self.manifest.fewshot, seed, start)
            answered = self._answers(classifier, test)
            if (answered < 0).any():
                rate = "fresh_rate" if start == "scratch" else "learning_rate"
                raise DfkdError(
                    f"few-shot training of {start} on {self.domain.name!r} with {shots} "
                    f"shots and seed {self.seed} diverged; lower fewshot.{rate}"
                )
        return test[answered == images.labels[test]]

    def _answers(self, classifier: Student, places: Tensor) -> Tensor:
        return predict(classifier, self.domain.images.pixels, places, BATCH)

    def _read(
        self, key: str, about: tuple[Curve, str, int, int], tested: Sequence[int]
    ) -> list[int]:
        """The counts of a cell; `CorruptionError` unless it is of this training."""
        data = self.cells.get(key, CELL_LIMIT)
        try:
            cell = CELL_ADAPTER.validate_json(data, strict=True)
            mine = (cell.curve, cell.domain, cell.shots, cell.seed) == about
        except ValidationError:
            mine = False
        if not mine or len(cell.right) != len(tested) or any(map(operator.gt, cell.right, tested)):
            raise CorruptionError(
                f"{self.cells.location(key)}: is not the cell that was written; delete it and run "
                "the same command again, which makes it anew"
            )
        return list(cell.right)
