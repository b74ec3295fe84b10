"""Shards of the right form without any model: what everything around synthesis costs."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from dfkd.manifest import Manifest
from dfkd.plan import Task, Unit, image_seed, sample_key
from dfkd.shards import Sample, write_shard
from dfkd.synthesis import OnStep

EMBEDDING = 16
"""Dimensions, where a real embedding has 512 or more."""


class StandIn:
    """Stands where `SurrogateMaker` stands: an image of one colour, labels of chance."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        size = manifest.synthesis.image_size
        stream = io.BytesIO()
        Image.new("RGB", (size, size), "grey").save(stream, "PNG")
        self.image = stream.getvalue()

    def shards(
        self, unit: Unit, prompts: pa.Table, folder: Path, on_step: OnStep | None = None
    ) -> dict[Task, tuple[int, ...]]:
        """Write the shard of each task of a unit; no image fails."""
        for task in unit.tasks:
            mine = prompts.filter(pc.equal(prompts["class_index"], task.class_index))
            self._shard(task, mine, folder / f"{task.id}.tar")
        return dict.fromkeys(unit.tasks, ())

    def _shard(self, task: Task, prompts: pa.Table, path: Path) -> None:
        texts = prompts["text"].to_pylist()
        noise = np.random.default_rng(image_seed(self.manifest, task.class_index, task.start))
        labels = noise.random((task.count, len(self.manifest.classes)), np.float32)
        embeddings = noise.random((task.count, EMBEDDING), np.float32).astype(np.float16)
        write_shard(
            (
                self._sample(task, index, texts[row], labels[row], embeddings[row])
                for row, index in enumerate(task.indices)
            ),
            path,
        )

    def _sample(
        self, task: Task, index: int, text: str, labels: np.ndarray, embedding: np.ndarray
    ) -> Sample:
        metadata = {
            "class": self.manifest.classes[task.class_index],
            "class_index": task.class_index,
            "index": index,
            "seed": image_seed(self.manifest, task.class_index, index),
            "attempt": 0,
            "method": self.manifest.method,
            "prompt": text,
            "loss": round(float(labels[0]), 6),
            "confidence": round(float(labels[1]), 6),
            "steps": self.manifest.synthesis.steps,
        }
        arrays = {"distances": labels, "embedding": embedding}
        return Sample(sample_key(task.class_index, index), self.image, "png", metadata, arrays)
