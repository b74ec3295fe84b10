"""Equation 12 against hand-computed values, the memory bank, and what optimising does."""

import math

import numpy as np
import pytest
import torch

from dfkd.models.teacher import Teacher
from dfkd.prompts import contrastive
from dfkd.prompts.contrastive import (
    DISTURBANCE,
    Problem,
    PromptBank,
    contrastive_loss,
    optimise,
)
from dfkd.prompts.pseudo_words import PseudoWords, Sentences, disturb
from dfkd.prompts.settings import Contrastive

AXES = torch.eye(3)


def test_equation_12_by_hand() -> None:
    """Two prompts at 60 degrees, each with a positive of similarity 1 and 0, and one remembered."""
    half = torch.tensor([0.5, math.sqrt(3) / 2, 0.0])
    texts = torch.stack([AXES[0], half])
    positives = torch.stack([AXES[0], AXES[2]])
    remembered = (AXES[2:3], torch.tensor([5]))
    loss = contrastive_loss(
        texts, positives, torch.tensor([0, 1]), remembered, 0.5, within_class=False
    )
    # similarities: to each other 0.5, to the remembered one 0; divided by tau = 0.5.
    crowd = math.log(math.exp(1.0) + math.exp(0.0))
    assert loss.tolist() == pytest.approx([crowd - 2.0, crowd - 0.0], abs=1e-6)


def test_within_a_class_other_classes_do_not_push() -> None:
    texts = torch.stack([AXES[0], AXES[0], AXES[1]])
    labels = torch.tensor([0, 0, 1])
    remembered = (AXES[:1], torch.tensor([1]))
    loss = contrastive_loss(texts, texts, labels, remembered, 1.0, within_class=True)
    # first two: one negative of similarity 1; third: the remembered one, similarity 0.
    assert loss.tolist() == pytest.approx([1 - 1, 1 - 1, 0 - 1], abs=1e-6)


def test_a_prompt_without_any_negative_only_holds_its_positive() -> None:
    texts = AXES[:2]
    loss = contrastive_loss(texts, texts, torch.tensor([0, 1]), None, 0.5, within_class=True)
    assert loss.tolist() == pytest.approx([-2.0, -2.0])


def test_the_bank_forgets_the_oldest_and_draws_without_repetition() -> None:
    bank = PromptBank(capacity=4)
    assert bank.draw(3, np.random.default_rng(0)) is None
    for i in range(3):
        bank.add(torch.full((2, 2), float(i)), torch.full((2,), i))
    assert len(bank) == 4
    drawn = bank.draw(10, np.random.default_rng(0))
    assert sorted(drawn[1].tolist()) == [1, 1, 2, 2]
    assert torch.equal(drawn[0][:, 0].long(), drawn[1])
    assert bank.draw(0, np.random.default_rng(0)) is None


def problem(teacher: Teacher, names: list[str], rows: int) -> Problem:
    words = PseudoWords(teacher, "{class} in the style of {style}")
    labels = torch.arange(rows) % len(names)
    return Problem(words, [names[i] for i in labels.tolist()], labels, PromptBank(100))


def start(teacher: Teacher, rows: int, scale: float) -> torch.Tensor:
    table = teacher.token_table
    noise = torch.randn(rows, table.shape[1], generator=torch.Generator().manual_seed(0))
    return table.mean(dim=0) + scale * noise * table.std(dim=0)


def spread(embeddings: torch.Tensor) -> float:
    similarity = embeddings @ embeddings.T
    count = len(embeddings)
    return float((similarity.sum() - count) / (count * (count - 1)))


def loss(task: Problem, pseudo_words: torch.Tensor) -> float:
    """The mean of equation 12, with the same disturbances at each call."""
    kind, share, draw = "shuffle", DISTURBANCE, np.random.default_rng(0)
    tokens = task.words.disturbed(task.names, kind, share, draw)
    positives = Sentences(task.words.teacher, *tokens).encode(pseudo_words)
    embeddings = task.words.encode(task.names, pseudo_words)
    temperature = contrastive.TEMPERATURE
    losses = contrastive_loss(embeddings, positives, task.labels, None, temperature, False)
    assert losses.shape == (len(task.names),)
    return float(losses.mean())


def test_the_loss_falls_and_prompts_move_apart(teacher: Teacher) -> None:
    task = problem(teacher, ["dog", "house", "car"], rows=24)
    pseudo = start(teacher, 24, scale=3.0)
    before = task.words.encode(task.names, pseudo)
    config = Contrastive(updates=20, learning_rate=0.02)
    found, embeddings = optimise(task, pseudo, config, np.random.default_rng(1))
    assert loss(task, found) < loss(task, pseudo)
    assert spread(embeddings) < spread(before)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(24), atol=1e-5)


def test_a_pseudo_word_follows_the_gradient_of_its_positive_too(teacher: Teacher) -> None:
    """Adam's first step moves each number by the rate, against the sign of its gradient."""
    task, pseudo = problem(teacher, ["dog"], rows=1), start(teacher, 1, scale=3.0)
    config = Contrastive(updates=1)
    found, _ = optimise(task, pseudo, config, np.random.default_rng(7))
    words, vector = task.words, pseudo.clone().requires_grad_()
    other = disturb(words.template, "shuffle", DISTURBANCE, np.random.default_rng(7))
    one, two = words.encode(["dog"] * 2, vector.expand(2, -1), [words.template, other])
    (one @ two).backward()
    uphill = (found - pseudo).sign() == vector.grad.sign()
    assert uphill.float().mean() > 0.99  # some gradients are zero but for rounding


def test_the_same_seed_gives_the_same_prompts(teacher: Teacher) -> None:
    task = problem(teacher, ["dog", "car"], rows=6)
    task.bank.add(teacher.encode_text(["A dog", "A car"]), torch.tensor([0, 1]))
    pseudo = start(teacher, 6, scale=3.0)
    config = Contrastive(updates=3)
    one, two, other = (
        optimise(task, pseudo, config, np.random.default_rng(seed))[0] for seed in (7, 7, 8)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
