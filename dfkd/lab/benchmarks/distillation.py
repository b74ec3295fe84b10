"""Speed of distillation: training steps on a batch in memory, and real ranks that read shards."""

import dataclasses
import itertools
import json
import time
from collections.abc import Sequence
from typing import Any

import ray.train
import torch

from dfkd.cluster.capacity import Ranks, schedulable_nodes
from dfkd.cluster.connection import connected
from dfkd.cluster.launch import run_ranks
from dfkd.cluster.rank import Job, open_distiller
from dfkd.config.manifest import Manifest
from dfkd.dataset.batch import Batch
from dfkd.dataset.loader import RankShare, Stream
from dfkd.dataset.published import open_version
from dfkd.distillation.distiller import Distiller, Schedule
from dfkd.distillation.labels import TargetFunction, target_function
from dfkd.lab.benchmarks import reference
from dfkd.lab.benchmarks.measure import (
    Call,
    Effort,
    Results,
    compared_with_peer,
    figure,
    spread,
    time_loop,
)
from dfkd.lab.benchmarks.stand_in import put_version, temporary_root
from dfkd.models.student import Student, build
from dfkd.models.teacher import Teacher
from dfkd.prompts.styles import class_text_embeddings
from dfkd.storage import layout
from dfkd.storage.local import open_storage
from dfkd.utils.device import configure_process, device_name, pick_device
from dfkd.utils.strict_json import canonical

UNIT = "images/s"
MANY_STEPS = 1_000_000
"""Length of a phase that no benchmark reaches the end of."""
STEPS = 2
"""Training steps in one timed repeat."""
BATCHES = (0.5, 2)
"""Other batch sizes, relative to the manifest's."""
LIVE, STORED = "distillation, live labels", "distillation, stored labels"
PLAIN, WARMUP = "plain loop", "warm-up, stored labels"
RANKS = (1, 2)
"""Numbers of ranks that are compared."""
RANK_REPEATS = 3
"""Maximum number of repeats with ranks, because each repeat starts processes."""
WARMUP_STEPS, TIMED_STEPS = 3, 12
"""Steps of each rank before the measurement, and in it."""
RESULT_FILE = "ranks.json"
"""Object in which rank 0 leaves the figures for the driver."""


def measure(manifest: Manifest, effort: Effort) -> Results:
    """Time training steps of a single rank without reading, and of ranks that read.

    Returns:
        The results of `time_steps` and of `ranks` together.
    """
    single = time_steps(manifest, pick_device(), effort.repeats)
    with connected():
        repeats = min(effort.repeats, RANK_REPEATS)
        several = ranks(manifest, effort.per_class, effort.batches, repeats, fitting())
    return {**single, **several, "figures": single["figures"] + several["figures"]}


def time_steps(manifest: Manifest, device: torch.device, repeats: int) -> Results:
    """Images per second of the manifest's student and batch, without the reading of shards.

    Returns:
        The result of `time_loop` for training with live labels, also for other batch sizes, with
        stored labels, and in the warm-up; a profile covers `STEPS` steps.
    """
    config = manifest.distillation
    # As a job labels a student of distances, whatever the manifest's student learns from. The
    # shards hold the labels of images that are not augmented.
    changes = {"target": "distances", "augmentation": config.augmentation or ("flip",)}
    labelled = manifest.with_values(distillation=changes)
    label = target_function(labelled, device)
    published = Teacher.load(manifest.teacher, device, "float32", manifest.cache)
    reference.as_published(published.model)

    def live(images: int) -> Call:
        return ours(manifest, noise(manifest, images), device, STEPS, label)

    batch = noise(manifest, config.batch_size)
    variants = {
        f"{LIVE}, batch of {images}": live(images)
        for images in (int(part * config.batch_size) for part in BATCHES)
    }
    variants[STORED] = ours(manifest, batch, device, STEPS)
    variants[PLAIN] = plain(manifest, batch, published, STEPS)
    variants[WARMUP] = ours(manifest, batch, device, STEPS, warmup=MANY_STEPS)
    limit = f"convolution, {config.precision}", reference.convolution(device, config.precision)
    return time_loop(LIVE, UNIT, live(config.batch_size), variants, PLAIN, limit, repeats)


def noise(manifest: Manifest, images: int) -> Batch:
    """Images of noise in host memory, with labels of all classes in turn.

    Where there is a GPU the memory is page-locked, as a stream's.
    """
    size, classes = manifest.synthesis.image_size, len(manifest.classes)
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, 3, size, size), generator=draws, dtype=torch.uint8)
    batch = Batch(
        pixels.contiguous(memory_format=torch.channels_last),  # as a stream gives them
        torch.ones(images, classes),
        torch.arange(images) % classes,
        torch.ones(images, 1, dtype=torch.float16),
    )
    return batch.pinned() if torch.cuda.is_available() else batch


def ours(
    manifest: Manifest,
    batch: Batch,
    device: torch.device,
    steps: int,
    label: TargetFunction | None = None,
    warmup: int = 0,
) -> Call:
    """A call that does `steps` steps of the manifest's student, untrained, on one batch.

    Its units are images.

    Args:
        label: labels the views. Without it, the stored labels are used and nothing is augmented,
            so that the student is timed alone.
        warmup: number of first steps in which only the head is trained, on a frozen backbone.
    """
    config = manifest.distillation
    if label is None:
        config = dataclasses.replace(config, texts="template", augmentation=())
    schedule = Schedule(steps_per_epoch=1, warmup=warmup, total=warmup + MANY_STEPS)
    distiller = Distiller(_student(manifest), config, schedule, 0, label, device=device)

    def call() -> float:
        for _ in range(steps):
            distiller.advance(batch)
        return float(steps * len(batch.labels))

    return call


def plain(manifest: Manifest, batch: Batch, teacher: Teacher, steps: int) -> Call:
    """The paper's steps in float32 on one batch, with the memory layout of the networks' authors.

    Args:
        teacher: in float32, with that layout (`reference.as_published`).
    """
    student = _student(manifest).to(teacher.device).train()
    reference.as_published(student)
    texts = class_text_embeddings(manifest, teacher)
    pixels = batch.pixels.contiguous()
    if torch.cuda.is_available():
        pixels = pixels.pin_memory()  # the other layout is a copy, which has lost it

    def call() -> float:
        config = manifest.distillation
        reference.plain_distillation(student, teacher, texts, pixels, config, steps)
        return float(steps * len(pixels))

    return call


def _student(manifest: Manifest) -> Student:
    """An untrained student with the manifest's classes and image size."""
    size, classes = manifest.synthesis.image_size, len(manifest.classes)
    return build(manifest.distillation, classes, size, seed=0, cache=manifest.cache)


def fitting() -> list[int]:
    """The numbers of ranks of `RANKS` that the cluster's nodes hold at the same time.

    For others Ray would wait half an hour and then fail, and with it all that has been measured.
    """
    slots = _ranks(1).share.count_fitting(schedulable_nodes())
    return [count for count in RANKS if count <= slots]


def ranks(
    manifest: Manifest,
    per_class: int,
    multiples: Sequence[int],
    repeats: int,
    counts: Sequence[int] = RANKS,
) -> Results:
    """Images per second by number of ranks, each with a core (or a GPU) of its own.

    They read a version of noise; every shard is verified, and nothing is cached.

    Args:
        manifest: gives the student, the image size and the batch size.
        per_class: least number of images of each class in the version.
        multiples: batch sizes over all ranks, relative to the manifest's.
        repeats: number of runs for each number of ranks.
        counts: the numbers of ranks; the others are compared with the first.

    Returns:
        `figures`; and `waiting`: the share of a rank's time in which it waits for data, by figure.
    """
    figures: list[dict[str, Any]] = []
    waiting: dict[str, Any] = {}
    batch_sizes = [multiple * manifest.distillation.batch_size for multiple in multiples]
    # A version must hold a batch.
    per_class = max(per_class, -(-max(batch_sizes) // len(manifest.classes)))
    synthesis = {"images_per_class": per_class, "shard_size": max(1, per_class // 4)}
    single_method = manifest.with_method(manifest.method)
    for batch_size in batch_sizes if counts else ():
        # The warm-up would be faster; the stand-in's labels are random, so not standardised.
        training = {
            "batch_size": batch_size,
            "warmup_epochs": 0,
            "standardise": False,
            "target": "distances",
        }
        with temporary_root(single_method, synthesis=synthesis, distillation=training) as sized:
            version = put_version(sized).id
            # Like `time_in_turns`: the numbers of ranks take turns.
            turns = [
                {count: _run_ranks(sized, version, count) for count in counts}
                for _ in range(repeats)
            ]
        rates: dict[str, list[float]] = {}
        for count in counts:
            name = f"distillation, {count} rank{'s' * (count > 1)}, batch of {batch_size}"
            rates[name] = [turn[count]["images_per_s"] for turn in turns]
            waiting[name] = spread([turn[count]["waiting"] for turn in turns])
        single, *others = rates
        figures.append(figure(single, UNIT, rates[single]))
        figures += [compared_with_peer(single, name, UNIT, rates) for name in others]
    return {"figures": figures, "waiting": waiting}


def _ranks(count: int) -> Ranks:
    """So many ranks with a core each and, where there is a GPU, one of those."""
    return Ranks(count, 1.0, device_name(pick_device()))


def _run_ranks(manifest: Manifest, version: str, count: int) -> dict[str, float]:
    """Start `count` ranks, each in a process of its own; returns the figures of rank 0."""
    ranks = _ranks(count)
    job = Job(
        manifest=manifest,
        method=manifest.method,
        seed=0,
        version=version,
        name="benchmark",
        ranks=ranks,
    )
    # Ranks return nothing to the driver, so rank 0 leaves its figures in storage.
    run_ranks(_time_rank, job.as_config(), "benchmark", ranks)
    content: dict[str, float] = json.loads(open_storage(manifest.storage.root).get(RESULT_FILE))
    return content


def _time_rank(config: dict[str, Any]) -> bool:
    """Train for some steps on each rank; rank 0 writes its speed and its share of waiting.

    Returns False, because no rank needs a restart.
    """
    job = Job.of_config(config)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    configure_process(job.ranks.cpus)
    manifest = job.manifest
    root = open_storage(manifest.storage.root)
    version = open_version(root.child(layout.data(job.method)), job.version)
    size, batch_size = manifest.synthesis.image_size, manifest.distillation.batch_size
    stream = Stream(version, size, batch_size, job.seed, RankShare(rank, world), cache_bytes=0)
    distiller = open_distiller(job, version, stream, rank, world)
    waited, worked = 0.0, 0.0
    batches = (batch for epoch in itertools.count() for batch in stream.batches(epoch))
    asked = time.perf_counter()
    for step, batch in enumerate(itertools.islice(batches, WARMUP_STEPS + TIMED_STEPS)):
        received = time.perf_counter()
        # Reading the loss waits until the device has finished the step.
        distiller.advance(batch).loss.item()
        done = time.perf_counter()
        # The first steps fill the buffers of the stream and of DDP.
        if step >= WARMUP_STEPS:
            waited, worked = waited + received - asked, worked + done - received
        asked = done
    if rank == 0:
        seconds = waited + worked
        speed = {"images_per_s": TIMED_STEPS * batch_size / seconds, "waiting": waited / seconds}
        root.put(RESULT_FILE, canonical(speed))
    return False
