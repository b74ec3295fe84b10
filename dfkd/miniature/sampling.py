"""How often each icon is seen while training, and batches of icons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dfkd.miniature.icons import word_set
from dfkd.miniature.rendering import Cache, Row
from dfkd.pixels import from_bytes

#: Words of user interfaces rather than things; drawings named by them are seen less often.
UI_WORDS = word_set(
    "arrow arrows chevron caret align alignment text format border layout grid column columns "
    "row rows sort filter menu list add remove plus minus close check checkmark checkbox "
    "toggle expand collapse zoom crop undo redo refresh reload sync upload download share "
    "link unlink edit copy paste cut more off disabled slash left right up down top bottom "
    "horizontal vertical previous next skip play pause stop angle circle square rectangle "
    "hexagon octagon letter number alphabet order split merge code api data user users "
    "account login logout wifi signal network cellular file document folder page note form "
    "table cell message chat bubble view window panel sidebar tab screen settings control "
    "insert indent heading paragraph font stroke path vector node corner direction turn move "
    "resize rotate flip percent math equal divide symbol sign emoji git branch commit request "
    "pull server database badge type flow process task status"
)
_PICTORIAL = frozenset(["emojione", "fxemoji", "streamline-emojis", "flat-color-icons"])
_MACHINE_MADE = frozenset(("iconmind",))


def easy_weights(rows: Sequence[Row]) -> npt.NDArray[np.float64]:
    """Probability of each row in the first steps: names that at least three sets share."""
    variants = Counter((r.collection, r.words) for r in rows)
    drawings = Counter(concept for _, concept in {(r.collection, r.words) for r in rows})
    shared = 3 if max(drawings.values()) > 2 else 1
    raw = [(drawings[r.words] >= shared) / variants[r.collection, r.words] for r in rows]
    return _shares(raw)


def weights(rows: Sequence[Row]) -> npt.NDArray[np.float64]:
    """Probability of each row: rare names, things, emoji and colour up; variants and UI down."""
    variants = Counter((r.collection, r.words) for r in rows)
    drawings = Counter(concept for _, concept in {(r.collection, r.words) for r in rows})
    raw = [_weight(r, variants[r.collection, r.words], drawings[r.words]) for r in rows]
    return _shares(raw)


def _shares(raw: Sequence[float]) -> npt.NDArray[np.float64]:
    values = np.asarray(raw, np.float64)
    shares: npt.NDArray[np.float64] = values / values.sum()
    return shares


def _weight(row: Row, variants: int, sharing: int) -> float:
    weight: float = variants**-0.7
    if sharing == 1:
        weight *= 0.2
    else:
        weight *= min(1.0, sharing / 4) * sharing**-0.15
    weight *= {1: 3.0, 2: 1.0}.get(len(row.words), 0.4)
    if not UI_WORDS.isdisjoint(row.words):
        weight *= 0.3
    if row.collection in _PICTORIAL:
        weight *= 4
    elif row.colour:
        weight *= 2
    return weight * (0.4 if row.collection in _MACHINE_MADE else 1)


class Batches:
    """Batch ``step`` of a seeded, endless stream; a function of (seed, step) and nothing else."""

    def __init__(self, cache: Cache, keep: npt.NDArray[np.int64], size: int, seed: int) -> None:
        self.cache, self.size, self.seed = cache, size, seed
        self.rows = [cache.rows[i] for i in keep]
        self.easy, self.usual = easy_weights(self.rows), weights(self.rows)
        self.named: dict[tuple[str, ...], list[Row]] = {}
        for row in self.rows:
            self.named.setdefault(row.words, []).append(row)

    def draw(
        self, step: int, strength: float = 1.0, mates: bool = False
    ) -> tuple[list[Row], Tensor, Tensor, np.random.Generator]:
        """Rows (black ones first), their alpha [N, 64, 64], their premultiplied RGBA
        [M, 4, 64, 64], and the generator for what else is random in this step.

        With ``mates`` half of the rows have the name of another one, most often of another set.
        """
        rng = np.random.default_rng((self.seed, step))
        cumulative = np.cumsum((1 - strength) * self.easy + strength * self.usual)
        count = self.size - self.size // 2 if mates else self.size
        picks = np.searchsorted(cumulative, rng.random(count) * cumulative[-1])
        chosen = [self.rows[i] for i in picks]
        for row in chosen[: self.size - count]:
            same = self.named[row.words]
            chosen.append(same[rng.integers(len(same))])
        rows = sorted(chosen, key=lambda row: row.colour)
        return rows, *pixels(self.cache, rows), rng


def pixels(cache: Cache, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Alpha [N, 64, 64] of the black rows, premultiplied RGBA [M, 4, 64, 64] of the others."""
    mono = [cache.mono[row.slot] for row in rows if not row.colour]
    colour = [cache.colour[row.slot] for row in rows if row.colour]
    alpha = np.stack(mono) if mono else np.zeros((0, 64, 64), np.uint8)
    rgba = np.stack(colour) if colour else np.zeros((0, 64, 64, 4), np.uint8)
    layers = from_bytes(torch.from_numpy(rgba))
    layers[:, :3] *= layers[:, 3:]
    return torch.from_numpy(alpha).float() / 255, layers


def plain(cache: Cache, rows: Sequence[Row]) -> Tensor:
    """Rows as they are, black or in colour on white, in the order given: [rows, 3, 64, 64]."""
    out = torch.empty(len(rows), 3, 64, 64)
    for line, row in zip(out, rows, strict=True):
        if row.colour:
            layer = pixels(cache, [row])[1][0]
            line.copy_(layer[:3] + 1 - layer[3])
        else:
            line.copy_(1 - torch.from_numpy(cache.mono[row.slot].astype(np.float32)) / 255)
    return out
