"""Captions for icons, as noisy as alternative texts on the web; the text side of the teacher's
training.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from dfkd.miniature.rendering import IconRow

Tokens = npt.NDArray[np.int64]

#: Marks a pseudo-word; training replaces its embedding by noise (paper, Eq 8-11).
PSEUDO_WORD = "*"

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

_KINDS = ("icon", "picture", "drawing", "symbol", "image", "pictogram", "sign", "emoji", "logo")
#: Words of captions that may be missing from all icon names.
CAPTION_WORDS = frozenset(
    (
        *("a", "an", "the", "in", "style", "of", "*", "icon", "picture", "drawing", "symbol"),
        *("image", "pictogram", "sign", "emoji", "logo", "monochrome", "colour", "color", "art"),
        *("pixel", "outline", "filled", "bold", "thin", "sketch", "hand", "drawn", "soft"),
        *("noisy", "textured"),
    )
)
_STYLE_LETTERS = list("inthestyleof")

_FORMS = ("a X", "X", "X in the style of S", "X as *", "a S X", "a S K of a X", "X K", "X C", "X S")
_STYLED_FORMS = frozenset(form for form in _FORMS if "S" in form)
_USUAL_WEIGHTS = (34, 10, 12, 16, 8, 6, 5, 4, 5)
_STYLED_WEIGHTS = (25, 5, 25, 5, 18, 10, 2, 2, 8)


@dataclass(frozen=True)
class Look:
    """How augmentation will draw an icon, in words (for captions that mention the style)."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Caption:
    """A caption of one icon."""

    name: str
    """The name of the object in the caption."""
    words: list[str]
    told: tuple[str, ...] = ()
    """Statements in the caption about how the icon is drawn, from ``Captioner.truths``."""


class Captioner:
    """Converts icon rows to token rows; ``encode`` maps text to token ids without start and end."""

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        start: int,
        end: int,
        words: Sequence[str],
        titles: dict[str, str],
    ) -> None:
        self.encode = cache(encode)
        self.start, self.end = start, end
        self.words = list(words)
        self.titles = titles

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
        self,
        row: IconRow,
        look: Look,
        rng: np.random.Generator,
        strength: float = 1.0,
        telling: bool = False,
    ) -> Caption:
        """A random caption of one icon; ``telling`` captions mention the style more often."""
        if rng.random() > strength:
            return Caption(row.concept, ["a", *row.words])
        name = object_name(row, rng)
        told = self._told(row, look, rng)
        style = [w for text in told for w in _lower_words(text)][:4]
        kind = _KINDS[rng.integers(len(_KINDS))]
        shares = _STYLED_WEIGHTS if telling else _USUAL_WEIGHTS
        form = _FORMS[np.searchsorted(np.cumsum(shares), rng.random() * sum(shares))]
        words = _fill_form(form, name, style, kind, row, rng)
        says = told if form in _STYLED_FORMS else ()
        return Caption(" ".join(name), self._noise(words, rng), says)

    def truths(self, row: IconRow, look: Look) -> list[str]:
        """All true statements about how an icon is drawn."""
        colours = "colour" if row.colour else "monochrome"
        return [*look.words, *row.style, self.titles[row.collection], colours]

    def _told(self, row: IconRow, look: Look, rng: np.random.Generator) -> tuple[str, ...]:
        choices = self.truths(row, look)
        count = 2 if rng.random() < 0.3 else 1
        return tuple(choices[rng.integers(len(choices))] for _ in range(count))

    def _noise(self, words: list[str], rng: np.random.Generator) -> list[str]:
        if rng.random() < 0.2:
            for _ in range(rng.integers(1, 4)):
                word = self.words[rng.integers(len(self.words))]
                words.insert(int(rng.integers(len(words) + 1)), word)
        return words


def _fill_form(
    form: str,
    name: list[str],
    style: list[str],
    kind: str,
    row: IconRow,
    rng: np.random.Generator,
) -> list[str]:
    """The words of a form: X, S, K and C stand for name, style, kind and category."""
    if form == "X as *":
        words = [*name, *_in_the_style_of(rng), *([PSEUDO_WORD] * rng.integers(1, 3))]
        return words if rng.random() < 0.5 else ["a", *words]
    if form == "X S":
        words = [*name, *style]
        rng.shuffle(words)
        return words
    category = _lower_words(row.categories[0]) if row.categories else []
    parts = {"X": name, "S": style, "K": [kind], "C": category}
    return [word for part in form.split() for word in parts.get(part, [part])]


def object_name(row: IconRow, rng: np.random.Generator) -> list[str]:
    """Words for the object: its name, an alias, a synonym, or its name with a word left out."""
    words = list(row.words)
    draw = rng.random()
    if draw < 0.12 and row.aliases:
        words = row.aliases[rng.integers(len(row.aliases))].split()
    elif draw < 0.3 and len(words) > 1:
        words.pop(int(rng.integers(len(words))))
    swaps = _SWAPS.get(" ".join(words))
    if swaps and rng.random() < 0.3:
        words = swaps[rng.integers(len(swaps))].split()
    return [w for w in words if w] or list(row.words)


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


def _in_the_style_of(rng: np.random.Generator) -> list[str]:
    if rng.random() < 0.7:
        return ["in", "the", "style", "of"]
    letters = list(_STYLE_LETTERS)
    rng.shuffle(letters)
    cuts = [0, 2, 5, 10, 12]
    return ["".join(letters[a:b]) for a, b in pairwise(cuts)]


def _lower_words(text: str) -> list[str]:
    return [w for w in "".join(c if c.isalnum() else " " for c in text.lower()).split() if w]
