"""Captions for icons as the web writes them, and what they claim; the text side of the teacher's
training.

A caption of the default look, black ink on white, does not mention it, as texts on the web do not
say that a photograph is one. Every other look is told, in whole or in part.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from dfkd.miniature.looks.look import Look
from dfkd.miniature.rendering import IconRow

Tokens = npt.NDArray[np.int64]

#: Different icon sets use different names for the same drawing; captions sometimes swap them.
SYNONYMS: tuple[tuple[str, ...], ...] = (
    ("house", "home"),
    ("car", "automobile"),
    ("airplane", "plane", "aeroplane"),
    ("bicycle", "bike"),
    ("envelope", "mail", "email"),
    ("tv", "television"),
    ("phone", "telephone"),
    ("person", "user"),
    ("picture", "image", "photo"),
    ("bin", "trash", "garbage"),
    ("gear", "cog", "settings"),
    ("bulb", "lightbulb"),
    ("gift", "present"),
    ("boat", "ship"),
    ("rabbit", "bunny"),
    ("cutlery", "fork knife"),
    ("money", "cash"),
    ("shop", "store"),
    ("glasses", "eyeglasses"),
    ("truck", "lorry"),
    ("film", "movie"),
    ("rock", "stone"),
    ("aubergine", "eggplant"),
    ("flame", "fire"),
    ("pan", "skillet"),
    ("sofa", "couch"),
)
_SWAPS = {name: [o for o in group if o != name] for group in SYNONYMS for name in group}

_KINDS = ("icon", "picture", "drawing", "symbol", "image", "pictogram", "sign")
#: Words of captions that may be missing from all icon names.
CAPTION_WORDS = frozenset(("a", "an", "the", "in", "style", "of", "and", "on", "art", *_KINDS))

#: Forms of captions and their weights; X is the object, S a style, K a kind of picture and C the
#: category that the icon set gives.
_UNMARKED = {"a X": 60, "X": 15, "a K of a X": 8, "X K": 6, "X C": 6, "the X": 5}
_MARKED = {"a S X": 26, "X in the style of S": 26, "a S K of a X": 18, "X S": 15, "a X in S": 15}
_STYLES = {"S": 30, "a S K": 40, "in the style of S": 30}

#: Share of captions of the default look that mention it, of captions of other looks that do not,
#: of captions with words that do not belong, and of marked captions that tell one, two or three
#: statements. With none of the second, unmarked captions meant the default look alone.
_MENTIONED, _UNTOLD, _NOISY = 0.1, 0.2, 0.05
_STATEMENTS = (0.5, 0.35, 0.15)


@dataclass(frozen=True)
class Caption:
    """A caption and what it claims."""

    words: list[str]
    name: str = ""
    """The object; "" claims none."""
    told: tuple[str, ...] = ()
    """The statements about the look."""
    unmarked: bool = False
    """Whether the caption is silent about the look, and so stands for the default one."""


class Captioner:
    """Captions icon rows; ``encode`` maps a word to token ids without start and end."""

    def __init__(
        self, encode: Callable[[str], list[int]], start: int, end: int, words: Sequence[str]
    ) -> None:
        self.encode = cache(encode)
        self.start, self.end = start, end
        self.words = list(words)

    def tokens(self, captions: Sequence[Sequence[str]], at_most: int) -> Tokens:
        """Token ids of captions (word lists), cut to ``at_most`` and zero-padded to the longest."""
        rows = []
        for caption in captions:
            ids = [i for word in caption for i in self.encode(word)][: at_most - 2]
            rows.append([self.start, *ids, self.end])
        out = np.zeros((len(rows), max(map(len, rows))), np.int64)
        for line, row in zip(out, rows, strict=True):
            line[: len(row)] = row
        return out

    def caption(
        self, row: IconRow, look: Look, rng: np.random.Generator, easy: bool = False
    ) -> Caption:
        """A random caption of one icon; an ``easy`` one uses the icon's own name."""
        name = row.concept if easy else object_name(row, rng)
        default = look.default and not row.colour
        if default and rng.random() >= _MENTIONED:
            return Caption(self._filled(_UNMARKED, name, (), row, rng), name, (), unmarked=True)
        if not default and rng.random() < _UNTOLD:
            return Caption(self._filled(_UNMARKED, name, (), row, rng), name)
        told = statements(row, look, rng)
        return Caption(self._filled(_MARKED, name, told, row, rng), name, told)

    def style_caption(self, row: IconRow, look: Look, rng: np.random.Generator) -> Caption:
        """A caption of how an icon is drawn, which names no object."""
        told = statements(row, look, rng)
        return Caption(self._filled(_STYLES, "", told, row, rng), "", told)

    def _filled(
        self,
        forms: dict[str, int],
        name: str,
        told: Sequence[str],
        row: IconRow,
        rng: np.random.Generator,
    ) -> list[str]:
        """The words of a random form."""
        shares = np.cumsum(list(forms.values()))
        form = list(forms)[np.searchsorted(shares, rng.random() * shares[-1], side="right")]
        category = _lower_words(row.categories[0]) if row.categories else []
        style = [word for text in told for word in ("and", *_lower_words(text))][1:]
        parts = {"X": name.split(), "S": style, "K": [_KINDS[rng.integers(len(_KINDS))]]}
        parts["C"] = category
        words = [word for part in form.split() for word in parts.get(part, [part])]
        if rng.random() < _NOISY:
            stray = self.words[rng.integers(len(self.words))]
            words.insert(int(rng.integers(len(words) + 1)), stray)
        return words


def truths(row: IconRow, look: Look) -> frozenset[str]:
    """All statements that are true of how an icon is drawn."""
    return frozenset((*look.words(row.colour), *row.style))


def statements(row: IconRow, look: Look, rng: np.random.Generator) -> tuple[str, ...]:
    """One to three true statements about how an icon is drawn; first of all those of its look."""
    known = list(look.words(row.colour)) or list(row.style)
    rng.shuffle(known)
    count = 1 + int(np.searchsorted(np.cumsum(_STATEMENTS), rng.random()))
    if row.style and rng.random() < 0.1:
        known.insert(0, row.style[rng.integers(len(row.style))])
    return tuple(known[:count])


def object_name(row: IconRow, rng: np.random.Generator) -> str:
    """A name of the object: mostly its own, else an alias, a synonym, or a part of the name."""
    others = sorted(names(row) - {row.concept})
    if not others or rng.random() < 0.7:
        return row.concept
    return others[rng.integers(len(others))]


@cache
def names(row: IconRow) -> frozenset[str]:
    """All names that captions may use for an icon's object."""
    own = {row.concept, *(alias for alias in row.aliases if alias)}
    swapped = {other for name in own for other in _SWAPS.get(name, ())}
    # An "alarm clock" is also captioned "clock".
    shorter = {" ".join((*row.words[:i], *row.words[i + 1 :])) for i in range(len(row.words))}
    return frozenset(own | swapped | (shorter if len(row.words) > 1 else set()))


def merges_for(words: Iterable[str], merges_file: str, encode_word: Callable[[str], str]) -> str:
    """The lines of a BPE merges file that are needed to spell ``words``, in order, with the header
    line.

    Args:
        merges_file: gzip file: one header line, then one merge of two symbols in each line.
        encode_word: spells a word with those merges; symbols are separated by spaces.
    """
    with gzip.open(merges_file, "rt", encoding="utf-8") as stream:
        lines = stream.read().split("\n")
    ranked = {tuple(line.split()): rank for rank, line in enumerate(lines[1:]) if line}
    needed: set[tuple[str, ...]] = set()
    for symbol in {s for word in words for s in encode_word(word).split()}:
        needed |= _history(symbol, ranked)
    return "\n".join([lines[0], *(" ".join(pair) for pair in sorted(needed, key=ranked.get))])  # type: ignore[arg-type]


def _history(symbol: str, ranked: dict[tuple[str, ...], int]) -> set[tuple[str, ...]]:
    parts = [*symbol.removesuffix("</w>")]
    if symbol.endswith("</w>"):
        parts[-1] += "</w>"
    used: set[tuple[str, ...]] = set()
    while len(parts) > 1:
        pairs = [(ranked.get((a, b), len(ranked)), (a, b)) for a, b in pairwise(parts)]
        # As in BPE, the merge that comes first in the file is applied first.
        rank, pair = min(pairs)
        if rank == len(ranked):
            break
        used.add(pair)
        parts = _merged(parts, pair)
    return used


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def _lower_words(text: str) -> list[str]:
    return [w for w in "".join(c if c.isalnum() else " " for c in text.lower()).split() if w]
