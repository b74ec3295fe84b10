"""The folder of a small run: a teacher of random weights, and students that know three colours."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dfkd.config.manifest import Manifest
from dfkd.distillation.student_store import locate_student
from dfkd.errors import CorruptionError
from dfkd.evaluation.scoring import evaluate
from dfkd.export import take_home
from dfkd.export.model_card import EXAMPLE, model_card
from dfkd.export.onnx_graphs import OPSET, load_graph
from dfkd.export.predict import Predictor, cosines, main
from dfkd.models.student import load_student
from dfkd.models.teacher import Teacher, distances
from dfkd.storage.local import LocalStorage
from dfkd.utils.images import batch, decode_image
from tests.helpers.tiny_version import CLASSES
from tests.jobs.test_evaluate import prepare

FILES = {
    "model.onnx",
    "model.int8.onnx",
    "labels.json",
    "preprocess.json",
    "README.md",
    "takehome.json",
}
ROLES = {"teacher.weights": "be" * 32, "generator.vqgan.weights": "ac" * 32}
"""The weights that the data set was made with."""


@dataclass(frozen=True)
class Run:
    manifest: Manifest
    results: dict[str, Any]
    folder: Path
    events: list[str]
    """What happened in the folder, in order."""

    @property
    def facts(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "takehome.json").read_text())
        return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Seed 1 comes first in the manifest, so that the first seed is not the smallest."""
    folder = tmp_path_factory.mktemp("takehome")
    manifest = prepare(folder, seeds=[1, 0], swapped=("mix", 1), digests=ROLES)
    (folder / "data" / "ink" / "red" / "broken.png").write_bytes(b"no picture")
    results = evaluate(manifest, 1).results
    events: list[str] = []

    def noted(name: str) -> Callable[..., None]:
        real = getattr(LocalStorage, name)

        def call(self: LocalStorage, key: str, *data: bytes | Path) -> None:
            real(self, key, *data)
            events.append(f"{name} {key}")

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("put", "delete"):
            patch.setattr(LocalStorage, name, noted(name))
        location = take_home.write_take_home(manifest, results, threads=1)
    return Run(manifest, results, Path(location), events)


def test_the_folder_lies_beside_the_results_and_is_whole(run: Run) -> None:
    assert run.folder == Path(run.manifest.storage.root) / "student"
    assert {path.name for path in run.folder.iterdir()} == FILES
    assert run.facts["files"].keys() == FILES - {"takehome.json"}
    for name, stated in run.facts["files"].items():
        content = (run.folder / name).read_bytes()
        found = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        assert stated == found, name
    # It is incomplete until all is there.
    assert run.events[0] == "delete takehome.json"
    assert run.events[-1] == "put takehome.json"
    assert {event.removeprefix("put ") for event in run.events[1:]} == FILES


def test_it_is_the_student_of_the_last_method_and_the_first_seed(run: Run) -> None:
    chosen = locate_student(run.manifest, "mix", 1)
    about = run.facts["student"]
    assert (about["method"], about["seed"], about["folder"]) == ("mix", 1, chosen.name)
    card = json.loads(chosen.storage.get("student.json"))
    assert about["sha256"] == card["sha256"]
    assert about["weights"] == "none"
    assert run.facts["data"]["fingerprint"] == chosen.version.fingerprint
    assert run.facts["data"]["weights"] == ROLES
    assert "weights" not in run.facts["teacher"]


def test_the_check_is_of_images_that_did_not_calibrate_int8(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    check, chosen = run.facts["check"], locate_student(run.manifest, "mix", 1)
    calibration, images = take_home.synthesised_images(chosen.version, 32)
    assert not {image.tobytes() for image in images} & {image.tobytes() for image in calibration}
    assert check["images"] == len(images) == run.facts["calibration"]["images"] == 12
    student, _ = load_student(chosen.storage)
    expected = student(torch.from_numpy(batch(images))).detach().numpy()
    for name in ("model.onnx", "model.int8.onnx"):
        found = load_graph(run.folder / name, threads=1)(batch(images))
        largest = np.abs(found - expected).max()
        assert check[name]["max_difference"] == pytest.approx(largest, rel=0.01, abs=1e-6)
        same = (found.argmin(1) == expected.argmin(1)).mean()
        assert check[name]["equal_predictions"] == pytest.approx(same)
    assert check["model.onnx"]["max_difference"] < 1e-5 < check["model.int8.onnx"]["max_difference"]
    monkeypatch.setattr(take_home, "BATCH", 7)  # the last of which is smaller
    again = take_home.check_graphs(student, run.folder, images, threads=1)
    assert again["model.int8.onnx"] == pytest.approx(check["model.int8.onnx"], rel=0.01)


def test_without_results_of_the_student_the_card_has_no_accuracy(run: Run) -> None:
    """Those of other settings of the same method and seed are no results of it."""
    student = locate_student(run.manifest, "mix", 1)
    assert take_home._evaluation(run.results, student) == run.facts["evaluation"]
    for results in (None, {**run.results, "students": ["mix-s1-ffffffffffff"]}):
        assert take_home._evaluation(results, student) is None


def test_a_graph_of_another_student_does_not_pass_the_check(run: Run, tmp_path: Path) -> None:
    for name in ("model.onnx", "model.int8.onnx"):
        shutil.copy(run.folder / "model.onnx", tmp_path / name)
    other, _ = load_student(locate_student(run.manifest, "mix", 0).storage)  # knows red from green
    red = np.full((32, 32, 3), (200, 60, 60), np.uint8)
    found = take_home.check_graphs(other, tmp_path, [red], threads=1)
    assert found["model.onnx"] == found["model.int8.onnx"]  # the two files are the same
    assert found["model.onnx"]["max_difference"] > 0.5
    assert found["model.onnx"]["equal_predictions"] == 0


def test_accuracies_are_those_of_the_results(run: Run) -> None:
    evaluation = run.facts["evaluation"]
    for name, method, seed in (("student", "mix", 1), ("teacher", "zero-shot", 0)):
        rows = [r for r in run.results["rows"] if (r["method"], r["seed"]) == (method, seed)]
        accuracies = {row["domain"]: row["accuracy"] for row in rows}
        assert evaluation["accuracy"][name]["domains"] == accuracies
    student = evaluation["accuracy"]["student"]
    assert student["domains"] == {"flat": pytest.approx(1 / 3), "ink": 0.0}
    assert student["mean"] == pytest.approx(1 / 6)
    assert evaluation["images"] == {"flat": 6, "ink": 4}
    assert evaluation["unreadable"] == 1


def test_calibration_and_check_see_synthesised_images_only(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = locate_student(run.manifest, "mix", 1).version
    made = {
        decode_image(sample.image, 32).tobytes()
        for receipt in list(version.receipts())
        for sample in version.samples(receipt)
    }
    calibration, others = take_home.synthesised_images(version, 32)
    assert run.facts["calibration"] == {"images": 12, "version": version.id}
    assert {image.tobytes() for image in calibration + others} == made
    monkeypatch.setattr(take_home, "CALIBRATION", 7)
    for few in take_home.synthesised_images(version, 32):
        assert [int(image.mean((0, 1)).argmax()) for image in few] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_sizes_and_latencies_are_measured(run: Run) -> None:
    facts, latency = run.facts, run.facts["latency"]
    assert latency["ms"].keys() == {"onnx", "int8", "torch", "teacher"}
    assert all(found > 0 for found in latency["ms"].values())
    assert (latency["batch"], latency["threads"], latency["runs"]) == (1, 1, 21)
    student, _ = load_student(locate_student(run.manifest, "mix", 1).storage)
    assert facts["student"]["parameters"] == sum(p.numel() for p in student.parameters())
    assert facts["files"]["model.int8.onnx"]["bytes"] < 0.5 * facts["files"]["model.onnx"]["bytes"]
    assert facts["teacher"]["bytes"] == 4 * facts["teacher"]["parameters"] > 0


def test_the_rules_say_how_to_read_the_output(run: Run) -> None:
    rules = json.loads((run.folder / "preprocess.json").read_text())
    assert rules["schema"] == 1
    assert (rules["size"], rules["colours"], rules["range"]) == (32, "RGB", [0, 1])
    assert rules["output"]["name"] == "distances"
    assert "smaller is closer" in rules["output"]["meaning"]
    assert json.loads((run.folder / "labels.json").read_text()) == list(CLASSES)
    teacher = Teacher.load(run.manifest.teacher, torch.device("cpu"))
    assert rules["temperature"] == pytest.approx(1 / teacher.logit_scale)


def test_the_temperature_makes_clip_s_probabilities_of_distances() -> None:
    """softmax(cos(sqrt(2 D)) / T) is CLIP's softmax, also at the angles of images and texts."""
    noise = torch.Generator().manual_seed(0)
    image, texts = (
        torch.nn.functional.normalize(torch.randn(n, 64, generator=noise) + 0.6) for n in (1, 5)
    )
    scale = 20.0
    expected = (scale * image @ texts.T).softmax(1)
    scaled = torch.from_numpy(cosines(distances(image, texts).double().numpy())) * scale
    np.testing.assert_allclose(scaled.softmax(1), expected, atol=1e-5)


def test_the_card_says_what_was_measured(run: Run) -> None:
    card, facts = (run.folder / "README.md").read_text(), run.facts
    del facts["files"]["README.md"]
    assert card == model_card(facts)
    assert "| student, PyTorch | 33.3 | 0.0 | 16.7 |" in " ".join(card.split())
    assert facts["opset"] == OPSET


@pytest.mark.parametrize("shape", [(40, 101, 3), (77, 40, 4), (32, 32)])
def test_the_card_s_example_does_what_the_command_does(
    shape: tuple[int, ...], run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "picture.png")
    for file in FILES:
        shutil.copy(run.folder / file, tmp_path)
    card = (tmp_path / "README.md").read_text()
    script = card.split("```python\n")[1].split("```")[0]
    assert script == EXAMPLE
    hidden = "import sys; sys.modules.update(torch=None, dfkd=None, torchvision=None)\n"
    job = subprocess.run(
        [sys.executable, "-c", hidden + script], cwd=tmp_path, capture_output=True, text=True
    )
    assert job.returncode == 0, job.stderr
    found = [line.rsplit(" ", 1) for line in job.stdout.splitlines()]
    predictor = Predictor(tmp_path)
    chances = predictor.probabilities((tmp_path / "picture.png").read_bytes())
    order = np.argsort(-chances)
    assert [label for label, _ in found] == [CLASSES[index] for index in order]
    stated = [float(chance) for _, chance in found]
    np.testing.assert_allclose(stated, chances[order], atol=6e-4)
    assert main([str(tmp_path), str(tmp_path / "picture.png")]) == 0
    assert capsys.readouterr().out.split(": ")[1].startswith(found[0][0])


def test_a_student_that_was_not_trained_is_not_handed_out(run: Run) -> None:
    manifest = run.manifest.with_values(distillation={"epochs": 4})
    with pytest.raises(CorruptionError, match=r"student\.json: no such object"):
        take_home.write_take_home(manifest, run.results, threads=1)
