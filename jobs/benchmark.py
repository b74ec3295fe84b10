"""Measure what things cost on this machine, and keep the figures as benchmarks/NAME.json."""

import argparse
import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dfkd import command
from dfkd.benchmarks import (
    distillation,
    driver,
    export,
    prompts,
    scale,
    stages,
    streaming,
    synthesis,
)
from dfkd.benchmarks.measure import Figure, keep, page, table
from dfkd.benchmarks.memory import watched
from dfkd.cluster.build import environment
from dfkd.cluster.connect import connected
from dfkd.device import pick_device, settle
from dfkd.manifest import Manifest
from dfkd.plan import image_count, task_count
from dfkd.storage import Storage, open_storage

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


FULL = Effort(7, (1_000, 10_000, 100_000), (50, 100, 200), 64, 0, (1, 2, 4), whole=True)
QUICK = Effort(2, (200, 400), (12, 24), 16, 3, (1,), whole=False)


def effort(options: argparse.Namespace) -> Effort:
    """As the options ask for it."""
    usual = QUICK if options.quick else FULL
    return dataclasses.replace(
        usual,
        repeats=options.repeats or usual.repeats,
        tasks=tuple(options.tasks or usual.tasks),
        shards=tuple(options.shards or usual.shards),
    )


def time_synthesis(manifest: Manifest, options: argparse.Namespace) -> Results:
    """Optimisation steps."""
    return synthesis.measure(manifest, pick_device(), effort(options).repeats)


def time_prompts(manifest: Manifest, options: argparse.Namespace) -> Results:
    """Contrastive updates."""
    asked, device = effort(options), pick_device()
    found = prompts.measure(manifest, device, asked.repeats)
    return {**found, "diversity": prompts.diversity(manifest, device, asked.updates)}


def time_streaming(manifest: Manifest, options: argparse.Namespace) -> Results:
    """Reading shards."""
    asked = effort(options)
    return streaming.measure(manifest, asked.per_class, asked.repeats)


def time_distillation(manifest: Manifest, options: argparse.Namespace) -> Results:
    """Training steps, of one rank by itself and of several."""
    asked = effort(options)
    found = distillation.measure(manifest, pick_device(), asked.repeats)
    with connected():
        ranks = distillation.ranks(
            manifest, asked.per_class, asked.batches, min(asked.repeats, RANK_REPEATS)
        )
    return {**found, **ranks, "figures": found["figures"] + ranks["figures"]}


def time_export(manifest: Manifest, options: argparse.Namespace) -> Results:
    """The student where it is used."""
    return export.measure(manifest)


def time_driver(manifest: Manifest, options: argparse.Namespace) -> Results:
    """Tasks that do nothing, and the requests of versions of several sizes."""
    asked = effort(options)
    with connected():
        pools = [driver.idle_tasks(manifest, count) for count in asked.tasks]
    figures = [
        Figure(f"{pool['tasks']} idle tasks", "tasks/s", (pool["tasks_per_s"],)) for pool in pools
    ]
    return {
        "pool": pools,
        "requests": driver.requests(manifest, asked.shards),
        "figures": [figure.as_dict() for figure in figures],
    }


def time_scale(manifest: Manifest, options: argparse.Namespace) -> Results:
    """A whole run without models, of the size that the manifest and --classes say."""
    with connected():
        return scale.measure(scale.sized(manifest, options.classes))


def time_stages(manifest: Manifest, options: argparse.Namespace) -> Results:
    """A whole run, from class names to a report."""
    asked = effort(options)
    return stages.measure(manifest if asked.whole else stages.shortened(manifest))


BENCHMARKS: dict[str, Callable[[Manifest, argparse.Namespace], Results]] = {
    "synthesis": time_synthesis,
    "prompts": time_prompts,
    "streaming": time_streaming,
    "distillation": time_distillation,
    "export": time_export,
    "driver": time_driver,
    "scale": time_scale,
    "stages": time_stages,
}


def chosen(options: argparse.Namespace) -> list[str]:
    """The names of the benchmarks to run."""
    return list(BENCHMARKS) if options.benchmark == "all" else [options.benchmark]


def plan(manifest: Manifest, options: argparse.Namespace) -> dict[str, Any]:
    """What would be measured."""
    simulated, asked = scale.sized(manifest, options.classes), effort(options)
    return {
        "benchmarks": chosen(options),
        "repeats": asked.repeats,
        "threads": options.threads,
        "driver_tasks": list(asked.tasks),
        "driver_shards": list(asked.shards),
        "streamed_images": asked.per_class * len(manifest.classes),
        "scale_tasks": task_count(simulated),
        "scale_images": image_count(simulated),
    }


def work(manifest: Manifest, options: argparse.Namespace, words: Sequence[str]) -> str:
    """Measure, print, and keep the record of each benchmark; returns the place of the last.

    Args:
        words: the arguments of the job, which the records name.
    """
    storage = open_storage(manifest.storage.root)
    again = shlex.join(["python", "jobs/benchmark.py", *words])
    settle(options.threads)  # as workers do
    for name in chosen(options):
        with watched() as watch:
            results = BENCHMARKS[name](manifest, options)
        results["memory"] = watch.summary()
        place = keep(storage, name, again, environment(), results)
        put_page(storage)
        print("\n".join([*table(results), f"{name}: {place}"]), flush=True)
    return place


def put_page(storage: Storage) -> None:
    """Write `benchmarks/table.md` of all records that are there."""
    keys = (f"benchmarks/{name}.json" for name in BENCHMARKS)
    records = [json.loads(storage.get(key)) for key in keys if storage.exists(key)]
    storage.put("benchmarks/table.md", page(records).encode())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    arguments = command.parser(__doc__ or "", benchmark=(*BENCHMARKS, "all"))
    add = arguments.add_argument
    add("--quick", action="store_true", help="few repeats of small sizes: it runs, in minutes")
    add("--repeats", type=int, metavar="N", help=f"timed turns ({FULL.repeats})")
    add("--threads", type=int, default=1, metavar="N", help="CPU threads of torch (1)")
    add(
        "--tasks",
        type=int,
        nargs="+",
        metavar="N",
        help="driver: how many tasks that do nothing, one run for each number",
    )
    add(
        "--shards",
        type=int,
        nargs="+",
        metavar="N",
        help="driver: how many shards a version has whose requests are counted",
    )
    add("--classes", type=int, default=0, help="scale: made-up classes (0: the manifest's own)")
    words = sys.argv[1:] if argv is None else argv
    return command.run(arguments, partial(work, words=words), plan, words)


if __name__ == "__main__":
    sys.exit(main())
