"""How fast contrastive prompts are moved, and how diverse parts become that move side by side."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from dfkd.benchmarks import reference
from dfkd.benchmarks.measure import Call, Figure, beside, operations, profile, quotient, turns
from dfkd.benchmarks.stand_in import changed
from dfkd.config.manifest import Manifest
from dfkd.config.plan import part_count
from dfkd.models.teacher import Teacher
from dfkd.prompts import contrastive
from dfkd.prompts.contrastive import Problem, PromptBank
from dfkd.prompts.maker import PromptMaker, class_text_embeddings
from dfkd.prompts.pseudo_words import PseudoWords
from dfkd.prompts.statistics import statistics

UPDATES = 2
"""Of one timed repeat."""
BANKS = (0.25, 4)
"""Other numbers of negatives that an update draws, as shares of the manifest's."""
UNIT = "prompt-updates/s"
PARTS = 12
"""Of the prompts whose diversity is compared."""
PARALLEL = (1, 2, 4, PARTS)
"""Parts side by side, that know nothing of each other."""


def measure(manifest: Manifest, device: torch.device, repeats: int) -> dict[str, Any]:
    """Prompt-updates a second of a whole batch, with the manifest's teacher and full banks.

    Returns:
        `figures`, also of other banks, `flop_per_prompt_update` as counted, and a `profile` of ours
        and of the plain loop: seconds of `UPDATES` updates by operation.
    """
    teacher = Teacher.load(manifest.teacher, device, "float32", manifest.cache)
    config, limit, name = (
        manifest.prompts.contrastive,
        "matrix product, float32",
        "contrastive prompts",
    )
    others = {
        f"{name}, bank of {bank}": _ours(manifest, teacher, bank)
        for bank in (int(part * config.bank) for part in BANKS)
    }
    main = _ours(manifest, teacher, config.bank)
    each = operations(main) / (UPDATES * config.batch_size)
    plain = _plain(manifest, teacher)
    found = turns(
        {name: main, **others, "plain prompts": plain, limit: reference.product(device)}, repeats
    )
    share = quotient(found[name], found[limit], each)
    ratio = quotient(found[name], found["plain prompts"])
    figures = [
        Figure(name, UNIT, found[name], limit, share, "plain prompts", ratio),
        *(beside(name, other, UNIT, found) for other in others),
        Figure("plain prompts", UNIT, found["plain prompts"]),
        Figure(limit, "FLOP/s", found[limit]),
    ]
    return {
        "flop_per_prompt_update": each,
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
    """The same prompts with one memory bank, and with parts that are made side by side.

    Args:
        updates: of each prompt; 0 for the manifest's.

    Returns:
        By `prompts.contrastive.parallel`, what `dfkd.prompts.statistics` says of all prompts.
    """
    teacher = Teacher.load(manifest.teacher, device, "float32", manifest.cache)
    size = max(1, manifest.synthesis.images_per_class // PARTS)
    found = {}
    for parallel in PARALLEL:
        config = dataclasses.replace(
            manifest.prompts.contrastive,
            parallel=parallel,
            updates=updates or manifest.prompts.contrastive.updates,
        )
        sized = changed(
            manifest.with_method("contrastive"),
            prompts={"contrastive": config},
            synthesis={"images_per_class": PARTS * size, "shard_size": size},
        )
        found[str(parallel)] = _facts(sized, teacher)
    return found


def _facts(manifest: Manifest, teacher: Teacher) -> dict[str, Any]:
    maker = PromptMaker(manifest, teacher)
    made: list[pa.Table] = []
    for part in range(part_count(manifest)):
        maker.remember(part, made.__getitem__)
        made.append(maker.part(part))
    return statistics(made, maker.class_texts.cpu().numpy())


def example(
    manifest: Manifest, teacher: Teacher, rows: int, bank: int = 0
) -> tuple[Problem, torch.Tensor]:
    """A batch of all classes in turn, its pseudo-words, and a bank that is full.

    Args:
        bank: embeddings in the bank; 0 for the manifest's.
    """
    texts = class_text_embeddings(manifest, teacher)
    labels = torch.arange(rows, device=texts.device) % len(manifest.classes)
    size = bank or manifest.prompts.contrastive.bank
    memory = PromptBank(size)
    held = torch.arange(size, device=texts.device) % len(manifest.classes)
    memory.add(texts[held], held)
    names = [manifest.classes[label] for label in labels.tolist()]
    words = PseudoWords(teacher, manifest.prompts.template)
    draws = torch.Generator().manual_seed(0)
    noise = torch.randn(rows, teacher.token_table.shape[1], generator=draws)
    start = words.around_the_mean(noise, manifest.prompts.scale)
    return Problem(words, names, labels, texts, memory), start
