"""One task's surrogate images: synthesised, labelled by the teacher, written as a shard."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from dfkd.generator import Generator
from dfkd.manifest import Manifest
from dfkd.plan import Task, image_seed, sample_key
from dfkd.prompts import class_texts
from dfkd.shards import Sample, write_shard
from dfkd.synthesis import OnStep, Synthesised, synthesise
from dfkd.teacher import Teacher, distances

ATTEMPTS = 2
"""Tries of an image, each from another derived seed, before it counts as failed."""


@dataclass(frozen=True)
class Wanted:
    """One image to be made: its index, prompt text and target embedding [E]."""

    index: int
    text: str
    target: Tensor


class SurrogateMaker:
    """Makes the shards of a run with models that are loaded once."""

    def __init__(
        self,
        manifest: Manifest,
        teacher: Teacher,
        generator: Generator,
        tell: Callable[[str], object] = lambda note: None,
    ) -> None:
        """`tell` is called with a sentence when memory has run out."""
        self.manifest = manifest
        self.teacher = teacher
        self.generator = generator
        self.tell = tell
        self.batch_size = manifest.synthesis.batch_size
        self.class_texts = class_texts(manifest, teacher)

    def shard(
        self, task: Task, prompts: pa.Table, path: Path, on_step: OnStep | None = None
    ) -> tuple[int, ...]:
        """Write the shard of a task to `path`; returns the indices of the images that failed.

        Args:
            prompts: rows of `dfkd.prompts.SCHEMA`, one for each image of the task.

        An image that diverges is tried again once, from a seed derived for the second attempt.
        """
        wanted = self._wanted(task, prompts)
        samples: list[Sample] = []
        for attempt in range(ATTEMPTS):
            failed = []
            for batch, made in self._made(task, wanted, attempt, on_step):
                samples += [sample for sample in made if sample is not None]
                failed += [w for w, s in zip(batch, made, strict=True) if s is None]
            wanted = failed
        write_shard(sorted(samples, key=lambda sample: sample.key), path)
        return tuple(w.index for w in wanted)

    def _wanted(self, task: Task, prompts: pa.Table) -> list[Wanted]:
        table = prompts.sort_by("index")
        if table["index"].to_pylist() != list(task.indices):
            raise ValueError(f"task {task.id} needs the prompts of images {task.indices}")
        targets = torch.from_numpy(np.stack(table["embedding"].to_numpy()))
        texts = table["text"].to_pylist()
        return [
            Wanted(index, text, target)
            for index, text, target in zip(task.indices, texts, targets, strict=True)
        ]

    def _made(
        self, task: Task, wanted: list[Wanted], attempt: int, on_step: OnStep | None
    ) -> Iterator[tuple[list[Wanted], list[Sample | None]]]:
        """Batch after batch; one that memory has no room for is halved, and all that follow."""
        start = 0
        while start < len(wanted):
            batch = wanted[start : start + self.batch_size]
            try:
                made = self._batch(task, batch, attempt, on_step)
            except (RuntimeError, MemoryError) as error:
                if len(batch) == 1 or not out_of_memory(error):
                    raise
            else:
                yield batch, made
                start += len(batch)
                continue
            # Outside of the handler: the error holds the frames, and they the tensors.
            self._halve(len(batch))

    def _halve(self, tried: int) -> None:
        self.batch_size = tried // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.tell(
            f"memory had no room for {tried} images at once; this worker makes at most "
            f"{self.batch_size} from here on"
        )

    def _batch(
        self, task: Task, batch: list[Wanted], attempt: int, on_step: OnStep | None
    ) -> list[Sample | None]:
        seeds = [image_seed(self.manifest, task.class_index, w.index, attempt) for w in batch]
        targets = torch.stack([w.target for w in batch]).to(self.class_texts.device)
        made = synthesise(
            self.teacher, self.generator, self.manifest.synthesis, targets, seeds, on_step
        )
        encoded = [self._encode(pixels) for pixels in made.pixels.numpy()]
        embeddings, labels, confidence = self._label(encoded)
        samples: list[Sample | None] = []
        for i, w in enumerate(batch):
            facts = self._facts(task, w, seeds[i], attempt, made, i)
            facts["confidence"] = round(float(confidence[i, task.class_index]), 6)
            arrays: dict[str, np.ndarray] = {
                "distances": labels[i].numpy().astype(np.float32),
                "embedding": embeddings[i].numpy().astype(np.float16),
            }
            sample = Sample(
                sample_key(task.class_index, w.index),
                encoded[i],
                self.manifest.synthesis.format,
                facts,
                arrays,
            )
            samples.append(None if made.diverged[i] else sample)
        return samples

    def _facts(
        self, task: Task, wanted: Wanted, seed: int, attempt: int, made: Synthesised, i: int
    ) -> dict[str, Any]:
        return {
            "class": self.manifest.classes[task.class_index],
            "class_index": task.class_index,
            "index": wanted.index,
            "seed": seed,
            "attempt": attempt,
            "method": self.manifest.prompts.method[0],
            "prompt": wanted.text,
            "loss": float(made.losses[i]),
            "steps": int(made.steps[i]),
        }

    def _encode(self, pixels: np.ndarray) -> bytes:
        stream = io.BytesIO()
        kind, options = ("PNG", {}) if self.manifest.synthesis.format == "png" else ("JPEG", JPEG)
        Image.fromarray(pixels).save(stream, kind, **options)
        return stream.getvalue()

    @torch.no_grad()
    def _label(self, encoded: list[bytes]) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings [B, E], distances [B, M] and probabilities [B, M] of the stored images."""
        decoded = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in encoded]
        pixels = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float() / 255
        embeddings = self.teacher.encode_image(pixels.to(self.class_texts.device), "float32")
        labels = distances(embeddings, self.class_texts)
        logits = self.teacher.logit_scale * embeddings @ self.class_texts.T
        return embeddings.cpu(), labels.cpu(), logits.softmax(dim=1).cpu()


JPEG = {"quality": 95, "subsampling": 0}
"""Close to lossless, as a soft label belongs to the very pixels that are stored."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, of the GPU's memory or of the machine's."""
    # The allocator of the CPU and the libraries of the GPU raise a bare RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error) for words in ALLOCATION_FAILED
    )


ALLOCATION_FAILED = ("can't allocate memory", "not enough memory", "bad_alloc", "ALLOC_FAILED")
