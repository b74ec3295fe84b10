"""A small published version whose classes can be told apart by their colours, for tests."""

import io
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image

from dfkd.config.identity import identity
from dfkd.config.manifest import Manifest
from dfkd.config.plan import Task, blocks, tasks
from dfkd.dataset.published import PublishedVersion
from dfkd.dataset.shards import Sample, sample_key, write_shard
from dfkd.dataset.versions import Version, begin
from dfkd.storage.local import open_storage
from dfkd.utils.yaml import merge
from tests.helpers import small_manifest
from tests.helpers.partial_version import metadata
from tests.helpers.small_manifest import SMALLEST

CLASSES = ("red", "green", "blue")
EMBEDDING = 8


def write_manifest(folder: Path, **sections: dict[str, object]) -> Path:
    """A manifest file of a run under `folder`; `sections` are merged into it."""
    own = {
        "name": "tiny",
        "classes": list(CLASSES),
        "storage": {"root": str(folder / "run")},
        "prompts": {"method": "vanilla"},
        "synthesis": {"images_per_class": 8, "shard_size": 4, "image_size": 32, "views": 1},
        "distillation": {
            "student": "timm:test_resnet",
            "weights": "none",
            "augmentation": [],
            "batch_size": 6,
            "warmup_epochs": 0,
            "epochs": 3,
            "learning_rate": 0.05,
        },
    }
    return small_manifest.write(folder, **merge(SMALLEST | own, sections))


def publish(
    manifest: Manifest, method: str = "vanilla", digests: Mapping[str, str] = MappingProxyType({})
) -> PublishedVersion:
    """The version of a manifest, made of noisy images in the colour of their class."""
    return fill(manifest, tasks(manifest), method, digests).publish(blocks(manifest), {})


def fill(
    manifest: Manifest,
    made: Iterable[Task],
    method: str = "vanilla",
    digests: Mapping[str, str] = MappingProxyType({}),
) -> Version:
    """The version of a manifest, begun or resumed, with the shards of these tasks."""
    chosen = manifest.with_method(method)
    home = open_storage(manifest.storage.root).child(f"data/{method}")
    version = begin(home, identity(chosen, digests))
    with tempfile.TemporaryDirectory() as folder:
        for task in made:
            tar = Path(folder, f"{task.id}.tar")
            write_shard([_sample(chosen, task, index) for index in task.indices], tar)
            version.commit(task, tar)
    return version


def _sample(manifest: Manifest, task: Task, index: int) -> Sample:
    noise = np.random.default_rng([task.class_index, index])
    size, classes = manifest.synthesis.image_size, len(manifest.classes)
    pixels = noise.integers(0, 120, (size, size, 3), dtype=np.uint8)
    pixels[..., task.class_index % 3] += 120
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    distances = np.full(classes, 1.2, np.float32) + noise.normal(0, 0.01, classes).astype("f4")
    distances[task.class_index] -= 0.4
    name, method = manifest.classes[task.class_index], manifest.prompts.method[0]
    facts = metadata(name, task.class_index, index, method=method)
    embedding = np.eye(EMBEDDING, dtype=np.float16)[task.class_index % EMBEDDING]
    arrays = {"distances": distances, "embedding": embedding}
    return Sample(sample_key(task.class_index, index), stream.getvalue(), "png", facts, arrays)
