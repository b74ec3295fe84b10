"""Make the images of a unit of work: synthesise them, label them and write them as shards."""

import dataclasses
import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.config.methods import has_dependent_images
from dfkd.config.plan import (
    Task,
    Unit,
    derive_seed,
    image_count,
    image_seed,
    latent_learning_rate,
    root_seed,
    sample_key,
    steps_per_image,
)
from dfkd.config.synthesis import Synthesis
from dfkd.dataset.shards import Sample, write_shard
from dfkd.errors import DfkdError
from dfkd.models.generator import Generator
from dfkd.models.teacher import Teacher, distances
from dfkd.prompts.maker import class_text_embeddings
from dfkd.synthesis.inversion.inverter import Inverter
from dfkd.synthesis.inversion.methods import METHODS
from dfkd.synthesis.inversion.run import Classifier, PartRequest, RunContext
from dfkd.synthesis.latents import OnStep, Synthesised, Synthesiser
from dfkd.utils.pixels import from_bytes

MAX_ATTEMPTS = 2
"""Attempts at an image, each with another derived seed, before it counts as failed."""


@dataclass(frozen=True)
class ImageRequest:
    """One image to make: its class and index, its prompt, and its target embedding [E]."""

    class_index: int
    index: int
    text: str
    target: Tensor


@dataclass(frozen=True)
class _PendingSample:
    """A sample whose image is still being encoded."""

    request: ImageRequest
    image: Future[bytes]
    metadata: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def sample(self, extension: str) -> Sample:
        """The finished sample; waits for the encoder."""
        key = sample_key(self.request.class_index, self.request.index)
        return Sample(key, self.image.result(), extension, self.metadata, self.arrays)


@dataclass(frozen=True)
class MadeShard:
    """The content of a shard that has been written."""

    samples: list[Sample]
    failed: tuple[int, ...] = ()
    """Indices of the task's images that diverged at every attempt."""


class ShardMaker:
    """Makes the shards of a run; its models are loaded once."""

    def __init__(
        self,
        manifest: Manifest,
        teacher: Teacher,
        generator: Generator | None,
        notify: Callable[[str], object] = lambda note: None,
        earlier: Callable[[int], Tensor] | None = None,
    ) -> None:
        """Prepare the synthesiser or the inversion method that the manifest names.

        Args:
            manifest: the manifest of one method.
            teacher: the loaded teacher.
            generator: the loaded generator; None for methods without latents.
            notify: called with a sentence when memory has run out.
            earlier: returns the stored images of a part by its number, uint8 [N, H, W, 3]. A
                chained method (`has_dependent_parts`) needs it, and makes its parts in order.
        """
        self.manifest = manifest
        self.teacher = teacher
        self.generator = generator
        self.synthesiser = None
        if generator is not None:
            steps, rate = steps_per_image(manifest), latent_learning_rate(manifest)
            config = dataclasses.replace(manifest.synthesis, steps=steps, learning_rate=rate)
            self.synthesiser = Synthesiser(teacher, generator, config)
        self.notify = notify
        self.batch_size = initial_batch_size(manifest.synthesis, teacher.device)
        self.coupled = has_dependent_images(manifest.method)
        self.class_texts = class_text_embeddings(manifest, teacher)
        self.inverter = (
            None if generator is not None else self._inverter(earlier or _no_earlier_parts)
        )

    def _inverter(self, earlier: Callable[[int], Tensor]) -> Inverter:
        manifest = self.manifest
        seed = derive_seed("inversion", *root_seed(manifest))
        context = RunContext(seed, image_count(manifest), manifest.synthesis.image_size, earlier)
        classifier = Classifier(self.teacher, self.class_texts)
        return METHODS[manifest.method](classifier, context, manifest.inversion)

    def state(self) -> dict[str, Tensor]:
        """The state that the next part of a chained method needs; empty for other methods."""
        return self.inverter.state() if self.inverter else {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the `state()` after an earlier part."""
        if self.inverter:
            self.inverter.restore(state)

    def shards(
        self, unit: Unit, prompts: pa.Table, folder: Path, on_step: OnStep | None = None
    ) -> dict[Task, MadeShard]:
        """Write `{task.id}.tar` for each task of a unit; returns what each of them holds.

        An image that diverges is tried once more, with the derived seed of the second attempt.

        Args:
            prompts: rows of `dfkd.prompts.maker.SCHEMA`, one for each image of the task. Methods
                with coupled images make a whole part together, so they need all its rows, even if
                the unit writes only some of its tasks.
        """
        made = {}
        # A separate thread encodes while the next batch is synthesised; Pillow releases the GIL.
        with ThreadPoolExecutor(1, "encoder") as encoder:
            pending, failures = self._make(self._requests(unit, prompts), encoder, on_step)
            for task in unit.tasks:
                own = sorted(pending[task.class_index], key=lambda each: each.request.index)
                samples = [each.sample(self.manifest.synthesis.format) for each in own]
                write_shard(samples, folder / f"{task.id}.tar")
                failed = sorted(r.index for r in failures if r.class_index == task.class_index)
                made[task] = MadeShard(samples, tuple(failed))
        return made

    def _make(
        self, requests: list[ImageRequest], encoder: ThreadPoolExecutor, on_step: OnStep | None
    ) -> tuple[dict[int, list[_PendingSample]], list[ImageRequest]]:
        """The samples by class index, and the requests that failed at every attempt."""
        pending: dict[int, list[_PendingSample]] = defaultdict(list)
        for attempt in range(MAX_ATTEMPTS):
            # The same seed would diverge again, so each attempt derives another one.
            failed = []
            for batch, results in self._batches(requests, attempt, encoder, on_step):
                for request, result in zip(batch, results, strict=True):
                    if result is None:
                        failed.append(request)
                    else:
                        pending[request.class_index].append(result)
            requests = failed
        return pending, requests

    def _requests(self, unit: Unit, prompts: pa.Table) -> list[ImageRequest]:
        """The requests of a unit, ordered by index and class, so that batches mix the classes."""
        table = prompts.sort_by([("index", "ascending"), ("class_index", "ascending")])
        indices, classes = table["index"].to_pylist(), table["class_index"].to_pylist()
        required = sorted((index, t.class_index) for t in unit.generated for index in t.indices)
        if list(zip(indices, classes, strict=True)) != required:
            raise ValueError(
                f"unit {unit.id} needs the prompts of images {unit.generated[0].indices}"
            )
        targets = torch.from_numpy(np.stack(table["embedding"].to_numpy()))
        rows = zip(classes, indices, table["text"].to_pylist(), targets, strict=True)
        return [ImageRequest(*row) for row in rows]

    def _batches(
        self,
        requests: list[ImageRequest],
        attempt: int,
        encoder: ThreadPoolExecutor,
        on_step: OnStep | None,
    ) -> Iterator[tuple[list[ImageRequest], list[_PendingSample | None]]]:
        """Yield batch after batch; after an out-of-memory error the batch size is halved."""
        start = 0
        while start < len(requests):
            size = self.batch_size if self.generator else len(requests)
            batch = requests[start : start + size]
            try:
                results = self._batch(batch, attempt, encoder, on_step)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error) or (len(batch) == 1 and not self.coupled):
                    raise
            else:
                yield batch, results
                start += len(batch)
                continue
            # Outside the handler, because the error refers to frames that refer to the tensors.
            self._halve(len(batch))

    def _halve(self, tried: int) -> None:
        # A smaller coupled batch gives other images, and results must not depend on memory.
        if self.coupled:
            section = "synthesis" if self.generator else f"inversion.{self.manifest.method}"
            raise DfkdError(
                "memory had no room for a batch, and to halve it would change its images, which "
                f"depend on each other; lower {section}.batch_size"
            )
        self.batch_size = tried // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.notify(
            f"memory had no room for {tried} images at once; this worker makes at most "
            f"{self.batch_size} from here on"
        )

    def _batch(
        self,
        batch: list[ImageRequest],
        attempt: int,
        encoder: ThreadPoolExecutor,
        on_step: OnStep | None,
    ) -> list[_PendingSample | None]:
        """Synthesise and label one batch; an image that diverged gives None."""
        seeds = [image_seed(self.manifest, r.class_index, r.index, attempt) for r in batch]
        images = self._pixels(batch, seeds, on_step)
        pixels = images.pixels.numpy()
        # Diverged images are encoded as well: they are rare, and the rows stay aligned.
        encoded = [encoder.submit(self._encode, each) for each in pixels]
        results: list[_PendingSample | None] = []
        # A coupled method makes a whole part at once, which may be too large for one teacher pass.
        for start in range(0, len(batch), self.batch_size):
            rows = slice(start, start + self.batch_size)
            stored = self._stored(pixels[rows], encoded[rows])
            embeddings, labels, probabilities = self._label(stored)
            for i, request in enumerate(batch[rows], start):
                metadata = self._metadata(request, seeds[i], attempt, images, i)
                confidence = float(probabilities[i - start, request.class_index])
                metadata["confidence"] = round(confidence, 6)
                arrays: dict[str, np.ndarray] = {
                    "distances": labels[i - start].numpy().astype(np.float32),
                    "embedding": embeddings[i - start].numpy().astype(np.float16),
                }
                sample = _PendingSample(request, encoded[i], metadata, arrays)
                results.append(None if images.diverged[i] else sample)
        return results

    def _pixels(
        self, batch: list[ImageRequest], seeds: list[int], on_step: OnStep | None
    ) -> Synthesised:
        manifest, device = self.manifest, self.class_texts.device
        if self.inverter:
            labels = torch.tensor([request.class_index for request in batch], device=device)
            size = manifest.synthesis.shard_size
            part = batch[0].index // size
            before = part * size * len(manifest.classes)
            request = PartRequest(labels, seeds, manifest.synthesis.image_size, part, before)
            return self.inverter.make(request, on_step)
        assert self.synthesiser is not None  # noqa: S101 - there is a generator
        targets = torch.stack([request.target for request in batch]).to(device)
        return self.synthesiser(targets, seeds, on_step)

    def _metadata(
        self, request: ImageRequest, seed: int, attempt: int, images: Synthesised, i: int
    ) -> dict[str, Any]:
        return {
            "class": self.manifest.classes[request.class_index],
            "class_index": request.class_index,
            "index": request.index,
            "seed": seed,
            "attempt": attempt,
            "method": self.manifest.method,
            "prompt": request.text,
            "loss": float(images.losses[i]),
            "steps": int(images.steps[i]),
        }

    def _encode(self, pixels: np.ndarray) -> bytes:
        stream = io.BytesIO()
        kind, options = (
            ("PNG", {}) if self.manifest.synthesis.format == "png" else ("JPEG", JPEG_OPTIONS)
        )
        Image.fromarray(pixels).save(stream, kind, **options)
        return stream.getvalue()

    def _stored(self, pixels: np.ndarray, encoded: list[Future[bytes]]) -> np.ndarray:
        """Pixels, uint8 [B, H, W, 3], as readers will decode them from the files."""
        # PNG is lossless, so only JPEG has to wait for the encoder.
        if self.manifest.synthesis.format == "png":
            return pixels
        files = (io.BytesIO(each.result()) for each in encoded)
        return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])

    @torch.no_grad()
    def _label(self, stored: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings [B, E], distances [B, M] and probabilities [B, M] of the stored pixels."""
        pixels = from_bytes(torch.from_numpy(stored))
        embeddings = self.teacher.encode_image(pixels.to(self.class_texts.device), "float32")
        labels = distances(embeddings, self.class_texts)
        logits = self.teacher.logit_scale * embeddings @ self.class_texts.T
        return embeddings.cpu(), labels.cpu(), logits.softmax(dim=1).cpu()


def _no_earlier_parts(part: int) -> Tensor:
    """The default of `earlier`, for methods that read no earlier part."""
    raise ValueError(f"part {part} is asked for, and nobody was told where parts are")


def initial_batch_size(config: Synthesis, device: torch.device) -> int:
    """Images in a batch, until memory turns out to be too small for them."""
    return config.batch_size or (config.shard_size if device.type == "cuda" else CPU_BATCH_SIZE)


CPU_BATCH_SIZE = 8
"""Default batch size on a CPU; larger batches are not faster."""

JPEG_OPTIONS = {"quality": 95, "subsampling": 0}
"""Encoder options, close to lossless; labels are computed from the stored pixels in any case."""


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, in GPU memory or in main memory."""
    # torch's CPU allocator and the GPU libraries raise a plain RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error) for words in _ALLOCATION_FAILURES
    )


_ALLOCATION_FAILURES = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "ALLOC_FAILED",
    "could not create a primitive",  # oneDNN, which gives no reason
)
