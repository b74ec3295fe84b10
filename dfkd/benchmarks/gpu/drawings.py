"""The trainings of the miniature's two models on made-up drawings, without an icon set."""

import contextlib
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
from open_clip.tokenizer import SimpleTokenizer

from dfkd.benchmarks.gpu.sizes import Sizes
from dfkd.miniature.drawings.rendering import Cache, DrawingRow
from dfkd.miniature.looks.fields import SIZE
from dfkd.miniature.tokenizer import caption_words, merges, write_merges
from dfkd.miniature.training import teacher
from dfkd.miniature.training.generator import GeneratorTrainer
from dfkd.miniature.training.teacher import TeacherTrainer

NAMES = ("dog", "cat", "clock", "house", "tree", "alarm clock", "solar panel", "red car")
"""Names of the drawings, each of which several sets have."""
SETS = ("first", "second", "third", "fourth")


def _cache(count: int) -> Cache:
    """Half of the drawings in one ink, half in colour; all of noise."""
    random = np.random.default_rng(0)
    half = count // 2
    rows = [
        DrawingRow(
            collection=SETS[slot % len(SETS)],
            name=(name := NAMES[slot // len(SETS) % len(NAMES)]),
            words=tuple(name.split()),
            style=("bold",),
            categories=("Animals",),
            aliases=(),
            colour=colour,
            slot=slot,
        )
        for colour in (False, True)
        for slot in range(half)
    ]
    mono = random.integers(256, size=(half, SIZE, SIZE), dtype=np.uint8)
    return Cache(rows, mono, random.integers(256, size=(half, SIZE, SIZE, 4), dtype=np.uint8))


def trainer(sizes: Sizes, what: str, folder: Path) -> TeacherTrainer | GeneratorTrainer:
    """The training of the miniature's `teacher` or `generator`, at full difficulty.

    It calls back after half of its steps and after all of them. Its work is in `folder`.
    """
    length: dict[str, Any] = {
        "steps": 2 * sizes.pretraining_steps,
        "checkpoint_every": sizes.pretraining_steps,
    }
    cache = _cache(sizes.drawings)
    keep = np.arange(len(cache.rows))
    recipe = dataclasses.replace(sizes.teacher_recipe, easy_steps=1, compile=False, **length)
    words = caption_words(cache.rows, 1)
    merges_file = folder / "merges.txt.gz"
    write_merges(merges_file, merges(words))
    tokenizer = SimpleTokenizer(str(merges_file), context_length=recipe.context_length)
    if what == "teacher":
        return TeacherTrainer(recipe, cache, keep, tokenizer, words, folder, 0, _silent)
    other = dataclasses.replace(sizes.generator_recipe, free_steps=0, adversarial_from=0, **length)
    tower = teacher.build(recipe, tokenizer.vocab_size)
    with contextlib.redirect_stdout(io.StringIO()):  # taming prints its shapes
        return GeneratorTrainer(other, cache, keep, tower, folder, 0, _silent)


def _silent(line: str) -> None:
    """Prints nothing: the kit has a line for each row."""
