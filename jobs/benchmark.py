"""Measure what things cost on this machine, and keep the figures as benchmarks/NAME.json."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from dfkd import command
from dfkd.benchmarks import distillation, requests, synthesis
from dfkd.benchmarks.measure import keep, spread
from dfkd.cluster import benchmark_driver, benchmark_scale
from dfkd.cluster.build import environment
from dfkd.cluster.connect import connected
from dfkd.device import pick_device, use_threads
from dfkd.manifest import Manifest
from dfkd.plan import image_count, task_count
from dfkd.storage import open_storage

Results = dict[str, Any]


def time_synthesis(manifest: Manifest, options: argparse.Namespace) -> Results:
    """Optimisation steps."""
    use_threads(options.threads)
    values = synthesis.measure(manifest, pick_device(), options.repeats)
    return {"image_steps_per_s": spread(values)}


def time_distillation(manifest: Manifest, options: argparse.Namespace) -> Results:
    """Training steps."""
    use_threads(options.threads)
    values = distillation.measure(manifest, pick_device(), options.repeats)
    return {"images_per_s": spread(values)}


def time_driver(manifest: Manifest, options: argparse.Namespace) -> Results:
    """Tasks that do nothing, and the requests of versions of several sizes."""
    with connected():
        pools = [benchmark_driver.measure(manifest, count) for count in options.tasks]
    home = open_storage(manifest.storage.root)
    return {"pool": pools, "requests": requests.measure(manifest, home, options.shards)}


def time_scale(manifest: Manifest, options: argparse.Namespace) -> Results:
    """A whole run without models, of the size that the manifest and --classes say."""
    with connected():
        return benchmark_scale.measure(benchmark_scale.sized(manifest, options.classes))


BENCHMARKS: dict[str, Callable[[Manifest, argparse.Namespace], Results]] = {
    "synthesis": time_synthesis,
    "distillation": time_distillation,
    "driver": time_driver,
    "scale": time_scale,
}


def chosen(options: argparse.Namespace) -> list[str]:
    """The names of the benchmarks to run."""
    return list(BENCHMARKS) if options.benchmark == "all" else [options.benchmark]


def plan(manifest: Manifest, options: argparse.Namespace) -> dict[str, Any]:
    """What would be measured."""
    simulated = benchmark_scale.sized(manifest, options.classes)
    return {
        "benchmarks": chosen(options),
        "repeats": options.repeats,
        "threads": options.threads,
        "driver_tasks": options.tasks,
        "driver_shards": options.shards,
        "scale_tasks": task_count(simulated),
        "scale_images": image_count(simulated),
    }


def work(manifest: Manifest, options: argparse.Namespace) -> str:
    """Measure, print, and keep the record of each benchmark; returns the place of the last."""
    storage = open_storage(manifest.storage.root)
    words = shlex.join(["python", *sys.argv])
    for name in chosen(options):
        results = BENCHMARKS[name](manifest, options)
        place = keep(storage, name, words, environment(), results)
        print(f"{name}: {place}", flush=True)
    return place


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns the exit code."""
    arguments = command.parser(__doc__ or "", benchmark=(*BENCHMARKS, "all"))
    add = arguments.add_argument
    add("--repeats", type=int, default=5, help="timed repeats of synthesis and distillation")
    add("--threads", type=int, default=1, help="CPU threads of synthesis and distillation")
    add(
        "--tasks",
        type=int,
        nargs="+",
        default=[1_000, 10_000, 100_000],
        metavar="N",
        help="driver: how many tasks that do nothing, one run for each number",
    )
    add(
        "--shards",
        type=int,
        nargs="+",
        default=[50, 100, 200],
        metavar="N",
        help="driver: how many shards a version has whose requests are counted",
    )
    add("--classes", type=int, default=0, help="scale: made-up classes (0: the manifest's own)")
    return command.run(arguments, work, plan, argv)


if __name__ == "__main__":
    sys.exit(main())
