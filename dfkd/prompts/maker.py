"""Make prompts: the target text embedding of each image, by four methods (paper, section 3.2).

Prompts are made part by part. Part p holds the rows of shard p of every class. So a batch mixes
classes, a synthesis task reads one file, and memory holds one part for any number of images.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.nn import functional as F

from dfkd.config.hashing import derive_seed
from dfkd.config.manifest import Manifest
from dfkd.config.methods import prompt_method
from dfkd.config.plan import PromptRow, fresh_tasks, part_name, part_rows, parts_at_once, root_seed
from dfkd.config.synthesis import MAX_BANK
from dfkd.models.teacher import Teacher, class_prompt
from dfkd.prompts import contrastive
from dfkd.prompts.contrastive import PromptBank
from dfkd.prompts.pseudo_words import PseudoWords
from dfkd.prompts.styles import (
    check_styled_prompts,
    class_text_embeddings,
    dictionary,
    mixture,
    style_text_embeddings,
    styled_prompt,
)

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
    ]
)
"""One row per image. `order` is the position in the part at which the prompt was made; `pseudo` is
null without a pseudo-word."""

ENCODE_BATCH_SIZE = 1024
"""Prompts that are encoded together by methods that do not define a batch size."""


@dataclass
class PromptBatch:
    """N prompts."""

    texts: list[str]
    embeddings: Tensor
    """Unit text embeddings, [N, E]."""
    pseudo_words: Tensor | None = None
    """[N, D]; None without a pseudo-word."""


class PromptMaker:
    """Makes the prompts of a run with one method and keeps the memory bank between parts.

    `base` reads a part of the version that a regeneration starts from, by the name of the part.
    Then only the prompts of `fresh_tasks` are made, and the others are copied from the base.
    """

    def __init__(
        self, manifest: Manifest, teacher: Teacher, base: Callable[[str], pa.Table] | None = None
    ) -> None:
        self.manifest = manifest
        self.teacher = teacher
        self.base = base
        self.method = prompt_method(manifest.method) or "vanilla"
        self.class_texts = class_text_embeddings(manifest, teacher)
        self.bank = PromptBank(MAX_BANK)
        self._parts_in_bank: int | None = 0
        """n if the bank holds exactly parts 0 to n - 1; None if `remember` must fill it anew."""
        self._styles: dict[str, Tensor] = {}

    def remember(self, part: int, table: Callable[[int], pa.Table]) -> None:
        """Fill the memory bank as an uninterrupted run would have it before `part`.

        The bank then holds the earlier parts except the last `parallel` - 1, because other workers
        may still be making those.

        Args:
            part: the part that is made next.
            table: reads a finished part by its number.
        """
        known = max(0, part + 1 - parts_at_once(self.manifest))
        if self.method != "contrastive" or known == self._parts_in_bank:
            return
        # Parts are read from the newest backwards, until the bank is full: older ones are not read.
        newest_first, rows = [], 0
        for number in reversed(range(known)):
            newest_first.append(self._fresh_rows(table(number)).sort_by("order"))
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
        self._parts_in_bank = known

    def part(self, part: int) -> pa.Table:
        """Make the prompts of one part: a table of `SCHEMA`, ordered by class and index.

        The next part may follow directly, or after another `remember`.
        """
        # With several parts at a time the bank lacks those that other workers make.
        self._parts_in_bank = part + 1 if parts_at_once(self.manifest) == 1 else None
        rows = part_rows(self.manifest, part)
        if self.base is None:
            return self._make(part, rows)
        carried = self.base(part_name(part)).cast(SCHEMA)
        fresh = self._make(part, [row for row in rows if (row.class_index, part) in self.fresh])
        return _sorted([fresh, carried.filter(pc.invert(self._fresh_mask(carried)))])

    def _fresh_rows(self, table: pa.Table) -> pa.Table:
        """The rows of a part that this run has made itself."""
        return table if self.base is None else table.filter(self._fresh_mask(table))

    def _fresh_mask(self, table: pa.Table) -> pa.Array:
        """Whether each row of a part belongs to a task that is not carried over."""
        size = self.manifest.synthesis.shard_size
        pairs = zip(table["class_index"].to_pylist(), table["index"].to_pylist(), strict=True)
        return pa.array([(c, index // size) in self.fresh for c, index in pairs], pa.bool_())

    def _make(self, part: int, rows: Sequence[PromptRow]) -> pa.Table:
        """The prompts of some rows of a part, made in batches."""
        order = list(range(len(rows)))
        size = ENCODE_BATCH_SIZE
        if self.method == "contrastive":
            # A batch provides the negatives of equation 12, so it must mix the classes.
            generator = np.random.default_rng(derive_seed("order", *root_seed(self.manifest), part))
            order = generator.permutation(len(rows)).tolist()
            size = self.manifest.prompts.contrastive.batch_size
        tables = []
        for start in range(0, len(rows), size):
            batch = [rows[i] for i in order[start : start + size]]
            seed = derive_seed("batch", *root_seed(self.manifest), part, start)
            positions = range(start, start + len(batch))
            tables.append(_table(self.method, batch, self.draw(batch, seed), positions))
        return _sorted(tables)

    def draw(self, rows: Sequence[PromptRow], batch_seed: int) -> PromptBatch:
        """Make the prompts of some rows with the method of the run.

        Args:
            batch_seed: seed of the random numbers that a batch of contrastive prompts shares.
        """
        if self.method == "vanilla":
            return self._vanilla(rows)
        if self.method == "mix":
            return self._mix(rows)
        # Contrastive prompts start from random ones.
        random = self._random(rows)
        return random if self.method == "random" else self._contrast(rows, random, batch_seed)

    def _vanilla(self, rows: Sequence[PromptRow]) -> PromptBatch:
        """The class prompts themselves, which are the same for all images of a class."""
        texts = [class_prompt(self.manifest.teacher.template, r.name) for r in rows]
        return PromptBatch(texts, self.class_texts[self._labels(rows)])

    def _mix(self, rows: Sequence[PromptRow]) -> PromptBatch:
        """Equation 6: lambda T_1 + (1 - lambda) T_2 for two styles of a class, lambda ~ Beta."""
        styles, texts, mixed = dictionary(self.manifest.prompts), [], []
        for row in rows:
            first, second, weight = mixture(self.manifest.prompts, row.seed)
            styled = self._styled(row.name)
            # A mean of unit vectors is shorter than 1, and distances are defined on unit vectors.
            mean = weight * styled[first] + (1 - weight) * styled[second]
            mixed.append(F.normalize(mean, dim=0))
            one, two = (styled_prompt(self.manifest, row.name, styles[i]) for i in (first, second))
            texts.append(f"{weight:.3f} {one} + {1 - weight:.3f} {two}")
        return PromptBatch(texts, torch.stack(mixed))

    def _random(self, rows: Sequence[PromptRow]) -> PromptBatch:
        """Equations 8 to 11: random pseudo-words V = mu + e * eps * sigma."""
        names, dimensions = [row.name for row in rows], self.teacher.token_table.shape[1]
        # Each row has its own generator, so a pseudo-word does not depend on its batch.
        generators = (torch.Generator().manual_seed(derive_seed(row.seed, 0)) for row in rows)
        noise = torch.stack([torch.randn(dimensions, generator=g) for g in generators])
        pseudo_words = self.words.around_the_mean(noise, self.manifest.prompts.scale)
        with torch.no_grad():
            embeddings = self.words.encode(names, pseudo_words)
        return PromptBatch([self.words.text(name) for name in names], embeddings, pseudo_words)

    def _contrast(
        self, rows: Sequence[PromptRow], start: PromptBatch, batch_seed: int
    ) -> PromptBatch:
        """Optimise equation 12 from random prompts."""
        assert start.pseudo_words is not None  # noqa: S101 - random prompts have them
        labels, names = self._labels(rows), [r.name for r in rows]
        pseudo_words, embeddings = contrastive.optimise(
            contrastive.Problem(self.words, names, labels, self.bank),
            start.pseudo_words,
            self.manifest.prompts.contrastive,
            np.random.default_rng(batch_seed),
        )
        # The bank takes the final prompts, because later prompts must differ from those.
        self.bank.add(embeddings, labels)
        return PromptBatch(start.texts, embeddings, pseudo_words)

    def _labels(self, rows: Sequence[PromptRow]) -> Tensor:
        """The class index of each row, int64 [N] on the teacher's device."""
        return torch.tensor([r.class_index for r in rows], device=self.class_texts.device)

    def _styled(self, name: str) -> Tensor:
        """Text embeddings [S, E] of one class in every style, cached for the latest class."""
        if name not in self._styles:
            self._styles = {name: style_text_embeddings(self.manifest, self.teacher, name)}
        return self._styles[name]

    @functools.cached_property
    def fresh(self) -> set[tuple[int, int]]:
        """Class index and shard index of each task that is not carried over."""
        return {(task.class_index, task.shard_index) for task in fresh_tasks(self.manifest)}

    @functools.cached_property
    def words(self) -> PseudoWords:
        """Created lazily, because some methods have no pseudo-words."""
        return PseudoWords(self.teacher, self.manifest.prompts.template)


def check_prompts(manifest: Manifest, teacher: Teacher) -> None:
    """Raise `ManifestError` if a text of the prompts or of the labels exceeds the context."""
    methods = set(map(prompt_method, manifest.methods))
    if "mix" in methods or manifest.distillation.texts == "styles":
        check_styled_prompts(manifest, teacher)
    if {"random", "contrastive"} & methods:
        words = PseudoWords(teacher, manifest.prompts.template)
        words.tokens(manifest.classes, [manifest.prompts.template] * len(manifest.classes))


def _sorted(tables: Sequence[pa.Table]) -> pa.Table:
    """All rows of some tables in one, by class and index."""
    combined = pa.concat_tables(tables or [SCHEMA.empty_table()])
    return combined.sort_by([("class_index", "ascending"), ("index", "ascending")])


def _table(
    method: str, rows: Sequence[PromptRow], batch: PromptBatch, positions: range
) -> pa.Table:
    """A table of `SCHEMA`; `positions` are the values of `order`."""

    def vectors(values: Tensor | None) -> pa.Array:
        """A column of lists from rows [N, D]."""
        if values is None:
            return pa.nulls(len(rows), pa.list_(pa.float32()))
        flat = values.detach().float().cpu().numpy()
        offsets = np.arange(0, flat.size + 1, flat.shape[1], dtype=np.int32)
        return pa.ListArray.from_arrays(offsets, flat.ravel())

    columns = [
        pa.array([r.name for r in rows], pa.string()),
        pa.array([r.class_index for r in rows], pa.int32()),
        pa.array([r.index for r in rows], pa.int32()),
        pa.array(positions, pa.int32()),
        pa.array([method] * len(rows), pa.string()),
        pa.array([r.seed for r in rows], pa.int64()),
        pa.array(batch.texts, pa.string()),
        vectors(batch.pseudo_words),
        vectors(batch.embeddings),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)
