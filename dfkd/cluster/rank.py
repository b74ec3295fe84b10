"""The training loop of each rank of a distillation, under Ray Train."""

import dataclasses
import math
import pickle
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Self

import ray
import ray.train
import ray.train.collective
import torch
from ray.train import PreemptionInfo, get_preemption_info
from torch import Tensor

from dfkd.cluster.capacity import POLL_SECONDS, Ranks, enter_folder, node_id
from dfkd.cluster.connection import require_on_this_node
from dfkd.cluster.metrics import Pace, count_request
from dfkd.cluster.ray_internals import draining_nodes, relayed_bar
from dfkd.cluster.tracking import SAMPLES, Tracker
from dfkd.config.manifest import Manifest
from dfkd.config.methods import Method
from dfkd.dataset.batch import Batch
from dfkd.dataset.loader import RankShare, Stream, cache_limit
from dfkd.dataset.published import PublishedVersion, open_version
from dfkd.distillation.data_parallel import average_buffers, distribute, share_batch_norm
from dfkd.distillation.distiller import Distiller, Schedule
from dfkd.distillation.hang_watch import HangWatch
from dfkd.distillation.label_moments import moments_of
from dfkd.distillation.labels import target_function
from dfkd.distillation.objective import DistanceObjective, EmbeddingObjective, Objective
from dfkd.distillation.student_store import check_initial_weights, check_teacher
from dfkd.errors import DfkdError, InfrastructureError
from dfkd.models.student import CARD, build, card, save_student
from dfkd.storage import layout
from dfkd.storage.base import MissingObject, Storage
from dfkd.storage.checkpoints import Checkpoints
from dfkd.storage.local import open_storage
from dfkd.utils import progress
from dfkd.utils.device import configure_process, memory_limited_by, pick_device
from dfkd.utils.progress import Bar, Closing, LineBar

BarPlace = Literal["terminal", "relayed", "log"]
"""Where progress is shown: a bar on this process's terminal, a bar that Ray relays to the driver's
terminal, or lines in the log."""

MAX_DECODE_THREADS = 8
"""Threads of a rank at most that decode images beside a GPU."""

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
    ranks: Ranks
    """The resources of each rank, and whether the only one runs in the calling process."""
    embedding: EmbeddingObjective | None = None
    """For a student of embeddings; from the driver, so that it is the same on all ranks."""
    folder: str = ""
    """The driver's working directory, so that relative paths mean the same in ranks."""
    bar: BarPlace = "log"
    """Where the first rank shows its progress."""

    def as_config(self) -> dict[str, Any]:
        """The config of `train` with this job (see `dfkd.cluster.launch.run_ranks`).

        It is pickled, because Ray's controller would import this package, in seconds, to pass it
        on.
        """
        return {"job": pickle.dumps(self)}

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "Job":
        """The job in what `as_config` has returned."""
        job: Job = pickle.loads(config["job"])  # noqa: S301 - of this run's own driver
        return job


def train(config: dict[str, Any]) -> bool:
    """Train one student with all ranks together; rank 0 writes checkpoints and student.

    Returns:
        Whether the ranks have stopped early, with a checkpoint of their last step, and must be
        started again (see `dfkd.cluster.launch.Loop`); False if the student is finished.
    """
    job = Job.of_config(config)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    # Loading and writing may hang like a step.
    with HangWatch(job.manifest.cluster.task_timeout) as hang_watch:
        enter_folder(job.folder)
        configure_process(job.ranks.cpus)
        root = open_storage(job.manifest.storage.root).observed(count_request)
        folder = root.child(layout.student(job.name))
        # If a rank died just after rank 0 wrote the student, all ranks restart and end here.
        if ray.train.collective.broadcast_from_rank_zero(folder.exists(CARD)):
            return False
        home = root.child(layout.data(job.method))
        require_on_this_node(home.child(layout.version(job.version)), layout.PUBLISHED)
        version = open_version(home, job.version)
        # On each node, because each reads its own weight files.
        check_initial_weights(job.manifest, version, job.method, job.seed, job.name)
        if not job.manifest.distillation.stored_labels:
            check_teacher(job.manifest, job.method, version)
        stream = open_stream(job.manifest, version, job.seed, rank, world, job.ranks)
        distiller = open_distiller(job, version, stream, rank, world)
        checkpoints = Checkpoints(folder.child(layout.CHECKPOINTS))
        # Rank 0 decides, because a rank of an earlier attempt may still write while others list.
        newest = ray.train.collective.broadcast_from_rank_zero(checkpoints.newest())
        if newest:
            distiller.restore(_read(checkpoints, newest))
        pace = Pace(stream.rank_batch_size, manifest=job.manifest.name, method=job.method)
        loop = _Loop(stream, distiller, pace, hang_watch)
        if rank:
            return loop.run(PreemptionWatch(), distiller.advance, lambda: None)
        # Rank 0 also shows progress and writes checkpoints and student.
        batch_size = job.manifest.distillation.batch_size
        done, total = distiller.step * batch_size, distiller.schedule.total * batch_size
        shown = {"terminal": progress.bar, "relayed": relayed_bar, "log": LineBar}[job.bar]
        architecture = job.manifest.distillation.architecture.removeprefix("timm:")
        title = f"{job.method} {architecture}"  # short, as a line of the log has 80 columns
        bar: Bar = shown(title, total, "img", done)
        with Tracker(bar, folder.child(layout.TENSORBOARD), batch_size) as tracker:
            leader = _Leader(distiller, tracker, checkpoints)
            watch = LocalPreemptionWatch() if job.ranks.local else PreemptionWatch()
            # Stopped early: the checkpoint is written, and the next ranks go on from it.
            if loop.run(watch, leader.advance, leader.save):
                return True
            tracker.upload()
        _write_student(job, version, folder, distiller, leader.means)
        # The card is written, so the student is finished; a kill before this line leaves
        # checkpoints, which the next call of `distill` clears.
        checkpoints.clear()
        return False


def _read(checkpoints: Checkpoints, step: int) -> dict[str, Tensor]:
    """The checkpoint after `step`.

    Raises:
        InfrastructureError: it is gone, because another process trains the same student.
    """
    try:
        return checkpoints.read(step)
    except MissingObject as error:
        raise InfrastructureError(
            f"distillation: {error}; another process trains this student; run the same command "
            "again, it resumes"
        ) from None


def open_stream(
    manifest: Manifest,
    version: PublishedVersion,
    seed: int,
    rank: int,
    world: int,
    ranks: Ranks,
) -> Stream:
    """The batches of a version for one rank; raises `ManifestError` if it has too few images."""
    config, size = manifest.distillation, manifest.synthesis.image_size
    # Beside a GPU the CPUs are free to decode; without one they compute the steps.
    threads = min(MAX_DECODE_THREADS, int(ranks.cpus) - 1) if ranks.gpu else 0
    share = RankShare(rank, world, max(0, threads))
    return Stream(version, size, config.batch_size, seed, share, cache_limit(ranks.cpus))


@dataclass
class _Loop:
    """The steps of a rank, with what measures and watches them."""

    stream: Stream
    distiller: Distiller
    pace: Pace
    hang_watch: HangWatch

    def run(
        self,
        node_watch: "PreemptionWatch | LocalPreemptionWatch",
        advance: Callable[[Batch], object],
        save: Callable[[], None],
    ) -> bool:
        """Train from the distiller's step to the end; returns `restart`, see `launch.Loop`.

        Before each checkpoint and at the end the batch-norm statistics are averaged over the ranks.
        """
        distiller, config = self.distiller, self.distiller.config
        steps, restart = distiller.schedule.steps_per_epoch, False
        remedy = "lower it, set distillation.precision=bfloat16, or raise distillation.workers"
        memory = memory_limited_by("distillation.batch_size", config.batch_size, remedy)
        with node_watch, memory:
            while not (distiller.done or restart):
                # After a restart the epoch goes on behind the batches that the checkpoint has seen.
                batches = self.stream.batches(distiller.epoch, distiller.step % steps)
                for batch in self.pace.timed(batches):
                    advance(batch)
                    self.hang_watch.advanced()
                    # All ranks get the same answer, so all of them stop at the same step.
                    restart = node_watch.received() and not distiller.done
                    if restart:
                        break
                # All ranks come here at the same step, which the collective mean needs.
                if distiller.done or restart or distiller.epoch % config.checkpoint_epochs == 0:
                    average_buffers(distiller.student)
                    if not distiller.done:
                        save()
        self.pace.report()
        return restart


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
            self.tracker.images("augmented", distiller.augmented(batch)[: 2 * SAMPLES], 0)
        metrics = distiller.advance(batch)
        self.tracker.record(metrics.loss, metrics.agreement)
        # Reading the loss waits for the device, so it is done every `LOG_STEPS` only.
        in_epoch = distiller.step % schedule.steps_per_epoch
        if in_epoch == 0 or in_epoch % LOG_STEPS == 0:
            self._log()

    def _log(self) -> None:
        """Log the steps since the last call; raises `DfkdError` if their loss is no number."""
        distiller = self.distiller
        rate = distiller.schedule.rate(distiller.config, distiller.step - 1)
        self.means.update(self.tracker.log(distiller.step, rate))
        if not math.isfinite(self.means["loss"]):
            told = f"distillation: the loss is no number at step {distiller.step}"
            raise DfkdError(f"{told}; lower distillation.learning_rate")

    def save(self) -> None:
        """Upload the curves and write a checkpoint, unless the loss is no number."""
        # From the checkpoint of such weights another call would go on to the same end. After a
        # notice of preemption the last steps are not logged yet.
        if self.tracker.pending:
            self._log()
        # The curves first: a kill in between repeats their points, and loses none.
        self.tracker.upload()
        self.checkpoints.write(self.distiller.step, self.distiller.state())


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


def open_distiller(
    job: Job, version: PublishedVersion, stream: Stream, rank: int, world: int
) -> Distiller:
    """A rank's distiller at step 0; with several ranks its gradients are synchronised."""
    manifest, config = job.manifest, job.manifest.distillation
    device = pick_device() if job.ranks.gpu else torch.device("cpu")
    weights: tuple[float, ...] = (1.0,)
    moments = (version.facts["label_mean"], version.facts["label_std"])
    if measured := moments_of(manifest, version, open_storage(manifest.storage.root)):
        weights, moments = measured.weights, measured.of_distances
    objective: Objective = DistanceObjective.of(config.standardise, *moments)
    outputs, size = len(manifest.classes), manifest.synthesis.image_size
    if job.embedding:
        objective, outputs = job.embedding.to(device), len(job.embedding.mean)
    student = build(config, outputs, size, job.seed, manifest.cache)
    if world > 1 and device.type == "cuda":
        student = share_batch_norm(student)
    targets = target_function(manifest, device, weights)
    if targets is not None and not config.augmentation:
        # The same images come in every epoch, so what is kept of them may have their labels.
        stream.relabel(targets, "embeddings" if config.embeds else "distances", device)
        targets = None
    return Distiller(
        student,
        config,
        Schedule.of(config, stream.steps),
        job.seed,
        target_function=targets,
        objective=objective,
        device=device,
        rank=rank,
        distribute=partial(distribute, precision=config.precision)
        if world > 1
        else lambda module: module,
        # DDP averages over ranks, whose parts of a batch may differ by an image.
        loss_weight=stream.rank_batch_size * world / config.batch_size,
    )


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


class LocalPreemptionWatch(Closing):
    """Tells a rank in local mode, to which Ray Train gives no notice, that its node leaves."""

    def __init__(self) -> None:
        self._asked = -math.inf

    def received(self) -> bool:
        """Whether the node is about to be taken away; Ray is asked every `POLL_SECONDS`."""
        now = time.monotonic()
        if not ray.is_initialized() or now - self._asked < POLL_SECONDS:
            return False
        self._asked = now
        return node_id() in draining_nodes()
