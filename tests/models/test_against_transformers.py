"""The same ids as open_clip's tokenizer of a hub, which needs transformers; `.ci/run` installs it.

PYTHONPATH=build/transformers .venv/bin/python -m pytest tests/models/test_against_transformers.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.tokenizer import HFTokenizer

from dfkd.models.tokenizer_file import TokenizerFile
from tests.helpers.hub_families import family_config, write_tokenizer

pytest.importorskip("transformers", reason=".ci/run installs it")

OF_THE_LIBRARY = {
    "siglip": {"tokenizer_class": "T5Tokenizer", "pad_token": "</s>", "extra_ids": 0},
    "siglip-i18n": {"tokenizer_class": "T5Tokenizer", "pad_token": "</s>", "extra_ids": 0},
    "siglip2": {
        "tokenizer_class": "GemmaTokenizer",
        "pad_token": "<pad>",
        "padding_side": "right",
        "add_bos_token": False,
        "add_eos_token": True,
    },
    "clipa": {"tokenizer_class": "BertTokenizer", "do_lower_case": True},
}
"""What a hub has beside `tokenizer.json`, in `tokenizer_config.json`."""

TEXTS = [
    "This is a photo of a Dog.",
    "hot_dog; a  CAR's\tphoto",
    "",
    "!",
    "crème brûlée &amp; café, ½ ﬁne №1",
    "犬と猫 🐕 a dog",
    "a photo of the hot dog and the cat " * 3,
    "a <extra_id_0> [SEP] </s> <eos> [PAD] dog",
    "supercalifragilistic",
]


@pytest.mark.parametrize("plain", [False, True], ids=["class", "file"])
@pytest.mark.parametrize("family", OF_THE_LIBRARY)
def test_ids_are_those_of_open_clip(family: str, plain: bool, tmp_path: Path) -> None:
    """Whether the library builds its own class of the kind, or takes the file as it is."""
    known = write_tokenizer(tmp_path / "tokenizer.json", family)
    stated: dict[str, Any] = OF_THE_LIBRARY[family]
    if plain:
        marks = {"pad_token": "[PAD]", "sep_token": "[SEP]"} if family == "clipa" else {}
        stated = {**stated, **marks, "tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(stated))
    options = family_config(family, known)["model_cfg"]["text_cfg"]["tokenizer_kwargs"]
    theirs = HFTokenizer(str(tmp_path), context_length=16, **options)
    ours = TokenizerFile(tmp_path / "tokenizer.json", 16, known, **options)
    assert torch.equal(ours(TEXTS), theirs(TEXTS))
