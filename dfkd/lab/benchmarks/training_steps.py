"""Training steps of a student on a batch in memory: ours and the paper's.

They are timed by the kit, and by `dfkd.lab.benchmarks.distillation`, which needs Ray for its other
part.
"""

import dataclasses

import torch

from dfkd.config.manifest import Manifest
from dfkd.dataset.batch import Batch
from dfkd.distillation.distiller import Distiller, Schedule
from dfkd.distillation.labels import TargetFunction
from dfkd.lab.benchmarks import reference
from dfkd.lab.benchmarks.measure import Call
from dfkd.models.student import Student, build
from dfkd.models.teacher import Teacher
from dfkd.prompts.styles import class_text_embeddings

UNIT = "images/s"
MANY_STEPS = 1_000_000
"""Length of a phase that no benchmark reaches the end of."""


def noise(manifest: Manifest, images: int) -> Batch:
    """Images of noise in host memory, with labels of all classes in turn.

    Where there is a GPU the memory is page-locked, as a stream's.
    """
    size, classes = manifest.synthesis.image_size, len(manifest.classes)
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, 3, size, size), generator=draws, dtype=torch.uint8)
    batch = Batch(
        pixels.contiguous(memory_format=torch.channels_last),  # as a stream gives them
        torch.ones(images, classes),
        torch.arange(images) % classes,
        torch.ones(images, 1, dtype=torch.float16),
    )
    return batch.pinned() if torch.cuda.is_available() else batch


def ours(
    manifest: Manifest,
    batch: Batch,
    device: torch.device,
    steps: int,
    label: TargetFunction | None = None,
    warmup: int = 0,
) -> Call:
    """A call that does `steps` steps of the manifest's student, untrained, on one batch.

    Its units are images.

    Args:
        label: labels the views. Without it, the stored labels are used and nothing is augmented,
            so that the student is timed alone.
        warmup: number of first steps in which only the head is trained, on a frozen backbone.
    """
    config = manifest.distillation
    if label is None:
        config = dataclasses.replace(config, labels="stored", texts="template", augmentation=())
    schedule = Schedule(steps_per_epoch=1, warmup=warmup, total=warmup + MANY_STEPS)
    distiller = Distiller(_student(manifest), config, schedule, 0, label, device=device)

    def call() -> float:
        for _ in range(steps):
            distiller.advance(batch)
        return float(steps * len(batch.labels))

    return call


def plain(manifest: Manifest, batch: Batch, teacher: Teacher, steps: int) -> Call:
    """The paper's steps in float32 on one batch, with the memory layout of the networks' authors.

    Args:
        teacher: in float32, with that layout (`reference.as_published`).
    """
    student = _student(manifest).to(teacher.device).train()
    reference.as_published(student)
    texts = class_text_embeddings(manifest, teacher)
    pixels = batch.pixels.contiguous()
    if torch.cuda.is_available():
        pixels = pixels.pin_memory()  # the other layout is a copy, which has lost it

    def call() -> float:
        config = manifest.distillation
        reference.plain_distillation(student, teacher, texts, pixels, config, steps)
        return float(steps * len(pixels))

    return call


def _student(manifest: Manifest) -> Student:
    """An untrained student with the manifest's classes and image size."""
    size, classes = manifest.synthesis.image_size, len(manifest.classes)
    return build(manifest.distillation, classes, size, seed=0, cache=manifest.cache)
