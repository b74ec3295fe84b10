"""The bundled evaluation set: held-out drawings, painted in the looks of the domains."""

import tarfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from dfkd.lab.miniature import clipart, evaluation_set
from dfkd.lab.miniature.drawings import Cache, DrawingRow
from dfkd.lab.miniature.evaluation_set import OFFICIAL, OFFICIAL_IMAGES, OTHER_IMAGES
from dfkd.lab.miniature.icons import EMOJI
from dfkd.lab.miniature.looks import DOMAINS


def icon(name: str, collection: str, colour: bool, slot: int) -> DrawingRow:
    words = tuple(name.split())
    return DrawingRow(collection, name.replace(" ", "-"), words, (), (), (), colour, slot)


@pytest.fixture(scope="module")
def cache() -> Cache:
    rng = np.random.default_rng(0)
    mono = (rng.random((8, 64, 64)) > 0.7).astype(np.uint8) * 255
    colour = rng.integers(0, 256, (3, 64, 64, 4), dtype=np.uint8)
    names = ("clock", "alarm clock", "open book", "guitar", "guitar", "guitar", "guitar", "zebra")
    rows = [icon(name, "lucide", False, slot) for slot, name in enumerate(names)]
    rows.append(icon("clock", EMOJI[0], True, 0))
    rows.append(icon("clock", clipart.EVALUATION, True, 1))
    rows.append(icon("dog", clipart.EVALUATION, True, 2))
    return Cache(rows, mono, colour)


def test_official_classes_fill_every_domain_and_others_show_each_drawing_once(cache: Cache) -> None:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for image in evaluation_set.select(cache):
        counts[image.domain][image.label] += 1
    for domain in set(DOMAINS) - {"clipart", "color_emoji"}:
        assert counts[domain]["clock"] == counts[domain]["book"] == OFFICIAL_IMAGES
        assert counts[domain]["guitar"] == OTHER_IMAGES
        assert counts[domain]["dog"] == 0
    assert counts["color_emoji"]["clock"] == OFFICIAL_IMAGES
    # Clip art is not repeated: it has too few drawings to be an official domain.
    assert (counts["clipart"]["clock"], counts["clipart"]["dog"]) == (1, 1)
    assert "guitar" not in OFFICIAL


def test_a_repeated_drawing_is_another_picture(cache: Cache) -> None:
    pictures = [
        picture
        for picture in evaluation_set.select(cache)
        if (picture.domain, picture.label) == ("black_on_white", "clock")
    ]
    assert len({picture.row for picture in pictures}) == 2
    assert len({picture.pixels.tobytes() for picture in pictures}) == OFFICIAL_IMAGES


def test_drawings_that_training_has_are_not_shown(cache: Cache) -> None:
    known = cache.rows[0]
    shown = {picture.row for picture in evaluation_set.select(cache, {known})}
    assert known not in shown
    assert cache.rows[1] in shown


def test_the_bundle_is_reproducible(cache: Cache, tmp_path: Path) -> None:
    for name in "ab":
        evaluation_set.write(evaluation_set.select(cache), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with tarfile.open(tmp_path / "a") as bundle:
        names = bundle.getnames()
    assert names == sorted(names)
    assert all(name.endswith(".webp") for name in names)


def test_each_name_belongs_to_one_class() -> None:
    names = [name for text in evaluation_set.NAMES.values() for name in text.split("/")]
    assert len(names) == len(set(names))
    assert set(OFFICIAL) <= set(evaluation_set.NAMES)
    assert {"clock", "alarm clock", "red heart"} <= evaluation_set.official_names()
