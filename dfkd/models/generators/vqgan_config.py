"""The official `model.yaml` of a VQGAN, checked as untrusted input.

Only the shapes of decoder and codebook are read. `target` is compared and never imported.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from dfkd.errors import ManifestError, WeightsError
from dfkd.utils import yaml

REMEDY = "give the model.yaml that came with the checkpoint"

_LENIENT = ConfigDict(extra="ignore", strict=True)
"""Keys about training, such as `lossconfig`, are ignored."""


@dataclass(frozen=True, kw_only=True, config=_LENIENT)
class Decoder:
    """`ddconfig`.

    The network is built without memory for its weights and compared with the checkpoint, so only
    numbers of layers need bounds: a file of a few bytes must not ask for millions of them.
    """

    z_channels: int
    resolution: int
    in_channels: Literal[3]
    out_ch: Literal[3]
    ch: int
    ch_mult: Annotated[tuple[int, ...], Field(min_length=1, max_length=8)]
    num_res_blocks: Annotated[int, Field(ge=0, le=8)]
    attn_resolutions: tuple[int, ...]
    dropout: float = 0.0
    resamp_with_conv: bool = True

    @property
    def downsampling(self) -> int:
        """Height and width in pixels of one code."""
        return int(2 ** (len(self.ch_mult) - 1))


@dataclass(frozen=True, kw_only=True, config=_LENIENT)
class Params:
    """`model.params`."""

    embed_dim: int
    n_embed: int
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
        WeightsError: not such a file.
    """
    try:
        return yaml.load(_File, path).model
    except ManifestError as error:
        raise WeightsError(
            "generator.vqgan.config",
            f"must be an official VQGAN model.yaml ({error})",
            str(path),
            REMEDY,
        ) from None
