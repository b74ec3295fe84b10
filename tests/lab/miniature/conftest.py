"""A cache of a few drawings, and a tokenizer of the words of their captions."""

import numpy as np
import pytest
from open_clip.tokenizer import SimpleTokenizer

from dfkd.lab.miniature.captions import merges, write_merges
from dfkd.lab.miniature.drawings import Cache
from tests.helpers.drawings import WORDS, row


@pytest.fixture(scope="module")
def cache() -> Cache:
    rng = np.random.default_rng(0)
    mono = (rng.random((6, 64, 64)) > 0.5).astype(np.uint8) * 255
    colour = rng.integers(0, 256, (2, 64, 64, 4), dtype=np.uint8)
    names = ["dog", "cat", "clock", "house", "alarm clock", "tree"]
    rows = [row(name, slot=i) for i, name in enumerate(names)]
    return Cache([*rows, *(row("dog", colour=True, slot=i) for i in range(2))], mono, colour)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SimpleTokenizer:
    path = tmp_path_factory.mktemp("merges") / "bpe.txt.gz"
    write_merges(path, merges(WORDS))
    return SimpleTokenizer(str(path), context_length=24)
