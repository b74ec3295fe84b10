"""Captions of painted drawings in the manner of the web, from which the teacher learns; its tokens.

A caption names an object, or makes statements about a look ("red", "oil painting"), or both.
Captions of the default look, black ink on white, mostly do not mention it, as texts on the web do
not say that a photograph is one. Most captions of other looks make one to three statements.

The tokenizer is CLIP's byte-pair encoding, reduced to the words it needs. CLIP has 49,408 tokens.
The miniature keeps only the merges that make tokens of the words of its captions, so its token
table is small. Other words are spelled in shorter pieces, down to letters.
"""

import gzip
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dfkd.lab.miniature.drawings import DrawingRow
from dfkd.lab.miniature.looks import Look, vocabulary

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
"""Names of one object in different icon sets; captions sometimes use another one of them."""
_SYNONYMS_OF = {name: [o for o in group if o != name] for group in SYNONYMS for name in group}

_KINDS = ("icon", "picture", "drawing", "symbol", "image", "pictogram", "sign")
CAPTION_WORDS = frozenset(("a", "an", "the", "in", "style", "of", "and", "on", "art", *_KINDS))
"""Words that captions add to names and statements."""

_WITHOUT_LOOK = {"a X": 60, "X": 15, "a K of a X": 8, "X K": 6, "X C": 6, "the X": 5}
"""Templates of captions and their weights: without statements, with an object and statements, and
with statements alone. X is the object, S the statements joined by "and", K a kind of image and C
the category that the icon set gives."""
_WITH_LOOK = {"a S X": 26, "X in the style of S": 26, "a S K of a X": 18, "X S": 15, "a X in S": 15}
_LOOK_ALONE = {"S": 30, "a S K": 40, "in the style of S": 30}

_DEFAULT_MENTIONED, _LOOK_OMITTED = 0.1, 0.2
"""Share of the captions of the default look that mention it, and of the captions of other looks
that say nothing about them. Without the latter, captions of an object alone would always mean the
default look."""
_NOISY = 0.05
"""Share of captions with a random word that does not belong."""
_STATEMENT_COUNTS = (0.5, 0.35, 0.15)
"""Probability of one, two and three statements."""


@dataclass(frozen=True)
class Caption:
    """A caption and what it claims."""

    words: list[str]
    name: str = ""
    """The object; "" if it names none."""
    statements: tuple[str, ...] = ()
    """What it says about the look."""
    implies_default: bool = False
    """Whether it says nothing about the look and means the default one. A caption with neither this
    nor statements is true of its object in all looks.
    """


class Captioner:
    """Writes random captions of drawings, and tokenises them.

    Args:
        words: words from which noise is drawn.
    """

    def __init__(self, tokenizer: SimpleTokenizer, words: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.encode: Callable[[str], list[int]] = cache(tokenizer.encode)
        self.words = list(words)

    def tokens(self, captions: Sequence[Sequence[str]], at_most: int) -> Tensor:
        """Token ids int64 [N, L] of captions, each a list of words, padded with zeros.

        L is the length of the longest caption, which is cut to `at_most` tokens with start and
        end.
        """
        start, end = self.tokenizer.sot_token_id, self.tokenizer.eot_token_id
        rows = []
        for caption in captions:
            ids = [i for word in caption for i in self.encode(word)][: at_most - 2]
            rows.append(torch.tensor([start, *ids, end]))
        return pad_sequence(rows, batch_first=True)

    def caption(
        self, row: DrawingRow, look: Look, rng: np.random.Generator, easy: bool = False
    ) -> Caption:
        """A random caption of a drawing in a look; an `easy` one uses the drawing's own name."""
        name = row.concept if easy else object_name(row, rng)
        default = look.default and not row.colour
        if default and rng.random() >= _DEFAULT_MENTIONED:
            words = self._filled(_WITHOUT_LOOK, name, (), row, rng)
            return Caption(words, name, implies_default=True)
        if not default and rng.random() < _LOOK_OMITTED:
            return Caption(self._filled(_WITHOUT_LOOK, name, (), row, rng), name)
        statements = random_statements(row, look, rng)
        return Caption(self._filled(_WITH_LOOK, name, statements, row, rng), name, statements)

    def style_caption(self, row: DrawingRow, look: Look, rng: np.random.Generator) -> Caption:
        """A random caption of how a drawing is painted, which names no object."""
        statements = random_statements(row, look, rng)
        return Caption(self._filled(_LOOK_ALONE, "", statements, row, rng), "", statements)

    def _filled(
        self,
        templates: dict[str, int],
        name: str,
        statements: Sequence[str],
        row: DrawingRow,
        rng: np.random.Generator,
    ) -> list[str]:
        """The words of a random template with its slots filled."""
        weights = np.cumsum(list(templates.values()))
        index = np.searchsorted(weights, rng.random() * weights[-1], side="right")
        slots = {
            "X": name.split(),
            # The first "and" is cut off.
            "S": [word for text in statements for word in ("and", *_lower_words(text))][1:],
            "K": [_KINDS[rng.integers(len(_KINDS))]],
            "C": _lower_words(row.categories[0]) if row.categories else [],
        }
        words = [
            word for part in list(templates)[index].split() for word in slots.get(part, [part])
        ]
        # Texts of the web do not describe exactly what an image shows.
        if rng.random() < _NOISY:
            stray = self.words[rng.integers(len(self.words))]
            words.insert(int(rng.integers(len(words) + 1)), stray)
        return words


def truths(row: DrawingRow, look: Look) -> frozenset[str]:
    """All statements that are true of a drawing in a look, with the style words of its name."""
    return frozenset((*look.words(row.colour), *row.style))


def random_statements(row: DrawingRow, look: Look, rng: np.random.Generator) -> tuple[str, ...]:
    """One to three of the `truths`, in random order, most of them about the look."""
    known = list(look.words(row.colour)) or list(row.style)
    rng.shuffle(known)
    count = 1 + int(np.searchsorted(np.cumsum(_STATEMENT_COUNTS), rng.random()))
    # Style words of names mean different things in different sets, so they are used rarely.
    if row.style and rng.random() < 0.1:
        known.insert(0, row.style[rng.integers(len(row.style))])
    return tuple(known[:count])


def object_name(row: DrawingRow, rng: np.random.Generator) -> str:
    """A random name of the object: in seven of ten cases the drawing's own, else one of `names`."""
    others = sorted(names(row) - {row.concept})
    if not others or rng.random() < 0.7:
        return row.concept
    return others[rng.integers(len(others))]


@cache
def names(row: DrawingRow) -> frozenset[str]:
    """All names that captions may use for a drawing's object.

    They are its own name, aliases, synonyms, and its own name without one of several words.
    """
    own = {row.concept, *(alias for alias in row.aliases if alias)}
    swapped = {other for name in own for other in _SYNONYMS_OF.get(name, ())}
    # An "alarm clock" is also captioned "clock".
    shorter = {" ".join((*row.words[:i], *row.words[i + 1 :])) for i in range(len(row.words))}
    return frozenset(own | swapped | (shorter if len(row.words) > 1 else set()))


def _lower_words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return [w for w in "".join(c if c.isalnum() else " " for c in text.lower()).split() if w]


def caption_words(rows: Sequence[DrawingRow], at_least: int) -> list[str]:
    """The words that get their own tokens, sorted.

    They are the words in the names of at least `at_least` drawings, and all words that captions
    add.
    """
    counts = Counter(w for r in rows for w in {*r.words, *r.style, *" ".join(r.aliases).split()})
    common = {w for w, n in counts.items() if n >= at_least and w.isalpha()}
    looks = {word for statement in vocabulary() for word in statement.split()}
    return sorted(common | looks | CAPTION_WORDS)


def merges(words: Sequence[str]) -> str:
    """The lines of CLIP's merges file that a tokenizer needs to spell `words` as CLIP's does.

    The file has a header, then one merge of two symbols in each line, most frequent first.
    """
    full = SimpleTokenizer()
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as stream:
        lines = stream.read().split("\n")
    pairs = [tuple(line.split()) for line in lines[1:] if line]
    # Each symbol of this file is made by one merge alone.
    made = {"".join(pair): pair for pair in pairs}
    needed: set[tuple[str, ...]] = set()

    def need(symbol: str) -> None:
        """Add the merge that makes a symbol, and those that make its two parts."""
        if symbol in made:
            needed.add(made[symbol])
            for part in made[symbol]:
                need(part)

    for word in words:
        for symbol in full.bpe(word).split():
            need(symbol)
    return "\n".join([lines[0], *(" ".join(pair) for pair in pairs if pair in needed)])


def write_merges(path: Path, text: str) -> None:
    """Write a merges file for open_clip's tokenizer; the same text gives the same bytes."""
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
