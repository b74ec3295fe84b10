"""Training of the miniature's open_clip model on captioned drawings, and then of its image tower.

It is CLIP's training, except for the positives and the batches. A caption is a positive of every
image of the batch of which it is true, because often it is true of several. Most images of a batch
share a few looks, so the towers must distinguish objects. The others form groups, of one object in
different looks, with a loss within the group, for which the towers must distinguish looks.

In the second training the image tower learns to know objects in every look. The text tower is
locked (Zhai et al., 2022, lock the image tower), so prompts, pseudo-words and the diffusion model,
which is conditioned on texts, stay as they are. Beside CLIP's loss there is one about names alone:

    loss = CLIP's + w * mean over images of -log softmax_n(scale * cos(image, "a NAME_n"))[own name]

over all names n of the batch. The first training left objects to the default look: captions of
other looks tell the look in most cases, and the tower read that first. On validation drawings in
random looks it named 53 % of 70 classes, and 77 % in the default look.
"""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn

from dfkd.lab.miniature.captions import Caption, Captioner, names, truths
from dfkd.lab.miniature.drawings import GROUP_SIZE, Batches, DrawingRow, painted
from dfkd.lab.miniature.looks import Look, LookSampler, smudged
from dfkd.lab.miniature.recipe import TeacherRecipe, TowerRecipe
from dfkd.lab.miniature.training import Resumable, cosine, move_average, normalised, rise

_GROUP_SCALE = 10.0
"""Logit scale of the loss within groups. CLIP's learned scale suits cosines of different objects.
"""
_SMUDGED = 0.15
"""Share of images that are `smudged`, at full strength."""


def config(recipe: TeacherRecipe, vocab_size: int, merges_file: str) -> dict[str, Any]:
    """The model configuration of open_clip; `merges_file` is a path relative to it."""
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
            "vocab_size": vocab_size,
            "width": recipe.text_width,
            "heads": recipe.text_heads,
            "layers": recipe.text_layers,
            "tokenizer_kwargs": {"bpe_path": merges_file},
        },
    }


def build(recipe: TeacherRecipe, vocab_size: int) -> nn.Module:
    """The untrained model, with weights from torch's global generator."""
    cfg = config(recipe, vocab_size, "")
    text = {k: v for k, v in cfg["text_cfg"].items() if k != "tokenizer_kwargs"}
    model: nn.Module = open_clip.CLIP(cfg["embed_dim"], cfg["vision_cfg"], text)
    return model


def encode_tokens(model: Any, ids: Tensor) -> Tensor:
    """Text embeddings [B, E] of token ids [B, L], not normalised, as of open_clip's `encode_text`.

    L may be shorter than the context length, which saves most of the time of short captions.
    """
    length = ids.shape[1]
    x = model.token_embedding(ids) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)
    # As in CLIP, the end token, which has the highest id, gives the embedding of the text.
    x = x[torch.arange(len(ids)), ids.argmax(1)]
    out: Tensor = x @ model.text_projection
    return out


@dataclass(frozen=True)
class PaintedDrawing:
    """One image of a batch: its drawing and its look."""

    row: DrawingRow
    look: Look

    def shows(self, caption: Caption) -> bool:
        """Whether everything that the caption says is true of this image."""
        if caption.name and caption.name not in names(self.row):
            return False
        if caption.implies_default:
            return self.look.default and not self.row.colour
        return set(caption.statements) <= truths(self.row, self.look)


def positives(samples: Sequence[PaintedDrawing], captions: Sequence[Caption]) -> Tensor:
    """Which captions are true of which images: 1 or 0, float32 [images, captions]."""
    # Few pairs have the same object, so each image is only compared with captions of its names.
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
    """CLIP's symmetric cross-entropy, with the target shared equally by all positives.

    Args:
        logits: [..., images, captions].
        positive: 1 where the caption is true of the image, else 0; same shape. Each image and each
            caption has a positive.

    Returns:
        The mean over images and over captions: a scalar.
    """
    target_of_image = positive / positive.sum(-1, keepdim=True)
    target_of_caption = positive / positive.sum(-2, keepdim=True)
    of_images = -(target_of_image * logits.log_softmax(-1)).sum(-1).mean()
    of_captions = -(target_of_caption * logits.log_softmax(-2)).sum(-2).mean()
    return (of_images + of_captions) / 2


@dataclass(frozen=True)
class CaptionedBatch:
    """The images and captions of one step.

    Caption i describes image i. S captions more describe a look without an object. The last
    `GROUP_SIZE * groups` images and their captions are groups of one object.
    """

    rows: Sequence[DrawingRow]
    """The drawing of each image."""
    images: Tensor
    """Normalised images, float32 [B, 3, 64, 64]."""
    ids: Tensor
    """Token ids, int64 [B + S, L]."""
    positive: Tensor
    """Which captions are true of which images: `positives`, [B, B + S]."""
    groups: int
    """Number of groups; 0 in the first steps."""


class TeacherTrainer(Resumable):
    """Trains the teacher; `run` resumes from the last checkpoint in `folder`."""

    parts = ("model", "average", "optimizer")
    saved = ("step", "seconds", "curve")
    name = "teacher"
    """Name of what is trained, for the checkpoint and the log."""
    recipe: TeacherRecipe
    executor: ThreadPoolExecutor
    """Of the thread that prepares batches, while `run` runs."""
    following: Future[CaptionedBatch] | None = None
    """The batch of the next step."""
    last_loss: float

    def __init__(
        self,
        recipe: TeacherRecipe,
        batches: Batches,
        captioner: Captioner,
        folder: Path,
        seed: int,
    ) -> None:
        self.recipe, self.batches, self.captioner = recipe, batches, captioner
        self.path = folder / f"{self.name}.pt"
        torch.manual_seed(seed)
        self.model: Any = build(recipe, captioner.tokenizer.vocab_size)
        self.average: Any = build(recipe, captioner.tokenizer.vocab_size).eval()
        """The averaged model, in evaluation mode."""
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average.load_state_dict(self.model.state_dict())
        # As in CLIP's training, biases, gains and the logit scale do not decay.
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
        self.curve: list[tuple[int, float, float]] = []
        """Step, loss and validation accuracy at each checkpoint."""

    @cached_property
    def tower(self) -> Any:
        """The image tower, compiled if the recipe says so."""
        return torch.compile(self.model.visual) if self.recipe.compile else self.model.visual

    def run(self, checked: Callable[[], None] = lambda: None) -> None:
        """See `Resumable.run`; a thread prepares the next batch while this one trains."""
        with ThreadPoolExecutor(1) as self.executor:
            super().run(checked)

    def update(self) -> str:
        """One step of the optimiser and the average; returns the loss."""
        following = self.following or self.executor.submit(self.batch, self.step)
        last = self.step + 1 == self.recipe.steps
        self.following = None if last else self.executor.submit(self.batch, self.step + 1)
        batch = following.result()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.step)
        with torch.autocast("cpu", torch.bfloat16):
            image = self.tower(batch.images)
        image = F.normalize(image.float(), dim=1)
        loss = self.loss(image, batch)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        move_average(self.average, self.model, self.recipe.ema, self.step)
        self.last_loss = float(loss.detach())
        return f"loss {self.last_loss:.3f}"

    def note(self, accuracy: float) -> None:
        """Add a point to the curve: the validation accuracy, 0-1, after the last step."""
        self.curve.append((self.step, round(self.last_loss, 4), round(accuracy, 4)))

    def texts(self, ids: Tensor) -> Tensor:
        """Embeddings float32 [B, E] of token ids [B, L], of length 1."""
        with torch.autocast("cpu", torch.bfloat16):
            text = encode_tokens(self.model, ids)
        return F.normalize(text.float(), dim=1)

    def loss(self, image: Tensor, batch: CaptionedBatch) -> Tensor:
        """The loss of a batch, a scalar, from the embeddings [B, E] of its images."""
        text = self.texts(batch.ids)
        loss = contrastive_loss(self.scale * image @ text.T, batch.positive)
        if batch.groups:
            # The mean loss within groups of one object, whose images differ in their looks.
            n, size, end = batch.groups, GROUP_SIZE, len(image)
            rows = slice(end - size * n, end)
            images = _GROUP_SCALE * image[rows].unflatten(0, (n, size))
            logits = images @ text[rows].unflatten(0, (n, size)).transpose(1, 2)
            # Of the positives of all pairs of groups, [n, size, n, size], those of equal groups.
            pairs = batch.positive[rows, rows].view(n, size, n, size)
            within = pairs.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            loss = loss + self.recipe.group_weight * contrastive_loss(logits, within)
        return loss

    @property
    def scale(self) -> Tensor:
        """The logit scale, a scalar."""
        # As in CLIP, the learned scale is bounded, which keeps the training stable.
        scale: Tensor = self.model.logit_scale.exp().clamp(max=self.recipe.max_scale)
        return scale

    def rate(self, step: int) -> float:
        """The learning rate of a 0-based step: a linear rise, then a cosine to zero."""
        warmup = self.recipe.warmup_steps
        if step < warmup:
            return self.recipe.learning_rate * rise(step, warmup)
        return self.recipe.learning_rate * cosine(step - warmup, max(1, self.recipe.steps - warmup))

    def strength(self, step: int) -> float:
        """How hard looks, captions and names are at a 0-based step, 0-1."""
        # With full difficulty from the start, the loss stayed at chance level for hundreds of
        # steps.
        return min(1.0, step / self.recipe.easy_steps)

    def batch(self, step: int) -> CaptionedBatch:
        """The images and captions of a step, which depend on the seed and the step alone."""
        r = self.recipe
        strength = self.strength(step)
        # Looks are easier to learn than objects. With groups from the start, a trial learned little
        # about objects.
        groups = r.groups if strength == 1 else 0
        rows, rng = self.batches.draw(step, strength, groups)
        gen = torch.Generator().manual_seed(int(rng.integers(2**62)))
        sampler = LookSampler(gen)
        # The share of the default look falls from 1 to its final value.
        default = 1 - strength * (1 - r.default_share)
        # Images that share a look differ in their objects alone. When each image had a look of its
        # own, the loss was small by looks alone, and objects were hardly learned.
        singles = len(rows) - GROUP_SIZE * groups
        looks = sampler.shared([row.colour for row in rows[:singles]], r.looks, default)
        looks += [sampler.draw(row.colour, default) for row in rows[singles:]]
        samples = [PaintedDrawing(row, look) for row, look in zip(rows, looks, strict=True)]
        images = painted(self.batches.cache, rows, looks, gen)
        images = smudged(images, gen, _SMUDGED * strength)
        captions = [
            self.captioner.caption(s.row, s.look, rng, easy=rng.random() > strength)
            for s in samples
        ]
        # Captions of looks alone, of images whose look can be described.
        described = [s for s in samples[: r.style_captions] if s.row.colour or not s.look.default]
        captions += [self.captioner.style_caption(s.row, s.look, rng) for s in described]
        # Long captions are rare and slow, so most steps cut them.
        length = r.context_length if step % 4 == 0 else r.usual_length
        ids = self.captioner.tokens([c.words for c in captions], length)
        images = normalised(images).contiguous(memory_format=torch.channels_last)
        return CaptionedBatch(rows, images, ids, positives(samples, captions), groups)

    def scores(self) -> dict[str, Any]:
        """The length of the training, and its curve, for `scores.json`."""
        return super().scores() | {"curve": self.curve}


@torch.no_grad()
def zero_shot(
    model: Any,
    tokenizer: SimpleTokenizer,
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str],
) -> Tensor:
    """Whether each image is nearest to the prompt of its own class: bool [N].

    Args:
        images: [N, 3, 64, 64] in [0, 1].
        labels: index [N] of each image's class in `classes`.
    """
    texts = tokenizer([f"A {name}" for name in classes])
    text = F.normalize(model.encode_text(texts), dim=1)
    predictions = [
        (F.normalize(model.encode_image(normalised(part)), dim=1) @ text.T).argmax(1)
        for part in images.split(256)
    ]
    return torch.cat(predictions) == labels


@dataclass(frozen=True)
class NamedBatch(CaptionedBatch):
    """A batch, and the names of its objects."""

    name_ids: Tensor
    """Token ids of "a NAME" for each name in the batch, int64 [N, L]."""
    named: Tensor
    """Which names an image's object has: 1 or 0, float32 [B, N]."""


class TowerTrainer(TeacherTrainer):
    """Trains the image tower; `run` resumes from the last checkpoint in `folder`.

    Args:
        teacher: of the first training.
        state: the exported weights of the first training.
    """

    name = "tower"

    def __init__(
        self,
        recipe: TowerRecipe,
        teacher: TeacherRecipe,
        state: dict[str, Tensor],
        batches: Batches,
        captioner: Captioner,
        folder: Path,
        seed: int,
    ) -> None:
        settings = dataclasses.replace(
            teacher, steps=recipe.steps, learning_rate=recipe.learning_rate
        )
        super().__init__(settings, batches, captioner, folder, seed)
        self.names_weight = recipe.names_weight
        for network in (self.model, self.average):
            network.load_state_dict(state)
        for name, weight in self.model.named_parameters():
            weight.requires_grad_(name.startswith("visual."))

    def strength(self, step: int) -> float:
        """Full difficulty from the start: the tower has learned before."""
        return 1.0

    def batch(self, step: int) -> NamedBatch:
        """See `TeacherTrainer.batch`."""
        batch = super().batch(step)
        found = sorted({row.concept for row in batch.rows})
        place = {name: i for i, name in enumerate(found)}
        named = torch.zeros(len(batch.rows), len(found))
        for i, row in enumerate(batch.rows):
            # Synonyms of the own name are right too, if the batch has them.
            named[i, [place[name] for name in names(row) if name in place]] = 1
        words = [["a", *name.split()] for name in found]
        ids = self.captioner.tokens(words, self.recipe.usual_length)
        fields: dict[str, Any] = dict(vars(batch))
        return NamedBatch(**fields, name_ids=ids, named=named)

    @torch.no_grad()
    def texts(self, ids: Tensor) -> Tensor:
        """See `TeacherTrainer.texts`; without gradients, because the text tower is locked."""
        return super().texts(ids)

    def loss(self, image: Tensor, batch: CaptionedBatch) -> Tensor:
        """CLIP's loss and that of names, a scalar, from the embeddings [B, E] of the images."""
        assert isinstance(batch, NamedBatch)  # noqa: S101 - of this class's `batch`
        logits = self.scale * image @ self.texts(batch.name_ids).T
        target = batch.named / batch.named.sum(1, keepdim=True)
        of_names = -(target * logits.log_softmax(1)).sum(1).mean()
        return super().loss(image, batch) + self.names_weight * of_names
