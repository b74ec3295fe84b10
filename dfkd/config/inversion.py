"""The manifest's section `inversion`: steps and batch sizes of each method, sizes of its networks.

The defaults are those of the published code for the most similar image size, if it states them. The
weights of the losses and all learning rates are constants in each method's module.
"""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from dfkd.utils.types import CHECKED, Count, Natural

Batch = Annotated[int, Field(ge=2)]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class DeepInversion:
    """Yin et al. 2020; the defaults are from the command in its README."""

    low_resolution_steps: Natural = 2000
    """First steps, which run at half the image size."""
    steps: Count = 1000
    """Steps at the full image size."""
    batch_size: Count = 84
    """Maximal number of images that share batch-norm statistics; a part is cut into even batches.
    """


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Dfad:
    """Fang et al. 2019; the defaults are from its README's command for Caltech-101 (128 px)."""

    rounds: Count = 15000
    """Generator steps of the whole run, divided evenly among the parts."""
    student_steps: Count = 5
    """Student steps in each round."""
    batch_size: Batch = 64
    """Images of a step."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Cmi:
    """Fang et al. 2021b; the defaults are from its CIFAR-10 script."""

    steps: Count = 200
    """Steps of the generator and the latents for each batch."""
    batch_size: Batch = 256
    """Maximal number of images; a part is cut into even batches."""
    student_steps: Natural = 400
    """Student steps after each batch, on all images of the run so far."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Pre:
    """PRE-DFKD, Binici et al. 2022; defaults from its code, except the batch (1,024 at 32 px)."""

    rounds: Count = 14400
    """Steps of the novelty generator in the whole run, divided evenly among the parts."""
    student_steps: Count = 10
    """Student steps in each round."""
    memory_steps: Natural = 4
    """Steps of the memory generator in each round; at most one per step of the student."""
    batch_size: Annotated[int, Field(ge=16)] = 128
    """New images of a step; an eighth of that number is replayed in addition."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Inversion:
    """The methods of Table 5; each one uses its own section and the networks' sizes."""

    latent: Count | None = None
    """Dimensions of the generators' inputs; empty: as published, 1000 for PRE-DFKD and 256 for DFAD
    and CMI."""
    width: Count = 64
    """Channels of the generators' last layers: an eighth of those of the first (DFAD), or half of
    those of the layers before (CMI, PRE-DFKD)."""
    snapshots: Count = 20
    """Number of evenly spaced rounds of a part in which the generator of DFAD or PRE-DFKD makes the
    part's images."""
    deepinversion: DeepInversion = DeepInversion()
    dfad: Dfad = Dfad()
    cmi: Cmi = Cmi()
    pre: Pre = Pre()
