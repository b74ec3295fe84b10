"""All benchmarks by name, and the amount of measurement in each."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dfkd.benchmarks import distillation, driver, export, loading, prompts, scale, stages, synthesis
from dfkd.benchmarks.measure import Figure, page, table, write_record
from dfkd.cluster.connection import connected
from dfkd.cluster.synthesis import environment
from dfkd.config.manifest import Manifest
from dfkd.storage import layout
from dfkd.storage.local import Storage, open_storage
from dfkd.utils.device import configure_process, pick_device
from dfkd.utils.memory import watched

Results = dict[str, Any]
"""The `results` of a record; each benchmark's module describes them."""

RANK_REPEATS = 3
"""Maximum number of repeats with ranks, because each repeat starts processes."""


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    repeats: int
    """Number of timed repeats."""
    tasks: tuple[int, ...]
    """Numbers of idle tasks for the driver; one run for each number."""
    shards: tuple[int, ...]
    """Numbers of shards of the versions whose requests are counted."""
    per_class: int
    """Images of each class in the versions that are read."""
    updates: int
    """Updates of the prompts whose diversity is compared; 0 uses the manifest's."""
    batches: tuple[int, ...]
    """Batch sizes for several ranks, relative to the manifest's."""
    whole: bool
    """Whether stages are timed on the manifest's full run instead of a shortened one."""
    classes: int = 0
    """Number of made-up classes of the run at scale; 0 uses the manifest's classes."""


FULL = Effort(7, (1_000, 10_000, 100_000), (50, 100, 200), 64, 0, (1, 2, 4), whole=True)
"""Measures; takes a quarter of an hour on two cores."""
QUICK = Effort(2, (200, 400), (12, 24), 16, 3, (1,), whole=False)
"""Shows in minutes that everything runs, but measures little."""


def time_synthesis(manifest: Manifest, effort: Effort) -> Results:
    """Time optimisation steps."""
    return synthesis.measure(manifest, pick_device(), effort.repeats)


def time_prompts(manifest: Manifest, effort: Effort) -> Results:
    """Time contrastive updates, and measure the diversity of the prompts."""
    device = pick_device()
    results = prompts.measure(manifest, device, effort.repeats)
    return {**results, "diversity": prompts.diversity(manifest, device, effort.updates)}


def time_streaming(manifest: Manifest, effort: Effort) -> Results:
    """Time the reading of shards."""
    return loading.measure(manifest, effort.per_class, effort.repeats)


def time_distillation(manifest: Manifest, effort: Effort) -> Results:
    """Time training steps of a single rank without reading, and of ranks that read."""
    single = distillation.measure(manifest, pick_device(), effort.repeats)
    with connected():
        ranks = distillation.ranks(
            manifest, effort.per_class, effort.batches, min(effort.repeats, RANK_REPEATS)
        )
    return {**single, **ranks, "figures": single["figures"] + ranks["figures"]}


def time_export(manifest: Manifest, effort: Effort) -> Results:
    """Time the exported student."""
    return export.measure(manifest)


def time_driver(manifest: Manifest, effort: Effort) -> Results:
    """Time tasks that do nothing, and count the requests of versions of several sizes."""
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
    """Time a whole run without models, at the size given by the manifest and --classes."""
    with connected():
        return scale.measure(scale.sized(manifest, effort.classes))


def time_stages(manifest: Manifest, effort: Effort) -> Results:
    """Time a whole run, from class names to a report."""
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
    """Run benchmarks and store a record of each; yields the lines of a table and the record's
    location.

    Args:
        names: keys of `BENCHMARKS`.
        threads: CPU threads of torch.
        command: the command line, which the records contain.
    """
    storage = open_storage(manifest.storage.root)
    configure_process(threads)  # as workers do
    for name in names:
        # From outside this process: memory of workers counts too.
        with watched() as watch:
            results = BENCHMARKS[name](manifest, effort)
        results["memory"] = watch.summary()
        location = write_record(storage, name, command, environment(), results)
        _put_page(storage)
        yield table(results), location


def _put_page(storage: Storage) -> None:
    """Write `benchmarks/table.md` from all stored records."""
    keys = (f"{layout.BENCHMARKS}{name}.json" for name in BENCHMARKS)
    records = [json.loads(storage.get(key)) for key in keys if storage.exists(key)]
    storage.put(f"{layout.BENCHMARKS}table.md", page(records).encode())
