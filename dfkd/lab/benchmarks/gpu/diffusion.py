"""Rows about images that a latent diffusion model samples, and about their labels.

Networks have random weights, drawn on the device, and are built for each row: kept, they would take
memory from later rows. The hidden states of the prompts are random too, because a text tower costs
little. After each batch the kit's first teacher sees the images, as a job's teacher does.
"""

import statistics
from typing import Any

import torch

from dfkd.config.synthesis import Synthesis
from dfkd.lab.benchmarks.gpu.kit import Kit, Result
from dfkd.lab.benchmarks.gpu.sizes import Sampler
from dfkd.lab.benchmarks.measure import Call, Figure, operations, profile
from dfkd.models.generators.diffusion import Diffusion
from dfkd.models.generators.generator import Condition, TextInput
from dfkd.models.generators.text_tower import Shape, TextEncoder
from dfkd.models.teacher import Teacher
from dfkd.models.teacher_architecture import build, build_tokenizer, read_architecture
from dfkd.synthesis.latents import Synthesiser
from dfkd.utils.device import seeded
from dfkd.utils.types import Precision

UNIT = "images/h"
LIMIT = "bf16 product"


def time_sampling(kit: Kit, sampler: Sampler, batch: int, precision: Precision) -> Result:
    """Images per hour, from noise to the pixels that are stored.

    A model's first row in float32 is what its later rows are compared with.

    Returns:
        `figure`, `batch`, and `image_flop`, operations of an image.
    """
    generator = build_generator(kit, sampler, precision)
    call = sampling(kit, sampler, generator, batch)
    flop = operations(call) / batch
    hourly = tuple(3600 * rate for rate in kit.rates(call))
    median = statistics.median(hourly)
    if precision == "float32":
        kit.plain.setdefault(sampler.name, median)
    first = kit.plain.get(sampler.name)
    figure = Figure(
        "",
        UNIT,
        hourly,
        limit=LIMIT,
        share=flop * median / 3600 / kit.matrix_rate if kit.matrix_rate else None,
        peer=f"float32, batch of {kit.sizes.sampled_batches[0]}",
        ratio=median / first if first else None,
    )
    return {"figure": figure.as_dict(), "batch": batch, "image_flop": flop}


def profile_sampling(kit: Kit, sampler: Sampler, batch: int) -> Result:
    """Seconds by kernel of one batch in bfloat16; a second call is profiled."""
    generator = build_generator(kit, sampler, "bfloat16")
    return {
        "profile": profile(sampling(kit, sampler, generator, batch)),
        "remark": f"{sampler.name}, a batch of {batch}",
    }


def time_labels(kit: Kit, name: str, batch: int) -> Result:
    """Images per hour that the teacher of a name embeds for their labels, always in float32."""
    architecture = read_architecture(name)
    with torch.device(kit.device), seeded(0, kit.device):
        model = build(architecture)
    teacher = Teacher(model, build_tokenizer(architecture), name, architecture.preprocess)
    size = kit.sizes.image_size
    pixels = torch.rand(batch, 3, size, size, device=kit.device)

    @torch.no_grad()
    def call() -> float:
        teacher.encode_image(pixels, "float32")
        return float(batch)

    hourly = tuple(3600 * rate for rate in kit.rates(call))
    return {"figure": Figure("", UNIT, hourly).as_dict(), "batch": batch}


def build_generator(kit: Kit, sampler: Sampler, precision: Precision) -> Diffusion:
    """The generator with random weights, as `Diffusion.load` gives it with trained ones."""
    import diffusers  # here, because without it only these rows fail

    library: Any = diffusers
    width = _text(sampler)["width"]
    with torch.device(kit.device), seeded(0, kit.device):
        unet = library.UNet2DConditionModel(cross_attention_dim=width, **sampler.unet)
        vae = library.AutoencoderKL(**sampler.vae)
    vae.encoder = vae.quant_conv = None
    for network in (unet, vae):
        network.eval().requires_grad_(False)
    scheduler = getattr(library, sampler.scheduler)(**sampler.schedule)
    encoder = TextEncoder(Shape(hidden_size=width), TextInput(1, pads_with_end=True), None)
    return Diffusion(unet, vae, scheduler, encoder, sampler.steps, sampler.guidance, precision)


def sampling(kit: Kit, sampler: Sampler, generator: Diffusion, batch: int) -> Call:
    """A call that makes a batch of images, as a job does; its units are images."""
    teacher = kit.teacher(kit.sizes.teachers[0], "bfloat16")
    config = Synthesis(image_size=kit.sizes.image_size, batch_size=batch)
    synthesiser = Synthesiser(teacher, generator, config, steps=0)
    targets, text = kit.targets(teacher, batch), _text(sampler)
    draws = torch.Generator(kit.device).manual_seed(0)
    shape = (batch + 1, text.get("context_length", 77), text["width"])
    states = torch.randn(shape, generator=draws, device=kit.device)
    condition = Condition(states[1:], states[:1])

    def call() -> float:
        made = synthesiser(targets, range(batch), condition=condition)
        if bool(made.diverged.any()):
            raise RuntimeError("images are not finite")
        return float(batch)

    return call


def _text(sampler: Sampler) -> dict[str, Any]:
    """The configuration of the text tower that the UNet is conditioned by."""
    text: dict[str, Any] = read_architecture(sampler.teacher).model["text_cfg"]
    return text
