"""Speed of a diffusion model in images per second, compared with one image in each call."""

import torch

from dfkd.config.manifest import Manifest
from dfkd.lab.benchmarks import reference
from dfkd.lab.benchmarks.measure import Call, Effort, Results, time_loop
from dfkd.models.generators import kinds
from dfkd.models.teacher import Teacher, class_prompt
from dfkd.prompts.conditions import StoredPrompt
from dfkd.prompts.styles import class_text_embeddings
from dfkd.synthesis.request import initial_batch_size
from dfkd.synthesis.sources import LatentSource
from dfkd.utils.device import pick_device
from dfkd.utils.types import Precision

BATCHES = (0.25, 0.5, 2)
"""Other batch sizes, relative to the manifest's."""
UNIT = "images/s"
NAME, PLAIN = "synthesis", "one image a call, float32"


def measure(manifest: Manifest, effort: Effort) -> Results:
    """Images per second from prompt to pixels and distance, as a worker makes them.

    Returns:
        The result of `time_loop`, also for other batch sizes and the other precision. The plain
        loop is that of a pipeline of diffusers in its defaults: float32, one image in each call.
    """
    device, config = pick_device(), manifest.synthesis
    # Its prompt is the class prompt. Other methods' prompts cost the model the same.
    single = manifest.with_method("vanilla")
    batch = initial_batch_size(manifest, device)
    ours = _source(single, device, config.precision)
    full_precision = _source(single, device, "float32")
    variants = {
        f"{NAME}, batch of {size}": _call(single, ours, size)
        for size in (max(1, int(part * batch)) for part in BATCHES)
    }
    variants[f"{NAME}, float32"] = _call(single, full_precision, batch)
    variants[PLAIN] = _call(single, full_precision, 1)
    limit = f"convolution, {config.precision}", reference.convolution(device, config.precision)
    timed = _call(single, ours, batch)
    return time_loop(NAME, UNIT, timed, variants, PLAIN, limit, effort.repeats)


def _source(manifest: Manifest, device: torch.device, precision: Precision) -> LatentSource:
    """What makes a worker's images, with networks in a precision."""
    manifest = manifest.with_values(synthesis={"precision": precision})
    teacher = Teacher.load(manifest.teacher, device, precision, manifest.cache)
    return LatentSource(manifest, teacher, kinds.load(manifest, device, precision))


def _call(manifest: Manifest, source: LatentSource, batch: int) -> Call:
    """A call that makes `batch` images of the first class."""
    text = class_prompt(manifest.teacher.template, manifest.classes[0])
    embedding = class_text_embeddings(manifest, source.synthesiser.teacher)[0]
    prompts = [StoredPrompt(0, index, index, text, embedding, None) for index in range(batch)]

    def call() -> float:
        source.make(prompts, range(batch))
        return float(batch)

    return call
