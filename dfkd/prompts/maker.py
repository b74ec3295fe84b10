"""Make prompts: the target text embedding of each image, by the method of the manifest.

Prompts are made part by part. Part p holds the rows of shard p of every class. So a batch mixes
classes, a synthesis task reads one file, and memory holds one part for any number of images.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from dfkd.config.hashing import derive_seed
from dfkd.config.manifest import Manifest
from dfkd.config.plan import PromptRow, fresh_tasks, part_name, part_rows, root_seed
from dfkd.models.teacher import Teacher
from dfkd.prompts.method import PromptBatch, PromptMethod
from dfkd.prompts.styles import check_styled_prompts

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


class PromptMaker:
    """Makes the prompts of a run with one method, part by part.

    `base` reads a part of the version that a regeneration starts from, by the name of the part.
    Then only the prompts of `fresh_tasks` are made, and the others are copied from the base.
    """

    def __init__(
        self, manifest: Manifest, teacher: Teacher, base: Callable[[str], pa.Table] | None = None
    ) -> None:
        self.manifest = manifest
        self.base = base
        self.method: PromptMethod = manifest.prompt_settings.load(manifest, teacher)
        self._next: int | None = 0
        """The part before which the method remembers what an uninterrupted run would."""

    def remember(self, part: int, table: Callable[[int], pa.Table]) -> None:
        """Prepare the method for `part`, unless the part before it was made here.

        Args:
            part: the part that is made next.
            table: reads a finished part by its number.
        """
        if part != self._next:

            def made_here(earlier: int) -> pa.Table:
                """The rows of a part that this run has made itself, in that order."""
                rows = table(earlier)
                fresh = rows if self.base is None else rows.filter(self._fresh_mask(rows))
                return fresh.sort_by("order")

            self.method.remember(part, made_here)
            self._next = part

    def part(self, part: int) -> pa.Table:
        """Make the prompts of one part: a table of `SCHEMA`, ordered by class and index.

        The next part may follow directly, or after another `remember`.
        """
        self._next = None  # until the part is whole
        rows = part_rows(self.manifest, part)
        if self.base is None:
            table = self._make(part, rows)
        else:
            carried = self.base(part_name(part)).cast(SCHEMA)
            fresh = self._make(part, [row for row in rows if (row.class_index, part) in self.fresh])
            table = _sorted([fresh, carried.filter(pc.invert(self._fresh_mask(carried)))])
        self._next = part + 1
        return table

    def _fresh_mask(self, table: pa.Table) -> pa.Array:
        """Whether each row of a part belongs to a task that is not carried over."""
        size = self.manifest.synthesis.shard_size
        pairs = zip(table["class_index"].to_pylist(), table["index"].to_pylist(), strict=True)
        return pa.array([(c, index // size) in self.fresh for c, index in pairs], pa.bool_())

    def _make(self, part: int, rows: Sequence[PromptRow]) -> pa.Table:
        """The prompts of some rows of a part, made in batches."""
        order, size = list(range(len(rows))), self.method.batch_size
        if self.method.mixes_classes:
            generator = np.random.default_rng(derive_seed("order", *root_seed(self.manifest), part))
            order = generator.permutation(len(rows)).tolist()
        name, tables = self.manifest.prompts.method[0], []
        for start in range(0, len(rows), size):
            batch = [rows[i] for i in order[start : start + size]]
            seed = derive_seed("batch", *root_seed(self.manifest), part, start)
            positions = range(start, start + len(batch))
            tables.append(_table(name, batch, self.method.draw(batch, seed), positions))
        return _sorted(tables)

    @functools.cached_property
    def fresh(self) -> set[tuple[int, int]]:
        """Class index and shard index of each task that is not carried over."""
        return {(task.class_index, task.shard_index) for task in fresh_tasks(self.manifest)}


def check_prompts(manifest: Manifest, teacher: Teacher) -> None:
    """Raise `ManifestError` if a text of the prompts or of the labels exceeds the context."""
    if manifest.distillation.texts == "styles":
        check_styled_prompts(manifest, teacher)
    for method in manifest.methods:
        single = manifest.with_method(method)
        single.prompt_settings.load(single, teacher).check()


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
