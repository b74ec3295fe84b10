"""How fast a student learns: images a second of one rank, without the reading of shards."""

import dataclasses
from typing import Any

import torch

from dfkd.benchmarks import limits
from dfkd.benchmarks.measure import Call, Figure, operations, quotient, turns
from dfkd.distillation import Course, Distiller
from dfkd.labels import live
from dfkd.manifest import Manifest
from dfkd.prompts import class_texts
from dfkd.streaming import Batch
from dfkd.student import build
from dfkd.teacher import Teacher

STEPS = 2
"""Training steps of one timed repeat."""


def measure(manifest: Manifest, device: torch.device, repeats: int) -> dict[str, Any]:
    """Images a second with live and with stored labels, of the manifest's student and batch.

    Returns:
        `figures`, and `flop_per_image` as counted, of live labels.
    """
    teacher = Teacher.load(
        manifest.teacher, device, manifest.distillation.precision, manifest.cache
    )
    batch = _batch(manifest, teacher)
    taught = _training(manifest, batch, device, teacher)
    each = operations(taught) / (STEPS * manifest.distillation.batch_size)
    precision = manifest.distillation.precision
    found = turns(
        {
            "live": taught,
            "stored": _training(manifest, batch, device, None),
            "convolution": limits.convolution(device, precision),
        },
        repeats,
    )
    figures = [
        Figure(
            "distillation, live labels",
            "images/s",
            found["live"],
            f"convolution, {precision}",
            quotient(found["live"], found["convolution"], each),
        ),
        Figure(
            "distillation, stored labels",
            "images/s",
            found["stored"],
            peer="distillation, live labels",
            ratio=quotient(found["stored"], found["live"]),
        ),
        Figure(f"convolution, {precision}", "FLOP/s", found["convolution"]),
    ]
    return {"flop_per_image": each, "figures": [figure.as_dict() for figure in figures]}


def _training(
    manifest: Manifest, batch: Batch, device: torch.device, teacher: Teacher | None
) -> Call:
    """Steps of a fresh student on one batch; without a teacher on stored labels."""
    config = manifest.distillation
    if teacher is None:
        config = dataclasses.replace(config, labels="stored", texts="template", augmentation=())
    label = live(teacher, class_texts(manifest, teacher)) if teacher else None
    size, classes = manifest.synthesis.image_size, len(manifest.classes)
    student = build(config, classes, size, seed=0, cache=manifest.cache)
    course = Course(steps_per_epoch=1, warmup=0, total=1_000_000)
    distiller = Distiller(student, config, course, 0, label, device=device)

    def call() -> float:
        for _ in range(STEPS):
            distiller.advance(batch)
        return float(STEPS * config.batch_size)

    return call


def _batch(manifest: Manifest, teacher: Teacher) -> Batch:
    """Noise, with labels of every class in turn."""
    size, rows = manifest.synthesis.image_size, manifest.distillation.batch_size
    noise = torch.Generator().manual_seed(0)
    return Batch(
        torch.randint(256, (rows, 3, size, size), generator=noise, dtype=torch.uint8),
        torch.ones(rows, len(manifest.classes)),
        torch.arange(rows) % len(manifest.classes),
        torch.ones(rows, teacher.embedding_dim),
    )
