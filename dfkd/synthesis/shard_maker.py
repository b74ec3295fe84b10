"""A unit's surrogate images: synthesised, labelled by the teacher, written as shards."""

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
from dfkd.config.methods import coupled
from dfkd.config.plan import (
    Task,
    Unit,
    derive_seed,
    image_count,
    image_seed,
    own_rate,
    own_steps,
    root_seed,
    sample_key,
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
"""Tries of an image, each from another derived seed, before it counts as failed."""


@dataclass(frozen=True)
class ImageRequest:
    """One image to be made: its class and index, prompt text and target embedding [E]."""

    class_index: int
    index: int
    text: str
    target: Tensor


@dataclass(frozen=True)
class _PendingSample:
    """A sample whose image is still being encoded."""

    wanted: ImageRequest
    image: Future[bytes]
    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def sample(self, extension: str) -> Sample:
        key = sample_key(self.wanted.class_index, self.wanted.index)
        return Sample(key, self.image.result(), extension, self.facts, self.arrays)


class ShardMaker:
    """Makes the shards of a run with models that are loaded once."""

    def __init__(
        self,
        manifest: Manifest,
        teacher: Teacher,
        generator: Generator | None,
        tell: Callable[[str], object] = lambda note: None,
        earlier: Callable[[int], Tensor] | None = None,
    ) -> None:
        """Prepare.

        Args:
            manifest: of one method.
            generator: None for methods without latents.
            tell: called with a sentence when memory has run out.
            earlier: gives the stored images of a part by its number, uint8 [N, H, W, 3]. A chained
                method (`dfkd.config.methods.chained`) needs it, and makes the parts in their order.
        """
        self.manifest = manifest
        self.teacher = teacher
        self.generator = generator
        self.synthesiser = None
        if generator is not None:
            steps, rate = own_steps(manifest), own_rate(manifest)
            config = dataclasses.replace(manifest.synthesis, steps=steps, learning_rate=rate)
            self.synthesiser = Synthesiser(teacher, generator, config)
        self.tell = tell
        self.batch_size = initial_batch_size(manifest.synthesis, teacher.device)
        self.coupled = coupled(manifest.method)
        self.class_texts = class_text_embeddings(manifest, teacher)
        self.inverter = (
            None if generator is not None else self._inverter(earlier or _no_earlier_parts)
        )

    def _inverter(self, earlier: Callable[[int], Tensor]) -> Inverter:
        manifest = self.manifest
        seed = derive_seed("inversion", *root_seed(manifest))
        course = RunContext(seed, image_count(manifest), manifest.synthesis.image_size, earlier)
        classifier = Classifier(self.teacher, self.class_texts)
        return METHODS[manifest.method](classifier, course, manifest.inversion)

    def state(self) -> dict[str, Tensor]:
        """What the next part of a chained method depends on; empty for other methods."""
        return self.inverter.state() if self.inverter else {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on after the part that left `state`."""
        if self.inverter:
            self.inverter.restore(state)

    def shards(
        self, unit: Unit, prompts: pa.Table, folder: Path, on_step: OnStep | None = None
    ) -> dict[Task, tuple[int, ...]]:
        """Write `{task.id}.tar` for each task of a unit; returns the image indices that failed.

        Args:
            prompts: rows of `dfkd.prompts.maker.SCHEMA`, one for each image of the task, or of the
            whole
                part where images are coupled: its images are then made together, whichever of them
                the unit wants.

        An image that diverges is tried again once, from a seed derived for the second attempt.
        """
        # A thread of its own encodes while the next batch is synthesised: Pillow lets others run.
        with ThreadPoolExecutor(1, "encoder") as encoder:
            made, lost = self._all(self._wanted(unit, prompts), encoder, on_step)
            for task in unit.tasks:
                own = sorted(made[task.class_index], key=lambda each: each.wanted.index)
                samples = [each.sample(self.manifest.synthesis.format) for each in own]
                write_shard(samples, folder / f"{task.id}.tar")
        failed = sorted((want.class_index, want.index) for want in lost)
        return {t: tuple(i for c, i in failed if c == t.class_index) for t in unit.tasks}

    def _all(
        self, wanted: list[ImageRequest], encoder: ThreadPoolExecutor, on_step: OnStep | None
    ) -> tuple[dict[int, list[_PendingSample]], list[ImageRequest]]:
        """What was made of each class, and what failed at every attempt."""
        made: dict[int, list[_PendingSample]] = defaultdict(list)
        for attempt in range(MAX_ATTEMPTS):
            failed = []
            for batch, results in self._batches(wanted, attempt, encoder, on_step):
                for want, result in zip(batch, results, strict=True):
                    if result is None:
                        failed.append(want)
                    else:
                        made[want.class_index].append(result)
            wanted = failed
        return made, wanted

    def _wanted(self, unit: Unit, prompts: pa.Table) -> list[ImageRequest]:
        """In the order of index and class, so that batches mix classes where there are several."""
        table = prompts.sort_by([("index", "ascending"), ("class_index", "ascending")])
        indices, classes = table["index"].to_pylist(), table["class_index"].to_pylist()
        needed = sorted((index, t.class_index) for t in unit.made for index in t.indices)
        if list(zip(indices, classes, strict=True)) != needed:
            raise ValueError(f"unit {unit.id} needs the prompts of images {unit.made[0].indices}")
        targets = torch.from_numpy(np.stack(table["embedding"].to_numpy()))
        rows = zip(classes, indices, table["text"].to_pylist(), targets, strict=True)
        return [ImageRequest(*row) for row in rows]

    def _batches(
        self,
        wanted: list[ImageRequest],
        attempt: int,
        encoder: ThreadPoolExecutor,
        on_step: OnStep | None,
    ) -> Iterator[tuple[list[ImageRequest], list[_PendingSample | None]]]:
        """Batch after batch; one that memory has no room for is halved, and all that follow."""
        start = 0
        while start < len(wanted):
            batch = wanted[start : start + (self.batch_size if self.generator else len(wanted))]
            try:
                made = self._batch(batch, attempt, encoder, on_step)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error) or (len(batch) == 1 and not self.coupled):
                    raise
            else:
                yield batch, made
                start += len(batch)
                continue
            # Outside of the handler: the error holds the frames, and they the tensors.
            self._halve(len(batch))

    def _halve(self, tried: int) -> None:
        if self.coupled:
            section = "synthesis" if self.generator else f"inversion.{self.manifest.method}"
            raise DfkdError(
                "memory had no room for a batch, and to halve it would change its images, which "
                f"depend on each other; lower {section}.batch_size"
            )
        self.batch_size = tried // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.tell(
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
        seeds = [image_seed(self.manifest, w.class_index, w.index, attempt) for w in batch]
        made = self._pixels(batch, seeds, on_step)
        pixels = made.pixels.numpy()
        encoded = [encoder.submit(self._encode, each) for each in pixels]
        found: list[_PendingSample | None] = []
        for start in range(0, len(batch), self.batch_size):
            rows = slice(start, start + self.batch_size)
            embeddings, labels, confidence = self._label(self._stored(pixels[rows], encoded[rows]))
            for i, w in enumerate(batch[rows], start):
                facts = self._facts(w, seeds[i], attempt, made, i)
                facts["confidence"] = round(float(confidence[i - start, w.class_index]), 6)
                arrays: dict[str, np.ndarray] = {
                    "distances": labels[i - start].numpy().astype(np.float32),
                    "embedding": embeddings[i - start].numpy().astype(np.float16),
                }
                found.append(
                    None if made.diverged[i] else _PendingSample(w, encoded[i], facts, arrays)
                )
        return found

    def _pixels(
        self, batch: list[ImageRequest], seeds: list[int], on_step: OnStep | None
    ) -> Synthesised:
        manifest, device = self.manifest, self.class_texts.device
        if self.inverter:
            labels = torch.tensor([w.class_index for w in batch], device=device)
            size = manifest.synthesis.shard_size
            part = batch[0].index // size
            before = part * size * len(manifest.classes)
            run = PartRequest(labels, seeds, manifest.synthesis.image_size, part, before)
            return self.inverter.make(run, on_step)
        assert self.synthesiser is not None  # noqa: S101 - there is a generator
        targets = torch.stack([w.target for w in batch]).to(device)
        return self.synthesiser(targets, seeds, on_step)

    def _facts(
        self, wanted: ImageRequest, seed: int, attempt: int, made: Synthesised, i: int
    ) -> dict[str, Any]:
        return {
            "class": self.manifest.classes[wanted.class_index],
            "class_index": wanted.class_index,
            "index": wanted.index,
            "seed": seed,
            "attempt": attempt,
            "method": self.manifest.method,
            "prompt": wanted.text,
            "loss": float(made.losses[i]),
            "steps": int(made.steps[i]),
        }

    def _encode(self, pixels: np.ndarray) -> bytes:
        stream = io.BytesIO()
        kind, options = (
            ("PNG", {}) if self.manifest.synthesis.format == "png" else ("JPEG", JPEG_OPTIONS)
        )
        Image.fromarray(pixels).save(stream, kind, **options)
        return stream.getvalue()

    def _stored(self, pixels: np.ndarray, encoded: list[Future[bytes]]) -> np.ndarray:
        """Pixels [B, H, W, 3] as readers will decode them, for which only JPEG must be waited."""
        if self.manifest.synthesis.format == "png":
            return pixels
        files = (io.BytesIO(each.result()) for each in encoded)
        return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])

    @torch.no_grad()
    def _label(self, stored: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings [B, E], distances [B, M] and probabilities [B, M] of the stored images."""
        pixels = from_bytes(torch.from_numpy(stored))
        embeddings = self.teacher.encode_image(pixels.to(self.class_texts.device), "float32")
        labels = distances(embeddings, self.class_texts)
        logits = self.teacher.logit_scale * embeddings @ self.class_texts.T
        return embeddings.cpu(), labels.cpu(), logits.softmax(dim=1).cpu()


def _no_earlier_parts(part: int) -> Tensor:
    """For methods that look at no earlier part."""
    raise ValueError(f"part {part} is asked for, and nobody was told where parts are")


def initial_batch_size(config: Synthesis, device: torch.device) -> int:
    """How many images are tried at once, as long as memory has room for them."""
    return config.batch_size or (config.shard_size if device.type == "cuda" else CPU_BATCH_SIZE)


CPU_BATCH_SIZE = 8
"""Beyond it a CPU gains nothing."""

JPEG_OPTIONS = {"quality": 95, "subsampling": 0}
"""Close to lossless, as a soft label belongs to the very pixels that are stored."""


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, of the GPU's memory or of the machine's."""
    # The allocator of the CPU and the libraries of the GPU raise a bare RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error) for words in _ALLOCATION_FAILURES
    )


_ALLOCATION_FAILURES = (
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "ALLOC_FAILED",
    "could not create a primitive",  # oneDNN, which does not say why
)
