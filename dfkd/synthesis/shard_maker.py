"""Make the images of a unit of work: synthesise them, label them and write them as shards."""

import io
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.config.plan import Task, Unit, image_seed
from dfkd.dataset.shards import MadeShard, Sample, sample_key, write_shard
from dfkd.errors import DfkdError
from dfkd.models.labeller import distances
from dfkd.models.teacher import Teacher
from dfkd.prompts.conditions import StoredPrompt
from dfkd.prompts.styles import class_text_embeddings
from dfkd.synthesis.image_source import ImageSource, initial_batch_size
from dfkd.utils.device import is_out_of_memory
from dfkd.utils.pixels import from_bytes

MAX_ATTEMPTS = 2
"""Attempts at an image, each with another derived seed, before it counts as failed."""

JPEG_OPTIONS = {"quality": 95, "subsampling": 0}
"""Encoder options, close to lossless; labels are computed from the stored pixels in any case."""


_Labelled = tuple[Future[bytes], dict[str, Any], dict[str, np.ndarray]]
"""An image that may still be being encoded, and the metadata and the arrays of its sample."""


class ShardMaker:
    """Makes the shards of a run; its models are loaded once."""

    def __init__(
        self,
        manifest: Manifest,
        teacher: Teacher,
        source: ImageSource,
        notify: Callable[[str], object] = lambda note: None,
    ) -> None:
        """Encode the texts of the classes, for the labels.

        Args:
            manifest: the manifest of one method.
            teacher: the loaded teacher.
            source: makes the pixels.
            notify: called with a sentence when memory has run out.
        """
        self.manifest = manifest
        self.teacher = teacher
        self.source = source
        self.notify = notify
        self.batch_size = initial_batch_size(manifest, teacher.device)
        self.dependent = manifest.source.scope != "image"
        self.class_texts = class_text_embeddings(manifest, teacher)

    def shards(self, unit: Unit, prompts: pa.Table, folder: Path) -> dict[Task, MadeShard]:
        """Write `{task.id}.tar` for each task of a unit; returns what each of them holds.

        An image that diverges is tried once more, with the derived seed of the second attempt.

        Args:
            prompts: rows of `dfkd.prompts.maker.SCHEMA`, one for each image of the unit. Methods
                with dependent images make a whole part together, so they need all its rows, even if
                the unit writes only some of its tasks.

        Raises:
            DfkdError: memory has no room for a batch whose images depend on each other, or a
                chained method has diverged.
            ValueError: `prompts` are not those of the unit.
        """
        extension = self.manifest.synthesis.format
        pending: dict[int, list[_Labelled]] = defaultdict(list)
        remaining = self._stored_prompts(unit, prompts)
        # A separate thread encodes while the next batch is synthesised; Pillow releases the GIL.
        with ThreadPoolExecutor(1, "encoder") as encoder:
            for attempt in range(MAX_ATTEMPTS):
                failed: list[StoredPrompt] = []
                while remaining:
                    size = len(remaining) if self.source.whole_part else self.batch_size
                    batch, labelled = remaining[:size], None
                    try:
                        labelled = self._batch(batch, attempt, encoder)
                    except (RuntimeError, MemoryError) as error:
                        alone = len(batch) == 1 and not self.dependent
                        if not is_out_of_memory(error) or alone:
                            raise
                    if labelled is None:
                        # Not in the handler: the error holds the frames, and they hold the batch's
                        # tensors. The batch is halved and made again.
                        self._halve(len(batch))
                        continue
                    remaining = remaining[size:]
                    for prompt, each in zip(batch, labelled, strict=True):
                        if each is None:
                            failed.append(prompt)
                        else:
                            pending[prompt.class_index].append(each)
                # The same seeds would diverge again, so each attempt derives other ones.
                remaining = failed
            made: dict[Task, MadeShard] = {}
            for task in unit.tasks:
                samples = []
                for image, metadata, arrays in pending[task.class_index]:
                    key = sample_key(task.class_index, metadata["index"])
                    samples.append(Sample(key, image.result(), extension, metadata, arrays))
                samples.sort(key=lambda sample: int(sample.metadata["index"]))
                write_shard(samples, folder / f"{task.id}.tar")
                lost = sorted(p.index for p in remaining if p.class_index == task.class_index)
                made[task] = MadeShard(samples, tuple(lost))
        return made

    def _stored_prompts(self, unit: Unit, prompts: pa.Table) -> list[StoredPrompt]:
        """The prompts of a unit, ordered by index and class, so that batches mix the classes."""
        table = prompts.sort_by([("index", "ascending"), ("class_index", "ascending")])
        indices, classes = table["index"].to_pylist(), table["class_index"].to_pylist()
        required = sorted((index, t.class_index) for t in unit.generated for index in t.indices)
        if list(zip(indices, classes, strict=True)) != required:
            raise ValueError(
                f"unit {unit.id} needs the prompts of images {unit.generated[0].indices}"
            )
        targets = torch.from_numpy(np.stack(table["embedding"].to_numpy()))
        words = table["pseudo"].to_numpy()
        seeds, texts = table["seed"].to_pylist(), table["text"].to_pylist()
        return list(map(StoredPrompt, classes, indices, seeds, texts, targets, words))

    def _halve(self, tried: int) -> None:
        """Halve the batch size after `tried` images did not fit into memory.

        Raises:
            DfkdError: the images of a batch depend on each other.
        """
        # A smaller dependent batch gives other images, and results must not depend on memory.
        if self.dependent:
            raise DfkdError(
                "memory had no room for a batch, and to halve it would change its images, which "
                f"depend on each other; lower {self.source.batch_key}"
            )
        self.batch_size = tried // 2
        self.source.limit(self.batch_size)
        # torch would keep the freed blocks, whose sizes do not suit the smaller batch.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.notify(
            f"memory had no room for {tried} images at once; this worker makes at most "
            f"{self.batch_size} from here on"
        )

    def _batch(
        self,
        batch: list[StoredPrompt],
        attempt: int,
        encoder: ThreadPoolExecutor,
    ) -> list[_Labelled | None]:
        """Synthesise and label one batch; an image that diverged gives None."""
        seeds = [image_seed(self.manifest, p.class_index, p.index, attempt) for p in batch]
        images = self.source.make(batch, seeds)
        pixels = images.pixels.numpy()
        # Diverged images are encoded as well: they are rare, and the rows stay aligned.
        encoded = [encoder.submit(self._encode, each) for each in pixels]
        # Labels are of what readers will decode. PNG is lossless; only JPEG waits for the encoder.
        if self.manifest.synthesis.format != "png":
            files = (io.BytesIO(each.result()) for each in encoded)
            pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
        embeddings, to_texts, probabilities = self._label(pixels)
        results: list[_Labelled | None] = []
        for i, prompt in enumerate(batch):
            metadata = {
                "class": self.manifest.classes[prompt.class_index],
                "class_index": prompt.class_index,
                "index": prompt.index,
                "seed": seeds[i],
                "attempt": attempt,
                "method": self.manifest.method,
                "prompt": prompt.text,
                "loss": float(images.losses[i]),
                "steps": int(images.steps[i]),
                "confidence": round(float(probabilities[i, prompt.class_index]), 6),
            }
            arrays: dict[str, np.ndarray] = {
                "distances": to_texts[i].numpy().copy(),
                "embedding": embeddings[i].numpy().astype(np.float16),
            }
            results.append(None if images.diverged[i] else (encoded[i], metadata, arrays))
        return results

    def _encode(self, pixels: np.ndarray) -> bytes:
        """The image file of pixels uint8 [H, W, 3]."""
        png = self.manifest.synthesis.format == "png"
        kind, options = ("PNG", {}) if png else ("JPEG", JPEG_OPTIONS)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, kind, **options)
        return stream.getvalue()

    @torch.no_grad()
    def _label(self, stored: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings [B, E], distances [B, M] and probabilities [B, M] of the stored pixels.

        All are float32, whatever `synthesis.precision` says.
        """
        rows = []
        # An inversion method makes a whole part at once, which may be too large for a teacher pass.
        for images in torch.from_numpy(stored).split(self.batch_size):
            pixels = from_bytes(images).to(self.class_texts.device)
            embeddings = self.teacher.encode_image(pixels, "float32")
            logits = self.teacher.logit_scale * embeddings @ self.class_texts.T
            to_texts = distances(embeddings, self.class_texts)  # Eq 4
            rows.append((embeddings.cpu(), to_texts.cpu(), logits.softmax(dim=1).cpu()))
        embeddings, to_texts, probabilities = (torch.cat(each) for each in zip(*rows, strict=True))
        return embeddings, to_texts, probabilities
