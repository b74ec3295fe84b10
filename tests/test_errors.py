"""Texts of errors: whole, in one line, without secrets."""

import pytest

from dfkd.errors import ManifestError, WeightsError, as_utf8, one_line, printable_line, shorten

SECRET = "https://user:hunter2@host/bucket"


def test_a_secret_at_the_cut_of_a_value_is_concealed() -> None:
    for place in range(320):
        value = "x" * place + f" {SECRET}" + "y" * 300
        assert "hunter2"[:3] not in str(ManifestError("x", "must be", value, "fix it"))


@pytest.mark.parametrize(
    "text",
    [
        f"hf_{'hunter2' * 4}",
        "password=hunter2",
        "secret=hunter2",
        "credential=hunter2",
        "API_KEY=hunter2",
        "apikey=hunter2",
    ],
)
def test_a_secret_that_says_what_it_is_is_concealed(text: str) -> None:
    assert "hunter2" not in shorten(f"cannot read {text} there")


def test_a_library_s_error_is_one_line_that_is_never_empty() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(ValueError(" \n")) == one_line(ValueError()) == "ValueError"
    assert one_line(ValueError("x" * 200)) == "x" * 160


def test_a_printable_line_has_no_breaks_tabs_or_codes() -> None:
    assert printable_line("a\nb\tc\x1b[1Ad é") == r"a\nb\tc\x1b[1Ad é"


def test_bytes_that_are_no_text_are_told_apart() -> None:
    assert as_utf8("é\udcff\udcfe") == r"é\udcff\udcfe"


def test_an_error_of_another_section_names_its_keys_and_the_value_as_it_is() -> None:
    path = "/weights/teacher.safetensors"
    error = WeightsError(
        "teacher.weights", "must fit teacher.model", path, "name another teacher.weights"
    )
    found = error.of_section("teacher", "text_only")
    assert (type(found), found.field, found.exit_code) == (WeightsError, "text_only.weights", 2)
    assert str(found) == (
        f"text_only.weights: must fit text_only.model, got '{path}'; name another text_only.weights"
    )
    file = ManifestError("teacher.weights", "must be there", "my teacher.pt", "check the path")
    assert "got 'my teacher.pt'; " in str(file.of_section("teacher", "text_only"))
