"""Texts of errors: whole, short, and in one line. `test_credentials` has what they conceal."""

import pickle

from dfkd.errors import ManifestError, as_utf8, one_line, printable_line


def test_a_library_s_error_is_one_line_that_is_never_empty() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(ValueError(" \n")) == one_line(ValueError()) == "ValueError"
    assert one_line(ValueError("x" * 200)) == "x" * 160


def test_a_printable_line_has_no_breaks_tabs_or_codes() -> None:
    assert printable_line("a\nb\tc\x1b[1Ad é") == r"a\nb\tc\x1b[1Ad é"


def test_bytes_that_are_no_text_are_told_apart() -> None:
    assert as_utf8("é\udcff\udcfe") == r"é\udcff\udcfe"


def test_errors_can_be_pickled_without_loss() -> None:
    error = pickle.loads(pickle.dumps(ManifestError("seed", "must be", -1, "change it")))
    assert (str(error), error.field) == ("seed: must be, got -1; change it", "seed")
    assert error.exit_code == 2


def test_a_huge_value_is_not_repeated() -> None:
    assert len(str(ManifestError("seed", "must be", "x" * 10**6, "change it"))) < 400


def test_an_error_moves_no_cursor() -> None:
    told = str(
        ManifestError("\x1b]0;title\x07\x1b[2K", "must be", "\u202ex", "caf\u00e9 \U0001f680")
    )
    assert "\\x1b]0;title\\x07" in told
    assert told.isprintable()
    assert told.endswith("caf\u00e9 \U0001f680")
