"""How the time of a whole run, from class names to a report, splits into stages."""

import time
from collections.abc import Callable
from typing import Any

from dfkd import api
from dfkd.benchmarks.measure import Effort, Figure, Results
from dfkd.benchmarks.stand_in import temporary_root
from dfkd.config.manifest import Manifest
from dfkd.config.plan import image_count, image_steps
from dfkd.dataset.loader import steps_per_epoch
from dfkd.distillation.distiller import Schedule

SHORTENED: dict[str, dict[str, Any]] = {
    "synthesis": {"images_per_class": 2, "shard_size": 1, "steps": 4, "batch_size": 2},
    # Each rank needs two images of a batch.
    "distillation": {"warmup_epochs": 0, "epochs": 2, "batch_size": 2, "workers": (1,)},
}
"""Settings of a run whose stages all end in a minute."""


def measure(manifest: Manifest, effort: Effort) -> Results:
    """Run every stage once on an empty root, which is deleted afterwards.

    Returns:
        `figures`: seconds of each stage and in total; image-steps per second of the first stage,
        if a method has such steps; views per second of the second stage.
    """
    with temporary_root(manifest, **({} if effort.whole else SHORTENED)) as timed:
        seconds = _timed(timed)
    figures = [Figure(f"stage {name}", "s", (spent,)) for name, spent in seconds.items()]
    figures.append(Figure("all stages", "s", (sum(seconds.values()),)))
    # Conventional methods optimise no latents, so a run of them alone has no such rate. The seconds
    # include those of the prompts and of the start of workers.
    if steps := sum(image_steps(timed.with_method(method)) for method in timed.methods):
        rate = steps / seconds["synthesize"]
        figures.append(Figure("image-steps in stage synthesize", "1/s", (rate,)))
    rate = _views(timed) / seconds["distill"]
    figures.append(Figure("views in stage distill", "1/s", (rate,)))
    return {"figures": figures}


def _views(manifest: Manifest) -> int:
    """Number of image views that all students see in training."""
    config = manifest.distillation
    schedule = Schedule.of(config, steps_per_epoch(image_count(manifest), config.batch_size))
    return schedule.total * config.batch_size * len(manifest.methods) * len(config.seeds)


def _timed(manifest: Manifest) -> dict[str, float]:
    """Run the stages one after the other; returns the seconds of each.

    Without labelled images there are no results, and no report about them.
    """
    stages: dict[str, Callable[[], object]] = {
        "synthesize": lambda: api.synthesize(manifest),
        "distill": lambda: api.distill(manifest),
        "evaluate": lambda: api.evaluate(manifest),
        "take home": lambda: api.take_home(manifest),
        "report": lambda: api.write_report(manifest),
    }
    if not manifest.evaluation.scored:
        del stages["evaluate"], stages["report"]
    seconds = {}
    for name, stage in stages.items():
        begun = time.perf_counter()
        stage()
        seconds[name] = time.perf_counter() - begun
    return seconds
