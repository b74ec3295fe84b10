"""The networks of a run of the kit, each built once with random weights, and what rows have found.

Random weights cost as much time as trained ones, so no file is needed. The images mean nothing.
"""

import copy
import time
from collections.abc import Callable, Hashable, Sequence
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dfkd.config.manifest import Manifest, StorageConfig
from dfkd.config.paths import MINIATURE
from dfkd.config.synthesis import GeneratorConfig, Prompts, Synthesis, TeacherConfig
from dfkd.lab.benchmarks import reference
from dfkd.lab.benchmarks.gpu.sizes import Sizes
from dfkd.models import teacher_architecture
from dfkd.models.generators.vqgan import VQGAN, Network
from dfkd.models.teacher import Teacher
from dfkd.prompts.styles import class_text_embeddings
from dfkd.utils.device import seeded
from dfkd.utils.types import Precision

CLASSES = ("dog", "cat", "horse", "bird", "boat", "bicycle", "car", "house", "tree", "guitar")
"""Class names of the prompts."""

Result = dict[str, Any]
"""What a row has found; `record.py` says which keys the table shows."""


class Kit:
    """Networks on one device, and what rows learn from earlier rows.

    Attributes:
        matrix_rate: bfloat16 operations per second of a large matrix product; 0 before its row.
        plain: speed of each plain loop by what it does; by a teacher's name images per hour.
        fastest: images per hour and batch size of the fastest eager bfloat16 row, by the teacher's
            name.
        costs: operations of a step of one image, by what they depend on.
    """

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self.sizes, self.device = sizes, device
        self.matrix_rate = 0.0
        self.plain: dict[str, float] = {}
        self.fastest: dict[str, tuple[float, int]] = {}
        self.costs: dict[Hashable, float] = {}
        # Bound to this object, so that two kits share no network.
        self._clip = cache(self._build_clip)
        self.published = cache(self._build_published)
        """The teacher of a name and the generator in float32 and their authors' memory layout."""

    @cached_property
    def manifest(self) -> Manifest:
        """A manifest for the functions that read one; no file that it names is read."""
        return Manifest(
            name="gpu",
            classes=CLASSES,
            storage=StorageConfig(root="none"),
            teacher=TeacherConfig(model=self.sizes.teachers[0], weights="none"),
            generator=GeneratorConfig(config="none", weights="none"),
            prompts=Prompts(contrastive=self.sizes.contrastive),
            synthesis=Synthesis(image_size=self.sizes.image_size),
        )

    def teacher(self, name: str, precision: Precision = "float32") -> Teacher:
        """The teacher of a name; those of several precisions share their weights."""
        model, architecture = self._clip(name)
        tokenizer = teacher_architecture.build_tokenizer(architecture)
        return Teacher(model, tokenizer, name, architecture.preprocess, precision)

    def generator(self, precision: Precision = "float32") -> VQGAN:
        """The generator; those of several precisions share their weights."""
        return VQGAN(self._network, precision)

    def bundled(self, precision: Precision) -> tuple[Teacher, VQGAN]:
        """The miniature's trained models."""
        teacher = TeacherConfig(model=MINIATURE, weights=MINIATURE)
        generator = GeneratorConfig(config=MINIATURE, weights=MINIATURE)
        return (
            Teacher.load(teacher, self.device, precision),
            VQGAN.load(generator, self.device, precision),
        )

    def targets(self, teacher: Teacher, count: int) -> Tensor:
        """Unit text embeddings [count, E] of class prompts, in turn."""
        texts = class_text_embeddings(self.manifest, teacher)
        return texts[torch.arange(count, device=texts.device) % len(texts)]

    def _build_clip(self, name: str) -> tuple[nn.Module, teacher_architecture.Architecture]:
        architecture = teacher_architecture.read_architecture(name)
        with seeded(0):
            model = teacher_architecture.build(architecture)
        return model.to(self.device), architecture

    @cached_property
    def _network(self) -> Network:
        """Decoder and codebook."""
        with seeded(0):
            return Network(self.sizes.generator).to(self.device)

    def _build_published(self, name: str) -> tuple[Teacher, VQGAN]:
        # Copies, because the layout of the shared networks must not change.
        teacher, generator = copy.deepcopy((self.teacher(name), self.generator()))
        reference.as_published(teacher.model, generator.network)
        return teacher, generator

    def synchronise(self) -> None:
        """Wait for the end of all queued work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object]) -> float:
        """Seconds of one call with all the work that it queues."""
        self.synchronise()
        begun = time.perf_counter()
        call()
        self.synchronise()
        return time.perf_counter() - begun

    def rates(self, call: Callable[[], float]) -> Sequence[float]:
        """Units of work per second of `call`, one value for each window, after an untimed call."""
        units = call()
        return [units / self.seconds(call) for _ in range(self.sizes.windows)]
