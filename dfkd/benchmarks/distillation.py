"""How fast a student learns: images a second of one rank, without the reading of shards."""

import dataclasses
from typing import Any

import torch

from dfkd.benchmarks import limits, peers
from dfkd.benchmarks.measure import Call, Figure, beside, operations, profile, quotient, turns
from dfkd.distillation import Course, Distiller, Label
from dfkd.labels import live
from dfkd.manifest import Manifest
from dfkd.prompts import class_texts
from dfkd.streaming import Batch
from dfkd.student import Student, build
from dfkd.teacher import Teacher
from dfkd.training import Distillation

STEPS = 2
"""Training steps of one timed repeat."""
BATCHES = (0.5, 2)
"""Other batches than the manifest's, as shares of it."""
FOREVER = 1_000_000

UNIT = "images/s"
LIVE, STORED = "distillation, live labels", "distillation, stored labels"
PLAIN, WARMUP = "plain loop", "warm-up, stored labels"


def measure(manifest: Manifest, device: torch.device, repeats: int) -> dict[str, Any]:
    """Images a second with live and with stored labels, of the manifest's student and batch.

    Returns:
        `figures`, also of other batches and of the warm-up; of live labels `flop_per_image` as
        counted, and a `profile` of ours and of the plain loop: seconds of `STEPS` steps by
        operation.
    """
    config = manifest.distillation
    teacher = Teacher.load(manifest.teacher, device, config.precision, manifest.cache)
    batch, limit = _batch(manifest, config.batch_size), f"convolution, {config.precision}"
    main = _training(manifest, batch, device, teacher)
    each = operations(main) / (STEPS * config.batch_size)
    others = {
        f"{LIVE}, batch of {rows}": _training(manifest, _batch(manifest, rows), device, teacher)
        for rows in (int(part * config.batch_size) for part in BATCHES)
    }
    others[STORED] = _training(manifest, batch, device, None)
    others[PLAIN] = _peer(manifest, batch, device)
    others[WARMUP] = _warming(manifest, batch, device)
    found = turns(
        {LIVE: main, **others, limit: limits.convolution(device, config.precision)}, repeats
    )
    share, ratio = quotient(found[LIVE], found[limit], each), quotient(found[LIVE], found[PLAIN])
    figures = [
        Figure(LIVE, UNIT, found[LIVE], limit, share, PLAIN, ratio),
        *(beside(LIVE, name, UNIT, found) for name in others),
        Figure(limit, "FLOP/s", found[limit]),
    ]
    return {
        "flop_per_image": each,
        "figures": [figure.as_dict() for figure in figures],
        "profile": {LIVE: profile(main), PLAIN: profile(others[PLAIN])},
    }


def _training(
    manifest: Manifest, batch: Batch, device: torch.device, teacher: Teacher | None
) -> Call:
    """Steps of a fresh student on one batch; without a teacher on stored labels."""
    config = manifest.distillation if teacher else _stored(manifest)
    label = live(teacher, class_texts(manifest, teacher)) if teacher else None
    return _steps(_distiller(manifest, config, device, label), batch)


def _peer(manifest: Manifest, batch: Batch, device: torch.device) -> Call:
    """The loop that the paper states, in float32, on networks as they are published."""
    teacher = Teacher.load(manifest.teacher, device, "float32", manifest.cache)
    student = _student(manifest, manifest.distillation).to(device).train()
    peers.as_published(teacher.model, student)
    texts, pixels = class_texts(manifest, teacher), batch.pixels.to(device).float() / 255

    def call() -> float:
        peers.plain_distillation(student, teacher, texts, pixels, STEPS)
        return float(STEPS * len(pixels))

    return call


def _warming(manifest: Manifest, batch: Batch, device: torch.device) -> Call:
    """Steps of a warm-up that runs the frozen backbone."""
    return _steps(_distiller(manifest, _stored(manifest), device, warmup=FOREVER), batch)


def _steps(distiller: Distiller, batch: Batch) -> Call:
    def call() -> float:
        for _ in range(STEPS):
            distiller.advance(batch)
        return float(STEPS * len(batch.labels))

    return call


def _stored(manifest: Manifest) -> Distillation:
    return dataclasses.replace(
        manifest.distillation, labels="stored", texts="template", augmentation=()
    )


def _distiller(
    manifest: Manifest,
    config: Distillation,
    device: torch.device,
    label: Label | None = None,
    warmup: int = 0,
) -> Distiller:
    course = Course(steps_per_epoch=1, warmup=warmup, total=warmup + FOREVER)
    student = _student(manifest, config)
    return Distiller(student, config, course, 0, label, device=device)


def _student(manifest: Manifest, config: Distillation) -> Student:
    """That nobody has trained."""
    size, classes = manifest.synthesis.image_size, len(manifest.classes)
    return build(config, classes, size, seed=0, cache=manifest.cache)


def _batch(manifest: Manifest, rows: int) -> Batch:
    """Noise, with labels of every class in turn."""
    size = manifest.synthesis.image_size
    noise = torch.Generator().manual_seed(0)
    return Batch(
        torch.randint(256, (rows, 3, size, size), generator=noise, dtype=torch.uint8),
        torch.ones(rows, len(manifest.classes)),
        torch.arange(rows) % len(manifest.classes),
    )
