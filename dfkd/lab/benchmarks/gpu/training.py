"""Rows about all that is not synthesis: limits, contrastive prompts and students."""

import dataclasses
import time
from typing import Any

from dfkd.config.distillation import Distillation
from dfkd.distillation.labels import live_targets
from dfkd.lab.benchmarks import prompts, reference, training_steps
from dfkd.lab.benchmarks.gpu.kit import Kit, Result
from dfkd.lab.benchmarks.measure import Call, Figure
from dfkd.prompts.styles import class_text_embeddings
from dfkd.utils.types import Precision

CALLS = 30
"""Calls of a limit in a window."""

WARM_SECONDS = 3.0
"""Seconds of calls before a limit is measured on a GPU, whose clock falls as it gets warm."""


def limit_matrix_rate(kit: Kit, precision: Precision) -> Result:
    """Operations per second of a large matrix product."""
    found = _limit(kit, "FLOP/s", reference.product(kit.device, precision))
    if precision == "bfloat16":
        kit.matrix_rate = found["median"]
    return {"figure": found}


def _limit(kit: Kit, unit: str, call: Call) -> dict[str, Any]:
    """The figure of a call that takes a millisecond on a GPU, and is therefore repeated."""
    end = time.perf_counter() + (WARM_SECONDS if kit.device.type == "cuda" else 0.0)
    while time.perf_counter() < end:
        call()
        kit.synchronise()
    rates = kit.rates(lambda: sum(call() for _ in range(CALLS)))
    return Figure("", unit, tuple(rates)).as_dict()


def time_prompts(kit: Kit, teacher: str, plain: bool = False) -> Result:
    """Updates of contrastive prompts per second, a whole batch against a full bank.

    Args:
        plain: encode every sentence whole, as equation 12 is stated.
    """
    rates = kit.rates(prompts.updates(kit.manifest, kit.teacher(teacher), plain))
    figure = Figure("", "prompt-updates/s", tuple(rates)).as_dict()
    return _compared(kit, figure, "plain prompts", plain)


def time_distillation(kit: Kit, student: str, precision: Precision, plain: bool = False) -> Result:
    """Images per second of training steps on a batch in memory, with live labels.

    Args:
        plain: the paper's loop in float32, on networks in their published memory layout.
    """
    config = Distillation(student=student, weights="none", warmup_epochs=0, precision=precision)
    manifest = dataclasses.replace(kit.manifest, distillation=config)
    teacher, steps = kit.sizes.teachers[0], kit.sizes.training_steps
    batch = training_steps.noise(manifest, kit.sizes.training_batch)
    if plain:
        clip, _ = kit.published(teacher)
        call = training_steps.plain(manifest, batch, clip, steps)
    else:
        clip = kit.teacher(teacher)  # in float32, as a job labels
        label = live_targets(clip, class_text_embeddings(manifest, clip))
        call = training_steps.ours(manifest, batch, kit.device, steps, label)
    figure = Figure("", training_steps.UNIT, tuple(kit.rates(call))).as_dict()
    return _compared(kit, figure, f"plain {student}", plain)


def _compared(kit: Kit, figure: dict[str, Any], peer: str, plain: bool) -> Result:
    """The result of a row whose plain loop is the row before."""
    if plain:
        kit.plain[peer] = figure["median"]
    elif peer in kit.plain:
        figure |= {"peer": peer, "ratio": figure["median"] / kit.plain[peer]}
    return {"figure": figure}
