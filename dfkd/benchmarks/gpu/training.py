"""Rows about all that is not synthesis: limits, contrastive prompts, students, the miniature."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dfkd.benchmarks import prompts, reference
from dfkd.benchmarks.gpu.kit import Kit, Result
from dfkd.benchmarks.measure import Call, Figure
from dfkd.config.distillation import Distillation
from dfkd.dataset.loader import Batch
from dfkd.distillation.distiller import Distiller, Schedule
from dfkd.distillation.labels import live_targets
from dfkd.models.student import Student, build
from dfkd.prompts import contrastive
from dfkd.utils.types import Precision

CALLS = 30
"""Calls of a limit in a window."""
MANY_STEPS = 1_000_000
"""Length of a training of which only the first steps are done."""


def limit_matrix_rate(kit: Kit, precision: Precision) -> Result:
    """Operations per second of a large matrix product."""
    found = _limit(kit, "FLOP/s", reference.product(kit.device, precision))
    if precision == "bfloat16":
        kit.matrix_rate = found["median"]
    return {"figure": found}


def limit_bandwidth(kit: Kit) -> Result:
    """Bytes per second of a large copy, read and written."""
    found = _limit(kit, "B/s", reference.copy(kit.device))
    kit.bandwidth = found["median"]
    return {"figure": found}


def _limit(kit: Kit, unit: str, call: Call) -> dict[str, Any]:
    """The figure of a call that takes a millisecond on a GPU, and is therefore repeated."""
    rates = kit.rates(lambda: sum(call() for _ in range(CALLS)))
    return Figure("", unit, tuple(rates)).as_dict()


def time_prompts(kit: Kit, teacher: str, plain: bool = False) -> Result:
    """Updates of contrastive prompts per second, a whole batch against a full bank.

    Args:
        plain: encode every sentence whole, as equation 12 is stated.
    """
    manifest, config = kit.manifest, kit.sizes.contrastive
    clip = kit.teacher(teacher)
    problem, start = prompts.example(manifest, clip, config.batch_size)

    def ours() -> float:
        contrastive.optimise(problem, start, manifest.prompts, np.random.default_rng(0))
        return float(config.updates * len(start))

    def stated() -> float:
        draw = np.random.default_rng(0)
        remembered = problem.bank.draw(config.bank, draw)
        assert remembered is not None  # noqa: S101 - the bank is full
        names, words = problem.names, problem.words
        reference.plain_prompts(clip, words, names, start, remembered, config.updates, draw)
        return float(config.updates * len(start))

    rates = kit.rates(stated if plain else ours)
    figure = Figure("", "prompt-updates/s", tuple(rates)).as_dict()
    return _compared(kit, figure, "plain prompts", plain)


def time_distillation(kit: Kit, student: str, precision: Precision, plain: bool = False) -> Result:
    """Images per second of training steps on a batch in memory, with live labels.

    Args:
        plain: the paper's loop in float32, on networks in their published memory layout.
    """
    clip = kit.teacher(kit.sizes.teachers[0])  # in float32, as a job labels
    texts, batch = kit.targets(clip, len(kit.manifest.classes)), _batch(kit)
    config = Distillation(student=student, weights="none", warmup_epochs=0, precision=precision)
    network = build(config, len(texts), kit.sizes.image_size, seed=0)
    if plain:
        rates = _plain_rates(kit, network, batch)
    else:
        schedule, label = Schedule(1, 0, MANY_STEPS), live_targets(clip, texts)
        distiller = Distiller(network, config, schedule, 0, label, device=kit.device)

        def call() -> float:
            for _ in range(kit.sizes.training_steps):
                distiller.advance(batch)
            return float(kit.sizes.training_steps * len(batch.labels))

        rates = list(kit.rates(call))
    figure = Figure("", "images/s", tuple(rates)).as_dict()
    return _compared(kit, figure, f"plain {student}", plain)


def _plain_rates(kit: Kit, network: Student, batch: Batch) -> list[float]:
    """Rates of the paper's loop of distillation."""
    clip, _ = kit.published(kit.sizes.teachers[0])
    student = network.to(kit.device).train()
    reference.as_published(student)
    texts = kit.targets(clip, len(kit.manifest.classes))
    pixels = batch.pixels.to(kit.device).float() / 255

    def call() -> float:
        reference.plain_distillation(student, clip, texts, pixels, kit.sizes.training_steps)
        return float(kit.sizes.training_steps * len(pixels))

    return list(kit.rates(call))


def _compared(kit: Kit, figure: dict[str, Any], peer: str, plain: bool) -> Result:
    """The result of a row whose plain loop is the row before."""
    if plain:
        kit.plain[peer] = figure["median"]
    elif peer in kit.plain:
        figure |= {"peer": peer, "ratio": figure["median"] / kit.plain[peer]}
    return {"figure": figure}


def _batch(kit: Kit) -> Batch:
    """Images of noise in host memory, as a stream gives them."""
    rows, size, noise = kit.sizes.training_batch, kit.sizes.image_size, torch.Generator()
    classes = len(kit.manifest.classes)
    pixels = torch.randint(256, (rows, 3, size, size), generator=noise, dtype=torch.uint8)
    return Batch(
        pixels.contiguous(memory_format=torch.channels_last),
        torch.ones(rows, classes),
        torch.arange(rows) % classes,
        torch.ones(rows, 1, dtype=torch.float16),
    )


def time_pretraining(kit: Kit, what: str) -> Result:
    """Steps per second of the miniature's training, which is written for the CPU.

    The first half of the steps is not timed. Nothing is compiled, because that needs a C++
    compiler.

    Args:
        what: `teacher` or `generator`.
    """
    from dfkd.benchmarks.gpu.drawings import trainer  # here, because it needs scipy and resvg-py

    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        training: Any = trainer(kit.sizes, what, Path(folder))

        def record(network: nn.Module, step: int) -> float:
            seconds.append(training.seconds)
            return 0.0

        training.run(record)
    rate = kit.sizes.pretraining_steps / (seconds[-1] - seconds[0])
    figure = Figure("", "steps/s", (rate,)).as_dict()
    return {"figure": figure, "remark": f"on the CPU, {torch.get_num_threads()} threads"}
