"""The official `model.yaml` of a VQGAN, checked as untrusted input.

Only the shapes of decoder and codebook are read. `target` is compared and never imported.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from dfkd.errors import ManifestError, WeightsError
from dfkd.utils import yaml

Channels = Annotated[int, Field(ge=1, le=1024)]
Side = Annotated[int, Field(ge=1, le=4096)]

GROUPS = 32
"""Groups of the decoder's group norm, which must divide every width."""
MAX_WIDTH = 4096

_LENIENT = ConfigDict(extra="ignore", strict=True)
"""Keys about training, such as `lossconfig`, are ignored."""


@dataclass(frozen=True, kw_only=True, config=_LENIENT)
class Decoder:
    """`ddconfig`."""

    z_channels: Channels
    resolution: Side
    in_channels: Literal[3]
    out_ch: Literal[3]
    ch: Channels
    ch_mult: Annotated[
        tuple[Annotated[int, Field(ge=1, le=32)], ...], Field(min_length=1, max_length=8)
    ]
    num_res_blocks: Annotated[int, Field(ge=0, le=8)]
    attn_resolutions: Annotated[tuple[Side, ...], Field(max_length=8)]
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    resamp_with_conv: bool = True

    def __post_init__(self) -> None:
        # Bounds on single keys do not bound their product, and a file of a few bytes must not ask
        # for a network of any size.
        for factor in self.ch_mult:
            width = self.ch * factor
            if width % GROUPS or width > MAX_WIDTH:
                raise _refusal(
                    "ch * ch_mult", f"must be a multiple of {GROUPS} up to {MAX_WIDTH}", width
                )
        if self.resolution % self.downsampling:
            raise _refusal(
                "resolution", f"must be a multiple of {self.downsampling}", self.resolution
            )

    @property
    def downsampling(self) -> int:
        """Height and width in pixels of one code."""
        return int(2 ** (len(self.ch_mult) - 1))


@dataclass(frozen=True, kw_only=True, config=_LENIENT)
class Params:
    """`model.params`."""

    embed_dim: Channels
    n_embed: Annotated[int, Field(ge=2, le=1 << 18)]
    ddconfig: Decoder


@dataclass(frozen=True, kw_only=True, config=_LENIENT)
class Model:
    """`model`."""

    params: Params
    target: Literal["taming.models.vqgan.VQModel"] = "taming.models.vqgan.VQModel"


@dataclass(frozen=True, kw_only=True, config=_LENIENT)
class _File:
    """The whole file."""

    model: Model


def read_model(path: Path) -> Model:
    """The key `model` of a `model.yaml`.

    Raises:
        WeightsError: not such a file, or a value is out of bounds.
    """
    try:
        return yaml.load(_File, path).model
    except WeightsError:
        raise
    except ManifestError as error:
        raise WeightsError(
            "generator.vqgan.config",
            f"must be an official VQGAN model.yaml ({error})",
            str(path),
            "give the model.yaml that came with the checkpoint",
        ) from None


def _refusal(field: str, rule: str, value: object) -> WeightsError:
    """The error about a key of `ddconfig` whose value is out of bounds."""
    remedy = "give the model.yaml that came with the checkpoint"
    return WeightsError(f"generator.vqgan.config: ddconfig.{field}", rule, value, remedy)
