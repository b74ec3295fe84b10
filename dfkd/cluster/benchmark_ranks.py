"""How a distillation scales over ranks, and how long they wait for data: real ranks, real DDP."""

import json
import time
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Any

import ray.train

from dfkd.benchmarks.measure import Figure, beside, spread
from dfkd.benchmarks.scratch import changed, scratch
from dfkd.benchmarks.standin import put_version
from dfkd.cluster.launch import Workers, run_ranks
from dfkd.cluster.rank import Job, open_distiller
from dfkd.dataset import open_version
from dfkd.device import device_name, pick_device, settle
from dfkd.distillation import Distiller
from dfkd.manifest import Manifest
from dfkd.shards import canonical
from dfkd.storage import open_storage
from dfkd.streaming import Share, Stream

RANKS = (1, 2)
WARM, STEPS = 3, 12
"""Steps before the clock starts, and under it."""
UNIT = "images/s"
FOUND = "ranks.json"


def measure(
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
        with scratch(_sized(manifest, per_class, batch)) as sized:
            home = open_storage(sized.storage.root).child(f"data/{sized.method}")
            version = put_version(sized, home).id
            turns = [[_fit(sized, version, ranks) for ranks in RANKS] for _ in range(repeats)]
        speeds = [[turn[i]["images_per_s"] for turn in turns] for i in range(len(RANKS))]
        found = dict(zip(names, speeds, strict=True))
        figures += [Figure(names[0], UNIT, tuple(speeds[0]))]
        figures += [beside(names[0], name, UNIT, found) for name in names[1:]]
        waiting |= {
            name: spread([turn[i]["waiting"] for turn in turns]) for i, name in enumerate(names)
        }
    return {"figures": [figure.as_dict() for figure in figures], "waiting": waiting}


def _sized(manifest: Manifest, per_class: int, batch: int) -> Manifest:
    return changed(
        manifest.with_method(manifest.method),
        synthesis={"images_per_class": per_class, "shard_size": max(1, per_class // 4)},
        distillation={"batch_size": batch, "warmup_epochs": 0, "standardise": False},
    )


def _fit(manifest: Manifest, version: str, ranks: int) -> dict[str, float]:
    device = device_name(pick_device())
    workers = Workers(ranks, 1.0, device)
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
    found: dict[str, float] = json.loads(open_storage(manifest.storage.root).get(FOUND))
    return found


def _timed(config: dict[str, Any]) -> None:
    """One epoch of steps on every rank; the first writes down its speed and its waiting."""
    job: Job = config["job"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    settle(job.cpus)
    manifest = job.manifest
    root = open_storage(manifest.storage.root)
    version = open_version(root.child(f"data/{job.method}"), job.version)
    size, batch = manifest.synthesis.image_size, manifest.distillation.batch_size
    stream = Stream(version, size, batch, job.seed, Share(rank, world), cache_bytes=0)
    distiller = open_distiller(job, version, stream, rank, world)
    spans = list(islice(_spans(distiller, stream), WARM, WARM + STEPS))
    waited, seconds = sum(wait for wait, _ in spans), sum(wait + work for wait, work in spans)
    if rank == 0:
        found = {"images_per_s": STEPS * batch / seconds, "waiting": waited / seconds}
        root.put(FOUND, canonical(found))


def _spans(distiller: Distiller, stream: Stream) -> Iterator[tuple[float, float]]:
    """Seconds of waiting and of work of each step, epoch after epoch."""
    for epoch in count():
        asked = time.perf_counter()
        for batch in stream.batches(epoch):
            given = time.perf_counter()
            distiller.advance(batch).loss.item()  # which waits for a GPU
            done = time.perf_counter()
            yield given - asked, done - given
            asked = done
