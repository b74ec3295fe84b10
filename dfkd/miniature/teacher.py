"""Training of the miniature's open_clip model on captioned icons."""

from __future__ import annotations

import gzip
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from torch import Tensor, nn

from dfkd.miniature.captions import (
    CAPTION_WORDS,
    Caption,
    Captioner,
    merges_for,
    names,
    truths,
)
from dfkd.miniature.looks.look import Look, LookSampler, vocabulary
from dfkd.miniature.looks.painting import smudged
from dfkd.miniature.recipe import TeacherRecipe
from dfkd.miniature.rendering import UI_WORDS, Batches, Cache, IconRow, painted, plain

#: Fixed logit scale of the loss within groups, whose cosines lie close together.
_GROUP_SCALE = 10.0
Log = Callable[[str], None]
MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
STD = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)


def config(recipe: TeacherRecipe, vocabulary: int, merges: str) -> dict[str, Any]:
    """The open_clip model configuration."""
    return {
        "embed_dim": recipe.embed_dim,
        "vision_cfg": {
            "image_size": 64,
            "layers": list(recipe.image_layers),
            "width": recipe.image_width,
            "patch_size": None,
        },
        "text_cfg": {
            "context_length": recipe.context_length,
            "vocab_size": vocabulary,
            "width": recipe.text_width,
            "heads": recipe.text_heads,
            "layers": recipe.text_layers,
            "tokenizer_kwargs": {"bpe_path": merges},
        },
    }


def caption_words(rows: Sequence[IconRow], at_least: int) -> list[str]:
    """The words in at least ``at_least`` names, and all words that captions add, sorted."""
    counts = Counter(w for r in rows for w in {*r.words, *r.style, *" ".join(r.aliases).split()})
    common = {w for w, n in counts.items() if n >= at_least and w.isalpha()}
    looks = {word for statement in vocabulary() for word in statement.split()}
    return sorted(common | looks | CAPTION_WORDS)


def object_nouns(rows: Sequence[IconRow]) -> frozenset[str]:
    """Words that name an object: one-word names that are common in names, without interfaces'."""
    counts = Counter(word for row in rows for word in set(row.words))
    single = {row.words[0] for row in rows if len(row.words) == 1}
    return frozenset(word for word in single if counts[word] > 2) - UI_WORDS


def merges(words: Sequence[str]) -> str:
    """The merges of CLIP's own tokenizer that are needed to spell ``words``."""
    full = SimpleTokenizer()
    return merges_for(words, default_bpe(), lambda word: full.bpe(word))


def build(recipe: TeacherRecipe, vocab: int) -> nn.Module:
    """The untrained model."""
    cfg = config(recipe, vocab, "")
    text = {k: v for k, v in cfg["text_cfg"].items() if k != "tokenizer_kwargs"}
    model: nn.Module = open_clip.CLIP(cfg["embed_dim"], cfg["vision_cfg"], text)
    return model


def encode_tokens(model: Any, ids: Tensor, tokens: Tensor) -> Tensor:
    """Text embeddings [B, D].

    Args:
        ids: token ids [B, L], where L may be shorter than the context length.
        tokens: their token embeddings [B, L, W], in which a pseudo-word may replace one.
    """
    length = ids.shape[1]
    x = tokens + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)
    # As in CLIP, the end token, which has the highest id, gives the embedding of the text.
    x = x[torch.arange(len(ids)), ids.argmax(1)]
    out: Tensor = x @ model.text_projection
    return out


@dataclass(frozen=True)
class Sample:
    """One painted icon of a batch: its drawing and its look."""

    row: IconRow
    look: Look

    def shows(self, caption: Caption) -> bool:
        """Whether everything that the caption claims is true of this picture."""
        if caption.name and caption.name not in names(self.row):
            return False
        if caption.unmarked:
            return self.look.default and not self.row.colour
        return set(caption.told) <= truths(self.row, self.look)


def positives(samples: Sequence[Sample], captions: Sequence[Caption]) -> Tensor:
    """Which captions are true of which pictures: float [pictures, captions] of 0 and 1."""
    # Most pairs differ in the object, so only captions of a picture's names are looked at.
    by_name: dict[str, list[int]] = {}
    for j, caption in enumerate(captions):
        by_name.setdefault(caption.name, []).append(j)
    out = torch.zeros(len(samples), len(captions))
    for i, sample in enumerate(samples):
        for name in ("", *sorted(names(sample.row))):
            for j in by_name.get(name, ()):
                out[i, j] = float(sample.shows(captions[j]))
    return out


def contrastive_loss(logits: Tensor, positive: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy with several positives: all captions that are true of a
    picture.

    Args:
        logits, positive: [..., pictures, captions]; each picture and caption has a positive.
    """
    by_image = positive / positive.sum(-1, keepdim=True)
    by_text = positive / positive.sum(-2, keepdim=True)
    by_row = -(by_image * logits.log_softmax(-1)).sum(-1).mean()
    by_column = -(by_text * logits.log_softmax(-2)).sum(-2).mean()
    return (by_row + by_column) / 2


@dataclass(frozen=True)
class Batch:
    """One step's pictures and captions.

    Caption i describes picture i; a few captions more describe looks alone. The last pictures are
    groups of four that share an object.
    """

    images: Tensor
    """Normalised pictures [B, 3, 64, 64]."""
    ids: Tensor
    """Token ids [B + S, L]."""
    positive: Tensor
    """Which captions are true of which pictures, [B, B + S]."""
    groups: int


class TeacherTrainer:
    """A training run with checkpoints in ``folder``; the same call resumes."""

    def __init__(
        self,
        recipe: TeacherRecipe,
        cache: Cache,
        keep: npt.NDArray[np.int64],
        tokenizer: SimpleTokenizer,
        words: Sequence[str],
        folder: Path,
        seed: int,
        log: Log,
    ) -> None:
        self.recipe, self.folder, self.log, self.seed = recipe, folder, log, seed
        torch.manual_seed(seed)
        self.model: Any = build(recipe, tokenizer.vocab_size)
        self.average: Any = build(recipe, tokenizer.vocab_size)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average.load_state_dict(self.model.state_dict())
        self.captioner = Captioner(
            tokenizer.encode, tokenizer.sot_token_id, tokenizer.eot_token_id, words
        )
        self.batches = Batches(cache, keep, recipe.batch_size, seed)
        decay = [p for p in self.model.parameters() if p.ndim > 1]
        rest = [p for p in self.model.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decay, "weight_decay": recipe.weight_decay},
                {"params": rest, "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
            eps=1e-6,
            foreach=True,
        )
        self.step, self.seconds = 0, 0.0
        self.curve: list[tuple[int, float, float]] = []
        """Step, loss and validation accuracy at each checkpoint."""

    def run(self, validate: Callable[[nn.Module, int], float]) -> nn.Module:
        """Train to the last step; returns the averaged model.

        Args:
            validate: called at each checkpoint with the averaged model; returns its accuracy.
        """
        self._resume()
        tower = self.model.visual
        if self.recipe.compile:
            tower = torch.compile(tower)
        # One thread prepares the next batch while this one trains.
        executor = ThreadPoolExecutor(1)
        next_batch = executor.submit(self.batch, self.step)
        while self.step < self.recipe.steps:
            begun = time.monotonic()
            batch, next_batch = next_batch.result(), executor.submit(self.batch, self.step + 1)
            loss = self._update(tower, batch)
            self.step += 1
            self.seconds += time.monotonic() - begun
            if self.step % 20 == 0:
                self.log(
                    f"teacher step {self.step}/{self.recipe.steps} loss {loss:.3f} "
                    f"{self.seconds / self.step:.2f} s/step"
                )
            if self.step % self.recipe.checkpoint_every == 0 or self.step == self.recipe.steps:
                accuracy = validate(self.average.eval(), self.step)
                self.curve.append((self.step, round(loss, 4), round(accuracy, 4)))
                self._save()
        return self.average.eval()  # type: ignore[no-any-return]

    def _update(self, tower: Callable[[Tensor], Tensor], batch: Batch) -> float:
        r = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step)
        with torch.autocast("cpu", torch.bfloat16):
            image = tower(batch.images)
            text = encode_tokens(self.model, batch.ids, self.model.token_embedding(batch.ids))
        image, text = F.normalize(image.float(), dim=1), F.normalize(text.float(), dim=1)
        scale = self.model.logit_scale.exp().clamp(max=r.max_scale)
        loss = contrastive_loss(scale * image @ text.T, batch.positive)
        if batch.groups:
            loss = loss + r.group_weight * self._group_loss(image, text, batch)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self._follow()
        return float(loss.detach())

    def _group_loss(self, image: Tensor, text: Tensor, batch: Batch) -> Tensor:
        """The loss within groups of one object, where only the looks tell pictures apart."""
        end = len(image)
        rows = slice(end - 4 * batch.groups, end)
        logits = (
            _GROUP_SCALE
            * image[rows].unflatten(0, (-1, 4))
            @ text[rows].unflatten(0, (-1, 4)).transpose(1, 2)
        )
        within = batch.positive[rows, rows].view(batch.groups, 4, batch.groups, 4)
        return contrastive_loss(logits, within.diagonal(dim1=0, dim2=2).permute(2, 0, 1))

    def rate(self, step: int) -> float:
        """The learning rate: a linear rise, then a cosine to zero."""
        return self.recipe.learning_rate * _schedule(
            step, self.recipe.warmup_steps, self.recipe.steps
        )

    def batch(self, step: int) -> Batch:
        """The pictures and captions of a step, which depend on the seed and the step alone."""
        r = self.recipe
        # With full difficulty from the start, the loss stayed at chance level for hundreds of
        # steps.
        strength = min(1.0, step / r.easy_steps)
        # Looks are easier than objects: a trial that told them apart from the start learned little
        # else.
        groups = r.groups if step >= r.easy_steps else 0
        rows, rng = self.batches.draw(step, strength, groups)
        gen = torch.Generator().manual_seed(int(rng.integers(2**62)))
        sampler, default = LookSampler(gen), 1 - strength * (1 - r.default_share)
        alone = len(rows) - 4 * groups
        # Pictures in one look can be told apart by their objects only. When each picture had a look
        # of its own, captions were found by their looks, and objects were hardly learned.
        looks = sampler.shared([row.colour for row in rows[:alone]], r.looks, default)
        looks += [sampler.draw(row.colour, default) for row in rows[alone:]]
        samples = [Sample(row, look) for row, look in zip(rows, looks, strict=True)]
        images = painted(self.batches.cache, rows, looks, gen)
        images = smudged(images, gen, 0.15 * strength)
        captions = [
            self.captioner.caption(s.row, s.look, rng, easy=rng.random() > strength)
            for s in samples
        ]
        marked = [s for s in samples[: r.style_captions] if s.row.colour or not s.look.default]
        captions += [self.captioner.style_caption(s.row, s.look, rng) for s in marked]
        # Long captions are rare and slow, so most steps cut them.
        length = r.context_length if step % 4 == 0 else r.usual_length
        ids = torch.from_numpy(self.captioner.tokens([c.words for c in captions], length))
        images = ((images - MEAN) / STD).contiguous(memory_format=torch.channels_last)
        return Batch(images, ids, positives(samples, captions), groups)

    @torch.no_grad()
    def _follow(self) -> None:
        # Use a short memory at first, so that the average forgets the random initial weights.
        weight = 1 - min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), weight)
        for kept, new in zip(self.average.buffers(), self.model.buffers(), strict=True):
            if kept.is_floating_point() and kept.ndim == 1:
                kept.lerp_(new, weight)

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "curve": self.curve,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, self.folder / "teacher.pt.part")
        os.replace(self.folder / "teacher.pt.part", self.folder / "teacher.pt")

    def _resume(self) -> None:
        path = self.folder / "teacher.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]
            self.curve = state["curve"]
            self.log(f"teacher resumes at step {self.step}")


def _schedule(step: int, warmup: int, steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.no_grad()
def zero_shot(
    model: Any,
    tokenizer: SimpleTokenizer,
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    template: str = "A {}",
) -> Tensor:
    """Whether each image [N, 3, 64, 64] in [0, 1] is nearest to its own class's prompt: bool
    [N].
    """
    texts = tokenizer([template.format(name) for name in classes])
    text = F.normalize(model.encode_text(texts), dim=1)
    guesses = [
        (F.normalize(model.encode_image((part - MEAN) / STD), dim=1) @ text.T).argmax(1)
        for part in images.split(256)
    ]
    return torch.cat(guesses) == labels


def common_nouns(rows: Sequence[IconRow], count: int) -> list[str]:
    """The ``count`` most frequent one-word names, without words of user interfaces; sorted by
    name.
    """
    seen = Counter(r.concept for r in rows if len(r.words) == 1)
    names = [n for n, _ in seen.most_common() if n.isalpha() and len(n) > 2 and n not in UI_WORDS]
    return sorted(names[:count])


def validation_set(
    cache: Cache, rows: Sequence[IconRow], classes: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Images and labels of the rows whose name is one of the classes."""
    selected = [r for r in rows if r.concept in set(classes)]
    labels = torch.tensor([classes.index(r.concept) for r in selected])
    return plain(cache, selected), labels


def write_merges(path: Path, text: str) -> None:
    """Write a merges file for open_clip's tokenizer; the same text gives the same bytes."""
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
