"""The work folder: a kill while something is written leaves nothing that is taken for whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest

from dfkd.lab.miniature.recipe import (
    GeneratorRecipe,
    IconData,
    Recipe,
    Stage,
    folder_of,
    write_whole,
)


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


@pytest.mark.parametrize("stage", get_args(Stage))
def test_another_recipe_works_in_another_folder(tmp_path: Path, stage: Stage) -> None:
    data = IconData(work=str(tmp_path))
    own = folder_of(Recipe(data=data), stage)
    assert own.is_dir()
    assert own == folder_of(Recipe(data=data, output="elsewhere", threads=7), stage)
    assert own != folder_of(Recipe(data=data, seed=1), stage)
    # Another generator needs no other teacher.
    other = folder_of(Recipe(data=data, generator=GeneratorRecipe(codes=16)), stage)
    assert (other != own) == (stage in ("generator", "diffusion"))
