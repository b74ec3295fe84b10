"""A worker of a synthesis: it loads the models, and makes prompts and shards.

A worker may be killed at any moment. Whatever it has finished is in storage, and another one that
gets the same unit of work makes the same images: on CPUs of one kind to the bit, on a GPU up to
rounding, because torch's backward pass of `grid_sample` adds there in any order.
"""

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import ray
import torch

from dfkd.cluster.capacity import worker_resources
from dfkd.cluster.connection import require_on_this_node
from dfkd.cluster.engine import Actor, Engine
from dfkd.cluster.metrics import count_request
from dfkd.cluster.tracking import ShardSummary
from dfkd.config.identity import weights_of
from dfkd.config.manifest import Cluster, Manifest
from dfkd.config.plan import (
    PromptPart,
    PromptSummary,
    Unit,
    estimated_bytes,
    part_count,
    part_name,
)
from dfkd.dataset.receipts import Receipt
from dfkd.dataset.versions import Version
from dfkd.errors import WeightsError
from dfkd.models.generators.generator import Generator
from dfkd.models.labeller import file_hashes
from dfkd.models.teacher import Teacher
from dfkd.prompts.maker import PromptMaker
from dfkd.prompts.statistics import statistics
from dfkd.storage import layout
from dfkd.storage.base import disk_full_error, require_disk_space, scratch_folder
from dfkd.synthesis.image_source import SourceContext
from dfkd.synthesis.shard_maker import ShardMaker
from dfkd.utils.device import configure_process, device_name, pick_device

R = TypeVar("R")


@dataclass(frozen=True)
class UnitResult(Generic[R]):
    """The result of a unit of work, and what the work cost."""

    result: R
    seconds: float
    device: str
    notes: tuple[str, ...]
    """Messages for the user, for example that memory ran out."""
    node: str
    """Address of the worker's node."""
    unit: str
    """Id of the unit of work."""
    warm: bool = False
    """Whether the worker had made shards before, so that its models were loaded and compiled."""


class Worker(Actor):
    """Makes the prompts and the shards of one version after another.

    Its process starts and imports once. The first unit of work of each kind loads the models that
    it needs, and a teacher that the next version needs too is kept.
    """

    manifest: Manifest
    version: Version

    def __init__(self, cpus: float) -> None:
        self.cpus = cpus
        self.notes: list[str] = []
        """`UnitResult.notes` of the current unit."""
        self._teacher: Teacher | None = None
        self._teacher_key: Any = None
        """The teacher's section of the manifest, the sha256 of its files and its precision."""
        self._prompt_maker: PromptMaker | None = None
        self._shard_maker: ShardMaker | None = None

    def begin(self, folder: str, *work: Any) -> None:
        """See `Actor.begin`; `work` are the arguments of `work_on`."""
        super().begin(folder)
        self.work_on(*work)

    def work_on(self, manifest: Manifest, version: Version) -> None:
        """Make prompts and shards of `version` from now on."""
        self._prompt_maker = self._shard_maker = None
        if self._teacher:
            # The generator goes before the next version loads its own. A source may refer to
            # itself, so only a collection frees its networks.
            gc.collect()
            torch.cuda.empty_cache()
            # What is compiled for models that are gone counts towards torch's limit.
            torch.compiler.reset()
        require_on_this_node(version.storage, layout.IDENTITY)
        self.manifest = manifest
        # An observer is not pickled, so the version comes without one from the driver.
        self.version = replace(version, home=version.home.observed(count_request))

    def run(self, unit: Unit | PromptPart | PromptSummary) -> UnitResult[Any]:
        """Do a unit of work and leave its output in storage; returns a summary and the cost."""
        started = time.perf_counter()
        self.notes.clear()  # an attempt that raised has left its own
        warm = self._shard_maker is not None
        try:
            result = self.make_shards(unit) if isinstance(unit, Unit) else self.make_prompts(unit)
        except Exception:
            # A source that goes on from part to part may be half-way in one.
            self._shard_maker = None
            raise
        seconds, node = time.perf_counter() - started, ray.util.get_node_ip_address()
        device, notes = device_name(pick_device()), tuple(self.notes)
        return UnitResult(result, seconds, device, notes, node, unit.id, warm)

    def load_teacher(self) -> Teacher:
        """The teacher on this worker's device; also sets this process's number of threads."""
        configure_process(self.cpus)
        config, cache = self.manifest.teacher, self.manifest.cache
        # The driver has checked that the files fit each other, so equal hashes are enough here.
        hashes = file_hashes(config, cache)
        self._require_same("teacher", hashes)
        precision = self.manifest.synthesis.precision
        if self._teacher is None or self._teacher_key != (config, hashes, precision):
            self._teacher = None  # its memory is free before the next one is loaded
            self._teacher = Teacher.load(config, pick_device(), precision, cache)
            self._teacher_key = (config, hashes, precision)
        return self._teacher

    def load_generator(self) -> Generator | None:
        """The generator on this worker's device; None if the method has no latents."""
        if not self.manifest.source.follows_prompts:
            return None
        settings, cache = self.manifest.generator.settings, self.manifest.cache
        self._require_same("generator", settings.hashes(cache))
        precision = self.manifest.synthesis.precision
        generator: Generator = settings.load(pick_device(), precision, cache)
        return generator

    def _require_same(self, section: str, digests: Mapping[str, str]) -> None:
        """Raise `WeightsError` if a file of this node is not that of the fingerprint.

        Args:
            section: section of the manifest that names the files.
            digests: sha256 of each file, by role.
        """
        known = weights_of(self.version.identity)
        # A file may also be missing here, such as a configuration beside the weights.
        own = {*digests, *(role for role in known if role.startswith(f"{section}."))}
        for role in sorted(own):
            digest = digests.get(role, "")
            if known.get(role, "") != digest:
                raise WeightsError(
                    role,
                    "must be the same on every node",
                    f"sha256 {digest[:12] or 'none'} on {ray.util.get_node_ip_address()}",
                    f"copy there the one that version {self.version.id} was begun with",
                )

    def make_prompts(self, unit: PromptPart | PromptSummary) -> int | None:
        """Write one part and return its number; for a `PromptSummary` write prompts.json.

        A new worker continues where a dead one stopped.
        """
        if self._prompt_maker is None:
            self._require_same("prompts", self.manifest.prompt_settings.hashes())
            base = self.version.base()
            carried = base.prompt_part if base else None
            self._prompt_maker = PromptMaker(self.manifest, self.load_teacher(), carried)
        if isinstance(unit, PromptSummary):
            names = [part_name(number) for number in range(part_count(self.manifest))]
            texts = self._prompt_maker.method.class_texts.cpu().numpy()
            summary = statistics(map(self.version.prompt_part, names), texts)
            self.version.seal_prompts(names, summary)
            return None
        # Prompts of a part depend on those before it, which another worker may have made.
        self._prompt_maker.remember(
            unit.number, lambda earlier: self.version.prompt_part(part_name(earlier))
        )
        self.version.put_prompts(part_name(unit.number), self._prompt_maker.part(unit.number))
        return unit.number

    def make_shards(self, unit: Unit) -> list[tuple[Receipt, ShardSummary]]:
        """Write the shards of a unit into a local folder, then commit them.

        Returns:
            For each task the receipt, and what is shown of the shard.
        """
        maker = self._shard_maker = self._shard_maker or self.load_maker()
        committed: list[tuple[Receipt, ShardSummary]] = []
        parts = list(unit.by_part())
        wanted = [each.part for each in parts if each.tasks]
        # A source whose parts depend on each other may have to begin with an earlier one.
        first = maker.source.begin(wanted[0])
        for part in parts:
            if not first <= part.part <= wanted[-1]:
                continue
            size = estimated_bytes(self.manifest, part.count)
            with scratch_folder("dfkd-shards-") as folder:
                require_disk_space(folder / "shards", size)
                # The prompts of a single task are its own rows only.
                prompts = (
                    self.version.prompts(part.generated[0])
                    if len(part.generated) == 1
                    else self.version.prompt_part(part_name(part.part))
                )
                # Only a full disk ends the run. Another error may be this node's, so another worker
                # tries it again.
                with disk_full_error(folder, size):
                    made = maker.shards(part, prompts, folder)
                for task in part.tasks:
                    # The receipt is that of the first attempt at the task, whoever made it.
                    samples, failed = made[task].samples, made[task].failed
                    receipt = self.version.commit(task, folder / f"{task.id}.tar", failed)
                    # The driver shows images of the first shard of each class only.
                    name, shown = self.manifest.classes[task.class_index], task.shard_index == 0
                    committed.append((receipt, ShardSummary.of(name, samples, len(failed), shown)))
            maker.source.finish(part.part)
        return committed

    def load_maker(self) -> ShardMaker:
        """A maker with loaded models."""
        teacher, generator = self.load_teacher(), self.load_generator()
        context = SourceContext(self.manifest, teacher, generator, self.version)
        source = self.manifest.source.load(context)
        return ShardMaker(self.manifest, teacher, source, self.notes.append)


def synthesis_engine(cluster: Cluster, kind: type[Worker] = Worker) -> Engine[Any]:
    """An engine of workers, which one version after another may use; the caller closes it."""
    arguments, resources = (cluster.cpus_per_worker,), worker_resources(cluster)
    return Engine(kind, arguments, 1, cluster.attempts, resources, lasting=True)
