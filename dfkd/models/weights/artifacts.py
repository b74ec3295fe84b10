"""Published files that a manifest can name, and their paths in the cache.

Loading a model reads the cache and never downloads. `jobs/fetch.py` fills the cache once, so that
workers do not wait for the network or load it all at the same time. Addresses, sizes and hashes are
from public sources, which comments name. If no source states a hash,
`dfkd.models.weights.download` pins the hash of the first download.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from urllib.parse import urlsplit

from dfkd.errors import WeightsError

FETCH = "python jobs/fetch.py MANIFEST"

HASH_IN_ADDRESS = re.compile(r"/([0-9a-f]{64})/[^/]+$|-([0-9a-f]{8,64})\.\w+$")
"""Finds the hash in an address: OpenAI's have the sha256 as a folder, those of PyTorch and
open_clip its first digits in the file's name."""


@dataclass(frozen=True)
class Artifact:
    """A published file."""

    file: str
    """Unique name of the file in the cache and on a mirror."""
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
        return Path(cache).expanduser() / self.file


@dataclass(frozen=True)
class EvaluationData:
    """A published data set for evaluation.

    No job downloads it, because users must accept its terms themselves.
    """

    name: str
    addresses: tuple[str, ...]
    size: str
    terms: str


def at_address(address: str, licence: str) -> Artifact:
    """The file at an address of open_clip or torchvision, with the hash from its address."""
    path = urlsplit(address).path
    file, match = PurePath(path).name, HASH_IN_ADDRESS.search(path)
    digest = (match[1] or match[2]) if match else ""
    others = tuple(
        address.replace(host, alias) for host, alias in ALIASES.items() if host in address
    )
    return Artifact(file, (address, *others), licence, digest, SIZES.get(digest))


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
        option = " --few-shot" if field.startswith("fewshot.") else ""
        raise WeightsError(field, rule, value, f"run {FETCH}{option}")
    return path


def known_data_set(path: str) -> EvaluationData | None:
    """The known data set whose name is in a path such as `data/PACS`, or None."""
    names = [re.sub(r"[^a-z0-9]", "", part.lower()) for part in PurePath(path).parts]
    known = (DATA[key] for name in reversed(names) for key in DATA if name.startswith(key))
    return next(known, None)


ALIASES = {"openaipublic.azureedge.net": "openaipublic.blob.core.windows.net"}
"""Hosts that serve the same files under the same paths."""

# Bytes of OpenAI's ViT-B/32 and RN50, as catalogues of tools that mirror them state them.
SIZES = {
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": 353_976_522,
    "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762": 255_827_503,
}

_UNKNOWN = ("", None)
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

_DRIVE = "https://drive.google.com/uc?id="
_NONE_STATED = "none stated by its authors"
_FAIR_USE = "fair use notice of its page: non-commercial research and education"

# PACS, VLCS and Office-Home: also the copies that DomainBed downloads, with folders as it has them.
# ImageCLEF-DA: the copy of the authors of CDAN. VisDA-2017: README of taskcv-2017-public.
DATA = {
    "pacs": EvaluationData(
        "PACS",
        (
            "https://domaingeneralization.github.io/#data",
            f"{_DRIVE}1JFr8f805nMUelQWWmfnJR3y4_SYoN5Pd",
        ),
        "9,991 images",
        _NONE_STATED,
    ),
    "vlcs": EvaluationData(
        "VLCS",
        (f"{_DRIVE}1skwblH1_okBwxWxmRsp9_qi15hyPpxg8",),
        "10,729 images",
        f"{_NONE_STATED}; its four sources have their own",
    ),
    "imageclef": EvaluationData(
        "ImageCLEF-DA",
        (
            "https://www.imageclef.org/2014/adaptation",
            "https://drive.google.com/file/d/0B9kJH0-rJ2uRS3JILThaQXJhQlk/view",
        ),
        "1,800 images",
        "registration with ImageCLEF",
    ),
    "visda": EvaluationData(
        "VisDA-2017, classification",
        (
            "http://csr.bu.edu/ftp/visda17/clf/train.tar",
            "http://csr.bu.edu/ftp/visda17/clf/validation.tar",
        ),
        "207,785 images",
        "non-commercial research and education, no redistribution",
    ),
    "officehome": EvaluationData(
        "Office-Home",
        (
            "https://www.hemanthdv.org/officeHomeDataset.html",
            f"{_DRIVE}1uY0pj7oFsjMxRwaD3Sxy0jgel0fsYXLC",
        ),
        "15,588 images",
        _FAIR_USE,
    ),
    "domainnet": EvaluationData(
        "DomainNet, cleaned version",
        ("http://ai.bu.edu/M3SDA/",),
        "586,575 images, 17.5 GB",
        _FAIR_USE,
    ),
}
