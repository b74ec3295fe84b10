"""The manifest's sections about models, prompts and images, as checked dataclasses."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from dfkd.config.methods import PromptMethod, SynthesisMethod
from dfkd.errors import ManifestError
from dfkd.utils.types import (
    CHECKED,
    Count,
    Name,
    Natural,
    NonNegative,
    Positive,
    Precision,
    Several,
    require_slots,
    require_unique,
)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TeacherConfig:
    """The frozen vision-language model (open_clip)."""

    model: Name
    """An open_clip architecture, the path of a model configuration, or `miniature`."""
    weights: Name
    """An open_clip tag, a file (state dict, safetensors), a folder, or `miniature`.

    The file of a tag is read from the cache."""
    template: Name = "A {class}"
    """The vanilla class prompt, also for labels and for zero-shot classification."""

    def __post_init__(self) -> None:
        require_slots("teacher.template", self.template, "{class}")


def _guidance_scale(value: float) -> float:
    """The scale, with 1 for 0, so that both ways to write "none" are one fingerprint.

    Raises:
        ValueError: it lies between them, where pipelines would silently take it for none.
    """
    if 0 < value < 1:
        raise ValueError("must be 0, or greater than or equal to 1")
    return value or 1.0


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class GeneratorConfig:
    """The frozen generator of images."""

    kind: Literal["vqgan", "diffusers"] = "vqgan"
    """`vqgan` (taming-transformers): latents start as random codes and are optimised. `diffusers`:
    a diffusion model samples them, conditioned on the prompt's states in the teacher's text tower,
    which must be the model's own: ViT-L/14 for Stable Diffusion 1, ViT-H/14 for 2 and Turbo."""
    config: str = ""
    """Of `vqgan`: the official `model.yaml`, `miniature`, or a name that is read from the cache:
    `vqgan-imagenet-f16-16384`."""
    weights: Name
    """Of `vqgan`: the official `.ckpt`, a safetensors file with the same keys, or a name as in
    `config`. Of `diffusers`: a folder in its layout with safetensors files, `miniature`, or a name
    that is read from the cache: `stable-diffusion-v1-5`, `sd-turbo`."""
    guidance: Annotated[float, Field(ge=0), AfterValidator(_guidance_scale)] | None = None
    """Guidance scale of `diffusers`, as `guidance_scale` of its pipelines. 0 or 1: none; both make
    the same images, and are shown as 1. null: the scale that belongs to the name in `weights`; of a
    folder it must be given."""
    refine_steps: Natural = 0
    """Steps by which the teacher's gradient moves a sampled latent of `diffusers`, with the same
    loop as for `vqgan`; 0: images are only sampled."""
    refine_rate: Positive = 0.03
    """Adam's learning rate in these steps. 20 of them then move a latent of the bundled model by
    0.32 of its standard deviation, which is as far as the 6 steps of 0.1 did whose students
    `manifests/studies/generators` compares. With the 0.15 of `synthesis.learning_rate` they move it
    by 0.92, and little of what was sampled is left."""

    def __post_init__(self) -> None:
        if self.kind == "vqgan" and not self.config:
            raise ManifestError(
                "generator.config", "must be given for a vqgan", self.config, "name its model.yaml"
            )


MAX_BANK = 16384
"""Prompts in the memory bank, over all classes: eight times the paper's draw of 2,048."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Contrastive:
    """Equation 12 and the variants that the paper ablates."""

    updates: Count = 100
    """Gradient steps of the pseudo-words."""
    learning_rate: Positive = 0.1
    """Learning rate of the pseudo-words."""
    batch_size: Annotated[int, Field(ge=2)] = 256
    """Prompts that are pushed apart together, of those of one part; its last batch may be smaller.
    """
    bank: Annotated[int, Field(ge=0, le=MAX_BANK)] = 2048
    """Negatives drawn from the memory bank of earlier prompts, which holds 16,384; with 0 only the
    batch is used."""
    parallel: Count = 1
    """Parts (`shard_size` prompts of each class) that are made in parallel, for runs of many
    prompts on several GPUs. The bank of a part holds the prompts of all earlier parts except the
    `parallel` - 1 parts right before it."""
    positive: Literal["shuffle", "substitute"] = "shuffle"
    """How letters of the template's frozen words are disturbed in the positive view."""
    negatives: Literal["instance", "intra-class"] = "instance"
    """Prompts that a prompt is pushed away from: all others, or those of its own class."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Prompts:
    """The prompts, which give each image its own target text embedding."""

    method: Annotated[Several[PromptMethod], Field(min_length=1)] = ("contrastive",)
    """One method, or a list that `jobs/pipeline.py` compares."""
    template: Name = "{class} in the style of {style}"
    """The sentence of every prompt with a style or a pseudo-word."""
    styles: Literal["paper", "miniature"] | tuple[Name, ...] = "paper"
    """The styles of mix, and of the labels with `distillation.texts: styles`: the name of a
    dictionary, or a list."""
    scale: NonNegative = 10.0
    """e of random prompts, and of those that contrastive prompts start from: the spread of
    pseudo-words in standard deviations of the token table."""
    contrastive: Contrastive = Contrastive()

    def __post_init__(self) -> None:
        require_slots("prompts.template", self.template, "{class}", "{style}")
        require_unique("prompts.method", self.method)
        if not isinstance(self.styles, str):
            require_unique("prompts.styles", self.styles)
        few = not isinstance(self.styles, str) and len(self.styles) < 2
        if few and "mix" in self.method:
            raise ManifestError(
                "prompts.styles", "mix needs two styles or more", self.styles, "add styles"
            )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Synthesis:
    """Images from latents (equations 1-3), or by one of the methods in `inversion`."""

    method: Annotated[Several[SynthesisMethod], Field(min_length=1)] = ("latent",)
    """`latent` makes the generator's latents from `prompts`. The other methods use vanilla prompts,
    and from this section only the sizes, `precision` and `format`. A list compares methods."""
    images_per_class: Count = 3000
    """Images of each class; the paper settles on 3,000 (Figure 7)."""
    shard_size: Count = 100
    """Images per shard, which is the work of one task. If images depend on each other (`inversion`,
    L_bn), a worker makes a shard of every class at once, and the size also changes the images."""
    image_size: Count = 224
    """Height and width in pixels: of a VQGAN a multiple of its down-sampling factor. A diffusion
    model makes images of its own size, which are resized to this one."""
    steps: Count | None = None
    """Optimisation steps of each image, and null: 500. With `generator.kind: diffusers` its
    sampling steps, and null: those that belong to the name in `generator.weights`; of a folder they
    must be given."""
    batch_size: Natural = 8
    """Images made together. 0: `shard_size`, and 8 on a CPU or for refined latents. A batch that is
    too large for a GPU's memory is halved until it fits; with L_bn, where that would change the
    images, it is an error."""
    learning_rate: Positive = 0.15
    """Adam's learning rate for latents of a VQGAN, which stays constant; for sampled ones see
    `generator.refine_rate`."""
    pace: Annotated[float, Field(ge=1)] = 1.0
    """Speed-up factor: `steps` / `pace` steps with a learning rate `pace` times as large."""
    views: Natural = 8
    """Augmented views (`dfkd.synthesis.views`) that the teacher sees in each step; 0: the plain
    image. `dfkd.config.presets` explains the default."""
    view_noise: NonNegative = 0.0
    """Standard deviation of the pixel noise that is added to a view."""
    quantise: bool = True
    """Decode the nearest codes (straight-through), as VQGAN-CLIP does, instead of the continuous
    latent. The paper states neither."""
    precision: Precision = "float32"
    """Precision of the networks. A device without bfloat16 instructions always uses float32. Labels
    and distances are float32."""
    compile: bool = False
    """Compile the step of full batches with torch.compile, which takes minutes and makes a GPU
    faster, for runs of hours; let `batch_size` divide `shard_size`. Images are the same up to
    rounding. A CPU needs a C++ compiler for it."""
    format: Literal["png", "jpg"] = "png"
    """File format of images. `jpg` (quality 95) saves storage at a small loss."""
    batch_norm_weight: Annotated[Several[NonNegative], Field(min_length=1, max_length=2)] = (0.0,)
    """Weight of DeepInversion's L_bn, which `latent` adds to each image's distance. Images then
    depend on the others of their batch. `[0, w]` compares both; methods with L_bn end in `-bn`."""

    def __post_init__(self) -> None:
        require_unique("synthesis.method", self.method)
        if self.view_noise and not self.views:
            raise ManifestError(
                "synthesis.view_noise",
                "must be 0 with synthesis.views=0: it is added to views",
                self.view_noise,
                "set it to 0 or raise synthesis.views",
            )
        if len(self.batch_norm_weight) == 2 and 0 not in self.batch_norm_weight:
            raise ManifestError(
                "synthesis.batch_norm_weight",
                "two weights are 0 and another",
                list(self.batch_norm_weight),
                "replace one by 0",
            )
        require_unique("synthesis.batch_norm_weight", self.batch_norm_weight)
        # An automatic batch size depends on the machine, and L_bn makes images depend on the batch.
        if not self.batch_size and any(self.batch_norm_weight):
            raise ManifestError(
                "synthesis.batch_size",
                "must be given where images depend on those of their batch (batch_norm_weight)",
                self.batch_size,
                "set it to what every worker's memory holds",
            )


VQGAN_STEPS = 500
"""`synthesis.steps` of a VQGAN where a manifest states none."""

OPTIMISER_KEYS = (
    "generator.refine_rate",
    "synthesis.views",
    "synthesis.view_noise",
    "synthesis.compile",
    "synthesis.batch_norm_weight",
)
"""Keys that only the optimisation of latents reads, of those that a diffusion model may have."""


def keys_without_effect(generator: GeneratorConfig) -> tuple[str, ...]:
    """The keys of `generator` and `synthesis` that this generator does not read.

    A manifest must leave them at their defaults, and they are no part of the fingerprint.
    """
    if generator.kind == "vqgan":
        return ("generator.guidance", "generator.refine_steps", "generator.refine_rate")
    # Sampled latents have no codes, their steps are those that the model was trained for, and their
    # refinement has a rate of its own.
    unread = (
        "generator.config",
        "synthesis.learning_rate",
        "synthesis.pace",
        "synthesis.quantise",
    )
    return unread if generator.refine_steps else unread + OPTIMISER_KEYS
