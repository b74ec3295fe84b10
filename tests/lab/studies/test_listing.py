"""How a study is found by its name, folder or file."""

from pathlib import Path

import pytest

from dfkd.errors import ManifestError
from dfkd.lab.studies.study import STUDIES, find
from tests.helpers.tiny_study import write


def test_a_folder_hides_the_study_of_its_name_only_if_it_holds_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("images", "results"):
        Path(name).mkdir()
    assert find("images", ()).folder == STUDIES / "images"
    with pytest.raises(ManifestError, match=r"^study: must be a study's name, folder or file"):
        find("results", ())
    write(Path("images"))
    assert find("images", ()).folder == Path("images")
    assert find("images/study.yaml", ()).described.name == "tiny"
