"""The manifest of ``jobs/pretrain.py``: everything that decides what the two models become."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DataRecipe:
    """Which icons, and how often each is seen."""

    package: str = "@iconify/json@2.2.535"
    directory: str = ""
    work: str = ".cache/pretrain"
    variants_per_drawing: int = 3
    max_hash_distance: int = 8


@dataclass(frozen=True)
class TeacherRecipe:
    """The open_clip model and its training."""

    embed_dim: int = 192
    image_width: int = 32
    image_layers: tuple[int, ...] = (1, 1, 1, 1)
    text_width: int = 128
    text_heads: int = 4
    text_layers: int = 3
    context_length: int = 24
    usual_length: int = 12
    steps: int = 4000
    batch_size: int = 384
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup_steps: int = 50
    easy_steps: int = 700
    ema: float = 0.998
    pseudo_word_scale: float = 12.0
    checkpoint_every: int = 200
    compile: bool = True


@dataclass(frozen=True)
class GeneratorRecipe:
    """The VQGAN and its training."""

    channels: int = 32
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2)
    residual_blocks: int = 1
    latent_channels: int = 64
    codes: int = 1024
    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 1e-3
    perceptual_weight: float = 0.3
    checkpoint_every: int = 200
    compile: bool = True


@dataclass(frozen=True)
class PretrainRecipe:
    """The whole job."""

    name: str = "miniature"
    seed: int = 0
    threads: int = 2
    data: DataRecipe = field(default_factory=DataRecipe)
    teacher: TeacherRecipe = field(default_factory=TeacherRecipe)
    generator: GeneratorRecipe = field(default_factory=GeneratorRecipe)
