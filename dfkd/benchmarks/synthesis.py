"""How fast latents are optimised: image-steps a second of one batch, models included."""

import dataclasses

import torch

from dfkd.benchmarks.measure import rates
from dfkd.generator import VQGAN
from dfkd.manifest import Manifest
from dfkd.prompts import class_texts
from dfkd.synthesis import synthesise
from dfkd.teacher import Teacher

STEPS = 5
"""Optimisation steps of one timed repeat."""


def measure(manifest: Manifest, device: torch.device, repeats: int) -> list[float]:
    """Image-steps a second of each repeat, with the manifest's models, size and batch."""
    config = dataclasses.replace(
        manifest.synthesis, steps=STEPS, patience=0, batch_norm_weight=(0.0,)
    )
    teacher = Teacher.load(manifest.teacher, device, config.precision, manifest.cache)
    generator = VQGAN.load(manifest.generator, device, config.precision, manifest.cache)
    targets = class_texts(manifest, teacher)[:1].expand(config.batch_size, -1)

    def call() -> int:
        synthesise(teacher, generator, config, targets, range(config.batch_size))
        return STEPS * config.batch_size

    return rates(call, repeats)
