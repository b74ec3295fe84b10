"""Instance-level contrastive prompts (section 3.2, equation 12).

Pseudo-words are optimised through the frozen text tower. Each prompt is pulled towards a copy of
itself with disturbed letters, and pushed away from the other prompts of its batch and from
remembered prompts of earlier batches. So the prompts of a run, and its images, spread out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.config.plan import PromptRow
from dfkd.models.teacher import Teacher
from dfkd.prompts.method import PromptBatch
from dfkd.prompts.pseudo_words import PseudoWords, Sentences
from dfkd.prompts.random import RandomPrompts
from dfkd.prompts.settings import MAX_BANK, Contrastive

TEMPERATURE = 0.1
"""Tau of equation 12. The paper states no value."""
DISTURBANCE = 0.3
"""Share of the letters of the template's frozen words that the positive view changes. The paper
says "some characters"; 0.3 is the default of nlpaug, the usual library for this."""


class PromptBank:
    """The memory bank: unit embeddings of earlier prompts and their classes, oldest first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.embeddings: Tensor | None = None
        self.labels: Tensor | None = None

    def __len__(self) -> int:
        return 0 if self.embeddings is None else len(self.embeddings)

    def add(self, embeddings: Tensor, labels: Tensor) -> None:
        """Append unit embeddings [N, E] of classes [N]; the oldest beyond the capacity leave."""
        embeddings, labels = embeddings.detach(), labels.to(embeddings.device)
        if self.embeddings is not None and self.labels is not None:
            embeddings = torch.cat([self.embeddings, embeddings])
            labels = torch.cat([self.labels, labels])
        self.embeddings = embeddings[-self.capacity :]
        self.labels = labels[-self.capacity :]

    def draw(self, count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor] | None:
        """Draw at most `count` prompts without replacement.

        Returns:
            Unit embeddings [K, E] and classes [K]; None if there is nothing to draw.
        """
        if self.embeddings is None or self.labels is None or count == 0:
            return None
        selected = generator.choice(len(self), size=min(count, len(self)), replace=False)
        rows = torch.from_numpy(np.sort(selected)).to(self.embeddings.device)
        return self.embeddings[rows], self.labels[rows]


@dataclass(frozen=True)
class Problem:
    """A batch of N prompts that are optimised together."""

    words: PseudoWords
    names: Sequence[str]
    """What the sentence of each prompt calls its class."""
    labels: Tensor
    """Class index of each prompt, int64 [N]."""
    bank: PromptBank
    """Earlier prompts, which serve as negatives."""


class ContrastivePrompts(RandomPrompts):
    """Random prompts that equation 12 then pushes apart."""

    mixes_classes = True  # a batch provides the negatives

    def __init__(
        self,
        manifest: Manifest,
        teacher: Teacher,
        config: Contrastive,
        *,
        disturbance: str = "shuffle",
        within_class: bool = False,
    ) -> None:
        """Start with an empty bank; the options are those of `optimise`."""
        super().__init__(manifest, teacher, config)
        self.config, self.disturbance, self.within_class = config, disturbance, within_class
        self.batch_size = config.batch_size
        self.bank = PromptBank(MAX_BANK)

    def draw(self, rows: Sequence[PromptRow], batch_seed: int) -> PromptBatch:
        """See `PromptMethod.draw`; also adds the prompts to the bank."""
        random = super().draw(rows, batch_seed)
        assert random.pseudo_words is not None  # noqa: S101 - random prompts have them
        labels = torch.tensor([row.class_index for row in rows], device=self.class_texts.device)
        pseudo_words, embeddings = optimise(
            Problem(self.words, [row.meaning for row in rows], labels, self.bank),
            random.pseudo_words,
            self.config,
            np.random.default_rng(batch_seed),
            disturbance=self.disturbance,
            within_class=self.within_class,
        )
        # The bank takes the final prompts, because later prompts must differ from those.
        self.bank.add(embeddings, labels)
        return PromptBatch(random.texts, embeddings, pseudo_words)

    def remember(self, part: int, table: Callable[[int], pa.Table]) -> None:
        """Fill the memory bank with the newest prompts of the parts before `part`."""
        # Parts are read from the newest backwards, until the bank is full: older ones are not read.
        newest_first, rows = [], 0
        for number in reversed(range(part)):
            newest_first.append(table(number))
            rows += newest_first[-1].num_rows
            if rows >= self.bank.capacity:
                break
        # They are added from the oldest on, in the order in which their prompts were made.
        self.bank = PromptBank(self.bank.capacity)
        for ordered in reversed(newest_first):
            if ordered.num_rows:
                embeddings = np.stack(ordered["embedding"].to_numpy())
                labels = torch.from_numpy(ordered["class_index"].to_numpy().astype(np.int64))
                self.bank.add(torch.from_numpy(embeddings).to(self.class_texts.device), labels)


def optimise(
    problem: Problem,
    start: Tensor,
    config: Contrastive,
    generator: np.random.Generator,
    *,
    disturbance: str = "shuffle",
    within_class: bool = False,
) -> tuple[Tensor, Tensor]:
    """Minimise equation 12 over the pseudo-words of a batch with Adam.

    Args:
        problem: the batch with its classes and the bank.
        start: initial pseudo-words [N, D].
        config: the section `prompts.contrastive` of the manifest.
        generator: source of the disturbances and of the draw from the bank.
        disturbance: how letters of the positive view change, see `PseudoWords.disturbed`.
        within_class: whether a prompt is pushed away only from those of its own class.

    Returns:
        The pseudo-words [N, D] and their unit text embeddings, float32 [N, E].
    """
    sentences, pseudo_words = problem.words.sentences(problem.names), start.clone()
    optimizer = torch.optim.Adam([pseudo_words.requires_grad_()], lr=config.learning_rate)
    # The remembered negatives stay the same in all updates, so Adam minimises one objective.
    remembered = problem.bank.draw(config.bank, generator)
    for _ in range(config.updates):
        text_embeddings = sentences.encode(pseudo_words)
        # Each prompt draws other letters at each update, so its pseudo-word has to work in all.
        tokens = problem.words.disturbed(problem.names, disturbance, DISTURBANCE, generator)
        positives = Sentences(problem.words.teacher, *tokens).encode(pseudo_words)
        loss = contrastive_loss(
            text_embeddings, positives, problem.labels, remembered, TEMPERATURE, within_class
        )
        optimizer.zero_grad()
        # The sum and not the mean, so that the batch size does not scale gradients. A prompt is a
        # negative of the others too, so their losses also move it.
        loss.sum().backward()
        optimizer.step()
    # The last update has moved the pseudo-words away from the embeddings that are known so far.
    with torch.no_grad():
        embeddings = sentences.encode(pseudo_words)
    return pseudo_words.detach(), embeddings


def contrastive_loss(
    text_embeddings: Tensor,
    positives: Tensor,
    labels: Tensor,
    remembered: tuple[Tensor, Tensor] | None,
    temperature: float,
    within_class: bool,
) -> Tensor:
    """Equation 12 as printed, one loss per prompt [N]: -log(exp(s+/tau) / sum_b exp(s_b/tau)).

    s is the cosine similarity, and b runs over the negatives only: the other prompts of the batch
    and the remembered ones, or those of them in the same class. Without negatives the loss is
    -s+/tau.

    Args:
        text_embeddings: unit vectors [N, E].
        positives: unit vectors [N, E] of the disturbed prompts.
        labels: classes [N].
        remembered: unit vectors [K, E] and classes [K] from the bank.
        temperature: tau.
        within_class: whether negatives of other classes are excluded.
    """
    others, other_labels = text_embeddings, labels
    if remembered is not None:
        others = torch.cat([others, remembered[0]])
        other_labels = torch.cat([labels, remembered[1]])
    # The first N columns are the batch itself, so the diagonal holds each prompt with itself. The
    # remembered prompts need no such exclusion, because they are from earlier batches.
    excluded = torch.eye(len(text_embeddings), len(others), dtype=torch.bool, device=labels.device)
    if within_class:
        excluded = excluded | (labels[:, None] != other_labels[None, :])
    similarity = (text_embeddings @ others.T / temperature).masked_fill(excluded, -torch.inf)
    # logsumexp over no negatives is -inf with gradient NaN, so such rows are filled and masked.
    alone = excluded.all(dim=1)
    log_sum = torch.where(alone, 0.0, similarity.masked_fill(alone[:, None], 0.0).logsumexp(dim=1))
    # Unlike in SimCLR's loss, the positive is no part of the sum, so the loss may be negative.
    return log_sum - (text_embeddings * positives).sum(dim=1) / temperature
