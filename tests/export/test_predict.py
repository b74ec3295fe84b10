"""The command on a graph of three nodes, whose distances are 1 - the mean of a channel."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from dfkd.errors import Exit, ManifestError
from dfkd.export.predict import FACTS, INT8, LABELS, MODEL, RULES, Predictor, distances, main

SIZE = 8
NAMES = ["red", "green", "blue"]


def colours(offset: float = 1.0) -> bytes:
    source = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])
    target = helper.make_tensor_value_info("distances", TensorProto.FLOAT, ["N", 3])
    values = [
        helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [offset]),
        helper.make_tensor("first", TensorProto.INT64, [3], [0, 1, 2]),
    ]
    nodes = [
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
        helper.make_node("Sub", ["one", "mean"], ["all"]),
        helper.make_node("Gather", ["all", "first"], ["distances"], axis=1),
    ]
    graph = helper.make_graph(nodes, "colours", [source], [target], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def put(folder: Path, content: bytes, name: str = MODEL) -> None:
    """Write a file as an export does, with its hash in the facts."""
    (folder / name).write_bytes(content)
    facts = json.loads((folder / FACTS).read_text()) if (folder / FACTS).exists() else {"files": {}}
    facts["files"][name] = {"sha256": hashlib.sha256(content).hexdigest()}
    (folder / FACTS).write_text(json.dumps(facts))


def put_rules(folder: Path, **changes: object) -> None:
    rules = {
        "schema": 1,
        "size": SIZE,
        "resize_mode": "shortest",
        "interpolation": "bicubic",
        "temperature": 0.05,
    }
    put(folder, json.dumps({**rules, **changes}).encode(), RULES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "student"
    place.mkdir()
    put(place, json.dumps(NAMES).encode(), LABELS)
    put_rules(place)
    put(place, colours())
    put(place, colours(offset=2.0), INT8)
    return place


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (20, 30), (0, 255, 51)).save(path)
    return path


def test_labels_come_by_probability(
    folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_rules(folder, temperature=0.5)
    assert main([str(folder), str(picture)]) == 0
    # softmax(cosines / 0.5) of the distances 1, 0 and 0.8, which are half of angles squared
    weights = np.exp(np.cos([2**0.5, 0, 1.6**0.5]) / 0.5)
    red, green, blue = weights / weights.sum()
    expected = f"{picture}: green {green:.3f}, blue {blue:.3f}, red {red:.3f}\n"
    assert capsys.readouterr() == (expected, "")


def test_top_limits_the_labels_of_each_picture(
    folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folder), str(picture), str(picture), "--top", "1"]) == 0
    line = f"{picture}: green 1.000\n"
    assert capsys.readouterr().out == line * 2


def test_int8_selects_the_quantised_model(folder: Path, picture: Path) -> None:
    exact, small = Predictor(folder), Predictor(folder, int8=True)
    difference = small.distances(picture.read_bytes()) - exact.distances(picture.read_bytes())
    np.testing.assert_allclose(difference, 1.0, atol=1e-6)


def test_a_shipped_folder_answers_by_the_file_that_was_shipped(folder: Path, picture: Path) -> None:
    (folder / "shipped.json").write_text(json.dumps({"file": INT8}))
    shipped, exact = Predictor(folder), Predictor(folder, int8=False)
    difference = shipped.distances(picture.read_bytes()) - exact.distances(picture.read_bytes())
    np.testing.assert_allclose(difference, 1.0, atol=1e-6)
    (folder / "shipped.json").write_text(json.dumps({"file": "../model.onnx"}))
    with pytest.raises(ManifestError, match="names no model"):
        Predictor(folder)


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no model": (without(MODEL), "model.onnx"),
    "unfinished": (without(FACTS), "candidate.json"),
    "no labels": (without(LABELS), "labels.json"),
    "facts are a list": (lambda f: (f / FACTS).write_text("[]"), "candidate.json"),
    "labels of another student": (
        lambda f: (f / LABELS).write_text(json.dumps(NAMES[::-1])),
        "labels.json: must have the sha256",
    ),
    "an edited temperature": (
        lambda f: (f / RULES).write_text((f / RULES).read_text().replace("0.05", "0.06")),
        "preprocess.json: must have the sha256",
    ),
    "a flipped bit": (lambda f: (f / MODEL).write_bytes(colours()[:-1] + b"\1"), "sha256"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_folder_that_dfkd_did_not_write_is_refused_in_one_line(
    name: str, folder: Path, picture: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, message = DAMAGE[name]
    spoil(folder)
    assert main([str(folder), str(picture)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: folder")
    assert err.count("\n") == 1
    assert len(err) < 600
    assert re.search(message, err)


def test_distances_are_half_the_squared_angles_whatever_the_length() -> None:
    texts = np.float32([[0, 1], [1, 0], [0, -1], [0.8, 0.6]])
    found = distances(np.float32([[0, 3], [4, 3]]), texts)
    right, small = np.pi / 2, np.arctan2(4, 3)
    angles = np.array([[0, right, 2 * right, small], [small, right - small, np.pi - small, 0]])
    np.testing.assert_allclose(found, angles**2 / 2, atol=1e-6)


def test_a_picture_s_name_needs_no_utf_8(
    folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = picture.rename(picture.parent / os.fsdecode(b"caf\xe9.png"))
    assert main([str(folder), str(path), "--top", "1"]) == 0
    assert capsys.readouterr().out == f"{picture.parent}/caf\\udce9.png: green 1.000\n"


@pytest.mark.parametrize("content", [None, b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_an_unreadable_picture_is_named(
    content: bytes | None, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.png"
    if content is not None:
        path.write_bytes(content)
    assert main([str(folder), str(path)]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: picture: cannot be read")
    assert "broken.png" in err


def test_pictures_that_can_be_read_are_labelled_beside_others(
    folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = picture.with_name("missing.png")
    assert main([str(folder), str(missing), str(picture), "--top", "1"]) == Exit.PARTIAL
    out, err = capsys.readouterr()
    assert out == f"{picture}: green 1.000\n"
    assert "missing.png" in err


@pytest.mark.parametrize("options", [[], ["--top", "0"], ["--top", "x"], ["--unknown"]])
def test_wrong_usage_is_exit_code_2(options: list[str], folder: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(folder), *options])
    assert ended.value.code == 2


def test_a_reader_that_has_enough_ends_the_command_quietly_and_a_full_disk_in_one_line(
    folder: Path, picture: Path
) -> None:
    command = [sys.executable, "-m", "dfkd.export.predict", folder, picture]
    reader, writer = os.pipe()
    os.close(reader)
    job = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (job.returncode, job.stderr) == (0, "")
    with open("/dev/full", "w") as full:
        job = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    told = "error: stdout: cannot be written (No space left on device); give another place\n"
    assert (job.returncode, job.stderr) == (Exit.RETRY, told)


def test_ctrl_c_ends_the_command_without_a_traceback(
    folder: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "probabilities", interrupted)
    assert main([str(folder), str(picture)]) == Exit.INTERRUPTED


def test_no_more_is_needed_than_onnxruntime_numpy_and_pillow(folder: Path, picture: Path) -> None:
    hidden = ("torch", "torchvision", "yaml", "pydantic", "pyarrow", "open_clip", "onnx", "tqdm")
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({hidden}))\n"
        f"from dfkd.export.predict import main; sys.exit(main({[str(folder), str(picture)]}))"
    )
    job = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert job.returncode == 0, job.stderr
    assert job.stdout.startswith(f"{picture}: green 1.000")
