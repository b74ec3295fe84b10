"""The training loop of each rank of a distillation, under Ray Train."""

import dataclasses
import math
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Self

import ray
import ray.train
import ray.train.collective
import torch
from ray.train import PreemptionInfo, get_preemption_info
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from dfkd.cluster.capacity import POLL_SECONDS, enter_folder, node_id
from dfkd.cluster.metrics import Pace, count_request
from dfkd.cluster.ray_internals import draining_nodes, relayed_bar
from dfkd.cluster.tracking import SAMPLES, Tracker
from dfkd.config.manifest import Manifest
from dfkd.config.methods import Method
from dfkd.dataset.batch import Batch
from dfkd.dataset.loader import RankShare, Stream, cache_limit
from dfkd.dataset.published import PublishedVersion, open_version
from dfkd.distillation.distiller import Distiller, Schedule
from dfkd.distillation.hang_watch import HangWatch
from dfkd.distillation.labels import target_function
from dfkd.distillation.objective import DistanceObjective, EmbeddingObjective, Objective
from dfkd.distillation.student_store import check_initial_weights, check_teacher
from dfkd.errors import DfkdError
from dfkd.models.student import CARD, Student, build, card, save_student
from dfkd.storage import layout
from dfkd.storage.base import Storage
from dfkd.storage.checkpoints import Checkpoints
from dfkd.storage.local import open_storage
from dfkd.utils import progress
from dfkd.utils.device import configure_process, memory_limited_by, pick_device
from dfkd.utils.progress import Bar, Closing, LineBar

BarPlace = Literal["terminal", "relayed", "log"]
"""Where progress is shown: a bar on this process's terminal, a bar that Ray relays to the driver's
terminal, or lines in the log."""

LOG_STEPS = 50
"""Steps between two points of a TensorBoard curve; the end of an epoch is a point too."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """The input of a rank; it reads everything else from storage."""

    manifest: Manifest
    method: Method
    seed: int
    version: str
    """Id of the published version, so that all ranks and restarts read the same one."""
    name: str
    """The student's folder."""
    cpus: float
    gpu: bool
    embedding: EmbeddingObjective | None = None
    """For a student of embeddings; from the driver, so that it is the same on all ranks."""
    local: bool = False
    """Whether the one rank runs in the process that called Ray Train, which has no other ranks."""
    folder: str = ""
    """The driver's working directory, so that relative paths mean the same in ranks."""
    bar: BarPlace = "log"
    """Where the first rank shows its progress."""


def train(config: dict[str, Any]) -> bool:
    """Train one student with all ranks together; rank 0 writes checkpoints and student.

    Returns:
        Whether all ranks must be restarted, because the node of one of them is about to be taken
        away. They stopped with a checkpoint of their last step.
    """
    job: Job = config["job"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    enter_folder(job.folder)
    configure_process(job.cpus)
    root = open_storage(job.manifest.storage.root).observed(count_request)
    folder = root.child(layout.student(job.name))
    # If a rank died just after rank 0 wrote the student, all ranks restart and end here.
    if ray.train.collective.broadcast_from_rank_zero(folder.exists(CARD)):
        return False
    version = open_version(root.child(layout.data(job.method)), job.version)
    # On each node, because each reads its own weight files.
    check_initial_weights(job.manifest, version, job.method, job.seed, job.name)
    if job.manifest.distillation.labels != "stored":
        check_teacher(job.manifest, job.method, version)
    stream = open_stream(job.manifest, version, job.seed, rank, world, job.cpus)
    distiller = open_distiller(job, version, stream, rank, world)
    checkpoints = Checkpoints(folder.child(layout.CHECKPOINTS))
    # Rank 0 decides, because a rank of an earlier attempt may still write while others list.
    newest = ray.train.collective.broadcast_from_rank_zero(checkpoints.newest())
    if newest:
        distiller.restore(checkpoints.read(newest))
    pace = Pace(stream.rows, manifest=job.manifest.name, method=job.method)
    if rank == 0:
        return _train_as_leader(job, version, folder, stream, distiller, checkpoints, pace)
    watch = PreemptionWatch()
    limit = job.manifest.cluster.task_timeout
    return _train_epochs(stream, distiller, pace, watch, limit, distiller.advance, lambda: None)


def open_stream(
    manifest: Manifest,
    version: PublishedVersion,
    seed: int,
    rank: int,
    world: int,
    cpus: float = 1.0,
) -> Stream:
    """The batches of a version for one rank; raises `ManifestError` if it has too few images.

    Args:
        cpus: those of the rank, from which its share of the memory for decoded images follows.
    """
    config, size = manifest.distillation, manifest.synthesis.image_size
    share = RankShare(rank, world, config.loader_workers)
    return Stream(version, size, config.batch_size, seed, share, cache_limit(cpus))


@torch.no_grad()
def average_buffers(module: nn.Module) -> None:
    """Replace the floating-point buffers of `module` by their mean over all ranks, in place.

    These buffers are the running means and variances of batch norm, which each rank on a CPU
    computes from its own images. The mean is computed in float64, so equal values stay exactly the
    same.
    """
    if not torch.distributed.is_initialized():
        return
    # One all_reduce for all buffers instead of one for each of them.
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    means = torch.cat([buffer.double().flatten() for buffer in buffers])
    torch.distributed.all_reduce(means)
    means /= torch.distributed.get_world_size()
    sizes = [buffer.numel() for buffer in buffers]
    for buffer, mean in zip(buffers, means.split(sizes), strict=True):
        buffer.copy_(mean.view_as(buffer))


def _train_epochs(
    stream: Stream,
    distiller: Distiller,
    pace: Pace,
    watch: "PreemptionWatch | NodeWatch",
    limit: float,
    advance: Callable[[Batch], object],
    save: Callable[[], None],
) -> bool:
    """Train from the distiller's step to the end; returns True if it stopped early.

    It stops early when a rank's node is about to be taken away. A step that takes more than `limit`
    seconds ends the process. Before each checkpoint and at the end the batch-norm statistics are
    averaged over the ranks.
    """
    steps, interval = distiller.schedule.steps_per_epoch, distiller.config.checkpoint_epochs
    leaving, size = False, distiller.config.batch_size
    remedy = "lower it, set distillation.precision=bfloat16, or raise distillation.workers"
    memory = memory_limited_by("distillation.batch_size", size, remedy)
    with watch, HangWatch(limit) as hang_watch, memory:
        while not (distiller.done or leaving):
            # After a restart the epoch goes on behind the batches that the checkpoint has seen.
            for batch in pace.timed(stream.batches(distiller.epoch, distiller.step % steps)):
                advance(batch)
                hang_watch.advanced()
                # All ranks get the same answer, so all of them stop at the same step.
                leaving = watch.received() and not distiller.done
                if leaving:
                    break
            # All ranks come here at the same step, which the collective mean needs.
            if distiller.done or leaving or distiller.epoch % interval == 0:
                average_buffers(distiller.student)
                if not distiller.done:
                    save()
    pace.report()
    return leaving


@dataclass
class _Leader:
    """What rank 0 does beside its steps: it shows progress and writes checkpoints."""

    distiller: Distiller
    tracker: Tracker
    checkpoints: Checkpoints
    means: dict[str, float] = field(default_factory=dict)
    """Loss and agreement that were logged last."""

    def advance(self, batch: Batch) -> None:
        """Take a step and show it."""
        distiller, schedule = self.distiller, self.distiller.schedule
        # People see errors of augmentation at once in a picture, and in no curve.
        if distiller.step == 0:
            self.tracker.images("augmented", distiller.view(batch)[: 2 * SAMPLES], 0)
        metrics = distiller.advance(batch)
        self.tracker.record(metrics.loss, metrics.agreement)
        # Reading the loss waits for the device, so it is done every `LOG_STEPS` only.
        in_epoch = distiller.step % schedule.steps_per_epoch
        if in_epoch == 0 or in_epoch % LOG_STEPS == 0:
            rate = schedule.rate(distiller.config, distiller.step - 1)
            self.means.update(self.tracker.log(distiller.step, rate))
            # Before the checkpoint, from which another call would go on to the same end.
            if not math.isfinite(self.means["loss"]):
                told = f"distillation: the loss is no number at step {distiller.step}"
                raise DfkdError(f"{told}; lower distillation.learning_rate")

    def save(self) -> None:
        """Write a checkpoint and upload the curves."""
        self.checkpoints.write(self.distiller.step, self.distiller.state())
        self.tracker.upload()


def _train_as_leader(
    job: Job,
    version: PublishedVersion,
    folder: Storage,
    stream: Stream,
    distiller: Distiller,
    checkpoints: Checkpoints,
    pace: Pace,
) -> bool:
    """`_train_epochs` for rank 0, which also shows progress and writes checkpoints and student."""
    batch_size = job.manifest.distillation.batch_size
    done, total = distiller.step * batch_size, distiller.schedule.total * batch_size
    bar = _bar(job, f"{job.method} student", total, done)
    with Tracker(bar, folder.child(layout.TENSORBOARD), batch_size) as tracker:
        leader = _Leader(distiller, tracker, checkpoints)
        # Stopped early: the checkpoint is written, and the ranks that start next go on from it.
        watch = NodeWatch() if job.local else PreemptionWatch()
        limit = job.manifest.cluster.task_timeout
        if _train_epochs(stream, distiller, pace, watch, limit, leader.advance, leader.save):
            return True
        tracker.upload()
    _write_student(job, version, folder, distiller, leader.means)
    # The card is written, so the student is finished; a kill before this line leaves checkpoints,
    # which the next call of `distill` clears.
    checkpoints.clear()
    return False


def _write_student(
    job: Job,
    version: PublishedVersion,
    folder: Storage,
    distiller: Distiller,
    means: dict[str, float],
) -> None:
    """Write the trained student; `means` are its last loss and agreement."""
    # The exported head gives distances or embeddings, not standardised ones.
    student = distiller.objective.finish(distiller.student)
    manifest, width = job.manifest, 0 if student.texts is None else student.texts.shape[1]
    # The card says what loads the student, and what it was trained on and how.
    contents = {
        **card(manifest.distillation, manifest.classes, manifest.synthesis.image_size, width),
        "method": job.method,
        "seed": job.seed,
        "version": version.fingerprint,
        "steps": distiller.schedule.total,
        "distillation": dataclasses.asdict(manifest.distillation),
        "training": means,
    }
    save_student(folder, student, contents)


def _bar(job: Job, description: str, total: int, done: int) -> Bar:
    """A progress bar in the place that the job names."""
    if job.bar == "log":
        return LineBar(description, total, "img", done)
    if job.bar == "terminal":
        return progress.bar(description, total, "img", done)
    return relayed_bar(description, total, "img", done)


def open_distiller(
    job: Job, version: PublishedVersion, stream: Stream, rank: int, world: int
) -> Distiller:
    """A rank's distiller at step 0; with several ranks its gradients are synchronised."""
    manifest, config = job.manifest, job.manifest.distillation
    device = pick_device() if job.gpu else torch.device("cpu")
    moments = version.manifest["label_mean"], version.manifest["label_std"]
    objective: Objective = DistanceObjective.of(config.standardise, *moments)
    outputs, size = len(manifest.classes), manifest.synthesis.image_size
    if job.embedding:
        objective, outputs = job.embedding.to(device), len(job.embedding.mean)
    student = build(config, outputs, size, job.seed, manifest.cache)
    if world > 1 and device.type == "cuda":
        student = share_batch_norm(student)
    return Distiller(
        student,
        config,
        Schedule.of(config, stream.steps),
        job.seed,
        label=target_function(manifest, device),
        objective=objective,
        device=device,
        rank=rank,
        distribute=partial(distribute, precision=config.precision)
        if world > 1
        else lambda module: module,
        # DDP averages over ranks, whose parts of a batch may differ by an image.
        weight=stream.rows * world / config.batch_size,
    )


def share_batch_norm(student: Student) -> Student:
    """The student with batch norm over the images of all ranks instead of each rank's own.

    The student then does not depend on the number of ranks. torch has such layers for GPUs only.
    The state dict keeps its keys.
    """
    # timm's function, because torch's own would drop the activations that timm's layers contain.
    # Imported here, because it takes seconds and few ranks need it.
    from timm import layers

    convert: Any = layers.convert_sync_batchnorm  # type: ignore[attr-defined]  # has no types
    shared: Student = convert(student)
    return shared


def distribute(module: nn.Module, precision: str) -> nn.Module:
    """`module` in DDP, without broadcast buffers: `average_buffers` handles batch-norm statistics.

    With bfloat16 precision the gradients are sent in bfloat16, because on a CPU the sum over ranks
    takes half as long as a step otherwise. The setting decides, not the device's capability, so
    that all ranks use the same format.
    """
    device = next(module.parameters()).device
    ids = [device] if device.type == "cuda" else None
    # torch deprecates `broadcast_buffers`; its successor is missing in older versions, and set to
    # False still copies buffers at the start.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        parallel = DistributedDataParallel(
            module, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
        )
    if precision == "bfloat16":
        parallel.register_comm_hook(None, _compressed)
    return parallel


def _compressed(
    group: torch.distributed.ProcessGroup,
    bucket: torch.distributed.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    """`bf16_compress_hook` under another name: torch refuses that name over gloo, which works."""
    return bf16_compress_hook(group, bucket)


class PreemptionWatch:
    """Tells all ranks at the same step that the node of a rank is about to be taken away.

    Ray Train makes the ranks agree on the answer, which takes milliseconds. A thread asks during
    each step, so no step waits and the answer is one step old.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "dfkd-preemption")
        self._pending: Future[PreemptionInfo | None] | None = None

    def received(self) -> bool:
        """Whether there was a notice at the previous call. Every rank must call it at each step.

        Raises:
            RayError: another rank died.
        """
        answer, self._pending = self._pending, self._thread.submit(get_preemption_info)
        return answer is not None and answer.result() is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # The last answer needs a call of every rank, so after an error it may never come.
        self._thread.shutdown(wait=error is None)


class NodeWatch(Closing):
    """Tells a rank in local mode, to which Ray Train gives no notice, that its node is leaving."""

    def __init__(self) -> None:
        self._asked = -math.inf

    def received(self) -> bool:
        """Whether the node is about to be taken away; Ray is asked every `POLL_SECONDS`."""
        now = time.monotonic()
        if not ray.is_initialized() or now - self._asked < POLL_SECONDS:
            return False
        self._asked = now
        return node_id() in draining_nodes()
