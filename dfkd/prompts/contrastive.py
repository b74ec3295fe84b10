"""Instance-level contrastive prompts (equation 12 of the paper)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.config.synthesis import Prompts
from dfkd.prompts.pseudo_words import PseudoWords

GUARD_TEMPERATURE = 0.1
"""Of the cross-entropy that `guard.weight` adds, over cosine similarities."""


class PromptBank:
    """The memory bank: unit embeddings of earlier prompts and their classes, oldest first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.embeddings: Tensor | None = None
        self.labels: Tensor | None = None

    def __len__(self) -> int:
        return 0 if self.embeddings is None else len(self.embeddings)

    def add(self, embeddings: Tensor, labels: Tensor) -> None:
        """Remember unit embeddings [N, E] of classes [N]."""
        embeddings, labels = embeddings.detach(), labels.to(embeddings.device)
        if self.embeddings is not None and self.labels is not None:
            embeddings = torch.cat([self.embeddings, embeddings])
            labels = torch.cat([self.labels, labels])
        self.embeddings = embeddings[-self.capacity :]
        self.labels = labels[-self.capacity :]

    def draw(self, count: int, draw: np.random.Generator) -> tuple[Tensor, Tensor] | None:
        """At most `count` different members, or None if there is none to draw."""
        if self.embeddings is None or self.labels is None or count == 0:
            return None
        chosen = draw.choice(len(self), size=min(count, len(self)), replace=False)
        rows = torch.from_numpy(np.sort(chosen)).to(self.embeddings.device)
        return self.embeddings[rows], self.labels[rows]


@dataclass(frozen=True)
class Problem:
    """A batch of N prompts to be pulled apart."""

    words: PseudoWords
    names: Sequence[str]
    labels: Tensor
    class_texts: Tensor
    bank: PromptBank


@dataclass(frozen=True)
class Solution:
    """Pseudo-words [N, D], unit embeddings [N, E] and equation 12 by update and prompt [U, N]."""

    pseudo: Tensor
    embeddings: Tensor
    losses: Tensor


def optimise(
    problem: Problem, start: Tensor, prompts: Prompts, draw: np.random.Generator
) -> Solution:
    """Move pseudo-words so that each prompt stays near its disturbed self and leaves the others.

    Args:
        problem: the batch, its classes and the bank, of which one sample serves all updates.
        start: pseudo-words [N, D].
        prompts: the manifest's section; `guard.weight` adds a class term to the printed equation.
        draw: source of the disturbances and of the bank's sample.
    """
    config = prompts.contrastive
    sentences, pseudo = problem.words.sentences(problem.names), start.clone().requires_grad_()
    optimizer = torch.optim.Adam([pseudo], lr=config.learning_rate)
    remembered = problem.bank.draw(config.bank, draw)
    losses = []
    for _ in range(config.updates):
        texts = sentences.encode(pseudo)
        disturbed = [
            problem.words.disturbed(name, config.positive, config.disturbance, draw)
            for name in problem.names
        ]
        positives = problem.words.encode(problem.names, pseudo, disturbed)
        within = config.negatives == "intra-class"
        loss = contrastive_loss(
            texts, positives, problem.labels, remembered, config.temperature, within
        )
        losses.append(loss.detach())
        if prompts.guard.weight:
            logits = texts @ problem.class_texts.T / GUARD_TEMPERATURE
            drift = F.cross_entropy(logits, problem.labels, reduction="none")
            loss = loss + prompts.guard.weight * drift
        optimizer.zero_grad()
        # The sum keeps each prompt's step independent of how many share the batch.
        loss.sum().backward()
        optimizer.step()
    with torch.no_grad():
        embeddings = sentences.encode(pseudo)
    return Solution(pseudo.detach(), embeddings, torch.stack(losses).cpu())


def contrastive_loss(
    texts: Tensor,
    positives: Tensor,
    labels: Tensor,
    remembered: tuple[Tensor, Tensor] | None,
    temperature: float,
    within_class: bool,
) -> Tensor:
    """Equation 12 as printed, one loss a prompt [N]: -log(exp(s+/tau) / sum_b exp(s_b/tau)).

    s is the cosine similarity and b runs over the negatives alone: the other prompts of the batch
    and the remembered ones, or only those of the same class. Without a negative it is -s+/tau.
    """
    others, other_labels = _with_remembered(texts, labels, remembered)
    excluded = torch.eye(len(texts), len(others), dtype=torch.bool, device=texts.device)
    if within_class:
        excluded = excluded | (labels[:, None] != other_labels[None, :])
    similarity = (texts @ others.T / temperature).masked_fill(excluded, -torch.inf)
    alone = excluded.all(dim=1)
    crowd = torch.where(alone, 0.0, similarity.masked_fill(alone[:, None], 0.0).logsumexp(dim=1))
    return crowd - (texts * positives).sum(dim=1) / temperature


def _with_remembered(
    texts: Tensor, labels: Tensor, remembered: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    if remembered is None:
        return texts, labels
    return torch.cat([texts, remembered[0]]), torch.cat([labels, remembered[1]])
