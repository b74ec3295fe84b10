"""The kinds of generators by their names in the manifest."""

from collections.abc import Mapping

import torch

from dfkd.config.hashing import sha256_file
from dfkd.config.manifest import Manifest
from dfkd.config.paths import CACHE
from dfkd.config.synthesis import GeneratorConfig
from dfkd.models.generators.diffusion import Diffusion
from dfkd.models.generators.generator import Generator
from dfkd.models.generators.vqgan import VQGAN
from dfkd.utils.types import Precision

KINDS: Mapping[str, type[Generator]] = {"vqgan": VQGAN, "diffusers": Diffusion}
"""The class of each value of `generator.kind`."""


def file_hashes(config: GeneratorConfig, cache: str = CACHE) -> dict[str, str]:
    """Find and hash the generator's files.

    Args:
        cache: the folder with published files.

    Returns:
        The sha256 of each file by its role in `dfkd.config.identity`, such as `generator.weights`.

    Raises:
        WeightsError: a file is missing.
    """
    files = KINDS[config.kind].files(config, cache)
    return {role: sha256_file(path) for role, path in files.items()}


def load(manifest: Manifest, device: torch.device, precision: Precision = "float32") -> Generator:
    """The generator that a manifest names, see `Generator.load`."""
    config = manifest.generator
    return KINDS[config.kind].load(config, device, precision, manifest.cache, steps=manifest.steps)
