"""The candidates of a small run: towers of random weights, and students that know three colours."""

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
from dfkd.config.synthesis import TeacherConfig
from dfkd.distillation import text_only
from dfkd.distillation.student_store import locate_candidates, locate_student
from dfkd.errors import ManifestError
from dfkd.evaluation.data import open_data
from dfkd.evaluation.scoring import evaluate
from dfkd.export import candidates, folder
from dfkd.export.candidates import write_candidates
from dfkd.export.folder import Network, check_graphs, synthesised_images
from dfkd.export.model_card import EXAMPLE, model_card
from dfkd.export.onnx_graphs import OPSET, load_graph
from dfkd.export.predict import Predictor, cosines, main
from dfkd.models.labeller import distances
from dfkd.models.student import load_student
from dfkd.models.teacher import Teacher
from dfkd.storage.local import LocalStorage
from dfkd.utils.images import USUAL, batch, decode_image
from tests.helpers.tiny_version import CLASSES
from tests.jobs.test_evaluate import prepare, write_teacher

FILES = {
    "model.onnx",
    "model.int8.onnx",
    "labels.json",
    "preprocess.json",
    "try.html",
    "README.md",
    "candidate.json",
}
ROLES = {"teacher.weights": "be" * 32, "generator.vqgan.weights": "ac" * 32}
"""The weights that the data set was made with."""
NAMES = ["teacher", "teacher text-only", "{own}", "{own} text-only", "timm:test_resnet"]


@dataclass(frozen=True)
class Run:
    manifest: Manifest
    own: str
    """Name of the tower that is not the teacher's."""
    content: dict[str, Any]
    """Of candidates.json."""
    events: list[str]
    """What happened in storage, in order."""

    @property
    def root(self) -> Path:
        return Path(self.manifest.storage.root)

    def entry(self, name: str) -> dict[str, Any]:
        (found,) = [each for each in self.content["candidates"] if each["name"] == name]
        return found

    def folder(self, name: str) -> Path:
        return self.root / self.entry(name)["folder"]

    def facts(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder(name) / "candidate.json").read_text())
        return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Seed 1 comes first in the manifest, so that the first seed is not the smallest."""
    place = tmp_path_factory.mktemp("candidates")
    manifest = prepare(place, seeds=[1, 0], swapped=("mix", 1), digests=ROLES)
    (place / "data" / "ink" / "red" / "broken.png").write_bytes(b"no picture")
    (place / "own").mkdir()
    own = write_teacher(place / "own")
    manifest = manifest.with_values(
        candidates={
            "towers": ("teacher", TeacherConfig(**own)),
            "classifiers": ("zero-shot", "text-only"),
            "styles": 1,
        }
    )
    events: list[str] = []

    def noted(name: str) -> Callable[..., None]:
        real = getattr(LocalStorage, name)

        def call(self: LocalStorage, key: str, *data: bytes | Path) -> None:
            real(self, key, *data)
            events.append(f"{name} {key}")

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_only, "UPDATES", 2)
        for name in ("put", "delete"):
            patch.setattr(LocalStorage, name, noted(name))
        location = write_candidates(manifest, threads=1)
    assert Path(location) == Path(manifest.storage.root) / "candidates.json"
    return Run(manifest, str(own["model"]), json.loads(Path(location).read_text()), events)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest, run: Run) -> str:
    return str(request.param).format(own=run.own)


def test_every_candidate_has_an_entry_and_a_whole_folder(run: Run) -> None:
    names = [each.format(own=run.own) for each in NAMES]
    assert [each["name"] for each in run.content["candidates"]] == names
    assert len({run.folder(each) for each in names}) == len(names)
    for each in names:
        folder, facts = run.folder(each), run.facts(each)
        assert {path.name for path in folder.iterdir()} == FILES
        assert facts["files"].keys() == FILES - {"candidate.json"}
        for file, stated in facts["files"].items():
            content = (folder / file).read_bytes()
            found = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            assert stated == found, file
    # A folder is incomplete until all is there, and so is the run.
    last = [event for event in run.events if not event.startswith("put text-only/")]
    assert last[-2:] == ["put candidate.json", "put candidates.json"]
    for number, event in enumerate(last):
        if event == "delete candidate.json":
            whole = last[number + 1 : number + 1 + len(FILES)]
            assert {each.removeprefix("put ") for each in whole} == FILES
            assert whole[-1] == "put candidate.json"


def test_a_student_is_that_of_the_last_method_and_the_first_seed(run: Run) -> None:
    chosen = locate_student(run.manifest, "mix", 1)
    facts = run.facts("timm:test_resnet")
    about = facts["student"]
    assert (about["method"], about["seed"], about["folder"]) == ("mix", 1, chosen.name)
    card = json.loads(chosen.storage.get("student.json"))
    assert about["sha256"] == card["sha256"]
    assert about["weights"] == "none"
    assert facts["data"]["fingerprint"] == chosen.version.fingerprint
    assert facts["data"]["weights"] == ROLES
    entry = run.entry("timm:test_resnet")
    assert entry["seeds"] == [1, 0]
    assert entry["students"] == [each.name for each in locate_candidates(run.manifest)]
    assert entry["images"] == chosen.version.facts["samples"]


def test_accuracies_are_those_of_the_files_on_the_evaluation_data(run: Run, name: str) -> None:
    """Each prediction is made again by what a user has: the folder and `Predictor`."""
    data = open_data(run.manifest.evaluation, run.manifest.classes)
    entry = run.entry(name)
    for precision, file in entry["files"].items():
        predictor = Predictor(run.folder(name), int8=precision == "int8")
        right: dict[str, list[bool]] = {"flat": [], "ink": []}
        for item in data.items:
            if "broken" not in item.name:
                answer = int(predictor.distances(item.read()).argmin())
                right[item.domain].append(answer == item.class_index)
        for domain, answers in right.items():
            assert file["domains"][domain][0] == pytest.approx(np.mean(answers))
        assert file["means"][0] == pytest.approx(np.mean([np.mean(a) for a in right.values()]))
        assert file["bytes"] == (run.folder(name) / file["file"]).stat().st_size
    assert run.content["measure"] == "accuracy"
    assert run.content["images"] == {"flat": 6, "ink": 4}


def test_the_float32_files_are_as_accurate_as_the_models_in_pytorch(run: Run) -> None:
    results = evaluate(run.manifest, 1).results
    for name, method in (("teacher", "zero-shot"), ("timm:test_resnet", "mix")):
        (summary,) = [each for each in results["summary"] if each["method"] == method]
        means = run.entry(name)["files"]["float32"]["means"]
        assert np.mean(means) == pytest.approx(summary["mean"])
    # The first seed takes red for green and back, the second one makes no mistake.
    assert run.entry("timm:test_resnet")["files"]["float32"]["means"] == pytest.approx([1 / 6, 1])


def test_sizes_and_times_are_measured(run: Run, name: str) -> None:
    entry, facts = run.entry(name), run.facts(name)
    assert all(file["ms"] > 0 for file in entry["files"].values())
    assert entry["gpu_ms"] is None
    latency = facts["latency"]
    assert (latency["batch"], latency["threads"], latency["runs"]) == (1, 1, 21)
    sizes = {each: file["bytes"] for each, file in entry["files"].items()}
    assert sizes["int8"] < 0.6 * sizes["float32"]
    if name == "timm:test_resnet":
        student, _ = load_student(locate_student(run.manifest, "mix", 1).storage)
        assert entry["parameters"] == sum(p.numel() for p in student.parameters())


def test_a_tower_s_graphs_give_the_distances_of_the_teacher(run: Run) -> None:
    teacher = Teacher.load(run.manifest.teacher, torch.device("cpu"))
    images, _ = synthesised_images(locate_student(run.manifest, "mix", 1).version, 32, USUAL)
    prompts = [run.manifest.teacher.template.replace("{class}", name) for name in CLASSES]
    pixels = torch.from_numpy(batch(images))
    expected = distances(teacher.encode_image(pixels), teacher.encode_text(prompts)).numpy()
    found = load_graph(run.folder("teacher") / "model.onnx", 1)(batch(images))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    small = load_graph(run.folder("teacher") / "model.int8.onnx", 1)(batch(images))
    assert np.abs(small - expected).max() < 0.1


def test_the_check_is_of_images_that_did_not_calibrate_int8(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, chosen = run.facts("timm:test_resnet"), locate_student(run.manifest, "mix", 1)
    check = facts["check"]
    calibration, images = synthesised_images(chosen.version, 32, USUAL)
    assert not {image.tobytes() for image in images} & {image.tobytes() for image in calibration}
    assert check["images"] == len(images) == facts["calibration"]["images"] == 12
    student, _ = load_student(chosen.storage)
    expected = student(torch.from_numpy(batch(images))).detach().numpy()
    for file in ("model.onnx", "model.int8.onnx"):
        found = load_graph(run.folder("timm:test_resnet") / file, threads=1)(batch(images))
        largest = np.abs(found - expected).max()
        assert check[file]["max_difference"] == pytest.approx(largest, rel=0.01, abs=1e-6)
        same = (found.argmin(1) == expected.argmin(1)).mean()
        assert check[file]["equal_predictions"] == pytest.approx(same)
    assert check["model.onnx"]["max_difference"] < 1e-5 < check["model.int8.onnx"]["max_difference"]
    monkeypatch.setattr(folder, "BATCH", 7)  # the last of which is smaller
    network = Network(student, CLASSES, None, 32, USUAL, 1.0)
    again = check_graphs(network, run.folder("timm:test_resnet"), images)
    assert again["model.int8.onnx"] == pytest.approx(check["model.int8.onnx"], rel=0.01)


def test_a_graph_of_another_student_does_not_pass_the_check(run: Run, tmp_path: Path) -> None:
    for name in ("model.onnx", "model.int8.onnx"):
        shutil.copy(run.folder("timm:test_resnet") / "model.onnx", tmp_path / name)
    other, _ = load_student(locate_student(run.manifest, "mix", 0).storage)  # knows red from green
    red = np.full((32, 32, 3), (200, 60, 60), np.uint8)
    found = check_graphs(Network(other, CLASSES, None, 32, USUAL, 1.0), tmp_path, [red])
    assert found["model.onnx"] == found["model.int8.onnx"]  # the two files are the same
    assert found["model.onnx"]["max_difference"] > 0.5
    assert found["model.onnx"]["equal_predictions"] == 0


def test_calibration_and_check_see_synthesised_images_only(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = locate_student(run.manifest, "mix", 1).version
    made = {
        decode_image(sample.image, 32).tobytes()
        for receipt in list(version.receipts())
        for sample in version.samples(receipt)
    }
    calibration, others = synthesised_images(version, 32, USUAL)
    assert run.facts("timm:test_resnet")["calibration"] == {"images": 12, "version": version.id}
    assert {image.tobytes() for image in [*calibration, *others]} == made
    monkeypatch.setattr(folder, "CALIBRATION", 7)
    for few in synthesised_images(version, 32, USUAL):
        assert [int(image.mean((0, 1)).argmax()) for image in few] == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_the_gate_s_figures_are_those_of_the_candidate(run: Run) -> None:
    version = locate_student(run.manifest, "mix", 1).version.id
    found, unreadable = candidates.score_student(run.manifest, "timm:test_resnet", version, 1)
    files = run.entry("timm:test_resnet")["files"]
    assert found == {precision: file["means"] for precision, file in files.items()}
    (broken,) = unreadable
    assert "ink/red/broken.png: " in broken


def test_the_rules_say_how_to_read_the_output(run: Run) -> None:
    rules = json.loads((run.folder("timm:test_resnet") / "preprocess.json").read_text())
    assert rules["schema"] == 1
    assert (rules["size"], rules["colours"], rules["range"]) == (32, "RGB", [0, 1])
    assert rules["output"]["name"] == "distances"
    assert "smaller is closer" in rules["output"]["meaning"]
    assert json.loads((run.folder("timm:test_resnet") / "labels.json").read_text()) == list(CLASSES)
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


def test_the_card_says_what_was_measured(run: Run, name: str) -> None:
    card, facts = (run.folder(name) / "README.md").read_text(), run.facts(name)
    del facts["files"]["README.md"]
    assert card == model_card(facts)
    assert facts["opset"] == OPSET
    if name == "timm:test_resnet":
        assert "| `model.onnx` | 33.3 | 0.0 | 16.7 |" in " ".join(card.split())


@pytest.mark.parametrize("shape", [(40, 101, 3), (77, 40, 4), (32, 32)])
def test_the_card_s_example_does_what_the_command_does(
    shape: tuple[int, ...], run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "picture.png")
    for file in FILES:
        shutil.copy(run.folder("timm:test_resnet") / file, tmp_path)
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
    with pytest.raises(ManifestError, match=r"distillation\.student: must be finished"):
        write_candidates(manifest, threads=1)
