"""The teacher's words and its tokenizer: CLIP's byte-pair encoding, reduced to the words it needs.

CLIP has 49,408 tokens. The miniature keeps only the merges that make tokens of the words of its
captions, so its token table is small. Other words are spelled in shorter pieces, down to letters.
"""

import gzip
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer, default_bpe

from dfkd.miniature.captions import CAPTION_WORDS
from dfkd.miniature.drawings.rendering import DrawingRow
from dfkd.miniature.looks.look import vocabulary


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
    ranked = {tuple(line.split()): rank for rank, line in enumerate(lines[1:]) if line}
    # A symbol was merged from shorter ones, so their merges are needed too.
    needed: set[tuple[str, ...]] = set()
    for symbol in {s for word in words for s in full.bpe(word).split()}:
        needed |= _history(symbol, ranked)
    return "\n".join([lines[0], *(" ".join(pair) for pair in sorted(needed, key=ranked.get))])  # type: ignore[arg-type]


def _history(symbol: str, ranked: dict[tuple[str, ...], int]) -> set[tuple[str, ...]]:
    """The merges that build a symbol from its letters; `</w>` marks the end of a word."""
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
    """The parts after merging each occurrence of a pair, from left to right."""
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def write_merges(path: Path, text: str) -> None:
    """Write a merges file for open_clip's tokenizer; the same text gives the same bytes."""
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
