"""How fast contrastive prompts are moved: updates of one prompt a second."""

import dataclasses
from typing import Any

import numpy as np
import torch

from dfkd import contrastive
from dfkd.benchmarks import limits, peers
from dfkd.benchmarks.measure import Figure, operations, quotient, turns
from dfkd.contrastive import Bank, Problem
from dfkd.manifest import Manifest
from dfkd.prompts import class_texts
from dfkd.pseudo import PseudoWords
from dfkd.teacher import Teacher

UPDATES = 2
"""Of one timed repeat."""


def measure(manifest: Manifest, device: torch.device, repeats: int) -> dict[str, Any]:
    """Prompt-updates a second of a whole batch, with the manifest's teacher and a full bank.

    Returns:
        `figures`, and `flop_per_prompt_update` as counted.
    """
    teacher = Teacher.load(manifest.teacher, device, "float32", manifest.cache)
    config = dataclasses.replace(
        manifest.prompts.contrastive, updates=UPDATES, similarity=1.0, initialisation="random"
    )
    settings = dataclasses.replace(manifest.prompts, contrastive=config)
    problem, start = example(manifest, teacher, config.batch_size)

    def ours() -> float:
        contrastive.optimise(problem, start, settings, np.random.default_rng(0))
        return float(UPDATES * len(start))

    def plain() -> float:
        draw = np.random.default_rng(0)
        remembered = problem.bank.draw(config.bank, draw)
        assert remembered is not None  # noqa: S101 - the bank is full
        peers.plain_prompts(teacher, problem.words, problem.names, start, remembered, UPDATES, draw)
        return float(UPDATES * len(start))

    each = operations(ours) / (UPDATES * len(start))
    found = turns({"ours": ours, "plain": plain, "product": limits.product(device)}, repeats)
    figure = Figure(
        "contrastive prompts",
        "prompt-updates/s",
        found["ours"],
        "matrix product, float32",
        quotient(found["ours"], found["product"], each),
        "plain loop",
        quotient(found["ours"], found["plain"]),
    )
    return {
        "flop_per_prompt_update": each,
        "figures": [
            figure.as_dict(),
            Figure("plain prompts", "prompt-updates/s", found["plain"]).as_dict(),
            Figure("matrix product", "FLOP/s", found["product"]).as_dict(),
        ],
    }


def example(manifest: Manifest, teacher: Teacher, rows: int) -> tuple[Problem, torch.Tensor]:
    """A batch of all classes in turn, its pseudo-words, and a bank that is full."""
    texts = class_texts(manifest, teacher)
    labels = torch.arange(rows, device=texts.device) % len(manifest.classes)
    config = manifest.prompts.contrastive
    bank = Bank(config.memory)
    held = torch.arange(config.bank, device=texts.device) % len(manifest.classes)
    bank.add(texts[held], held)
    names = [manifest.classes[label] for label in labels.tolist()]
    words = PseudoWords(teacher, manifest.prompts.template)
    noise = torch.randn(
        rows, teacher.token_table.shape[1], generator=torch.Generator().manual_seed(0)
    ).to(texts.device)
    spread = teacher.token_table.std(dim=0)
    start = teacher.token_table.mean(dim=0) + manifest.prompts.scale * noise * spread
    return Problem(words, names, labels, texts, bank), start
