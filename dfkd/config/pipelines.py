"""Diffusion models that `generator.diffusers.weights` can name, and how images are sampled.

Commits are those at which several public projects pin these repositories.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dfkd.config.paths import MINIATURE, local_path
from dfkd.errors import shorten
from dfkd.utils import strict_json


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A diffusion model in diffusers' layout."""

    steps: int
    """`generator.diffusers.steps`, where a manifest leaves them to the model."""
    guidance: float
    """`generator.diffusers.guidance`, where a manifest leaves it to the model."""
    repository: str = ""
    """Name on the hub; empty for the model that the package ships."""
    commit: str = ""
    """Of the repository, because its branches can move, and most files have no published hash."""
    licence: str = ""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Published hashes by file."""
    bytes: Mapping[str, int] = field(default_factory=dict)
    """Published sizes of the large files."""


PIPELINES = {
    MINIATURE: Pipeline(steps=8, guidance=3.0),
    # Its pipeline's own 7.5 is for pictures to look at. Images to learn from are better with less:
    # 2.0 for those whose classes are learned from labels, 1.5 for CLIP (Scaling Laws of Synthetic
    # Images, arXiv 2312.04567).
    "stable-diffusion-v1-5": Pipeline(
        steps=20,
        guidance=2.0,
        repository="stable-diffusion-v1-5/stable-diffusion-v1-5",
        commit="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        licence="CreativeML Open RAIL-M, see its model card",
        sha256={
            "unet/diffusion_pytorch_model.safetensors": (
                "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1"
            ),
            "vae/diffusion_pytorch_model.safetensors": (
                "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c"
            ),
            "text_encoder/model.safetensors": (
                "d008943c017f0092921106440254dbbe00b6a285f7883ec8ba160c3faad88334"
            ),
        },
        # As several public projects state them beside these hashes.
        bytes={
            "unet/diffusion_pytorch_model.safetensors": 3_438_167_540,
            "vae/diffusion_pytorch_model.safetensors": 334_643_276,
            "text_encoder/model.safetensors": 492_265_874,
        },
    ),
    # Trained for one to four steps, and without guidance.
    "sd-turbo": Pipeline(
        steps=1,
        guidance=1.0,
        repository="stabilityai/sd-turbo",
        commit="b261bac6fd2cf515557d5d0707481eafa0485ec2",
        licence="Stability AI Community License, see its model card",
    ),
}
"""The bundled one, and published ones whose text tower is published on its own too, as weights of
open_clip."""

SCHEDULER = "scheduler/scheduler_config.json"

_LCM = "4 to 8 steps, and guidance 1 to 2 (8 if the UNet takes the scale as an input)"
_DISTILLED = "1 to 4 steps, and guidance 0"
_WHOLE = "20 to 50 steps, and guidance 2 for images to learn from"


def usual_sampling(weights: str) -> str:
    """The steps and the guidance that the scheduler of a folder usually takes, as words of an
    error; of every kind of scheduler, if the folder's cannot be read.
    """
    path = local_path(weights) / SCHEDULER
    try:
        small = path.is_file() and path.stat().st_size < 1 << 20
        tree = strict_json.parse(path.read_bytes() if small else b"")
        name = shorten(str(tree["_class_name"]))
    except (OSError, ValueError, TypeError, KeyError):
        return f"most models take {_WHOLE}; a Turbo model {_DISTILLED}; an LCM {_LCM}"
    if name == "LCMScheduler":
        return f"{name} usually takes {_LCM}"
    # Models that were distilled to few steps start at the last time step of their training.
    if tree.get("timestep_spacing") == "trailing":
        return f"{name} with trailing time steps, as of a Turbo model, takes {_DISTILLED}"
    return f"{name} usually takes {_WHOLE}"
