"""The work folder: a kill while something is written leaves nothing that is taken for whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfkd.miniature import pretraining
from dfkd.miniature.drawings import rendering
from dfkd.miniature.drawings.icons import Catalogue
from dfkd.miniature.recipe import IconData, Recipe
from dfkd.miniature.work_folder import claim, write_whole
from tests.helpers import icon_package


@contextmanager
def killed() -> Iterator[None]:
    """The process ends when half of a text or of an array is written."""
    write_text, save = Path.write_text, np.save

    def half_text(path: Path, text: str, *options: Any) -> None:
        write_text(path, text[: len(text) // 2], *options)
        raise KeyboardInterrupt

    def half_array(path: Path, array: Any) -> None:
        save(path, array[: len(array) // 2])
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_text", half_text)
        patch.setattr(np, "save", half_array)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.parametrize("earlier", ["", "the earlier text"])
def test_a_text_is_written_as_a_whole_or_not_at_all(tmp_path: Path, earlier: str) -> None:
    path = tmp_path / "text.json"
    if earlier:
        path.write_text(earlier)
    with killed():
        write_whole(path, "the new text")
    assert (path.read_text() if path.exists() else "") == earlier
    write_whole(path, "the new text")
    assert path.read_text() == "the new text"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_whose_claim_was_killed_can_be_claimed(tmp_path: Path) -> None:
    recipe = Recipe(data=IconData(work=str(tmp_path)))
    with killed():
        claim(recipe, "world")
    assert claim(recipe, "world") == claim(recipe, "world") == tmp_path / "world"


def test_hashes_are_kept_once_they_are_whole(tmp_path: Path) -> None:
    catalogue = Catalogue(icon_package.write(tmp_path / "package"))
    cache = rendering.build(catalogue, ["mdi"], tmp_path / "cache", 3, 1)
    with killed():
        pretraining._hashes(tmp_path / "cache", 1)
    bits = pretraining._hashes(tmp_path / "cache", 1)
    assert len(bits) == len(cache.rows)
    written = (tmp_path / "cache" / "bits.npy").stat().st_mtime_ns
    np.testing.assert_array_equal(pretraining._hashes(tmp_path / "cache", 1), bits)
    assert (tmp_path / "cache" / "bits.npy").stat().st_mtime_ns == written
