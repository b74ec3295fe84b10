"""Which drawings a training batch shows.

Icon sets name the same objects, repeat a drawing in several variants, and contain more parts of
user interfaces than things. So drawings are not sampled uniformly: `weights` favours objects that
several sets draw.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from dfkd.lab.miniature.drawings.nouns import UI_WORDS
from dfkd.lab.miniature.drawings.rendering import Cache, DrawingRow

Weights = Callable[[Sequence[DrawingRow]], npt.NDArray[np.float64]]
"""Computes the sampling probability of each row, float64 [rows]."""
GROUP_SIZE = 4
"""Number of drawings in a group of one object."""
_PICTORIAL = frozenset({"emojione", "fxemoji", "streamline-emojis", "flat-color-icons"})
"""Sets of pictures of things, most of them in colour, of which there are few."""
_MACHINE_MADE = frozenset({"iconmind"})
"""Sets that a program drew."""


def easy_weights(rows: Sequence[DrawingRow]) -> npt.NDArray[np.float64]:
    """Sampling probability of each row in the first steps, float64 [rows].

    Only objects that at least three sets draw are sampled. Each drawing of a set is as likely as
    any other one, however many variants it has.
    """
    variants, sets = _counts(rows)
    # A small trial may have no object of three sets.
    shared = 3 if max(sets.values()) > 2 else 1
    return _normalised([(sets[r.words] >= shared) / variants[r.collection, r.words] for r in rows])


def name_weights(rows: Sequence[DrawingRow]) -> npt.NDArray[np.float64]:
    """Sampling probability of each row where all names are equally likely, float64 [rows].

    So are the drawings of a name, however many variants each has.
    """
    variants, sets = _counts(rows)
    return _normalised([1 / (sets[r.words] * variants[r.collection, r.words]) for r in rows])


def class_weights(
    rows: Sequence[DrawingRow], classes: Iterable[Sequence[DrawingRow]], share: float
) -> npt.NDArray[np.float64]:
    """Sampling probability of each row where some classes get a share, float64 [rows].

    All classes are equally likely, and so are all drawings of a class. The rest is `weights`.

    Args:
        classes: the drawings of each class, which are among `rows`.
        share: probability of all classes together, 0-1.
    """
    index = {row: i for i, row in enumerate(rows)}
    raw = np.zeros(len(rows))
    for drawings in classes:
        raw[[index[row] for row in drawings]] += 1 / len(drawings)
    # A small trial may have drawings of none of them.
    if not raw.any():
        return weights(rows)
    return share * _normalised(raw) + (1 - share) * weights(rows)


def weights(rows: Sequence[DrawingRow]) -> npt.NDArray[np.float64]:
    """Sampling probability of each row after the first steps, float64 [rows].

    Objects of several sets, short names, emoji and colour get more, variants of a drawing and parts
    of user interfaces less.
    """
    variants, sets = _counts(rows)
    return _normalised([_weight(r, variants[r.collection, r.words], sets[r.words]) for r in rows])


def _counts(
    rows: Sequence[DrawingRow],
) -> tuple[Counter[tuple[str, tuple[str, ...]]], Counter[tuple[str, ...]]]:
    """Number of variants of each drawing (a set and a name), and of sets with each name."""
    variants = Counter((r.collection, r.words) for r in rows)
    return variants, Counter(name for _, name in variants)


def _normalised(raw: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The values divided by their sum."""
    values = np.asarray(raw, np.float64)
    shares: npt.NDArray[np.float64] = values / values.sum()
    return shares


def _weight(row: DrawingRow, variants: int, sets: int) -> float:
    """The weight of a row whose drawing has some variants and whose name is in some sets."""
    # So n variants together have n ** 0.3 times the weight of a single drawing.
    weight: float = variants**-0.7
    if sets == 1:
        # A name of one set alone is often a compound that only this set uses.
        weight *= 0.2
    else:
        # A drawing's weight rises with its name's sets up to four, and falls slowly beyond them.
        weight *= min(1.0, sets / 4) * sets**-0.15
    # One word names a thing; many words describe a situation.
    weight *= {1: 3.0, 2: 1.0}.get(len(row.words), 0.4)
    if not UI_WORDS.isdisjoint(row.words):
        weight *= 0.3
    if row.collection in _PICTORIAL:
        weight *= 4
    elif row.colour:
        weight *= 2
    return weight * (0.4 if row.collection in _MACHINE_MADE else 1)


class Batches:
    """The drawings of training batches; batch `step` depends only on (seed, step).

    So a training that resumes gets the batches that it would have got.

    Args:
        keep: indices of the rows of `cache` that are sampled.
        size: number of drawings of a batch.
        easy, usual: sampling probabilities of the first batches and of later ones, from the rows.
    """

    def __init__(
        self,
        cache: Cache,
        keep: npt.NDArray[np.int64],
        size: int,
        seed: int,
        easy: Weights = easy_weights,
        usual: Weights = weights,
    ) -> None:
        self.cache, self.size, self.seed = cache, size, seed
        self.rows = [cache.rows[i] for i in keep]
        self.easy, self.usual = easy(self.rows), usual(self.rows)
        self.named: dict[tuple[str, ...], list[DrawingRow]] = {}
        for row in self.rows:
            self.named.setdefault(row.words, []).append(row)

    def draw(
        self, step: int, strength: float = 1.0, groups: int = 0
    ) -> tuple[list[DrawingRow], np.random.Generator]:
        """The rows of a batch, and the generator for the step's other random choices.

        Args:
            strength: share of `usual` in the sampling probabilities, 0-1; the rest is those of
                the first batches.
            groups: the last `GROUP_SIZE * groups` rows are groups that share an object: twice
                the same drawing, and two drawings of the same name, mostly from other sets.
        """
        rng = np.random.default_rng((self.seed, step))
        singles = self.size - GROUP_SIZE * groups
        # Inverse transform sampling: one drawing for each single row, and the first of each group.
        cumulative = np.cumsum((1 - strength) * self.easy + strength * self.usual)
        indices = np.searchsorted(cumulative, rng.random(singles + groups) * cumulative[-1])
        sampled = [self.rows[i] for i in indices]
        rows = sampled[:singles]
        for row in sampled[singles:]:
            same_name = self.named[row.words]
            others = [same_name[rng.integers(len(same_name))] for _ in range(2)]
            rows += [row, row, *others]
        return rows, rng
