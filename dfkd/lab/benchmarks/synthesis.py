"""Speed of synthesis: image-steps per second of a VQGAN, images per second of a diffusion model."""

import dataclasses

import torch

from dfkd.config.manifest import Manifest
from dfkd.dataset.versions import Version
from dfkd.lab.benchmarks import reference
from dfkd.lab.benchmarks.measure import Call, Effort, Results, time_loop
from dfkd.models.generators.settings import Vqgan
from dfkd.models.generators.vqgan import VQGAN
from dfkd.models.labeller import class_prompt
from dfkd.models.teacher import Teacher
from dfkd.prompts.conditions import StoredPrompt
from dfkd.prompts.styles import class_text_embeddings
from dfkd.storage.local import open_storage
from dfkd.synthesis.image_source import SourceContext, initial_batch_size
from dfkd.synthesis.latents import LatentSource
from dfkd.utils.device import pick_device
from dfkd.utils.types import Precision

STEPS = 4
"""Optimisation steps in one timed repeat. Our loop also evaluates its final latents, as at the end
of a real run; the plain loop does not.
"""
BATCHES = (0.25, 0.5, 2)
"""Other batch sizes, relative to the manifest's."""


def measure(manifest: Manifest, effort: Effort) -> Results:
    """The manifest's models, image size, batch and precision, beside a plain loop.

    Returns:
        The result of `time_loop`, also for other batch sizes and in float32; of a VQGAN also
        compiled, where that can gain. A profile covers `STEPS` steps of a VQGAN, or a batch.
    """
    device = pick_device()
    limit = reference.convolution(device, manifest.synthesis.precision)
    named_limit = f"convolution, {manifest.synthesis.precision}", limit
    settings = manifest.generator.settings
    if isinstance(settings, Vqgan):
        return _optimised(manifest, settings, device, named_limit, effort.repeats)
    return _sampled(manifest, device, named_limit, effort.repeats)


def _optimised(
    manifest: Manifest,
    settings: Vqgan,
    device: torch.device,
    limit: tuple[str, Call],
    repeats: int,
) -> Results:
    """Image-steps per second of latents that are optimised; the plain loop is the paper's."""

    def models(precision: Precision) -> tuple[Teacher, VQGAN]:
        return (
            Teacher.load(manifest.teacher, device, precision, manifest.cache),
            VQGAN.load(settings, device, precision, manifest.cache),
        )

    own, exact, published = (
        models(precision) for precision in (manifest.synthesis.precision, "float32", "float32")
    )
    text = class_text_embeddings(manifest, own[0])[:1]
    # The last step evaluates its latents without an update, so one more makes `STEPS`.
    steps = dataclasses.replace(settings, steps=STEPS + 1)
    single = manifest.with_method("vanilla").with_values(generator={"kinds": {"vqgan": steps}})
    nowhere = Version(open_storage(manifest.storage.root), "0" * 64)

    def ours(pair: tuple[Teacher, VQGAN], batch: int, compiled: bool = False) -> Call:
        timed = single.with_values(synthesis={"compile": compiled})
        source = LatentSource(SourceContext(timed, *pair, nowhere))
        source.limit(batch)
        prompts = [StoredPrompt(0, index, index, "", text[0], None) for index in range(batch)]

        def call() -> float:
            source.make(prompts, range(batch))
            return float(STEPS * batch)

        return call

    batch = initial_batch_size(manifest, device)
    variants = {
        f"synthesis, batch of {size}": ours(own, size)
        for size in (max(1, int(part * batch)) for part in BATCHES)
    }
    variants["synthesis, float32"] = ours(exact, batch)
    # Compilation needs a compiler and gains nothing on a CPU.
    if manifest.synthesis.compile or device.type == "cuda":
        variants["synthesis, compiled"] = ours(own, batch, compiled=True)

    teacher, generator = published
    reference.as_published(teacher.model, generator.network)

    def plain() -> float:
        targets = text.expand(reference.BATCH, -1)
        reference.plain_loop(teacher, generator, targets, manifest.synthesis.image_size, STEPS)
        return float(STEPS * reference.BATCH)

    variants["plain loop"] = plain
    timed = ours(own, batch)
    return time_loop("synthesis", "image-steps/s", timed, variants, "plain loop", limit, repeats)


def _sampled(
    manifest: Manifest, device: torch.device, limit: tuple[str, Call], repeats: int
) -> Results:
    """Images per second from prompt to pixels and distance, as a worker makes them.

    The plain loop is that of a pipeline of diffusers in its defaults: float32, one image a call.
    """
    # Its prompt is the class prompt. Other methods' prompts cost the model the same.
    single = manifest.with_method("vanilla")
    text = class_prompt(manifest.teacher.template, manifest.meanings[0])

    def source(precision: Precision) -> LatentSource:
        own = single.with_values(synthesis={"precision": precision})
        teacher = Teacher.load(own.teacher, device, precision, own.cache)
        generator = own.generator.settings.load(device, precision, own.cache)
        nowhere = Version(open_storage(own.storage.root), "0" * 64)
        return LatentSource(SourceContext(own, teacher, generator, nowhere))

    def making(source: LatentSource, batch: int) -> Call:
        embedding = class_text_embeddings(single, source.teacher)[0]
        prompts = [StoredPrompt(0, index, index, text, embedding, None) for index in range(batch)]

        def call() -> float:
            source.make(prompts, range(batch))
            return float(batch)

        return call

    batch = initial_batch_size(manifest, device)
    ours, exact = source(manifest.synthesis.precision), source("float32")
    variants = {
        f"synthesis, batch of {size}": making(ours, size)
        for size in (max(1, int(part * batch)) for part in BATCHES)
    }
    variants["synthesis, float32"] = making(exact, batch)
    plain = "one image a call, float32"
    variants[plain] = making(exact, 1)
    timed = making(ours, batch)
    return time_loop("synthesis", "images/s", timed, variants, plain, limit, repeats)
