"""Speed of contrastive prompt updates, and diversity of prompts when parts are made in parallel."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from dfkd.benchmarks import reference
from dfkd.benchmarks.measure import (
    Call,
    Figure,
    compared_with_peer,
    median_ratio,
    operations,
    profile,
    time_in_turns,
)
from dfkd.benchmarks.stand_in import replace_values
from dfkd.config.manifest import Manifest
from dfkd.config.plan import part_count
from dfkd.models.teacher import Teacher
from dfkd.prompts import contrastive
from dfkd.prompts.contrastive import Problem, PromptBank
from dfkd.prompts.maker import PromptMaker, class_text_embeddings
from dfkd.prompts.pseudo_words import PseudoWords
from dfkd.prompts.statistics import statistics

UPDATES = 2
"""Updates in one timed repeat."""
BANKS = (0.25, 4)
"""Other numbers of negatives drawn for an update, relative to the manifest's."""
UNIT = "prompt-updates/s"
PARTS = 12
"""Number of parts of the prompts whose diversity is compared."""
PARALLEL = (1, 2, 4, PARTS)
"""Numbers of parts that are made in parallel, without knowledge of each other."""


def measure(manifest: Manifest, device: torch.device, repeats: int) -> dict[str, Any]:
    """Prompt updates per second of a whole batch, with the manifest's teacher and full banks.

    Returns:
        `figures`, also for other banks; the counted `flop_per_prompt_update`; and a `profile` of
        our loop and of the plain loop: seconds of `UPDATES` updates by operation.
    """
    teacher = Teacher.load(manifest.teacher, device, "float32", manifest.cache)
    config, limit, name = (
        manifest.prompts.contrastive,
        "matrix product, float32",
        "contrastive prompts",
    )
    variants = {
        f"{name}, bank of {bank}": _ours(manifest, teacher, bank)
        for bank in (int(part * config.bank) for part in BANKS)
    }
    main = _ours(manifest, teacher, config.bank)
    flop_per_update = operations(main) / (UPDATES * config.batch_size)
    plain = _plain(manifest, teacher)
    rates = time_in_turns(
        {name: main, **variants, "plain prompts": plain, limit: reference.product(device)}, repeats
    )
    share = median_ratio(rates[name], rates[limit], flop_per_update)
    ratio = median_ratio(rates[name], rates["plain prompts"])
    figures = [
        Figure(name, UNIT, rates[name], limit, share, "plain prompts", ratio),
        *(compared_with_peer(name, other, UNIT, rates) for other in variants),
        Figure("plain prompts", UNIT, rates["plain prompts"]),
        Figure(limit, "FLOP/s", rates[limit]),
    ]
    return {
        "flop_per_prompt_update": flop_per_update,
        "figures": [figure.as_dict() for figure in figures],
        "profile": {name: profile(main), "plain prompts": profile(plain)},
    }


def _ours(manifest: Manifest, teacher: Teacher, bank: int) -> Call:
    config = dataclasses.replace(
        manifest.prompts.contrastive,
        updates=UPDATES,
        bank=bank,
    )
    settings = dataclasses.replace(manifest.prompts, contrastive=config)
    problem, start = example(manifest, teacher, config.batch_size, bank)

    def call() -> float:
        contrastive.optimise(problem, start, settings, np.random.default_rng(0))
        return float(UPDATES * len(start))

    return call


def _plain(manifest: Manifest, teacher: Teacher) -> Call:
    config = manifest.prompts.contrastive
    problem, start = example(manifest, teacher, config.batch_size)

    def call() -> float:
        draw = np.random.default_rng(0)
        remembered = problem.bank.draw(config.bank, draw)
        assert remembered is not None  # noqa: S101 - the bank is full
        reference.plain_prompts(
            teacher, problem.words, problem.names, start, remembered, UPDATES, draw
        )
        return float(UPDATES * len(start))

    return call


def diversity(manifest: Manifest, device: torch.device, updates: int) -> dict[str, Any]:
    """Statistics of the same prompts, made with one memory bank or with parts in parallel.

    Args:
        updates: updates of each prompt; 0 uses the manifest's.

    Returns:
        The result of `dfkd.prompts.statistics` on all prompts, by `prompts.contrastive.parallel`.
    """
    teacher = Teacher.load(manifest.teacher, device, "float32", manifest.cache)
    size = max(1, manifest.synthesis.images_per_class // PARTS)
    by_parallel = {}
    for parallel in PARALLEL:
        config = dataclasses.replace(
            manifest.prompts.contrastive,
            parallel=parallel,
            updates=updates or manifest.prompts.contrastive.updates,
        )
        sized = replace_values(
            manifest.with_method("contrastive"),
            prompts={"contrastive": config},
            synthesis={"images_per_class": PARTS * size, "shard_size": size},
        )
        by_parallel[str(parallel)] = _facts(sized, teacher)
    return by_parallel


def _facts(manifest: Manifest, teacher: Teacher) -> dict[str, Any]:
    maker = PromptMaker(manifest, teacher)
    tables: list[pa.Table] = []
    for part in range(part_count(manifest)):
        maker.remember(part, tables.__getitem__)
        tables.append(maker.part(part))
    return statistics(tables, maker.class_texts.cpu().numpy())


def example(
    manifest: Manifest, teacher: Teacher, rows: int, bank: int = 0
) -> tuple[Problem, torch.Tensor]:
    """A batch with labels of all classes in turn, its pseudo-words, and a full bank.

    Args:
        bank: number of embeddings in the bank; 0 uses the manifest's.
    """
    texts = class_text_embeddings(manifest, teacher)
    labels = torch.arange(rows, device=texts.device) % len(manifest.classes)
    size = bank or manifest.prompts.contrastive.bank
    memory = PromptBank(size)
    bank_labels = torch.arange(size, device=texts.device) % len(manifest.classes)
    memory.add(texts[bank_labels], bank_labels)
    names = [manifest.classes[label] for label in labels.tolist()]
    words = PseudoWords(teacher, manifest.prompts.template)
    draws = torch.Generator().manual_seed(0)
    noise = torch.randn(rows, teacher.token_table.shape[1], generator=draws)
    start = words.around_the_mean(noise, manifest.prompts.scale)
    return Problem(words, names, labels, texts, memory), start
