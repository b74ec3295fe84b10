"""Training of the miniature's open_clip model on captioned icons."""

from __future__ import annotations

import gzip
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from torch import Tensor, nn

from dfkd.miniature import augmentation
from dfkd.miniature.captions import CAPTION_WORDS, PSEUDO_WORD, Caption, Captioner, merges_for
from dfkd.miniature.recipe import TeacherRecipe
from dfkd.miniature.rendering import UI_WORDS, Batches, Cache, IconRow, plain

Log = Callable[[str], None]
#: Normalised images [B, 3, 64, 64], token ids [B, L], positives [B, B], generator.
Batch = tuple[Tensor, Tensor, Tensor, torch.Generator]
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


def vocabulary(rows: Sequence[IconRow], titles: dict[str, str], at_least: int) -> list[str]:
    """The words in at least ``at_least`` names, and all words of captions, sorted."""
    counts = Counter(w for r in rows for w in {*r.words, *r.style, *" ".join(r.aliases).split()})
    titled = {w for title in titles.values() for w in re.sub("[^a-z ]", " ", title.lower()).split()}
    common = {w for w, n in counts.items() if n >= at_least and w.isalpha()}
    return sorted(common | titled | CAPTION_WORDS | set(augmentation.COLOURS))


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


def encode_tokens(
    model: Any, ids: Tensor, pseudo: int, scales: tuple[float, float], gen: torch.Generator
) -> Tensor:
    """Text embeddings [B, D] of ids [B, L]; ``pseudo`` tokens become random pseudo-words.

    A pseudo-word is mean + e * noise * standard deviation of the token table (paper, Eq 9-11). Each
    has its own e, log-uniform between ``scales``; so the text tower learns to ignore pseudo-words.
    """
    x = model.token_embedding(ids)
    places = (ids == pseudo).nonzero(as_tuple=True)
    table = model.token_embedding.weight.detach()
    count, (low, high) = len(places[0]), scales
    e = low * torch.exp(torch.rand(count, 1, generator=gen) * math.log(high / low))
    noise = torch.randn(count, table.shape[1], generator=gen)
    x = x.index_put(places, (table.mean(0) + e * noise * table.std(0)).to(x.dtype))
    length = ids.shape[1]
    x = x + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)
    x = x[torch.arange(len(ids)), ids.argmax(1)]
    out: Tensor = x @ model.text_projection
    return out


def positives(captions: Sequence[Caption], truths: Sequence[Sequence[str]] | None) -> Tensor:
    """Which captions are true of which images: float [images, captions] of 0 and 1.

    A caption is true of an image with the same object. With ``truths`` (all true statements about
    each image), every statement in the caption must also be true of the image; so the towers learn
    styles.
    """
    same: dict[str, list[int]] = {}
    for i, caption in enumerate(captions):
        same.setdefault(caption.name, []).append(i)
    out = torch.zeros(len(captions), len(captions))
    for group in same.values():
        for j in group:
            told = captions[j].told if truths else ()
            for i in group:
                out[i, j] = float(all(text in truths[i] for text in told)) if truths else 1.0
    return out


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, positive: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy with several positives: all captions that are true of an
    image.
    """
    logits = scale * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    by_image = positive / positive.sum(1, keepdim=True)
    by_text = positive / positive.sum(0, keepdim=True)
    by_row = -(by_image * logits.log_softmax(1)).sum(1).mean()
    by_column = -(by_text * logits.log_softmax(0)).sum(0).mean()
    return (by_row + by_column) / 2


class TeacherTrainer:
    """A training run with checkpoints in ``folder``; the same call resumes."""

    def __init__(
        self,
        recipe: TeacherRecipe,
        cache: Cache,
        keep: npt.NDArray[np.int64],
        tokenizer: SimpleTokenizer,
        words: Sequence[str],
        titles: dict[str, str],
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
            tokenizer.encode, tokenizer.sot_token_id, tokenizer.eot_token_id, words, titles
        )
        self.pseudo = tokenizer.encode(PSEUDO_WORD)[0]
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
        self.last = recipe.steps + recipe.style_steps

    def run(self, validate: Callable[[nn.Module, int], None]) -> nn.Module:
        """Train to the last step; returns the averaged model."""
        self._resume()
        tower = self.model.visual
        if self.recipe.compile:
            tower = torch.compile(tower)
        # One thread prepares the next batch while this one trains.
        executor = ThreadPoolExecutor(1)
        next_batch = executor.submit(self.batch, self.step)
        while self.step < self.last:
            begun = time.monotonic()
            batch, next_batch = next_batch.result(), executor.submit(self.batch, self.step + 1)
            loss = self._update(tower, batch)
            self.step += 1
            self.seconds += time.monotonic() - begun
            if self.step % 20 == 0:
                self.log(
                    f"teacher step {self.step}/{self.last} loss {loss:.3f} "
                    f"{self.seconds / self.step:.2f} s/step"
                )
            if self.step % self.recipe.checkpoint_every == 0 or self.step == self.last:
                self._save()
                validate(self.average.eval(), self.step)
        return self.average.eval()  # type: ignore[no-any-return]

    def _update(self, tower: Callable[[Tensor], Tensor], batch: Batch) -> float:
        r = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step)
        images, ids, positive, gen = batch
        with torch.autocast("cpu", torch.bfloat16):
            image = tower(images)
            text = encode_tokens(self.model, ids, self.pseudo, r.pseudo_word_scales, gen)
        scale = self.model.logit_scale.exp().clamp(max=100)
        loss = contrastive_loss(image.float(), text.float(), scale, positive)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self._follow()
        return float(loss.detach())

    def rate(self, step: int) -> float:
        """The learning rate: warm-up and cosine for each of the two stages."""
        r = self.recipe
        if step < r.steps:
            return r.learning_rate * _schedule(step, r.warmup_steps, r.steps)
        return r.style_rate * _schedule(step - r.steps, r.warmup_steps, r.style_steps)

    def batch(self, step: int) -> Batch:
        """Normalised images [B, 3, 64, 64], token ids [B, L], positives [B, B], generator."""
        # With full difficulty from the start, the loss stayed at chance level for hundreds of
        # steps.
        strength = min(1.0, step / self.recipe.easy_steps)
        styled = step >= self.recipe.steps
        rows, alpha, coloured, rng = self.batches.draw(step, strength, mates=styled)
        gen = torch.Generator().manual_seed(int(rng.integers(2**62)))
        planned = augmentation.plan(len(rows), gen, strength)
        images = augmentation.paint(alpha, coloured, planned, gen, strength)
        pairs = list(zip(rows, planned.looks(len(alpha)), strict=True))
        captions = [
            self.captioner.caption(row, look, rng, strength, telling=styled) for row, look in pairs
        ]
        truths = [self.captioner.truths(row, look) for row, look in pairs] if styled else None
        # Long captions are rare and slow, so most steps cut them.
        length = self.recipe.context_length if step % 4 == 0 else self.recipe.usual_length
        ids = torch.from_numpy(self.captioner.tokens([c.words for c in captions], length))
        images = ((images - MEAN) / STD).contiguous(memory_format=torch.channels_last)
        return images, ids, positives(captions, truths), gen

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
