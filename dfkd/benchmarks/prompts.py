"""Speed of contrastive prompt updates."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from dfkd.benchmarks import reference
from dfkd.benchmarks.measure import Call, Effort, Results, time_loop
from dfkd.config.manifest import Manifest
from dfkd.models.teacher import Teacher
from dfkd.prompts import contrastive
from dfkd.prompts.contrastive import Problem, PromptBank
from dfkd.prompts.pseudo_words import PseudoWords
from dfkd.prompts.styles import class_text_embeddings
from dfkd.utils.device import pick_device

UPDATES = 2
"""Updates in one timed repeat."""
BANKS = (0.25, 4)
"""Other numbers of negatives drawn for an update, relative to the manifest's."""
UNIT = "prompt-updates/s"
NAME, PLAIN = "contrastive prompts", "plain prompts"


def measure(manifest: Manifest, effort: Effort) -> Results:
    """Prompt updates per second of a whole batch, with the manifest's teacher and full banks.

    Returns:
        The result of `time_loop`, also for other banks; a profile covers `UPDATES` updates.
    """
    device = pick_device()
    teacher = Teacher.load(manifest.teacher, device, "float32", manifest.cache)
    timed = _with_contrastive(manifest, updates=UPDATES)
    bank = manifest.prompts.contrastive.bank
    variants = {
        f"{NAME}, bank of {size}": updates(_with_contrastive(timed, bank=size), teacher)
        for size in (int(part * bank) for part in BANKS)
    }
    variants[PLAIN] = updates(timed, teacher, plain=True)
    limit = "matrix product, float32", reference.product(device)
    ours = updates(timed, teacher)
    return time_loop(NAME, UNIT, ours, variants, PLAIN, limit, effort.repeats)


def _with_contrastive(manifest: Manifest, **values: Any) -> Manifest:
    """The manifest with new values for some keys of `prompts.contrastive`."""
    config = dataclasses.replace(manifest.prompts.contrastive, **values)
    return manifest.with_values(prompts={"contrastive": config})


def updates(manifest: Manifest, teacher: Teacher, plain: bool = False) -> Call:
    """A call that does all updates of a batch against a full bank; its units are prompt-updates.

    Args:
        plain: as equation 12 states them: every sentence is encoded whole.
    """
    config = manifest.prompts.contrastive
    problem, start = example(manifest, teacher)
    optimise: Callable[..., object]
    optimise = partial(reference.plain_prompts, teacher) if plain else contrastive.optimise

    def call() -> float:
        optimise(problem, start, config, np.random.default_rng(0))
        return float(config.updates * len(start))

    return call


def example(manifest: Manifest, teacher: Teacher) -> tuple[Problem, torch.Tensor]:
    """A batch with labels of all classes in turn, its pseudo-words, and a full bank."""
    config = manifest.prompts.contrastive
    texts = class_text_embeddings(manifest, teacher)
    labels, bank_labels = (
        torch.arange(count, device=texts.device) % len(manifest.classes)
        for count in (config.batch_size, config.bank)
    )
    # Full from the start, as after the first batches of a run; before that an update costs less.
    memory = PromptBank(config.bank)
    memory.add(texts[bank_labels], bank_labels)
    names = [manifest.classes[label] for label in labels.tolist()]
    words = PseudoWords(teacher, manifest.prompts.template)
    draws = torch.Generator().manual_seed(0)
    noise = torch.randn(len(labels), teacher.token_table.shape[1], generator=draws)
    start = words.around_the_mean(noise, manifest.prompts.scale)
    return Problem(words, names, labels, memory), start
