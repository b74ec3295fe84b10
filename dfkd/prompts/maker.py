"""Prompts: the target text embedding of each image, under four methods (section 3.2 of the paper).

Prompts are made part by part. Part p holds the rows of shard p of every class, so that a batch
mixes classes, a synthesis task reads one file, and memory holds one part however many images.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.config.manifest import Manifest
from dfkd.config.methods import prompt_method
from dfkd.config.plan import (
    PromptRow,
    derive_seed,
    fresh_tasks,
    part_name,
    part_rows,
    parts_at_once,
    root_seed,
)
from dfkd.models.teacher import Teacher, class_prompt
from dfkd.prompts import contrastive
from dfkd.prompts.contrastive import PromptBank
from dfkd.prompts.pseudo_words import PseudoWords
from dfkd.prompts.styles import dictionary

SCHEMA = pa.schema(
    [
        ("class", pa.string()),
        ("class_index", pa.int32()),
        ("index", pa.int32()),
        ("order", pa.int32()),
        ("method", pa.string()),
        ("seed", pa.int64()),
        ("text", pa.string()),
        ("pseudo", pa.list_(pa.float32())),
        ("embedding", pa.list_(pa.float32())),
        ("initial", pa.list_(pa.float32())),
        ("loss_first", pa.float32()),
        ("loss_last", pa.float32()),
        ("attempts", pa.int32()),
    ]
)
"""One row an image. `order` is the place in its part in which a prompt was made; `initial` and the
losses belong to contrastive prompts only, and `pseudo` to those that hold a pseudo-word."""


BANK_CAPACITY = 16384
"""Prompts of all classes that the memory bank holds, eight times the paper's draw of 2,048; the
oldest leave first."""

ENCODE_BATCH_SIZE = 1024
"""Prompts encoded at once where the method does not say how many share a batch."""


@dataclass
class PromptBatch:
    """Prompts of some rows: texts and unit embeddings [N, E], and what a method has beside."""

    texts: list[str]
    embeddings: Tensor
    pseudo: Tensor | None = None
    attempts: Tensor | None = None
    initial: Tensor | None = None
    losses: Tensor | None = None


class PromptMaker:
    """Makes the prompts of a run with one method; carries the memory bank from part to part.

    With a base (its parts by name) only the prompts of `fresh_tasks` are made, and all others are
    the base's.
    """

    def __init__(
        self, manifest: Manifest, teacher: Teacher, base: Callable[[str], pa.Table] | None = None
    ) -> None:
        self.manifest = manifest
        self.teacher = teacher
        self.base = base
        self.method = prompt_method(manifest.method) or "vanilla"
        self.class_texts = class_text_embeddings(manifest, teacher)
        self.bank = PromptBank(BANK_CAPACITY)
        self._known: int | None = 0
        """How many parts the bank remembers, if they are the first ones."""
        self._styles: dict[str, Tensor] = {}

    def remember(self, part: int, table: Callable[[int], pa.Table]) -> None:
        """Fill the memory bank with what the prompts of a part know, as an undisturbed run has it.

        That is all parts before it but the last `parallel` - 1, which may be in the making.

        Args:
            part: the one that is to be made.
            table: reads a part that was made.
        """
        known = max(0, part + 1 - parts_at_once(self.manifest))
        if self.method != "contrastive" or known == self._known:
            return
        newest, rows = [], 0
        for number in reversed(range(known)):
            newest.append(self._own(table(number)).sort_by("order"))
            rows += newest[-1].num_rows
            if rows >= self.bank.capacity:
                break
        self.bank = PromptBank(self.bank.capacity)
        for ordered in reversed(newest):
            if ordered.num_rows:
                embeddings = np.stack(ordered["embedding"].to_numpy())
                labels = torch.from_numpy(ordered["class_index"].to_numpy().astype(np.int64))
                self.bank.add(torch.from_numpy(embeddings).to(self.class_texts.device), labels)
        self._known = known

    def part(self, part: int) -> pa.Table:
        """The prompts of one part, a table of `SCHEMA` in the order of class and index.

        The next part may follow at once, or after another `remember`.
        """
        self._known = part + 1 if parts_at_once(self.manifest) == 1 else None
        rows = part_rows(self.manifest, part)
        if self.base is None:
            return self._made(part, rows)
        carried = self.base(part_name(part)).cast(SCHEMA)
        made = self._made(part, [row for row in rows if (row.class_index, part) in self.fresh])
        return _sorted([made, carried.filter(pc.invert(self._mask(carried)))])

    def _own(self, table: pa.Table) -> pa.Table:
        """The rows of a part that this run has made."""
        return table if self.base is None else table.filter(self._mask(table))

    def _mask(self, table: pa.Table) -> pa.Array:
        size = self.manifest.synthesis.shard_size
        pairs = zip(table["class_index"].to_pylist(), table["index"].to_pylist(), strict=True)
        return pa.array([(c, index // size) in self.fresh for c, index in pairs], pa.bool_())

    def _made(self, part: int, rows: Sequence[PromptRow]) -> pa.Table:
        order = list(range(len(rows)))
        size = ENCODE_BATCH_SIZE
        if self.method == "contrastive":
            shuffle = np.random.default_rng(derive_seed("order", *root_seed(self.manifest), part))
            order = shuffle.permutation(len(rows)).tolist()
            size = self.manifest.prompts.contrastive.batch_size
        tables = []
        for start in range(0, len(rows), size):
            chosen = order[start : start + size]
            seed = derive_seed("batch", *root_seed(self.manifest), part, start)
            drawn = self.draw([rows[i] for i in chosen], seed)
            places = range(start, start + len(chosen))
            tables.append(_table(self.method, [rows[i] for i in chosen], drawn, places))
        return _sorted(tables)

    def draw(self, rows: Sequence[PromptRow], batch_seed: int) -> PromptBatch:
        """The prompts of some rows; `batch_seed` drives what contrastive rows share."""
        if self.method == "vanilla":
            texts = [class_prompt(self.manifest.teacher.template, r.name) for r in rows]
            labels = torch.tensor([r.class_index for r in rows])
            return PromptBatch(texts, self.class_texts[labels.to(self.class_texts.device)])
        if self.method == "mix":
            return self._mix(rows)
        words, drawn = self._random(rows)
        return drawn if self.method == "random" else self._contrast(rows, words, drawn, batch_seed)

    def _mix(self, rows: Sequence[PromptRow]) -> PromptBatch:
        """Equation 6: lambda * T_1 + (1 - lambda) * T_2, two styles of one class, lambda ~ Beta."""
        styles, texts, mixed = dictionary(self.manifest.prompts), [], []
        for row in rows:
            first, second, weight = self._mixture(row)
            pair = self._styled(row.name)[[first, second]]
            mixed.append(F.normalize(weight * pair[0] + (1 - weight) * pair[1], dim=0))
            one, two = (styled_prompt(self.manifest, row.name, styles[i]) for i in (first, second))
            texts.append(f"{weight:.3f} {one} + {1 - weight:.3f} {two}")
        return PromptBatch(texts, torch.stack(mixed))

    def _random(self, rows: Sequence[PromptRow]) -> tuple[Tensor, PromptBatch]:
        """Eq 8-11: V = mu + e * eps * sigma, redrawn nearer to mu where the guard refuses it."""
        labels = torch.tensor([r.class_index for r in rows], device=self.class_texts.device)
        names = [r.name for r in rows]
        pseudo = self._start(rows, attempt=0)
        embeddings = self._encode(names, pseudo)
        attempts = torch.zeros(len(rows), dtype=torch.int64)
        guard = self.manifest.prompts.guard
        for attempt in range(1, guard.attempts + 1):
            bad = (~self.consistent(embeddings, labels)).nonzero().flatten().tolist()
            if not bad:
                break
            pseudo[bad] = self._start([rows[i] for i in bad], attempt)
            embeddings[bad] = self._encode([names[i] for i in bad], pseudo[bad])
            attempts[bad] = attempt
        texts = [self.words.text(n) for n in names]
        if guard.attempts:
            for i in (~self.consistent(embeddings, labels)).nonzero().flatten().tolist():
                embeddings[i] = self.class_texts[labels[i]]
                texts[i] = class_prompt(self.manifest.teacher.template, names[i])
        return pseudo, PromptBatch(texts, embeddings, pseudo, attempts)

    def _contrast(
        self, rows: Sequence[PromptRow], words: Tensor, start: PromptBatch, batch_seed: int
    ) -> PromptBatch:
        """Equation 12 from a guarded start, to which a prompt returns that leaves its class."""
        labels = torch.tensor([r.class_index for r in rows], device=self.class_texts.device)
        found = contrastive.optimise(
            contrastive.Problem(
                self.words, [r.name for r in rows], labels, self.class_texts, self.bank
            ),
            words,
            self.manifest.prompts,
            np.random.default_rng(batch_seed),
        )
        pseudo, embeddings = found.pseudo, found.embeddings
        if self.manifest.prompts.guard.attempts:
            bad = ~self.consistent(embeddings, labels)
            pseudo, embeddings = pseudo.clone(), embeddings.clone()
            pseudo[bad], embeddings[bad] = words[bad], start.embeddings[bad]
        self.bank.add(embeddings, labels)
        return dataclasses.replace(
            start,
            pseudo=pseudo,
            embeddings=embeddings,
            initial=start.embeddings,
            losses=found.losses,
        )

    def consistent(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Which prompts are nearer to their own class text than to any other."""
        cosine = embeddings @ self.class_texts.T
        own = cosine.gather(1, labels[:, None])[:, 0]
        others = cosine.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
        return own > others

    def _start(self, rows: Sequence[PromptRow], attempt: int) -> Tensor:
        """Pseudo-words [N, D] before any optimisation; each later attempt halves the spread."""
        prompts, dimensions = self.manifest.prompts, self.teacher.token_table.shape[1]
        seeds = (derive_seed(row.seed, attempt) for row in rows)
        draws = (torch.Generator().manual_seed(seed) for seed in seeds)
        noise = torch.stack([torch.randn(dimensions, generator=draw) for draw in draws])
        return self.words.around_the_mean(noise, prompts.scale * 0.5**attempt)

    def _mixture(self, row: PromptRow) -> tuple[int, int, float]:
        """Two different styles and the weight of the first, from the row's own seed."""
        styles = dictionary(self.manifest.prompts)
        draw = np.random.default_rng(derive_seed(row.seed, 0))
        first, second = draw.choice(len(styles), size=2, replace=False).tolist()
        return (
            first,
            second,
            float(draw.beta(self.manifest.prompts.alpha, self.manifest.prompts.alpha)),
        )

    def _styled(self, name: str) -> Tensor:
        """Text embeddings [S, E] of one class in every style, encoded once a class."""
        if name not in self._styles:
            self._styles = {name: style_text_embeddings(self.manifest, self.teacher, name)}
        return self._styles[name]

    @functools.cached_property
    def fresh(self) -> set[tuple[int, int]]:
        """Class and shard index of each task that is not carried over."""
        return {(task.class_index, task.shard_index) for task in fresh_tasks(self.manifest)}

    @functools.cached_property
    def words(self) -> PseudoWords:
        """Only random and contrastive prompts need them, and not every tokenizer allows them."""
        return PseudoWords(self.teacher, self.manifest.prompts.template)

    @torch.no_grad()
    def _encode(self, names: Sequence[str], pseudo: Tensor) -> Tensor:
        return self.words.encode(names, pseudo)


def check_prompts(manifest: Manifest, teacher: Teacher) -> None:
    """Refuse a template that leaves no room for a class name; `ManifestError` naming it."""
    if not {"random", "contrastive"} & set(map(prompt_method, manifest.methods)):
        return
    words = PseudoWords(teacher, manifest.prompts.template)
    words.tokens(manifest.classes, [manifest.prompts.template] * len(manifest.classes))


def class_text_embeddings(manifest: Manifest, teacher: Teacher) -> Tensor:
    """Unit embeddings [M, E] of the vanilla class prompts, which labels and zero-shot rows use."""
    template = manifest.teacher.template
    return teacher.encode_text([class_prompt(template, name) for name in manifest.classes])


def style_text_embeddings(manifest: Manifest, teacher: Teacher, name: str) -> Tensor:
    """Unit embeddings [S, E] of one class in every style of the dictionary."""
    styles = dictionary(manifest.prompts)
    return teacher.encode_text([styled_prompt(manifest, name, style) for style in styles])


def styled_prompt(manifest: Manifest, name: str, style: str) -> str:
    """The prompt of a class in a style."""
    return manifest.prompts.template.replace("{class}", name).replace("{style}", style)


def _sorted(tables: Sequence[pa.Table]) -> pa.Table:
    together = pa.concat_tables(tables or [SCHEMA.empty_table()])
    return together.sort_by([("class_index", "ascending"), ("index", "ascending")])


def _table(method: str, rows: Sequence[PromptRow], drawn: PromptBatch, places: range) -> pa.Table:
    def vectors(values: Tensor | None) -> pa.Array:
        if values is None:
            return pa.nulls(len(rows), pa.list_(pa.float32()))
        flat = values.detach().float().cpu().numpy()
        offsets = np.arange(0, flat.size + 1, flat.shape[1], dtype=np.int32)
        return pa.ListArray.from_arrays(offsets, flat.ravel())

    def numbers(values: Tensor | None, kind: pa.DataType) -> pa.Array:
        return pa.nulls(len(rows), kind) if values is None else pa.array(values.tolist(), kind)

    losses = (None, None) if drawn.losses is None else (drawn.losses[0], drawn.losses[-1])
    columns = [
        pa.array([r.name for r in rows], pa.string()),
        pa.array([r.class_index for r in rows], pa.int32()),
        pa.array([r.index for r in rows], pa.int32()),
        pa.array(places, pa.int32()),
        pa.array([method] * len(rows), pa.string()),
        pa.array([r.seed for r in rows], pa.int64()),
        pa.array(drawn.texts, pa.string()),
        vectors(drawn.pseudo),
        vectors(drawn.embeddings),
        vectors(drawn.initial),
        numbers(losses[0], pa.float32()),
        numbers(losses[1], pa.float32()),
        numbers(drawn.attempts, pa.int32()),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)
