"""The settings of the built-in generators."""

import json
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from dfkd.config.paths import DIFFUSION, MINIATURE
from dfkd.config.pipelines import PIPELINES, usual_sampling
from dfkd.config.plugins import GeneratorSettings
from dfkd.errors import ManifestError
from dfkd.utils.types import CHECKED, Count, Name, Natural, Positive

REFINED_BATCH_SIZE = 8
"""Images that a GPU refines together at first. For its gradient an image of Stable Diffusion keeps
6 GB in float32 at 512 px, and what is sampled before memory runs out is lost."""
NAMED = 12
"""Number of unknown classes that a note names."""


def bundled_names() -> list[str]:
    """The names, in lower case, of what the bundled diffusion model was trained to draw."""
    names: list[str] = json.loads((DIFFUSION / "scores.json").read_text())["names"]
    return names


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Vqgan(GeneratorSettings):
    """A VQGAN of taming-transformers, whose latents start as random codes and are optimised."""

    made_by = "dfkd.models.generators.vqgan:VQGAN"

    config: Name
    """The official `model.yaml`, `miniature`, or a name that is read from the cache:
    `vqgan-imagenet-f16-16384`."""
    weights: Name
    """The official `.ckpt`, a safetensors file with the same keys, or a name as in `config`."""
    steps: Count = 500
    """Optimisation steps of each image."""
    learning_rate: Positive = 0.15
    """Adam's learning rate for latents, which stays constant."""
    quantise: bool = True
    """Decode the nearest codes (straight-through), as VQGAN-CLIP does, instead of the continuous
    latent. The paper states neither."""

    @property
    def optimisation_steps(self) -> int:
        """See `GeneratorSettings`."""
        return self.steps

    @property
    def latent_rate(self) -> float:
        """See `GeneratorSettings`."""
        return self.learning_rate


def _guidance_scale(value: float) -> float:
    """The scale, with 1 for 0, so that both ways to write "none" are one fingerprint.

    Raises:
        ValueError: it lies between them, where pipelines would silently take it for none.
    """
    if 0 < value < 1:
        raise ValueError("must be 0, or greater than or equal to 1")
    return value or 1.0


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Diffusers(GeneratorSettings):
    """A latent diffusion model in diffusers' layout, which samples the latents.

    It is conditioned on the prompt's states in the teacher's text tower, which must be the model's
    own: ViT-L/14 for Stable Diffusion 1, ViT-H/14 for 2 and Turbo.
    """

    made_by = "dfkd.models.generators.diffusion:Diffusion"

    weights: Name
    """A folder with safetensors files, `miniature`, or a name that is read from the cache:
    `stable-diffusion-v1-5`, `sd-turbo`."""
    steps: Count | None = None
    """Sampling steps. null: those that belong to the name in `weights`; of a folder they must be
    given."""
    guidance: Annotated[float, Field(ge=0), AfterValidator(_guidance_scale)] | None = None
    """Guidance scale, as `guidance_scale` of diffusers' pipelines. 0 or 1: none; both make the same
    images, and are shown as 1. null: as for `steps`."""
    refine_steps: Natural = 0
    """Steps by which the teacher's gradient moves a sampled latent, with the same loop as for a
    VQGAN; 0: images are only sampled."""
    refine_rate: Positive = 0.03
    """Adam's learning rate in these steps. 20 of them then move a latent of the bundled model by
    0.32 of its standard deviation, which is as far as the 6 steps of 0.1 did whose students
    `manifests/studies/generators` compares. With a VQGAN's 0.15 they move it by 0.92, and little of
    what was sampled is left."""

    def __post_init__(self) -> None:
        own = PIPELINES.get(self.weights)
        # Filled in here, so that they stand in every copy of the manifest and in its fingerprint.
        for key in ("steps", "guidance"):
            if getattr(self, key) is None:
                if own is None:
                    rule = f"must be given unless weights is {', '.join(PIPELINES)}"
                    remedy = f"give it; {usual_sampling(self.weights)}"
                    raise ManifestError(f"generator.diffusers.{key}", rule, None, remedy)
                object.__setattr__(self, key, getattr(own, key))
        if not self.refine_steps and self.refine_rate != Diffusers.refine_rate:
            raise ManifestError(
                "generator.diffusers.refine_rate",
                "has no effect without refine_steps",
                self.refine_rate,
                "remove it, or set generator.diffusers.refine_steps",
            )

    @property
    def sampling_steps(self) -> int:
        """See `GeneratorSettings`."""
        assert self.steps is not None  # noqa: S101 - filled in above
        return self.steps

    @property
    def optimisation_steps(self) -> int:
        """See `GeneratorSettings`."""
        return self.refine_steps + 1 if self.refine_steps else 0

    @property
    def latent_rate(self) -> float:
        """See `GeneratorSettings`."""
        return self.refine_rate

    @property
    def gpu_batch_size(self) -> int | None:
        """See `GeneratorSettings`."""
        return REFINED_BATCH_SIZE if self.refine_steps else None

    def notes(self, classes: Sequence[str]) -> list[str]:
        """The classes that the bundled model was not trained to draw."""
        if self.weights != MINIATURE:
            return []
        known = bundled_names()
        unknown = [name for name in classes if name.lower() not in known]
        if not unknown:
            return []
        return [
            f"generator.diffusers.weights: the bundled model was not trained to draw "
            f"{', '.join(map(repr, unknown[:NAMED]))}{' and others' * (len(unknown) > NAMED)}; it "
            f"draws {len(known)} things, which dfkd/bundled/MODEL_CARD.md lists"
        ]
