"""The work folder: a kill while something is written leaves nothing that is taken for whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dfkd.miniature.recipe import IconData, Recipe
from dfkd.miniature.work_folder import claim, write_whole


@contextmanager
def killed() -> Iterator[None]:
    """The process ends when half of a text is written."""
    write_text = Path.write_text

    def half_text(path: Path, text: str, *options: Any) -> None:
        write_text(path, text[: len(text) // 2], *options)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_text", half_text)
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
