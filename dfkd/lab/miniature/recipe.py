"""The manifest of `dfkd pretrain`: everything that determines the bundled models.

Each stage works in a folder whose name has a hash of the names and values of the keys on which its
result depends (`identity`). So a recipe with another generator uses the drawings and the teacher of
an earlier one, and a job begins anew when a key was renamed.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from dfkd.config.hashing import fingerprint
from dfkd.errors import ManifestError
from dfkd.utils.types import (
    CHECKED,
    Count,
    Fraction,
    Name,
    Natural,
    NonNegative,
    Positive,
    require_folder,
)

Channels = Annotated[int, Field(ge=64, multiple_of=64)]
"""The UNet normalises 32 groups of channels, and its attention has a head for 64 of them."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class IconData:
    """Which drawings are used."""

    package: Name = "@iconify/json@2.2.535"
    """The npm package with the icons."""
    directory: Name = "runs/pretrain/package"
    """Folder of the unpacked package (the one with `collections.json`)."""
    clipart: Name = "/usr/share/openclipart/svg"
    """Folder of the Open Clip Art Library: Debian's package `openclipart-svg`."""
    work: Name = "runs/pretrain/work"
    """Folder for rendered drawings and checkpoints, from which the same command resumes."""
    variants_per_drawing: Count = 3
    """Maximum number of variants (weights, sizes) of one drawing in a set."""
    icons_per_collection: Natural = 0
    """Maximum number of icons from each training collection, for trying the job; 0 is no limit."""
    max_hash_distance: Natural = 8
    """Drawings whose perceptual hashes differ in at most this many bits count as the same one."""
    max_likeness: Fraction = 0.98
    """Held-out drawings that correlate at least this much with a training drawing are not shown."""

    def __post_init__(self) -> None:
        require_folder("data.work", self.work)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TeacherRecipe:
    """The open_clip model and its training."""

    embed_dim: Count = 192
    image_width: Count = 32
    image_layers: tuple[Count, Count, Count, Count] = (1, 1, 1, 1)
    text_width: Count = 128
    text_heads: Count = 4
    text_layers: Count = 3
    context_length: Annotated[int, Field(ge=8)] = 24
    usual_length: Annotated[int, Field(ge=8)] = 12
    """Three of four steps cut captions to this many tokens, because long ones are rare and slow."""
    word_count: Count = 3
    """Words that occur in the names of at least this many drawings get their own tokens."""
    steps: Count = 3600
    batch_size: Count = 384
    looks: Count = 8
    """Number of looks of each kind of drawing (in one ink, in its own colours) that the images of a
    batch outside of groups share, so that their captions must be told apart by the objects.
    """
    groups: Natural = 12
    """Groups of four images of one object in each batch; the towers learn looks from them."""
    group_weight: NonNegative = 0.3
    """Weight of the loss within these groups."""
    style_captions: Natural = 24
    """Maximum number of captions in each batch that describe a look without an object."""
    default_share: Fraction = 0.4
    """Share of drawings in one ink that are painted in the default look, black on white."""
    learning_rate: Positive = 1e-3
    weight_decay: NonNegative = 0.1
    warmup_steps: Count = 50
    easy_steps: Count = 700
    """Steps in which looks, captions and names become gradually harder; groups begin after them."""
    max_scale: Positive = 30.0
    """Maximum of CLIP's learned logit scale."""
    ema: Fraction = 0.998
    """Decay of the moving average of the weights, which is the teacher."""
    checkpoint_every: Count = 100
    compile: bool = True

    def __post_init__(self) -> None:
        if self.batch_size < 4 * self.groups:
            raise ManifestError(
                "teacher.batch_size",
                f"must have room for {self.groups} groups of four images",
                self.batch_size,
                "raise it or lower teacher.groups",
            )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TowerRecipe:
    """The second training of the teacher's image tower, with the text tower locked.

    What is not here is as in `TeacherRecipe`.
    """

    steps: Count = 5000
    learning_rate: Positive = 1e-3
    class_share: Fraction = 0.85
    """Share of drawings that are of the evaluation set's classes, each equally often."""
    names_weight: NonNegative = 2.0
    """Weight of the loss by which an image finds its object's name among all names of the batch,
    whatever its look.
    """


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class GeneratorRecipe:
    """The VQGAN and its training."""

    channels: Annotated[int, Field(ge=64, multiple_of=32)] = 64
    """Channels of the widest maps. The networks normalise 32 groups of channels. A group of one
    channel would lose its mean, and with it the colour of plain areas.
    """
    channel_multipliers: tuple[Count, ...] = (1, 1, 1, 2)
    residual_blocks: Natural = 0
    """Residual blocks of each level of the encoder. The decoder, on which synthesis spends most of
    its time, has one more.
    """
    latent_channels: Count = 64
    codes: Count = 1024
    steps: Count = 6000
    free_steps: Natural = 500
    """The first steps train the autoencoder without quantisation."""
    batch_size: Count = 16
    learning_rate: Positive = 1e-3
    perceptual_weight: NonNegative = 0.3
    colour_weight: NonNegative = 20.0
    adversarial_weight: NonNegative = 0.05
    """Weight of the patch discriminator's loss; 0: no discriminator."""
    adversarial_from: Natural = 3500
    """First step of the discriminator. Before, it would learn to spot errors that soon vanish."""
    critic_channels: Count = 32
    """Channels of the discriminator's first layer."""
    critic_rate: Positive = 5e-4
    """Learning rate of the discriminator."""
    default_share: Fraction = 0.2
    """Share of drawings in one ink that are painted in the default look, black on white."""
    checkpoint_every: Count = 100


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class DiffusionRecipe:
    """The latent diffusion model and its training."""

    channels: tuple[Channels, Channels] = (128, 256)
    """Channels of the UNet at the latents' size and at half of it."""
    components: Count = 8
    """Principal components of the latents' channels, which the model makes instead of latents."""
    pose: NonNegative = 0.25
    """Strength of the drawings' random poses; the teacher's and the generator's have 1."""
    start: str = ""
    """Folder of an exported model whose training goes on, its steps counted; "": an untrained one.
    """
    steps: Count = 6400
    easy_steps: Count = 1200
    """Steps in which looks, captions and names become gradually harder."""
    rising_steps: Count = 200
    """First steps, in which the learning rate rises."""
    falling_steps: Count = 6400
    """Last steps, in which the learning rate falls along a cosine."""
    batch_size: Count = 64
    learning_rate: Positive = 6e-4
    default_share: Fraction = 0.35
    """Share of drawings in one ink that are painted in the default look, black on white."""
    ema: Fraction = 0.999
    """Decay of the moving average of the weights, which is the model."""
    checkpoint_every: Count = 100
    validate_every: Count = 1500
    """Steps between two measurements, after each of which the model is exported."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class ClassifierRecipe:
    """A network that names training drawings (`--only`), and its training."""

    architecture: Name = "resnet18"
    """As `distillation.student`."""
    steps: Count = 2500
    """Steps of AdamW. The learning rate rises in `rising_steps` and falls with a cosine."""
    rising_steps: Count = 50
    batch_size: Count = 64
    learning_rate: Positive = 2e-3
    weight_decay: NonNegative = 0.05
    default_share: Fraction = 0.4
    """Share of drawings in one ink that are painted in the default look, black on white."""
    checkpoint_every: Count = 100


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class BackboneRecipe(ClassifierRecipe):
    """A classifier whose backbone students start from."""

    nouns: Annotated[int, Field(ge=2)] = 200
    """Number of the most frequent names of training icons that are classes."""
    without: tuple[Name, ...] = ()
    """Names that are no classes, because students are to learn them."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Recipe:
    """The whole job."""

    name: Name = "miniature"
    seed: Natural = 0
    threads: Count = 2
    output: Name = "runs/pretrain/models"
    """Folder for the assets; the package contains `dfkd/bundled`."""
    data: IconData = Field(default_factory=IconData)
    teacher: TeacherRecipe = Field(default_factory=TeacherRecipe)
    tower: TowerRecipe = Field(default_factory=TowerRecipe)
    generator: GeneratorRecipe = Field(default_factory=GeneratorRecipe)
    diffusion: DiffusionRecipe = Field(default_factory=DiffusionRecipe)
    backbone: BackboneRecipe = Field(default_factory=BackboneRecipe)
    judge: ClassifierRecipe = Field(default_factory=ClassifierRecipe)
    """A classifier of the official classes, which recognises synthesised images or does not."""

    def __post_init__(self) -> None:
        require_folder("output", self.output)
        if self.generator.latent_channels < self.diffusion.components:
            raise ManifestError(
                "diffusion.components",
                "must be at most generator.latent_channels",
                self.diffusion.components,
                "lower it or raise the other",
            )

    def as_dict(self) -> dict[str, Any]:
        """The recipe as plain values, every key written out."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain


Stage = Literal["world", "teacher", "tower", "generator", "diffusion", "backbone", "judge"]
"""A stage and its folder; `world` holds the rendered drawings."""
_SECTIONS: dict[Stage | Literal["models"], tuple[str, ...]] = {
    "models": ("data", "teacher", "tower", "generator"),
    "world": ("data",),
    "teacher": ("data", "teacher"),
    "tower": ("data", "teacher", "tower"),
    "generator": ("data", "teacher", "generator"),
    "diffusion": ("data", "teacher", "generator", "diffusion"),
    "backbone": ("data", "backbone"),
    "judge": ("data", "judge"),
}
"""The sections of the recipe on which each stage's result depends, and those on which teacher and
generator depend together (`models`). The generator learns from the teacher of the first training,
and the diffusion model from its text tower, so they do not depend on `tower`."""
_WITHOUT_EFFECT = frozenset(
    {
        *("data.directory", "data.clipart", "data.work", "data.max_likeness"),
        *("teacher.compile", "teacher.checkpoint_every"),
        *("generator.checkpoint_every", "diffusion.checkpoint_every"),
        "diffusion.validate_every",
        *("backbone.checkpoint_every", "judge.checkpoint_every"),
    }
)
"""Settings that change no result of a stage. `max_likeness` changes which images are scored."""


def identity(recipe: Recipe, stage: Stage | Literal["models"]) -> dict[str, Any]:
    """All settings that change a stage's result, by dotted key (`teacher.steps`).

    `models` are teacher and generator together.
    """
    plain = recipe.as_dict()
    flat = {
        f"{section}.{key}": value
        for section in _SECTIONS[stage]
        for key, value in plain[section].items()
    }
    return {"seed": recipe.seed} | {k: v for k, v in flat.items() if k not in _WITHOUT_EFFECT}


def folder_of(recipe: Recipe, stage: Stage) -> Path:
    """The folder in which a stage keeps its work, named by its `identity` and created here."""
    name = f"{stage}-{fingerprint(identity(recipe, stage))[:12]}"
    folder = Path(recipe.data.work) / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_whole(path: Path, text: str) -> None:
    """Write a text file; a kill leaves the earlier file, or none, in place."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, "utf-8")
    os.replace(partial, path)
