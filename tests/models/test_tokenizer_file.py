"""Tokenizers from a file: their ids, and files that are refused."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from dfkd.errors import ManifestError
from dfkd.models.tokenizer_file import TokenizerFile
from tests.helpers.fuzzing import STORED, mutations
from tests.helpers.hub_families import write_tokenizer

SETTINGS: dict[str, dict[str, Any]] = {
    "siglip": {"clean": "canonicalize"},
    "siglip2": {"clean": "canonicalize"},
    "clipa": {"strip_sep_token": True},
}
"""What open_clip's configurations say of the tokenizers."""

LENGTH = 8


def load(folder: Path, family: str) -> TokenizerFile:
    known = write_tokenizer(folder / "tokenizer.json", family)
    return TokenizerFile(folder / "tokenizer.json", LENGTH, known, **SETTINGS[family])


@pytest.mark.parametrize(
    ("family", "text", "expected"),
    [
        ("siglip", "A photo, of a DOG!", "▁a ▁photo ▁of ▁a ▁dog </s> </s> </s>"),
        ("siglip", "hot_dog  ", "▁hot ▁dog </s> </s> </s> </s> </s> </s>"),
        ("siglip", "", "</s> </s> </s> </s> </s> </s> </s> </s>"),
        ("siglip", "a " * 9, "▁a ▁a ▁a ▁a ▁a ▁a ▁a </s>"),
        ("siglip", "<extra_id_0>", "▁ e x t r a ▁ </s>"),
        ("siglip2", "A dog?", "a ▁dog <eos> <pad> <pad> <pad> <pad> <pad>"),
        ("siglip2", "é", "<0xC3> <0xA9> <eos> <pad> <pad> <pad> <pad> <pad>"),
        ("siglip2", "dog a dog a dog a dog a", "dog ▁a ▁dog ▁a ▁dog ▁a ▁dog <eos>"),
        # What is 0 here is BERT's padding, and where its end would be.
        ("clipa", "A dog.", "[CLS] a dog . [PAD] [PAD] [PAD] [PAD]"),
        ("clipa", "cats", "[CLS] cat ##s [PAD] [PAD] [PAD] [PAD] [PAD]"),
        ("clipa", "a " * 9, "[CLS] a a a a a a [PAD]"),
        ("clipa", "犬 dog", "[CLS] [UNK] dog [PAD] [PAD] [PAD] [PAD] [PAD]"),
    ],
)
def test_ids_of_a_text(family: str, text: str, expected: str, tmp_path: Path) -> None:
    tokenizer = load(tmp_path, family)
    names = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = tokenizer(["a", text])
    assert ids.dtype == torch.int64
    assert [names.id_to_token(number) for number in ids[1].tolist()] == expected.split(" ")


def test_files_of_older_releases_are_read(tmp_path: Path) -> None:
    """SigLIP's is of 2023, when a word's beginning was written in another way, BERT's of 2020."""
    file = tmp_path / "tokenizer.json"
    for family in ("siglip", "clipa"):
        expected = load(tmp_path, family)(["a hot dog"])
        tree = json.loads(file.read_text())
        if family == "siglip":
            old = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
            tree["pre_tokenizer"] = old
        else:
            del tree["model"]["type"]
        file.write_text(json.dumps(tree))
        again = TokenizerFile(file, LENGTH, 100, **SETTINGS[family])
        assert torch.equal(again(["a hot dog"]), expected)


def test_what_the_file_says_of_padding_holds(tmp_path: Path) -> None:
    """And nothing that it says of a length."""
    known = write_tokenizer(tmp_path / "tokenizer.json", "siglip")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=0, pad_token="<pad>", length=5)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = TokenizerFile(tmp_path / "tokenizer.json", LENGTH, known)(["dog", "a " * 9])
    assert ids[0, 2:].tolist() == [0] * 6
    assert ids[1].tolist() == [ids[1, 0]] * 7 + [1]


def test_content_is_neither_cut_nor_marked(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, "siglip2")
    assert (tokenizer.marks, len(tokenizer.encode("a " * 20))) == (1, 20)
    assert tokenizer.encode("!?") == []


def test_a_token_beyond_the_text_tower_s_is_refused_where_it_is_read(tmp_path: Path) -> None:
    known = write_tokenizer(tmp_path / "tokenizer.json", "siglip")
    tokenizer = TokenizerFile(tmp_path / "tokenizer.json", LENGTH, known)  # takes no brackets away
    with pytest.raises(ManifestError, match=r"a token of '<extra_id_0>' is none of its text tow"):
        tokenizer(["<extra_id_0>"])


def changed(*path: str | int, to: object) -> Callable[[dict[str, Any]], object]:
    """A tokenizer with another value at a place."""

    def change(tree: dict[str, Any]) -> object:
        part: Any = tree
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = to
        return tree

    return change


REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
PREPEND = {"type": "Prepend", "prepend": "aa"}
TABLE = {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"}
SPLIT = {
    "type": "Split",
    "pattern": {"Regex": "(a+)+$"},
    "behavior": "Isolated",
    "invert": False,
}
SPECIAL = {"SpecialToken": {"id": "</s>", "type_id": 0}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tree: [tree], "no tokenizer"),
        (changed("model", to=None), "no tokenizer"),
        (changed("model", "vocab", to=[["a", 0.0]]), "UnkIdNotInVocabulary"),
        (changed("model", "unk_id", to=None), "unk_id"),
        (
            changed("model", to={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
            "Unigram",
        ),
        (changed("model", "dropout", to=0.5), "random"),
        (changed("model", "vocab", 4, 1, to="x"), ""),
        (changed("pre_tokenizer", to=SPLIT), "the pattern '(a+)+$'"),
        (changed("normalizer", to=REPLACE), "longer than what it replaces"),
        (changed("normalizer", to=PREPEND), "more than one sign"),
        (
            changed("normalizer", to={"type": "Sequence", "normalizers": [TABLE, TABLE]}),
            "one table",
        ),
        (changed("normalizer", to=TABLE), "index out of bounds"),
        (changed("normalizer", to={"type": "Unheard"}), ""),
        (changed("post_processor", "single", to=[SPECIAL] * 9), "leave no room"),
        (changed("padding", to={"pad_token": "none"}), ""),
    ],
)
def test_a_bad_file_is_refused_in_one_line(
    change: Callable[[dict[str, Any]], object], reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "tokenizer.json"
    known = write_tokenizer(file, "siglip")
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(ValueError, match=r"\S") as caught:
        TokenizerFile(file, LENGTH, known)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_size_or_kind_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tokenizer.json"
    known = write_tokenizer(file, "siglip")
    with pytest.raises(ValueError, match=f"it has {known} tokens, and the text tower knows 9"):
        TokenizerFile(file, LENGTH, 9)
    with pytest.raises(ValueError, match="lacks the token '\\[SEP\\]'"):
        TokenizerFile(file, LENGTH, known, strip_sep_token=True)
    monkeypatch.setattr("dfkd.models.tokenizer_file.MAX_BYTES", 100)
    with pytest.raises(ValueError, match="more than 100 bytes"):
        TokenizerFile(file, LENGTH, known)
    file.write_text("{")
    with pytest.raises(ValueError, match=r"\S"):
        TokenizerFile(file, LENGTH, known)


@pytest.mark.heavy
@pytest.mark.parametrize("family", SETTINGS)
@STORED
@given(data=st.data())
def test_any_change_of_a_file_is_read_or_refused(
    family: str, data: st.DataObject, tmp_path: Path
) -> None:
    """The constructor's errors, and those of texts that it has not seen."""
    file = tmp_path / "tokenizer.json"
    known = write_tokenizer(file, family)
    tree = json.loads(file.read_text())
    # Most of a file is its vocabulary, of which any change is like another.
    parts = {key: value for key, value in tree.items() if key != "model"}
    model = {key: value for key, value in tree["model"].items() if key not in ("vocab", "merges")}
    changed_parts = data.draw(mutations({"model": model, **parts}))
    if isinstance(changed_parts, dict) and isinstance(changed_parts.get("model"), dict):
        changed_parts["model"] = {**tree["model"], **changed_parts["model"]}
    file.write_bytes(json.dumps(changed_parts).encode())
    with contextlib.suppress(ValueError, ManifestError):
        TokenizerFile(file, LENGTH, known, **SETTINGS[family])(["a hot dog", "犬", "", "[SEP] x"])
