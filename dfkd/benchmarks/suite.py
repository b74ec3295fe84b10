"""All benchmarks by name, and how much of each is measured."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dfkd.benchmarks import distillation, driver, export, loading, prompts, scale, stages, synthesis
from dfkd.benchmarks.measure import Figure, keep, page, table
from dfkd.benchmarks.memory import watched
from dfkd.cluster.connection import connected
from dfkd.cluster.synthesis import environment
from dfkd.config.manifest import Manifest
from dfkd.storage import layout
from dfkd.storage.local import Storage, open_storage
from dfkd.utils.device import pick_device, settle

Results = dict[str, Any]


RANK_REPEATS = 3
"""Turns of ranks: each starts processes."""


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    repeats: int
    """Timed turns."""
    tasks: tuple[int, ...]
    """Of the driver, that do nothing; one run for each number."""
    shards: tuple[int, ...]
    """Of versions whose requests are counted."""
    per_class: int
    """Images of each class that are streamed."""
    updates: int
    """Of the prompts whose diversity is compared; 0 for the manifest's."""
    batches: tuple[int, ...]
    """Of several ranks, as multiples of the manifest's."""
    whole: bool
    """Whether the run that is split by stages is the manifest's, and not a short one."""
    classes: int = 0
    """Made-up ones of the run at scale; 0 for the manifest's own."""


FULL = Effort(7, (1_000, 10_000, 100_000), (50, 100, 200), 64, 0, (1, 2, 4), whole=True)
QUICK = Effort(2, (200, 400), (12, 24), 16, 3, (1,), whole=False)


def time_synthesis(manifest: Manifest, effort: Effort) -> Results:
    """Optimisation steps."""
    return synthesis.measure(manifest, pick_device(), effort.repeats)


def time_prompts(manifest: Manifest, effort: Effort) -> Results:
    """Contrastive updates."""
    device = pick_device()
    found = prompts.measure(manifest, device, effort.repeats)
    return {**found, "diversity": prompts.diversity(manifest, device, effort.updates)}


def time_streaming(manifest: Manifest, effort: Effort) -> Results:
    """Reading shards."""
    return loading.measure(manifest, effort.per_class, effort.repeats)


def time_distillation(manifest: Manifest, effort: Effort) -> Results:
    """Training steps, of one rank by itself and of several."""
    found = distillation.measure(manifest, pick_device(), effort.repeats)
    with connected():
        ranks = distillation.ranks(
            manifest, effort.per_class, effort.batches, min(effort.repeats, RANK_REPEATS)
        )
    return {**found, **ranks, "figures": found["figures"] + ranks["figures"]}


def time_export(manifest: Manifest, effort: Effort) -> Results:
    """The student where it is used."""
    return export.measure(manifest)


def time_driver(manifest: Manifest, effort: Effort) -> Results:
    """Tasks that do nothing, and the requests of versions of several sizes."""
    with connected():
        pools = [driver.idle_tasks(manifest, count) for count in effort.tasks]
    figures = [
        Figure(f"{pool['tasks']} idle tasks", "tasks/s", (pool["tasks_per_s"],)) for pool in pools
    ]
    return {
        "pool": pools,
        "requests": driver.requests(manifest, effort.shards),
        "figures": [figure.as_dict() for figure in figures],
    }


def time_scale(manifest: Manifest, effort: Effort) -> Results:
    """A whole run without models, of the size that the manifest and --classes say."""
    with connected():
        return scale.measure(scale.sized(manifest, effort.classes))


def time_stages(manifest: Manifest, effort: Effort) -> Results:
    """A whole run, from class names to a report."""
    return stages.measure(manifest if effort.whole else stages.shortened(manifest))


BENCHMARKS: dict[str, Callable[[Manifest, Effort], Results]] = {
    "synthesis": time_synthesis,
    "prompts": time_prompts,
    "streaming": time_streaming,
    "distillation": time_distillation,
    "export": time_export,
    "driver": time_driver,
    "scale": time_scale,
    "stages": time_stages,
}


def run(
    names: Sequence[str], manifest: Manifest, effort: Effort, threads: int, command: str
) -> Iterator[tuple[list[str], str]]:
    """Measure, and keep the record of each benchmark; yields lines of a table and its place.

    Args:
        names: of `BENCHMARKS`.
        threads: CPU threads of torch.
        command: the command line, which the records name.
    """
    storage = open_storage(manifest.storage.root)
    settle(threads)  # as workers do
    for name in names:
        with watched() as watch:
            results = BENCHMARKS[name](manifest, effort)
        results["memory"] = watch.summary()
        place = keep(storage, name, command, environment(), results)
        _put_page(storage)
        yield table(results), place


def _put_page(storage: Storage) -> None:
    """Write `benchmarks/table.md` of all records that are there."""
    keys = (f"{layout.BENCHMARKS}{name}.json" for name in BENCHMARKS)
    records = [json.loads(storage.get(key)) for key in keys if storage.exists(key)]
    storage.put(f"{layout.BENCHMARKS}table.md", page(records).encode())
