"""The teacher's words and its tokenizer: CLIP's byte-pair encoding, reduced to the words it needs.

CLIP has 49,408 tokens. The miniature keeps only the merges that make tokens of the words of its
captions, so its token table is small. Other words are spelled in shorter pieces, down to letters.
"""

import gzip
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer, default_bpe

from dfkd.lab.miniature.captions import CAPTION_WORDS
from dfkd.lab.miniature.drawings.rendering import DrawingRow
from dfkd.lab.miniature.looks.look import vocabulary


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
