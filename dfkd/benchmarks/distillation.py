"""How fast a student learns: images a second of one rank, without the reading of shards."""

import torch

from dfkd.benchmarks.measure import rates
from dfkd.distillation import Course, Distiller
from dfkd.labels import live
from dfkd.manifest import Manifest
from dfkd.prompts import class_texts
from dfkd.streaming import Batch
from dfkd.student import build
from dfkd.teacher import Teacher

STEPS = 5
"""Training steps of one timed repeat."""


def measure(manifest: Manifest, device: torch.device, repeats: int) -> list[float]:
    """Images a second of each repeat, with the manifest's teacher, student, size and batch."""
    config, size = manifest.distillation, manifest.synthesis.image_size
    precision, cache = manifest.synthesis.precision, manifest.cache
    teacher = Teacher.load(manifest.teacher, device, precision, cache)
    label = live(teacher, class_texts(manifest, teacher))
    student = build(config, len(manifest.classes), size, seed=0, cache=cache)
    course = Course(steps_per_epoch=1, warmup=0, total=1_000_000)

    taught = label if config.labels == "live" else None
    distiller = Distiller(student, config, course, 0, taught, device=device)
    noise = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (config.batch_size, 3, size, size), generator=noise)
    stored = torch.ones(config.batch_size, len(manifest.classes))
    labels = torch.arange(config.batch_size) % len(manifest.classes)
    embeddings = torch.ones(config.batch_size, teacher.embedding_dim)
    batch = Batch(pixels.to(torch.uint8), stored, labels, embeddings)

    def call() -> int:
        for _ in range(STEPS):
            distiller.advance(batch)
        return STEPS * config.batch_size

    return rates(call, repeats)
