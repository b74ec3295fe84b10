"""How fast latents are optimised: image-steps a second, beside loops that people use instead."""

import dataclasses
from typing import Any

import torch

from dfkd.benchmarks import limits, peers
from dfkd.benchmarks.measure import Figure, operations, quotient, turns
from dfkd.generator import VQGAN
from dfkd.manifest import Manifest
from dfkd.prompts import class_texts
from dfkd.surrogate import first_batch
from dfkd.synthesis import Synthesiser
from dfkd.teacher import Teacher

STEPS = 4
"""Optimisation steps of one timed repeat; the cutout loop takes one."""


def measure(manifest: Manifest, device: torch.device, repeats: int) -> dict[str, Any]:
    """Image-steps a second with the manifest's models, size, batch and precision.

    Returns:
        `figures`, and `flop_per_image_step` as counted.
    """
    config = dataclasses.replace(
        manifest.synthesis, steps=STEPS, patience=0, batch_norm_weight=(0.0,)
    )
    teacher, generator = _models(manifest, device, config.precision)
    plain_teacher, plain_generator = _models(manifest, device, "float32")
    peers.as_published(plain_teacher, plain_generator)
    text = class_texts(manifest, teacher)[:1]
    synthesiser = Synthesiser(teacher, generator, config)
    batch, size = first_batch(config, device), config.image_size

    def ours() -> float:
        synthesiser(text.expand(batch, -1), range(batch))
        return float(STEPS * batch)

    def plain() -> float:
        targets = text.expand(peers.BATCH, -1)
        peers.plain_loop(plain_teacher, plain_generator, targets, size, STEPS)
        return float(STEPS * peers.BATCH)

    def cutouts() -> float:
        peers.cutout_loop(plain_teacher, plain_generator, text[0], size, 1)
        return 1.0

    each = operations(ours) / (STEPS * batch)
    found = turns(
        {
            "ours": ours,
            "plain": plain,
            "cutouts": cutouts,
            "convolution": limits.convolution(device, config.precision),
        },
        repeats,
    )
    unit = "image-steps/s"
    return {
        "flop_per_image_step": each,
        "figures": [
            Figure(
                "synthesis",
                unit,
                found["ours"],
                f"convolution, {config.precision}",
                quotient(found["ours"], found["convolution"], each),
                "plain loop",
                quotient(found["ours"], found["plain"]),
            ).as_dict(),
            Figure("plain loop", unit, found["plain"]).as_dict(),
            Figure(
                "cutout loop",
                unit,
                found["cutouts"],
                peer="synthesis",
                ratio=quotient(found["cutouts"], found["ours"]),
            ).as_dict(),
            Figure("convolution", "FLOP/s", found["convolution"]).as_dict(),
        ],
    }


def _models(
    manifest: Manifest, device: torch.device, precision: limits.Precision
) -> tuple[Teacher, VQGAN]:
    return (
        Teacher.load(manifest.teacher, device, precision, manifest.cache),
        VQGAN.load(manifest.generator, device, precision, manifest.cache),
    )
