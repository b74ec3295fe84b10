"""How fast a student learns: one rank without the reading of shards, and real ranks that read."""

import dataclasses
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray.train
import torch

from dfkd.benchmarks import reference
from dfkd.benchmarks.measure import (
    Call,
    Figure,
    compared_with_peer,
    median_ratio,
    operations,
    profile,
    spread,
    time_in_turns,
)
from dfkd.benchmarks.stand_in import put_version, replace_values, temporary_root
from dfkd.cluster.launch import Workers, run_ranks
from dfkd.cluster.rank import Job, open_distiller
from dfkd.config.distillation import Distillation
from dfkd.config.manifest import Manifest
from dfkd.dataset.loader import Batch, RankShare, Stream
from dfkd.dataset.published import open_version
from dfkd.distillation.distiller import Distiller, Schedule, TargetFunction
from dfkd.distillation.labels import live_targets
from dfkd.models.student import Student, build
from dfkd.models.teacher import Teacher
from dfkd.prompts.maker import class_text_embeddings
from dfkd.storage import layout
from dfkd.storage.local import open_storage
from dfkd.utils.device import configure_process, device_name, pick_device
from dfkd.utils.strict_json import canonical

STEPS = 2
"""Training steps of one timed repeat."""
BATCHES = (0.5, 2)
"""Other batches than the manifest's, as shares of it."""
UNLIMITED_STEPS = 1_000_000

UNIT = "images/s"
LIVE, STORED = "distillation, live labels", "distillation, stored labels"
PLAIN, WARMUP = "plain loop", "warm-up, stored labels"
RANKS = (1, 2)
RANK_WARM, RANK_STEPS = 3, 12
"""Steps before the clock starts, and under it."""
RESULT_FILE = "ranks.json"


def measure(manifest: Manifest, device: torch.device, repeats: int) -> dict[str, Any]:
    """Images a second with live and with stored labels, of the manifest's student and batch.

    Returns:
        `figures`, also of other batches and of the warm-up; of live labels `flop_per_image` as
        counted, and a `profile` of ours and of the plain loop: seconds of `STEPS` steps by
        operation.
    """
    config = manifest.distillation
    teacher = Teacher.load(manifest.teacher, device, config.precision, manifest.cache)
    batch, limit = _batch(manifest, config.batch_size), f"convolution, {config.precision}"
    main = _training(manifest, batch, device, teacher)
    each = operations(main) / (STEPS * config.batch_size)
    others = {
        f"{LIVE}, batch of {rows}": _training(manifest, _batch(manifest, rows), device, teacher)
        for rows in (int(part * config.batch_size) for part in BATCHES)
    }
    others[STORED] = _training(manifest, batch, device, None)
    others[PLAIN] = _plain_loop(manifest, batch, device)
    others[WARMUP] = _warming(manifest, batch, device)
    found = time_in_turns(
        {LIVE: main, **others, limit: reference.convolution(device, config.precision)}, repeats
    )
    share, ratio = (
        median_ratio(found[LIVE], found[limit], each),
        median_ratio(found[LIVE], found[PLAIN]),
    )
    figures = [
        Figure(LIVE, UNIT, found[LIVE], limit, share, PLAIN, ratio),
        *(compared_with_peer(LIVE, name, UNIT, found) for name in others),
        Figure(limit, "FLOP/s", found[limit]),
    ]
    return {
        "flop_per_image": each,
        "figures": [figure.as_dict() for figure in figures],
        "profile": {LIVE: profile(main), PLAIN: profile(others[PLAIN])},
    }


def _training(
    manifest: Manifest, batch: Batch, device: torch.device, teacher: Teacher | None
) -> Call:
    """Steps of a fresh student on one batch; without a teacher on stored labels."""
    config = manifest.distillation if teacher else _stored(manifest)
    label = live_targets(teacher, class_text_embeddings(manifest, teacher)) if teacher else None
    return _steps(_distiller(manifest, config, device, label), batch)


def _plain_loop(manifest: Manifest, batch: Batch, device: torch.device) -> Call:
    """The loop that the paper states, in float32, on networks as they are published."""
    teacher = Teacher.load(manifest.teacher, device, "float32", manifest.cache)
    student = _student(manifest, manifest.distillation).to(device).train()
    reference.as_published(teacher.model, student)
    texts, pixels = class_text_embeddings(manifest, teacher), batch.pixels.to(device).float() / 255

    def call() -> float:
        reference.plain_distillation(student, teacher, texts, pixels, STEPS)
        return float(STEPS * len(pixels))

    return call


def _warming(manifest: Manifest, batch: Batch, device: torch.device) -> Call:
    """Steps of a warm-up that runs the frozen backbone."""
    return _steps(_distiller(manifest, _stored(manifest), device, warmup=UNLIMITED_STEPS), batch)


def _steps(distiller: Distiller, batch: Batch) -> Call:
    def call() -> float:
        for _ in range(STEPS):
            distiller.advance(batch)
        return float(STEPS * len(batch.labels))

    return call


def _stored(manifest: Manifest) -> Distillation:
    return dataclasses.replace(
        manifest.distillation, labels="stored", texts="template", augmentation=()
    )


def _distiller(
    manifest: Manifest,
    config: Distillation,
    device: torch.device,
    label: TargetFunction | None = None,
    warmup: int = 0,
) -> Distiller:
    course = Schedule(steps_per_epoch=1, warmup=warmup, total=warmup + UNLIMITED_STEPS)
    student = _student(manifest, config)
    return Distiller(student, config, course, 0, label, device=device)


def _student(manifest: Manifest, config: Distillation) -> Student:
    """That nobody has trained."""
    size, classes = manifest.synthesis.image_size, len(manifest.classes)
    return build(config, classes, size, seed=0, cache=manifest.cache)


def _batch(manifest: Manifest, rows: int) -> Batch:
    """Noise, with labels of every class in turn."""
    size = manifest.synthesis.image_size
    noise = torch.Generator().manual_seed(0)
    return Batch(
        torch.randint(256, (rows, 3, size, size), generator=noise, dtype=torch.uint8),
        torch.ones(rows, len(manifest.classes)),
        torch.arange(rows) % len(manifest.classes),
    )


def ranks(
    manifest: Manifest, per_class: int, multiples: Sequence[int], repeats: int
) -> dict[str, Any]:
    """Images a second of one rank and of two, each with a core (or a GPU) of its own.

    They read a version of noise, shard after shard, verified and never cached.

    Args:
        manifest: whose student, size and batch are taken.
        per_class: images of each class.
        multiples: of the manifest's batch, that all ranks share.

    Returns:
        `figures`, and `waiting`: by figure the share of a rank's time in which it waits for data.
    """
    figures: list[Figure] = []
    waiting: dict[str, Any] = {}
    for multiple in multiples:
        batch = multiple * manifest.distillation.batch_size
        names = [f"distillation, {n} rank{'s' * (n > 1)}, batch of {batch}" for n in RANKS]
        with temporary_root(_sized(manifest, per_class, batch)) as sized:
            home = open_storage(sized.storage.root).child(layout.data(sized.method))
            version = put_version(sized, home).id
            rounds = [
                [_run_ranks(sized, version, count) for count in RANKS] for _ in range(repeats)
            ]
        speeds = [[turn[i]["images_per_s"] for turn in rounds] for i in range(len(RANKS))]
        found = dict(zip(names, speeds, strict=True))
        figures += [Figure(names[0], UNIT, tuple(speeds[0]))]
        figures += [compared_with_peer(names[0], name, UNIT, found) for name in names[1:]]
        waiting |= {
            name: spread([turn[i]["waiting"] for turn in rounds]) for i, name in enumerate(names)
        }
    return {"figures": [figure.as_dict() for figure in figures], "waiting": waiting}


def _sized(manifest: Manifest, per_class: int, batch: int) -> Manifest:
    return replace_values(
        manifest.with_method(manifest.method),
        synthesis={"images_per_class": per_class, "shard_size": max(1, per_class // 4)},
        distillation={"batch_size": batch, "warmup_epochs": 0, "standardise": False},
    )


def _run_ranks(manifest: Manifest, version: str, count: int) -> dict[str, float]:
    device = device_name(pick_device())
    workers = Workers(count, 1.0, device)
    job = Job(
        manifest=manifest,
        method=manifest.method,
        seed=0,
        version=version,
        name="benchmark",
        cpus=workers.cpus,
        gpu=workers.gpu,
    )
    run_ranks(_timed, {"job": job}, "benchmark", workers)
    found: dict[str, float] = json.loads(open_storage(manifest.storage.root).get(RESULT_FILE))
    return found


def _timed(config: dict[str, Any]) -> None:
    """One epoch of steps on every rank; the first writes down its speed and its waiting."""
    job: Job = config["job"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    configure_process(job.cpus)
    manifest = job.manifest
    root = open_storage(manifest.storage.root)
    version = open_version(root.child(layout.data(job.method)), job.version)
    size, batch = manifest.synthesis.image_size, manifest.distillation.batch_size
    stream = Stream(version, size, batch, job.seed, RankShare(rank, world), cache_bytes=0)
    distiller = open_distiller(job, version, stream, rank, world)
    spans = list(itertools.islice(_spans(distiller, stream), RANK_WARM, RANK_WARM + RANK_STEPS))
    waited, seconds = sum(wait for wait, _ in spans), sum(wait + work for wait, work in spans)
    if rank == 0:
        found = {"images_per_s": RANK_STEPS * batch / seconds, "waiting": waited / seconds}
        root.put(RESULT_FILE, canonical(found))


def _spans(distiller: Distiller, stream: Stream) -> Iterator[tuple[float, float]]:
    """Seconds of waiting and of work of each step, epoch after epoch."""
    for epoch in itertools.count():
        asked = time.perf_counter()
        for batch in stream.batches(epoch):
            given = time.perf_counter()
            distiller.advance(batch).loss.item()  # which waits for a GPU
            done = time.perf_counter()
            yield given - asked, done - given
            asked = done
