"""What the scalars of a manifest are read as, what is written, and how trees are merged."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dfkd.config.manifest import Manifest
from dfkd.errors import ManifestError
from dfkd.utils.yaml import dump, merge, read_tree
from tests.helpers import small_manifest


def scalar(folder: Path, text: str) -> Any:
    path = folder / "scalar.yaml"
    path.write_text(f"key: {text}\n")
    return read_tree(path)["key"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1e-05", 1e-5), ("1E3", 1e3), ("-2.5e+3", -2500.0), ("0.1", 0.1),
        ("1.", 1.0), (".5", 0.5), ("+.5e1", 5.0), (".inf", math.inf), ("-.Inf", -math.inf),
        ("0", 0), ("-7", -7), ("+12", 12), ("0x1F", 31), ("0b11", 3), ("010", 8),
        ("true", True), ("False", False), ("TRUE", True), ("null", None), ("~", None), ("", None),
    ],
)  # fmt: skip
def test_flags_and_numbers(tmp_path: Path, text: str, value: Any) -> None:
    found = scalar(tmp_path, text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    ["no", "No", "on", "YES", "off", "y", "n", "1:30", "1:30.5", "1_000", "1_0.5", "1e", "e1",
     ".", "1.2.3", "08", "2026-11-29", "2026-11-29 12:00:00", "tRue", "inf", "nan", "-1-", "1e-3x",
     "0o7", "3 d"],
)  # fmt: skip
def test_other_scalars_are_text(tmp_path: Path, text: str) -> None:
    assert scalar(tmp_path, text) == text


def test_a_written_nan_is_read_as_nan(tmp_path: Path) -> None:
    assert math.isnan(scalar(tmp_path, ".nan"))


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text("noyesf01e.-+:_x ~=<", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
)


@given(st.dictionaries(st.text("no1e-", min_size=1), PLAIN))
def test_what_is_written_reads_back_as_the_same(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]
) -> None:
    written = dump(tree)
    path = tmp_path_factory.getbasetemp() / "written.yaml"
    path.write_text(written, encoding="utf-8")
    assert read_tree(path) == tree
    assert yaml.safe_load(written) == tree  # as do readers of YAML 1.1


def test_letters_of_other_languages_are_written_as_they_are() -> None:
    assert dump({"classes": ["café"]}) == "classes:\n- café\n"


HUGE = "0x1" + "0" * 4000
REFUSED = {
    **{f"prompts={{ ? {key} : 1}}": "(manifest|prompts): must " for key in (".nan", HUGE)},
    "prompts={ ? !!binary aGk= : 1}": "(manifest|prompts): must ",
    "cluster={1: 2}": r"cluster\.1: ",
    "cluster={true: 2}": r"cluster\.true: ",
    "cluster={~: 2}": r"cluster\.null: ",
    "classes=dog": r"classes: must be a list, got 'dog'; write it as \[A, B\]$",
    "evaluation.aliases={1: 2}": r"evaluation\.aliases\.1: ",
    **{
        f"seed={text}": r"--set seed: must be valid YAML, got '\w+Error'; "
        for text in ("!!bool foo", "!!timestamp foo", '!!int ""', "!!float foo")
    },
    # No path may hold one.
    r'storage.root="a\0b"': r"storage\.root: must not hold a null character, got ",
    r'prompts={"a\0b": 1}': "prompts: must not hold a null character, got ",
    r'storage.root="\ud800"': r"storage\.root: must be text that UTF-8 can hold, got ",
    r'prompts={"\ud800": 1}': "prompts: must be text that UTF-8 can hold, got ",
}


@pytest.mark.parametrize(("setting", "message"), REFUSED.items(), ids=[s[:40] for s in REFUSED])
def test_what_no_file_can_hold_or_no_key_is_is_refused_at_its_key(
    tmp_path: Path, setting: str, message: str
) -> None:
    with pytest.raises(ManifestError, match=f"^{message}"):
        Manifest.read(small_manifest.write(tmp_path), (setting,))


@pytest.mark.parametrize("key", ["1", "true"])
def test_a_key_of_the_whole_file_that_is_no_text_is_named(tmp_path: Path, key: str) -> None:
    path = small_manifest.write(tmp_path)
    path.write_text(f"{key}: 2\n{path.read_text()}")
    with pytest.raises(ManifestError, match=f"^{key}: is not a key of the manifest, got 2; "):
        Manifest.read(path)


TREES = st.recursive(
    st.integers() | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
)


@given(
    st.dictionaries(st.sampled_from("abc"), TREES), st.dictionaries(st.sampled_from("abc"), TREES)
)
def test_what_is_merged_holds_every_leaf_of_the_second(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    found = merge(first, second)
    assert merge(found, second) == found
    assert merge(first, {}) == first
    assert found.keys() == first.keys() | second.keys()
    for key, value in second.items():
        if not isinstance(value, dict) or not isinstance(first.get(key), dict):
            assert found[key] == value
