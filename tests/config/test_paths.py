from pathlib import Path

import pytest

from dfkd.config.paths import local_path


def test_a_tilde_is_the_home_folder_of_a_user_that_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path("~/weights") == local_path(Path("~/weights")) == Path("/home/me/weights")
    assert local_path("~nobody-of-this-name/weights") == Path("~nobody-of-this-name/weights")
