"""Published files that a manifest can name, and their paths in the cache.

`dfkd fetch` fills the cache once, so that workers do not wait for the network or load it all at
the same time. Loading a model reads these files from the cache and never downloads them. What a
library takes from a hub by itself (the tags of open_clip, the models of timm) has no entry here.
Addresses, sizes and hashes are from public sources, which comments name. Diffusion models are in
`dfkd.config.pipelines`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit

from dfkd.config.paths import local_path
from dfkd.errors import WeightsError

FETCH = "dfkd fetch MANIFEST"

HASH_IN_ADDRESS = re.compile(r"-([0-9a-f]{8,64})\.\w+$")
"""Finds the first digits of the sha256, which PyTorch writes into a file's name."""


@dataclass(frozen=True)
class Artifact:
    """A published file."""

    file: str
    """Unique name of the file in the cache."""
    address: str
    licence: str
    sha256: str
    """Published hash: 64 hexadecimal digits or the first of them."""
    bytes: int | None = None
    """Published size; None if none is published."""
    stated_by: str = "its publisher"
    """The source of hash and size."""

    def within(self, cache: str) -> Path:
        """The file's path in the folder `cache`, whether it exists or not."""
        return local_path(cache) / self.file


def at_address(address: str, licence: str) -> Artifact:
    """The file at an address of torchvision, with the hash from its name."""
    path = urlsplit(address).path
    match = HASH_IN_ADDRESS.search(path)
    assert match is not None  # noqa: S101 - every file of torchvision has one, as a test shows
    return Artifact(PurePath(path).name, address, licence, match[1])


def hub_id(tag: Mapping[str, Any]) -> str:
    """The name on its hub of the model of a tag of open_clip; empty without a tag."""
    return str(tag.get("hf_hub", "")).strip("/")


def published(field: str, name: str) -> Artifact | None:
    """The published file with a short name as value of the manifest key `field`, or None."""
    return PUBLISHED_VQGANS.get(name, {}).get(field)


def cached(field: str, value: str, file: str, cache: str) -> Path:
    """The path of a fetched file.

    Args:
        field: the manifest key that names it, for errors.
        value: the value of that key.
        file: its path within the cache.

    Raises:
        WeightsError: the file is not in the cache.
    """
    path = local_path(cache) / file
    if not path.is_file():
        rule = f"needs {file}, which is not in the cache {cache}"
        raise WeightsError(field, rule, value, f"run {FETCH}")
    return path


_HEIBOX = "https://heibox.uni-heidelberg.de/d/a7530b09fed84f80a887/files/?p=%2F{}&dl=1"
_TAMING = "MIT (CompVis/taming-transformers); trained on ImageNet"
_COPIES = "others who keep copies, not by its authors"


# The folder: README of CompVis/taming-transformers. It states no hashes; these are the same in
# several catalogues that others keep. They keep none of the smaller codebook, so it is not here.
PUBLISHED_VQGANS = {
    "vqgan-imagenet-f16-16384": {
        "generator.vqgan.config": Artifact(
            "vqgan-imagenet-f16-16384.yaml",
            _HEIBOX.format("configs%2Fmodel.yaml"),
            _TAMING,
            "00e2c6189926f1d89ecfef73e9598db77981c1982f0555fbade963ffd16143c7",
            692,
            _COPIES,
        ),
        "generator.vqgan.weights": Artifact(
            "vqgan-imagenet-f16-16384.ckpt",
            _HEIBOX.format("ckpts%2Flast.ckpt"),
            _TAMING,
            "845a68805098cb666420d5db93df53f3a3b6dd443e6dd85c05759c5b998cd663",
            980_092_370,
            _COPIES,
        ),
    },
}
"""Configuration and weights of each VQGAN by manifest key."""

# As public projects state them that pin these files by hash. A test compares them with the number
# of parameters.
HUB_BYTES = {
    "timm/vit_large_patch14_clip_224.openai": 1_710_517_724,
    "resnet18-f37072fd.pth": 46_830_571,
}
"""Sizes of weights that a library takes from its hub or address, by their name there."""

PIPELINE_FILES = (
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/special_tokens_map.json",
)
"""What is used of a folder in diffusers' layout. The text encoder's weights are only compared."""
