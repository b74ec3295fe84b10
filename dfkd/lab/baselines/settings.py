"""The settings of the conventional methods, of L_bn, and of the variants of contrastive prompts.

The defaults of the methods are those of the published code for the most similar image size, if it
states them. The weights of the losses and all learning rates are constants in each method's module.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from dfkd.config.plan import part_count
from dfkd.config.plugins import SourceSettings
from dfkd.errors import ManifestError
from dfkd.prompts.settings import Contrastive
from dfkd.utils.types import CHECKED, Count, Natural, Positive

if TYPE_CHECKING:
    from dfkd.config.manifest import Manifest
    from dfkd.models.teacher import Teacher

Batch = Annotated[int, Field(ge=2)]

SIDE = 16
"""Pixels: DFAD's generator doubles the resolution four times, PRE-DFKD's encoder halves it thrice.
"""


class Inversion(SourceSettings):
    """What the settings of the methods share that invert the teacher."""

    made_by = "dfkd.lab.baselines.source:InversionSource"
    follows_prompts = False
    reads = ()
    inverter: ClassVar[str]
    """`module:class` of the `dfkd.lab.baselines.inverter.Inverter`."""

    def check(self, manifest: "Manifest", teacher: "Teacher") -> None:
        """See `SourceSettings.check`."""
        from dfkd.lab.baselines.batch_norm import require_batch_norm

        require_batch_norm(teacher, manifest.method)


class Adversarial(Inversion):
    """What DFAD and PRE-DFKD share."""

    scope = "run"

    def check(self, manifest: "Manifest", teacher: "Teacher") -> None:
        """Also refuse sizes that the networks cannot handle, and parts without a round."""
        super().check(manifest, teacher)
        size, parts, method = manifest.synthesis.image_size, part_count(manifest), manifest.method
        rounds: int = self.rounds  # type: ignore[attr-defined]
        if size % SIDE:
            rule, nearest = f"must be a multiple of {SIDE} for {method}", max(1, size // SIDE)
            raise ManifestError("synthesis.image_size", rule, size, f"use {nearest * SIDE}")
        if rounds < parts:
            raise ManifestError(
                f"synthesis.{method}.rounds",
                f"must be at least one for each of the {parts} parts",
                rounds,
                "raise it, or synthesis.shard_size",
            )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class DeepInversion(Inversion):
    """Yin et al. 2020; the defaults are from the command in its README."""

    scope = "part"
    inverter = "dfkd.lab.baselines.deepinversion:DeepInverter"

    low_resolution_steps: Natural = 2000
    """First steps, which run at half the image size."""
    steps: Count = 1000
    """Steps at the full image size."""
    batch_size: Count = 84
    """Maximal number of images that share batch-norm statistics; a part is cut into even batches.
    """


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Dfad(Adversarial):
    """Fang et al. 2019; the defaults are from its README's command for Caltech-101 (128 px)."""

    inverter = "dfkd.lab.baselines.dfad:DfadInverter"

    latent: Count = 256
    """Dimensions of the generator's input."""
    width: Count = 64
    """Channels of the generator's last layer, an eighth of those of the first."""
    rounds: Count = 15000
    """Generator steps of the whole run, divided evenly among the parts."""
    student_steps: Count = 5
    """Student steps in each round."""
    batch_size: Batch = 64
    """Images of a step."""
    snapshots: Count = 20
    """Number of evenly spaced rounds of a part in which the generator makes the part's images."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Cmi(Inversion):
    """Fang et al. 2021b; the defaults are from its CIFAR-10 script."""

    scope = "run"
    inverter = "dfkd.lab.baselines.cmi:CmiInverter"

    latent: Count = 256
    """Dimensions of the generators' inputs."""
    width: Count = 64
    """Channels of the generators' last layers, half of those of the layers before."""
    steps: Count = 200
    """Steps of the generator and the latents for each batch."""
    batch_size: Batch = 256
    """Maximal number of images; a part is cut into even batches."""
    student_steps: Natural = 400
    """Student steps after each batch, on all images of the run so far."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Pre(Adversarial):
    """PRE-DFKD, Binici et al. 2022; defaults from its code, except the batch (1,024 at 32 px)."""

    inverter = "dfkd.lab.baselines.pre:PreInverter"

    latent: Count = 1000
    """Dimensions of the generators' inputs."""
    width: Count = 64
    """Channels of the generators' last layers, half of those of the layers before."""
    rounds: Count = 14400
    """Steps of the novelty generator in the whole run, divided evenly among the parts."""
    student_steps: Count = 10
    """Student steps in each round."""
    memory_steps: Natural = 4
    """Steps of the memory generator in each round; at most one per step of the student."""
    batch_size: Annotated[int, Field(ge=16)] = 128
    """New images of a step; an eighth of that number is replayed in addition."""
    snapshots: Count = 20
    """Number of evenly spaced rounds of a part in which the generator makes the part's images."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class BatchNorm(SourceSettings):
    """Latents with DeepInversion's L_bn in their loss (the row "+ L_bn" of Table 5).

    Images then depend on the others of their batch.
    """

    made_by = "dfkd.lab.baselines.source:BatchNormLatents"
    scope = "part"

    weight: Positive = 0.01
    """Weight of L_bn, which is added to each image's distance."""

    def check(self, manifest: "Manifest", teacher: "Teacher") -> None:
        """See `SourceSettings.check`."""
        from dfkd.lab.baselines.batch_norm import require_batch_norm

        if not manifest.generator.settings.optimisation_steps:
            raise ManifestError(
                "synthesis.source",
                "bn is a loss of latents that are optimised, and this generator only samples them",
                manifest.method,
                "set generator.diffusers.refine_steps, or generator.kind to vqgan",
            )
        require_batch_norm(teacher, manifest.method)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ContrastiveVariant(Contrastive):
    """Contrastive prompts with another positive view or other negatives (Figure 8)."""

    made_by = "dfkd.lab.baselines.contrastive_variant:ContrastiveVariantPrompts"

    positive: Literal["shuffle", "substitute"] = "shuffle"
    """How letters of the template's frozen words are disturbed in the positive view."""
    negatives: Literal["instance", "intra-class"] = "instance"
    """Prompts that a prompt is pushed away from: all others, or those of its own class."""
