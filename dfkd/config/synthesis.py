"""The manifest's sections about models, prompts and images, as checked dataclasses."""

from dataclasses import field, fields
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from dfkd.config.methods import LATENTS
from dfkd.config.plugins import (
    GENERATORS,
    IMAGE_SOURCES,
    KINDS,
    PROMPT_METHODS,
    GeneratorSettings,
    gather,
)
from dfkd.errors import ManifestError
from dfkd.utils.types import (
    CHECKED,
    Count,
    Name,
    Natural,
    NonNegative,
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


def _defaults(section: type[Any]) -> dict[str, object]:
    """The keys of a section that are none of its kinds', with their defaults."""
    return {each.name: each.default for each in fields(section) if each.name != KINDS}


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class GeneratorConfig:
    """The frozen generator of images; the settings of each kind are a section of its name."""

    kind: Name
    """The kind: `vqgan`, `diffusers`, or one of another package."""
    kinds: dict[str, Any] = field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, given: Any) -> Any:
        return gather("generator", GENERATORS, "kind", _defaults(cls), given)

    @property
    def settings(self) -> GeneratorSettings:
        """The settings of the chosen kind."""
        chosen: GeneratorSettings = self.kinds[self.kind]
        return chosen


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Prompts:
    """The prompts, which give each image its own target text embedding; the settings of each method
    are a section of its name."""

    method: Annotated[Several[Name], Field(min_length=1)] = ("contrastive",)
    """One method, or a list that `dfkd pipeline` compares: `vanilla`, `mix`, `random`,
    `contrastive`, `captions`, or one of another package."""
    template: Name = "{class} in the style of {style}"
    """The sentence of every prompt with a style or a pseudo-word."""
    styles: Literal["paper", "miniature"] | tuple[Name, ...] = "paper"
    """The styles of mix, and of the labels with `distillation.texts: styles`: the name of a
    dictionary, or a list."""
    kinds: dict[str, Any] = field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, given: Any) -> Any:
        return gather("prompts", PROMPT_METHODS, "method", _defaults(cls), given)

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
    """The images; the settings of each source are a section of its name."""

    source: Annotated[Several[Name], Field(min_length=1)] = (LATENTS,)
    """What makes the images. `latents` makes them from `prompts` by the generator; a source of
    another package may know nothing but the classes, and then it is a method of its own. A list
    compares sources."""
    images_per_class: Count = 3000
    """Images of each class; the paper settles on 3,000 (Figure 7)."""
    shard_size: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Images per shard, which is the work of one task. Where images depend on each other, a worker
    makes a shard of every class at once, and the size also changes the images."""
    image_size: Count = 224
    """Height and width in pixels: of a VQGAN a multiple of its down-sampling factor. A diffusion
    model makes images of its own size, which are resized to this one."""
    batch_size: Natural = 8
    """Images made together. 0: `shard_size`, and 8 on a CPU or for refined latents. A batch that is
    too large for a GPU's memory is halved until it fits; where that would change the images, it is
    an error."""
    views: Natural = 8
    """Augmented views (`dfkd.synthesis.views`) that the teacher sees in each step that optimises
    latents; 0: the plain image. `dfkd.config.presets` explains the default."""
    view_noise: NonNegative = 0.0
    """Standard deviation of the pixel noise that is added to a view."""
    precision: Precision = "float32"
    """Precision of the networks. A device without bfloat16 instructions always uses float32. Labels
    and distances are float32."""
    compile: bool = False
    """Compile the step of full batches with torch.compile, which takes minutes and makes a GPU
    faster, for runs of hours; let `batch_size` divide `shard_size`. Images are the same up to
    rounding. A CPU needs a C++ compiler for it."""
    format: Literal["png", "jpg"] = "png"
    """File format of images. `jpg` (quality 95) saves storage at a small loss."""
    kinds: dict[str, Any] = field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, given: Any) -> Any:
        return gather("synthesis", IMAGE_SOURCES, "source", _defaults(cls), given)

    def __post_init__(self) -> None:
        require_unique("synthesis.source", self.source)
        if self.view_noise and not self.views:
            raise ManifestError(
                "synthesis.view_noise",
                "must be 0 with synthesis.views=0: it is added to views",
                self.view_noise,
                "set it to 0 or raise synthesis.views",
            )
        # An automatic batch size depends on the machine, and so would the images.
        for name in self.source:
            settings = self.kinds[name]
            if settings.scope != "image" and "batch_size" in settings.reads and not self.batch_size:
                raise ManifestError(
                    "synthesis.batch_size",
                    f"must be given with {name}, where images depend on those of their batch",
                    self.batch_size,
                    "set it to what every worker's memory holds",
                )


OPTIMISER_KEYS = ("views", "view_noise", "compile")
"""Keys of `synthesis` that only the optimisation of latents reads."""
