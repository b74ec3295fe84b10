"""Hostile students and checkpoints: refused in one line, and no code in them runs."""

import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from dfkd.config.distillation import Distillation
from dfkd.errors import CorruptionError
from dfkd.models.student import CARD, WEIGHTS, card, load_student
from dfkd.storage.checkpoints import Checkpoints
from dfkd.storage.local import open_storage
from dfkd.utils.strict_json import canonical
from tests.helpers.pickles import Mark

CONFIG = Distillation(student="resnet18", weights="none", optimizer="adamw", warmup_epochs=0)


def put_student(folder: Path, weights: bytes, **changes: Any) -> None:
    """The objects of a student, whole by their hashes."""
    storage = open_storage(str(folder))
    facts = {"sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights)}
    storage.put(WEIGHTS, weights)
    storage.put(CARD, canonical(card(CONFIG, ("a", "b"), 32) | facts | changes))


def test_pickled_students_and_checkpoints_are_refused_and_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    torch.save({"step": Mark(mark)}, tmp_path / "zipped")
    for content in ((tmp_path / "zipped").read_bytes(), pickle.dumps(Mark(mark))):
        put_student(tmp_path / "student", content)
        with pytest.raises(CorruptionError, match=r"student\.safetensors: .*distil again"):
            load_student(open_storage(str(tmp_path / "student")))
        storage = open_storage(str(tmp_path / "checkpoints"))
        storage.put("0000000007.safetensors", content)
        with pytest.raises(CorruptionError, match="not a checkpoint"):
            Checkpoints(storage).read(7)
    assert not mark.exists()


def test_weights_of_another_student_are_refused(tmp_path: Path) -> None:
    header = b'{"x":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}'  # a dtype that torch lacks
    for weights in (
        safetensors.torch.save({"head.weight": torch.zeros(2, 3)}),
        safetensors.torch.save({"x": torch.zeros(1)}),
        struct.pack("<Q", len(header)) + header + bytes(1),
    ):
        put_student(tmp_path, weights)
        with pytest.raises(CorruptionError, match=r"student\.safetensors: .*distil again"):
            load_student(open_storage(str(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"schema": 2}, "schema"),
        ({"architecture": ["resnet18"]}, "architecture"),
        ({"architecture": ""}, "architecture"),
        ({"version": "../other"}, "version"),
        *(
            ({"architecture": name}, r"distillation\.student")
            for name in ("os.system", "timm:hf-hub:someone/model", "timm:../x", "resnet")
        ),
        ({"classes": []}, "classes"),
        ({"classes": [1, 2]}, r"classes\.0"),
        ({"image_size": 0}, "image_size"),
        ({"image_size": 32.0}, "image_size"),
        ({"sha256": "../x"}, "sha256"),
    ],
)
def test_a_student_card_with_invalid_values_is_refused(
    tmp_path: Path, changes: dict[str, Any], place: str
) -> None:
    put_student(tmp_path, b"", **changes)
    with pytest.raises(CorruptionError, match=rf"student\.json: {place}: .*distil again"):
        load_student(open_storage(str(tmp_path)))
