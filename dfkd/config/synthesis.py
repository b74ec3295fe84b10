"""How images are made: sections of the manifest, as checked dataclasses."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from dfkd.config.methods import PromptMethod, Way
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
class Guard:
    """Class consistency of random and contrastive prompts; all off is the paper's exact form."""

    weight: NonNegative = 0.0
    """Weight of the cross-entropy of a contrastive prompt against the class texts."""
    attempts: Natural = 0
    """New draws of a prompt that is nearest to a foreign class, before it falls back to vanilla."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Contrastive:
    """Equation 12 and the variants that the paper ablates."""

    updates: Count = 100
    learning_rate: Positive = 0.1
    """Of the pseudo-words, in each update."""
    batch_size: Annotated[int, Field(ge=2)] = 256
    """Prompts that are pushed apart together."""
    bank: Natural = 2048
    """Negatives drawn from the memory bank of earlier prompts; 0 uses the batch alone."""
    parallel: Count = 1
    """Parts (`shard_size` prompts of each class) that are made side by side, for a run of many
    prompts on several GPUs. A prompt knows those of its own part and of all before, but not of the
    `parallel` - 1 parts right before."""
    temperature: Positive = 0.1
    """The tau of equation 12. The paper names no value, so those who reproduce it have to try."""
    positive: Literal["shuffle", "substitute"] = "shuffle"
    """How letters of the template's frozen words are disturbed in the positive view."""
    disturbance: Annotated[float, Field(gt=0, le=1)] = 0.3
    """The share of those letters that end up changed. The paper says "some characters"; 0.3 is what
    nlpaug, the usual library for this, substitutes or swaps of a word by default."""
    negatives: Literal["instance", "intra-class"] = "instance"
    """What a prompt is pushed away from: all other prompts, or those of its own class."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Prompts:
    """How each image gets its own target text embedding."""

    method: Annotated[Several[PromptMethod], Field(min_length=1)] = ("contrastive",)
    """One method, or a list that `jobs/pipeline.py` compares."""
    template: Name = "{class} in the style of {style}"
    """The sentence of every prompt with a style or a pseudo-word."""
    styles: Literal["paper", "miniature"] | tuple[Name, ...] = "paper"
    """The style dictionary of mix: a named one or a list."""
    alpha: Positive = 1.0
    """Beta(alpha, alpha) of mix."""
    scale: NonNegative = 10.0
    """e of random: pseudo-word spread in standard deviations of the token table."""
    guard: Guard = Guard()
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
    """Latent optimisation (equations 1-3), or one of the methods in `inversion`."""

    method: Annotated[Several[Way], Field(min_length=1)] = ("latent",)
    """`latent` optimises VQGAN latents towards `prompts`; the others have vanilla prompts, and of
    this section they use the sizes, `precision` and `format`. A list is compared."""
    images_per_class: Count = 3000
    """Images of each class; the paper settles on 3,000 (Figure 7)."""
    shard_size: Count = 100
    """Images a shard, and so the work one task does and can lose; where images depend on each other
    (`inversion`, L_bn), a worker makes those of every class at once. It then changes the images."""
    image_size: Count = 224
    """Pixels a side; a multiple of the generator's down-sampling factor."""
    steps: Count = 500
    """Optimisation steps of each image."""
    batch_size: Natural = 8
    """Images optimised at once. 0 finds what a GPU's memory holds, from `shard_size` downwards, and
    is 8 on a CPU. A batch that memory has no room for is halved in any case."""
    learning_rate: Positive = 0.15
    """Of Adam; it stays constant."""
    pace: Annotated[float, Field(ge=1)] = 1.0
    """An image takes `steps` / `pace` steps at `pace` times the rate: as far, in longer strides."""
    views: Natural = 8
    """Augmented views (`dfkd.synthesis.views`) that the teacher sees at each step; 0 shows the
    plain image. `dfkd.config.presets` says why it is 8."""
    view_noise: NonNegative = 0.0
    """Standard deviation of the pixel noise that is added to a view."""
    quantise: bool = True
    """Decode the nearest codes, straight-through, instead of the continuous latent. The paper names
    neither; in the miniature false is 5.1 points better (manifests/studies/latent)."""
    precision: Precision = "float32"
    """Of the networks; a device that does not multiply bfloat16 works in float32. Labels and
    distances are float32."""
    compile: bool = False
    """Compile the step by torch.compile (on a CPU that needs a C++ compiler): the same images up to
    rounding, faster on a GPU after minutes of waiting, for runs of hours."""
    format: Literal["png", "jpg"] = "png"
    """`jpg` (quality 95) is for data sets whose storage costs more than a little loss does."""
    batch_norm_weight: Annotated[Several[NonNegative], Field(min_length=1, max_length=2)] = (0.0,)
    """Of DeepInversion's L_bn, which `latent` adds to each image's distance; images then depend on
    those that share their batch. `[0, w]` compares: the methods with it are called `...-bn`."""

    def __post_init__(self) -> None:
        require_unique("synthesis.method", self.method)
        if len(self.batch_norm_weight) == 2 and 0 not in self.batch_norm_weight:
            raise ManifestError(
                "synthesis.batch_norm_weight",
                "two weights are 0 and another",
                list(self.batch_norm_weight),
                "replace one by 0",
            )
        require_unique("synthesis.batch_norm_weight", self.batch_norm_weight)
        if not self.batch_size and any(self.batch_norm_weight):
            raise ManifestError(
                "synthesis.batch_size",
                "must be given where images depend on those of their batch (batch_norm_weight)",
                self.batch_size,
                "set it to what every worker's memory holds",
            )
