"""Runs that are only timed: temporary roots, and shards that are made without models."""

import io
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from dfkd.config.identity import identity
from dfkd.config.manifest import Manifest
from dfkd.config.plan import Task, Unit, blocks, image_seed, part_count, part_name, part_rows, tasks
from dfkd.dataset.published import PublishedVersion
from dfkd.dataset.shards import MadeShard, Sample, sample_key, write_shard
from dfkd.dataset.versions import Version, begin
from dfkd.storage import layout
from dfkd.storage.local import open_storage

EMBEDDING = 16
"""Dimensions of an embedding; a real one has 512 or more."""


@contextmanager
def temporary_root(manifest: Manifest, **sections: Mapping[str, Any]) -> Iterator[Manifest]:
    """The manifest with new values as in `with_values`, and with a new folder as its root.

    The folder is in `benchmarks/` and is deleted at the end.
    """
    root, folder = manifest.storage.root.rstrip("/"), f"{layout.BENCHMARKS}{uuid.uuid4().hex}"
    home = open_storage(root)
    try:
        yield manifest.with_values(storage={"root": f"{root}/{folder}"}, **sections)
    finally:
        for key in list(home.list(f"{folder}/")):
            home.delete(key)
        # A local disk keeps the empty folders.
        shutil.rmtree(home.location(folder), ignore_errors=True)


class StandInMaker:
    """Replaces the real shard maker: the same image everywhere, and random labels."""

    def __init__(self, manifest: Manifest, noisy: bool = False) -> None:
        """`noisy` uses blurred noise, which compresses about as badly as a synthesised image;
        otherwise the image has one colour.
        """
        self.manifest = manifest
        size = manifest.synthesis.image_size
        image = Image.new("RGB", (size, size), "grey")
        if noisy:
            # Of a quarter of the size, enlarged.
            side = -(-size // 4)
            noise = np.random.default_rng(0).integers(256, size=(side, side, 3), dtype=np.uint8)
            image = Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)
        stream = io.BytesIO()
        image.save(stream, "PNG")
        self.image = stream.getvalue()
        self.source = self
        """What a worker asks before and after each part."""

    def begin(self, part: int) -> int:
        """See `ImageSource.begin`."""
        return part

    def finish(self, part: int) -> None:
        """See `ImageSource.finish`."""

    def shards(self, unit: Unit, prompts: pa.Table, folder: Path) -> dict[Task, MadeShard]:
        """Write the shard of each task of a unit; no image fails."""
        manifest, made = self.manifest, {}
        for task in unit.tasks:
            task_prompts = prompts.filter(pc.equal(prompts["class_index"], task.class_index))
            texts = task_prompts["text"].to_pylist()
            # Seeded by the task, so that a task that is made twice gives the same bytes.
            noise = np.random.default_rng(image_seed(manifest, task.class_index, task.start))
            labels = noise.random((task.count, len(manifest.classes)), np.float32)
            embeddings = noise.random((task.count, EMBEDDING), np.float32).astype(np.float16)
            samples = []
            for row, index in enumerate(task.indices):
                # As of real ones.
                metadata = {
                    "class": manifest.classes[task.class_index],
                    "class_index": task.class_index,
                    "index": index,
                    "seed": image_seed(manifest, task.class_index, index),
                    "attempt": 0,
                    "method": manifest.method,
                    "prompt": texts[row],
                    "loss": round(float(labels[row, 0]), 6),
                    "confidence": round(float(labels[row, 1]), 6),
                    "steps": 1,
                }
                arrays = {"distances": labels[row], "embedding": embeddings[row]}
                key = sample_key(task.class_index, index)
                samples.append(Sample(key, self.image, "png", metadata, arrays))
            write_shard(samples, folder / f"{task.id}.tar")
            made[task] = MadeShard(samples)
        return made


def put_version(manifest: Manifest) -> PublishedVersion:
    """Publish a version of noise, with the layout of the manifest's synthesis."""
    home = open_storage(manifest.storage.root).child(layout.data(manifest.method))
    version = begin(home, identity(manifest, {}))
    put_prompts(manifest, version)
    put_shards(StandInMaker(manifest, noisy=True), version, list(tasks(manifest)))
    return version.publish(blocks(manifest), {})


def put_prompts(manifest: Manifest, version: Version) -> None:
    """Write all prompts of a version, with texts but without embeddings."""
    names = [part_name(part) for part in range(part_count(manifest))]
    for part, name in enumerate(names):
        rows = part_rows(manifest, part)
        table = {
            "class_index": [row.class_index for row in rows],
            "index": [row.index for row in rows],
            "text": [row.name for row in rows],
        }
        version.put_prompts(name, pa.table(table))
    version.seal_prompts(names, {})


def put_shards(maker: StandInMaker, version: Version, planned: Sequence[Task]) -> None:
    """Make and commit the shards of some tasks, whose prompts exist."""
    with tempfile.TemporaryDirectory() as folder:
        for task in planned:
            maker.shards(Unit((task,), (task,)), version.prompts(task), Path(folder))
            tar = Path(folder, f"{task.id}.tar")
            version.commit(task, tar)
            # A version of thousands of shards need not fit into the temporary folder.
            tar.unlink()
