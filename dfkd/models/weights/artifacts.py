"""Published files that a manifest can name, and their paths in the cache.

`jobs/fetch.py` fills the cache once, so that workers do not wait for the network or load it all at
the same time. Loading a model reads these files from the cache and never downloads them. Only what
a hub alone has (some tags of open_clip, the models of timm) is downloaded when it is loaded and the
cache lacks it. Addresses, sizes and hashes are from public sources, which comments name. If no
source states a hash, `dfkd.models.weights.download` pins the hash of the first download.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from dfkd.config.paths import local_path
from dfkd.errors import WeightsError

FETCH = "python jobs/fetch.py MANIFEST"

HASH_IN_ADDRESS = re.compile(r"/([0-9a-f]{64})/[^/]+$|-([0-9a-f]{8,64})\.\w+$")
"""Finds the hash in an address: OpenAI's have the sha256 as a folder, those of PyTorch and
open_clip its first digits in the file's name."""


@dataclass(frozen=True)
class Artifact:
    """A published file."""

    file: str
    """Unique path of the file in the cache and on a mirror, with slashes if it is in a folder."""
    addresses: tuple[str, ...]
    """Addresses of the same file; each one is sufficient."""
    licence: str
    sha256: str = ""
    """Published hash: 64 hexadecimal digits or the first of them; empty if none is published."""
    bytes: int | None = None
    """Published size; None if none is published."""
    stated_by: str = "its publisher"
    """The source of hash and size."""

    @property
    def certain(self) -> bool:
        """Whether the whole hash is published, so that any server of the file can be trusted."""
        return len(self.sha256) == 64

    def within(self, cache: str | Path) -> Path:
        """The file's path in the folder `cache`, whether it exists or not."""
        return local_path(cache) / self.file


def at_address(address: str, licence: str) -> Artifact:
    """The file at an address of open_clip or torchvision, with the hash from its address."""
    path = urlsplit(address).path
    file, match = PurePath(path).name, HASH_IN_ADDRESS.search(path)
    digest = (match[1] or match[2]) if match else ""
    others = tuple(
        address.replace(host, alias) for host, alias in ALIASES.items() if host in address
    )
    return Artifact(file, (address, *others), licence, digest, SIZES.get(digest))


def of_tag(tag: Mapping[str, Any]) -> Artifact | None:
    """The file of a tag of open_clip (`open_clip.get_pretrained_cfg`); None if only a hub has it.

    open_clip has a hub's id for every tag, but the file is preferred: it has a hash and the
    published format.
    """
    if not tag.get("url"):
        return None
    openai = "openaipublic" in tag["url"]
    licence = "MIT (openai/CLIP)" if openai else f"that of its authors, see {hub_id(tag)}"
    return at_address(tag["url"], licence)


def hub_id(tag: Mapping[str, Any]) -> str:
    """The name on its hub of the model of a tag of open_clip; empty without a tag."""
    return str(tag.get("hf_hub", "")).strip("/")


def published(field: str, name: str) -> Artifact | None:
    """The published file with a short name as value of the manifest key `field`, or None."""
    return PUBLISHED_VQGANS.get(name, {}).get(field)


def cached(field: str, value: str, artifact: Artifact, cache: str | Path) -> Path:
    """The path of a fetched file.

    Args:
        field: the manifest key that names it, for errors.
        value: the value of that key.

    Raises:
        WeightsError: the file is not in the cache.
    """
    path = artifact.within(cache)
    if not path.is_file():
        rule = f"needs {artifact.file}, which is not in the cache {cache}"
        raise WeightsError(field, rule, value, f"run {FETCH}")
    return path


ALIASES = {"openaipublic.azureedge.net": "openaipublic.blob.core.windows.net"}
"""Hosts that serve the same files under the same paths."""

# Bytes of OpenAI's ViT-B/32 and RN50, as catalogues of tools that mirror them state them.
SIZES = {
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": 353_976_522,
    "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762": 255_827_503,
}

_UNKNOWN: tuple[str, int | None] = ("", None)
_HEIBOX = "https://heibox.uni-heidelberg.de/d/{}/files/?p=%2F{}&dl=1"
_TAMING = "MIT (CompVis/taming-transformers); trained on ImageNet"
_COPIES = "others who keep copies, not by its authors"


def _vqgan(
    codes: int, folder: str, config: tuple[str, int | None], weights: tuple[str, int | None]
) -> dict[str, Artifact]:
    """Configuration and weights of a VQGAN by manifest key, with hash and size if known."""
    name = f"vqgan-imagenet-f16-{codes}"
    files = {
        "generator.config": (f"{name}.yaml", "configs%2Fmodel.yaml", config),
        "generator.weights": (f"{name}.ckpt", "ckpts%2Flast.ckpt", weights),
    }
    return {
        field: Artifact(file, (_HEIBOX.format(folder, path),), _TAMING, *known, _COPIES)
        for field, (file, path, known) in files.items()
    }


# Folders: README of CompVis/taming-transformers. It states no hashes; those of the larger codebook
# are the same in several catalogues that others keep, those of the smaller one are in none.
PUBLISHED_VQGANS = {
    "vqgan-imagenet-f16-1024": _vqgan(1024, "8088892a516d4e3baf92", _UNKNOWN, _UNKNOWN),
    "vqgan-imagenet-f16-16384": _vqgan(
        16384,
        "a7530b09fed84f80a887",
        ("00e2c6189926f1d89ecfef73e9598db77981c1982f0555fbade963ffd16143c7", 692),
        ("845a68805098cb666420d5db93df53f3a3b6dd443e6dd85c05759c5b998cd663", 980_092_370),
    ),
}

_PIPELINE = (
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


def _pipeline(
    name: str,
    repository: str,
    commit: str,
    licence: str,
    known: Mapping[str, tuple[str, int | None]] = MappingProxyType({}),
) -> tuple[Artifact, ...]:
    """The files of a diffusion model on the hub, with hash and size of the `known` ones.

    Args:
        commit: of the repository. Its branches can move, and most files have no published hash.
    """
    base = f"https://huggingface.co/{repository}/resolve/{commit}"
    return tuple(
        Artifact(
            f"{name}/{each}", (f"{base}/{each}",), licence, *known.get(each, _UNKNOWN), _COPIES
        )
        for each in _PIPELINE
    )


# Commits: those at which several public projects pin these repositories.
PUBLISHED_PIPELINES = {
    "stable-diffusion-v1-5": _pipeline(
        "stable-diffusion-v1-5",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        "CreativeML Open RAIL-M, see its model card",
        {
            "unet/diffusion_pytorch_model.safetensors": (
                "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1",
                3_438_167_540,
            ),
            "vae/diffusion_pytorch_model.safetensors": (
                "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c",
                334_643_276,
            ),
            "text_encoder/model.safetensors": (
                "d008943c017f0092921106440254dbbe00b6a285f7883ec8ba160c3faad88334",
                492_265_874,
            ),
        },
    ),
    "sd-turbo": _pipeline(
        "sd-turbo",
        "stabilityai/sd-turbo",
        "b261bac6fd2cf515557d5d0707481eafa0485ec2",
        "Stability AI Community License, see its model card",
    ),
}
"""Diffusion models whose text tower is published on its own too, as weights of open_clip."""
