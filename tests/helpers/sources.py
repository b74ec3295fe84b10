"""The image source that a manifest names, outside a run."""

from typing import Any

import torch
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.dataset.versions import Version
from dfkd.models.generators.generator import Generator
from dfkd.models.teacher import Teacher
from dfkd.prompts.conditions import StoredPrompt
from dfkd.storage.local import open_storage
from dfkd.synthesis.image_source import SourceContext
from dfkd.utils.types import Precision


def source_of(manifest: Manifest, teacher: Teacher, generator: Generator | None) -> Any:
    """The source, with a version that does not exist."""
    version = Version(open_storage(manifest.storage.root), "0" * 64)
    return manifest.source.load(SourceContext(manifest, teacher, generator, version))


def load_generator(manifest: Manifest, precision: Precision = "float32") -> Any:
    """The generator that a manifest names, on the CPU."""
    return manifest.generator.settings.load(torch.device("cpu"), precision, manifest.cache)


def stored(targets: Tensor) -> list[StoredPrompt]:
    """Prompts of the first class with these embeddings [N, E]."""
    return [StoredPrompt(0, row, row, "", target, None) for row, target in enumerate(targets)]
