"""Speed of contrastive prompt updates, and the CPU time of their tokens."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dfkd.config.manifest import Manifest
from dfkd.config.synthesis import Prompts
from dfkd.lab.benchmarks import reference
from dfkd.lab.benchmarks.measure import (
    Call,
    Effort,
    Results,
    figure,
    median_ratio,
    time_in_turns,
    time_loop,
)
from dfkd.models import teacher_architecture
from dfkd.models.teacher import Teacher
from dfkd.prompts import contrastive
from dfkd.prompts.contrastive import DISTURBANCE, Problem, PromptBank
from dfkd.prompts.pseudo_words import PseudoWords, disturb
from dfkd.prompts.settings import Contrastive
from dfkd.prompts.styles import class_text_embeddings
from dfkd.utils.device import pick_device

UPDATES = 2
"""Updates in one timed repeat."""
BANKS = (0.25, 4)
"""Other numbers of negatives drawn for an update, relative to the manifest's."""
UNIT = "prompt-updates/s"
NAME, PLAIN = "contrastive prompts", "plain prompts"
TOWER = "ViT-B-32-quickgelu"
"""The teacher whose tokenizer is timed: CLIP's own."""
TOKENISED = [
    Path(__file__).parents[3] / "manifests" / name
    for name in ("pacs.yaml", "office_home.yaml", "domainnet.yaml")
]
"""Manifests whose 7, 65 and 345 class names are tokenised."""
TOKEN_UPDATES = 25
"""Updates whose sentences are tokenised in one timed repeat."""


def measure(manifest: Manifest, effort: Effort) -> Results:
    """Prompt updates per second of a whole batch, with the manifest's teacher and full banks; and
    what their tokens cost with CLIP's tokenizer.

    Returns:
        The result of `time_loop`, also for other banks; a profile covers `UPDATES` updates.
        `figures` also has those of `token_figures`.
    """
    device = pick_device()
    teacher = Teacher.load(manifest.teacher, device, "float32", manifest.cache)
    timed = _with_contrastive(manifest, updates=UPDATES)
    bank = _settings(manifest).bank
    variants = {
        f"{NAME}, bank of {size}": updates(_with_contrastive(timed, bank=size), teacher)
        for size in (int(part * bank) for part in BANKS)
    }
    variants[PLAIN] = updates(timed, teacher, plain=True)
    limit = "matrix product, float32", reference.product(device)
    ours = updates(timed, teacher)
    results = time_loop(NAME, UNIT, ours, variants, PLAIN, limit, effort.repeats)
    results["figures"] += token_figures(effort.repeats)
    return results


def token_figures(repeats: int) -> Iterator[dict[str, Any]]:
    """Yield figures of milliseconds of CPU that the sentences of an update take.

    For each manifest of `TOKENISED`, with default settings: the token ids of disturbed sentences,
    ours and by open_clip's tokenizer, once their words have been seen, as nearly all have after a
    batch of a run. Then all that is done on the CPU before the sentences are encoded: letters
    drawn, token ids, padding.
    """
    architecture = teacher_architecture.read_architecture(TOWER)
    tokenizer = teacher_architecture.build_tokenizer(architecture)
    model = teacher_architecture.build(architecture)  # whose random weights are not used
    teacher = Teacher(model, tokenizer, TOWER, architecture.preprocess)
    words, config = PseudoWords(teacher, Prompts().template), Contrastive()
    for path in TOKENISED:
        classes, draw = Manifest.read(path).classes, np.random.default_rng(0)
        names = [classes[row % len(classes)] for row in range(config.batch_size)]
        sentences = [
            (name, disturb(words.template, "shuffle", DISTURBANCE, draw))
            for _ in range(TOKEN_UPDATES)
            for name in names
        ]

        def ours(sentences: list[tuple[str, str]] = sentences) -> float:
            for sentence in sentences:
                words.sentence(*sentence)
            return TOKEN_UPDATES

        def plain(sentences: list[tuple[str, str]] = sentences) -> float:
            for name, template in sentences:
                before, after = template.replace("{class}", name).split("{style}")
                for text in (before, after):
                    tokenizer.encode(text)
            return TOKEN_UPDATES

        def whole(names: list[str] = names, draw: np.random.Generator = draw) -> float:
            for _ in range(TOKEN_UPDATES):
                words.disturbed(names, "shuffle", DISTURBANCE, draw)
            return TOKEN_UPDATES

        name, peer, rest = (
            f"{what}, {len(classes)} classes"
            for what in ("tokens", "open_clip's tokens", "letters, tokens and padding")
        )
        rates = time_in_turns({name: ours, peer: plain, rest: whole}, repeats, time.thread_time)
        spent = {key: [1000 / rate for rate in values] for key, values in rates.items()}
        unit, ratio = "ms of CPU an update", median_ratio(rates[name], rates[peer])
        yield figure(name, unit, spent[name], peer=(peer, ratio))
        yield figure(peer, unit, spent[peer])
        yield figure(rest, unit, spent[rest])


def _with_contrastive(manifest: Manifest, **values: Any) -> Manifest:
    """The manifest with new values for some keys of `prompts.contrastive`."""
    config = dataclasses.replace(_settings(manifest), **values)
    return manifest.with_values(prompts={"kinds": {"contrastive": config}})


def _settings(manifest: Manifest) -> Contrastive:
    """The section `prompts.contrastive` of a manifest, or its defaults."""
    found: Contrastive = manifest.prompts.kinds.get("contrastive", Contrastive())
    return found


def updates(manifest: Manifest, teacher: Teacher, plain: bool = False) -> Call:
    """A call that does all updates of a batch against a full bank; its units are prompt-updates.

    Args:
        plain: as equation 12 states them: every sentence is encoded whole.
    """
    config = _settings(manifest)
    problem, start = example(manifest, teacher)
    optimise: Callable[..., object]
    optimise = partial(reference.plain_prompts, teacher) if plain else contrastive.optimise

    def call() -> float:
        optimise(problem, start, config, np.random.default_rng(0))
        return float(config.updates * len(start))

    return call


def example(manifest: Manifest, teacher: Teacher) -> tuple[Problem, torch.Tensor]:
    """A batch with labels of all classes in turn, its pseudo-words, and a full bank."""
    config = _settings(manifest)
    texts = class_text_embeddings(manifest, teacher)
    labels, bank_labels = (
        torch.arange(count, device=texts.device) % len(manifest.classes)
        for count in (config.batch_size, config.bank)
    )
    # Full from the start, as after the first batches of a run; before that an update costs less.
    memory = PromptBank(config.bank)
    memory.add(texts[bank_labels], bank_labels)
    names = [manifest.meanings[label] for label in labels.tolist()]
    words = PseudoWords(teacher, manifest.prompts.template)
    draws = torch.Generator().manual_seed(0)
    noise = torch.randn(len(labels), teacher.token_table.shape[1], generator=draws)
    start = words.around_the_mean(noise, config.scale)
    return Problem(words, names, labels, memory), start
