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
from typing import Any

import numpy as np
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
    found: list[FewShotRow] = []
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
                cells = root.child(CELLS)
                found += rows(manifest, config, cells, domain, origin, seed, progress)
    # The same in whatever order rows and names come.
    average = manifest.evaluation.average
    remarks = (*data.notes, *notes(config, data, names))
    results = FewShotResults(
        architecture=manifest.distillation.architecture,
        classes=manifest.classes,
        data=FewShotData(data.source, tuple(names), remarks, tuple(sorted(unreadable))),
        curves=curve_captions(manifest, config),
        rows=tuple(sort_rows(found)),
        average=average,
        summary=tuple(summarise(found, average)),
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
        OSError: the disk is full.
    """
    items = _single_label_items(data, name)
    size = manifest.synthesis.image_size
    # Pixels are decoded once for all trainings; 55,000 images of 224 px are 8 GB, so not in memory
    # but in an unnamed file, which is deleted with the array.
    shape = len(items), size, size, 3
    with tempfile.TemporaryFile(prefix="dfkd-fewshot-") as stream:
        # Reserve the space now: a full disk would kill the process at a later write to the map.
        os.posix_fallocate(stream.fileno(), 0, math.prod(shape))
        pixels = np.memmap(stream, np.uint8, "r+", shape=shape)
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


def rows(
    manifest: Manifest,
    config: FewShot,
    cells: Storage,
    domain: Domain,
    origin: InitialWeights,
    seed: int,
    progress: Bar,
) -> Iterator[FewShotRow]:
    """Yield the rows of one start and seed on a domain, each from its cell or from a training now.

    The untouched student comes first, if it is the start, then each number of shots.

    Raises:
        CorruptionError: a cell is damaged.
        DfkdError: a training diverged.
    """
    images, labels, start = domain.images, domain.images.labels, origin.start
    # With k = 0 all images are tested, as `dfkd evaluate` does.
    untouched = (0, *config.shots) if start == "student" else ()
    planned: list[tuple[Curve, int]] = [("untouched", shots) for shots in untouched]
    planned += [(start, shots) for shots in config.shots]
    # The classifier before any training, and its predictions; made when a cell is missing.
    classifier: Student | None = None
    initial_answers: Tensor | None = None
    for curve, shots in planned:
        split = split_domain(labels.tolist(), manifest.classes, domain.name, shots, seed)
        trained, tested = (
            torch.bincount(labels[list(part)], minlength=len(manifest.classes)).tolist()
            for part in (split.train, split.test)
        )
        # The key covers all that changes the counts, so an existing cell needs no training.
        key = cell_key(manifest, config, domain, origin, curve, shots, seed)
        if not cells.exists(key):
            classifier = origin.make() if classifier is None else classifier
            test = torch.tensor(split.test)
            if curve == "untouched":
                # One pass over the domain serves every k, because only the choice differs.
                if initial_answers is None:
                    initial_answers = predict(classifier, images.pixels, torch.arange(len(images)))
                answers = initial_answers[test]
            else:
                # Each k starts from the same weights, so the training works on a copy.
                tuned = copy.deepcopy(classifier)
                tune_on_split(tuned, images, split, config, start)
                answers = predict(tuned, images.pixels, test)
                # Counted as wrong answers, NaN logits would pass for a poor start.
                if (answers < 0).any():
                    raise DfkdError(
                        f"few-shot training of {start} on {domain.name!r} with {shots} "
                        f"shots and seed {seed} diverged; lower --learning-rate"
                    )
            right = labels[test[answers == labels[test]]]
            counts = torch.bincount(right, minlength=len(manifest.classes)).tolist()
            cells.put_if_absent(key, canonical(counts))
        # Read back in any case, so a new and an old cell give the same row.
        stored: tuple[int, ...] = ()
        data = cells.get(key, CELL_LIMIT)
        try:
            stored = read_as(RIGHT, data)
            fits = all(right <= total for right, total in zip(stored, tested, strict=True))
        except ValueError:  # no such cell, or counts of another number of classes
            fits = False
        if not fits:
            raise CorruptionError(
                f"{cells.location(key)}: is not the cell that was written; delete it and run "
                "the same command again, which makes it anew"
            )
        yield row(curve, domain.name, shots, seed, trained, tested, stored)
        if curve == start:
            progress.update(1)


def cell_key(
    manifest: Manifest,
    config: FewShot,
    domain: Domain,
    origin: InitialWeights,
    curve: Curve,
    shots: int,
    seed: int,
) -> str:
    """The key of a cell, with a hash of everything that can change its counts."""
    settings: dict[str, Any] = {}
    if curve != "untouched":
        settings = {"epochs": config.epochs, "rates": learning_rates(config, origin.start)}
    identity = {
        "schema": SCHEMA,
        "settings": settings,
        "architecture": manifest.distillation.architecture,
        "weights": origin.weights,
        "classes": manifest.classes,
        "domain": domain.name,
        "pixels": domain.sha256,
        "shots": shots,
        "seed": seed,
    }
    digest = hashlib.sha256(canonical(identity)).hexdigest()[:16]
    return f"{curve}-k{shots}-s{seed}-{digest}.json"
