"""The manifest's section `inversion`: how long each conventional method works, and at what size.

Defaults are those of the published code, where it names them, for the images nearest in size. The
weights of its losses and the rates of its student are constants of each method's module.
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from dfkd.utils.types import CHECKED, Count, Natural, Positive

Batch = Annotated[int, Field(ge=2)]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class InnerStudent:
    """The student that dfad, cmi and pre train by SGD while they synthesise, and throw away."""

    architecture: Literal["resnet18", "resnet34", "resnet50"] = "resnet18"
    """A torchvision ResNet."""
    stem: Literal["imagenet", "small"] = "imagenet"
    """As `distillation.stem`."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class DeepInversion:
    """Yin et al. 2020; the numbers of the command in its README."""

    low_resolution_steps: Natural = 2000
    """Steps at half the side, which come first."""
    steps: Count = 1000
    """Steps at the full side."""
    batch_size: Count = 84
    """Images that share batch-norm statistics at the most; a part is cut into even batches."""
    learning_rate: Positive = 0.25
    """Of the pixels."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Dfad:
    """Fang et al. 2019; the numbers of its README's command for Caltech-101, at 128 pixels."""

    rounds: Count = 15000
    """Steps of the generator in the whole run; each part has its share of them."""
    student_steps: Count = 5
    """In each round."""
    batch_size: Batch = 64
    """Images of a step."""
    learning_rate: Positive = 1e-3
    """Of the generator; like the student's a tenth after each third of the rounds."""
    latent: Count = 256
    """Dimensions of the generator's input."""
    width: Count = 64
    """Channels of the generator's last layers, an eighth of the first."""
    snapshots: Count = 20
    """Rounds of each part, evenly spread, whose generators its images come from."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Cmi:
    """Fang et al. 2021b; the numbers of its CIFAR-10 script."""

    steps: Count = 200
    """Of each batch's generator and latents."""
    batch_size: Batch = 256
    """Images at the most; a part is cut into even batches."""
    learning_rate: Positive = 1e-3
    """Of the generator and of latents."""
    latent: Count = 256
    """As `dfad.latent`."""
    width: Count = 64
    """Channels of the generator's last layers, half of those before."""
    student_steps: Natural = 400
    """Of the student, on all images of the run so far, after each batch."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Pre:
    """PRE-DFKD, Binici et al. 2022; the numbers of its code, but for the batch: 1,024 at 32 px."""

    rounds: Count = 14400
    """Steps of the novelty generator in the whole run; each part has its share of them."""
    student_steps: Count = 10
    """In each round."""
    memory_steps: Natural = 4
    """Of the memory generator, in each round; at most one a step of the student."""
    batch_size: Annotated[int, Field(ge=16)] = 128
    """Novel images of a step; an eighth as many are replayed."""
    learning_rate: Positive = 0.02
    """Of the novelty generator and of replayed latents; the memory learns at a fortieth of it."""
    latent: Count = 1000
    """As `dfad.latent`."""
    width: Count = 64
    """As `cmi.width`."""
    snapshots: Count = 20
    """As `dfad.snapshots`."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Inversion:
    """The methods of Table 5; only the section of the method at work changes a pixel."""

    deepinversion: DeepInversion = DeepInversion()
    dfad: Dfad = Dfad()
    cmi: Cmi = Cmi()
    pre: Pre = Pre()
    student: InnerStudent = InnerStudent()
    """Of dfad, cmi and pre."""
