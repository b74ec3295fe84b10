"""Speed of synthesis, compared with the paper's loop: image-steps per second of a VQGAN."""

import dataclasses

import torch
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.config.synthesis import Synthesis
from dfkd.lab.benchmarks import reference, sampling
from dfkd.lab.benchmarks.measure import Call, Effort, Results, time_loop
from dfkd.models.generators.vqgan import VQGAN
from dfkd.models.teacher import Teacher
from dfkd.prompts.styles import class_text_embeddings
from dfkd.synthesis.latents import Synthesiser
from dfkd.synthesis.request import initial_batch_size
from dfkd.utils.device import pick_device
from dfkd.utils.types import Precision

STEPS = 4
"""Optimisation steps in one timed repeat. Our loop also evaluates its final latents, as at the end
of a real run; the plain loop does not.
"""
UNIT = "image-steps/s"
PLAIN = "plain loop"


def measure(manifest: Manifest, effort: Effort) -> Results:
    """Image-steps per second with the manifest's models, size, batch and precision.

    Returns:
        The result of `time_loop`, also for other batch sizes, in float32 and compiled; a profile
        covers `STEPS` steps. Of a diffusion model, that of `sampling.measure`.
    """
    if manifest.generator.kind == "diffusers":
        return sampling.measure(manifest, effort)
    device = pick_device()
    # The plain loops have no batch-norm loss, so ours goes without.
    config = dataclasses.replace(manifest.synthesis, batch_norm_weight=(0.0,), compile=False)
    models = _models(manifest, device, config.precision)
    text = class_text_embeddings(manifest, models[0])[:1]
    batch = initial_batch_size(manifest, device)
    variants = {
        f"synthesis, batch of {size}": _ours(*models, config, text, size)
        for size in (max(1, int(part * batch)) for part in sampling.BATCHES)
    }
    single = dataclasses.replace(config, precision="float32")
    full_precision = _models(manifest, device, single.precision)
    variants["synthesis, float32"] = _ours(*full_precision, single, text, batch)
    # Compilation needs a compiler and gains nothing on a CPU.
    if manifest.synthesis.compile or device.type == "cuda":
        compiled = dataclasses.replace(config, compile=True)
        variants["synthesis, compiled"] = _ours(*models, compiled, text, batch)
    variants[PLAIN] = _plain_loop(manifest, device, text)
    limit = f"convolution, {config.precision}", reference.convolution(device, config.precision)
    ours = _ours(*models, config, text, batch)
    return time_loop("synthesis", UNIT, ours, variants, PLAIN, limit, effort.repeats)


def _ours(teacher: Teacher, generator: VQGAN, config: Synthesis, text: Tensor, batch: int) -> Call:
    """Our loop on `batch` images that share one prompt."""
    config = dataclasses.replace(config, batch_size=batch)
    # The last step evaluates its latents without an update, so one more makes `STEPS`.
    synthesiser = Synthesiser(teacher, generator, config, STEPS + 1)

    def call() -> float:
        synthesiser(text.expand(batch, -1), range(batch))
        return float(STEPS * batch)

    return call


def _plain_loop(manifest: Manifest, device: torch.device, text: Tensor) -> Call:
    """The paper's loop, on models in their published layout."""
    teacher, generator = _models(manifest, device, "float32")
    reference.as_published(teacher.model, generator.network)
    size = manifest.synthesis.image_size

    def plain() -> float:
        targets = text.expand(reference.BATCH, -1)
        reference.plain_loop(teacher, generator, targets, size, STEPS)
        return float(STEPS * reference.BATCH)

    return plain


def _models(
    manifest: Manifest, device: torch.device, precision: Precision
) -> tuple[Teacher, VQGAN]:
    """The manifest's teacher and generator in a precision."""
    return (
        Teacher.load(manifest.teacher, device, precision, manifest.cache),
        VQGAN.load(manifest.generator, device, precision, manifest.cache),
    )
