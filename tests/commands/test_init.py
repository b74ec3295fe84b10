"""`dfkd init`: class names in, a manifest that a person can read and a run can take."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dfkd.commands import init
from dfkd.config.manifest import Manifest
from dfkd.errors import Exit
from dfkd.operations import drafting
from tests.helpers import jobs

H100 = "NVIDIA H100 80GB HBM3"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, of a machine without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drafting, "find_gpu", lambda: "")
    return tmp_path


def test_names_that_the_bundled_models_know_get_the_miniature_whose_dry_run_passes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert init.main(["Camera, car,key"]) == Exit.DONE
    *_, dry, run, last = capsys.readouterr().out.splitlines()
    commands = ["  dfkd pipeline camera_car.yaml --dry-run", "  dfkd pipeline camera_car.yaml"]
    assert ([dry, run], last) == (commands, "wrote camera_car.yaml")
    manifest = Manifest.read("camera_car.yaml")
    assert (manifest.classes, manifest.teacher.model) == (("Camera", "car", "key"), "miniature")
    planned = jobs.plan("pipeline", "camera_car.yaml")
    assert planned["synthesize"]["images"] == 3 * 96
    assert planned["evaluate"]["images"] > 0


@pytest.mark.parametrize(
    ("classes", "gpu"), [("camera, stapler", ""), ("camera, stapler", H100), ("camera, car", H100)]
)
def test_other_names_and_a_gpu_get_stable_diffusion(
    classes: str, gpu: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(drafting, "find_gpu", lambda: gpu)
    assert init.main([classes, "--name", "mine"]) == Exit.DONE
    manifest = Manifest.read("mine.yaml")
    assert manifest.generator.kinds["diffusers"].weights == "stable-diffusion-v1-5"
    assert manifest.evaluation.scored == ()
    printed = capsys.readouterr().out
    assert "  dfkd fetch mine.yaml\n" in printed
    assert "6.0 GB" in printed
    assert ("this manifest needs a GPU" in printed) == (not gpu)
    assert ("do not know 'stapler'" in printed) == (not gpu)
    assert ("minutes on A100" in printed) == (not gpu)
    assert ("minutes at the peaks of H100" in printed) == bool(gpu)


def test_an_ambiguous_name_is_told_and_not_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert init.main(["mug, crane"]) == Exit.DONE
    note = "crane: 'crane bird' or 'construction crane'? write the one that you mean"
    assert f"note: {note}\n" in capsys.readouterr().out
    assert f"# {note}\n" in Path("mug_crane.yaml").read_text()
    assert init.main(["mug, crane bird"]) == Exit.DONE
    assert "note: " not in capsys.readouterr().out


def test_a_name_that_is_nearly_known_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    init.main(["Cars, mouse"])
    assert "do not know 'Cars' (but 'car'), 'mouse'. They know" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["mug"], "classes: must have 2 or more entries"),
        ([""], "classes: must have 2 or more entries"),
        (["mug,, key"], "classes: a class name must not be empty"),
        (["mug, key, mug"], "classes: must have every entry once, got 'mug'"),
        (["mug, Mug"], "classes: reads to the teacher exactly like 'mug', got 'Mug'"),
        (["a/c, key"], "classes: a class name is printable, without '/'"),
        (["{class}, key"], "classes: a class name is printable, without '/'"),
        (["mug\a, key"], "classes: a class name is printable, without '/'"),
        (["mug, key", "--name", "a b"], "name: must match the pattern"),
        (["mug, key", "--name", ""], "name: must match the pattern"),
        (["mug, key", "--output", "there.yaml"], "--output: must not exist yet, got 'there.yaml'"),
    ],
)
def test_what_no_manifest_takes_is_refused_in_one_line(
    folder: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "there.yaml").write_text("mine")
    assert init.main(words) == Exit.USAGE
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith(f"error: {told}")
    assert found.err.count("\n") == 1
    assert [each.name for each in folder.iterdir()] == ["there.yaml"]
    assert (folder / "there.yaml").read_text() == "mine"


def test_force_replaces_a_file_and_a_missing_folder_is_an_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mine.yaml").write_text("mine")
    assert init.main(["car, key", "--output", "mine.yaml", "--force"]) == Exit.DONE
    assert Manifest.read("mine.yaml").name == "car_key"
    assert init.main(["car, key", "--output", "away/mine.yaml"]) == Exit.FAILED
    assert capsys.readouterr().err.startswith("error: operating system: [Errno 2]")


ALPHABET = st.characters(exclude_characters="/{}", exclude_categories=("C", "Zl", "Zp"))
AWKWARD = (
    "yes",
    "null",
    "~",
    "1e3",
    "0x1f",
    "010",
    "- a",
    "a: b",
    "a #b",
    "'",
    '"',
    "[a",
    "*a",
    "!b",
)
NAMES = st.text(ALPHABET, min_size=1).filter(
    lambda name: name.isprintable() and name == name.strip()
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.sampled_from(AWKWARD) | NAMES,
        min_size=2,
        max_size=5,
        unique_by=lambda name: " ".join(name.casefold().split()),
    ),
    st.sampled_from(("null", "1", "0x1f", "true", "run-1")),
    st.booleans(),
)
def test_every_name_stands_in_the_manifest_as_it_was_given(
    classes: list[str], name: str, known: bool
) -> None:
    if known:  # as if the bundled models knew them
        text, _ = drafting.drawings(name, classes, "x.yaml")
    else:
        text, _ = drafting.photographs(name, classes, "", "x.yaml", classes)
    drafting.check_names(name, classes)
    path = Path("x.yaml")
    path.write_text(text, encoding="utf-8")
    manifest = Manifest.read(path)
    assert manifest.classes == tuple(classes)
    assert (manifest.name, manifest.storage.root) == (name, f"runs/{name}")


@pytest.mark.parametrize(
    ("classes", "name"),
    [
        ("Café au lait, thé, x", "cafe_au_lait_the"),
        ("猫, 犬", "classes"),
        (f"{'x' * 99}, b", "x" * 40),
    ],
)
def test_a_run_is_named_after_its_first_classes(classes: str, name: str) -> None:
    assert init.main([classes]) == Exit.DONE
    assert Manifest.read(f"{name}.yaml").name == name


def test_a_path_with_any_letters_stays_within_its_comment(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = "a b\nclasses: [x]\n.yaml"
    assert init.main(["car, key", "--output", odd]) == Exit.DONE
    assert Manifest.read(odd).classes == ("car", "key")
    assert capsys.readouterr().out.splitlines()[-1] == r"wrote a b\nclasses: [x]\n.yaml"


@pytest.mark.parametrize("words", [["--help"], ["mug"], ["car, key"]])
def test_it_answers_at_once_where_torch_is_not_needed(words: list[str]) -> None:
    code = "import sys; from dfkd.commands import init; from dfkd.operations import drafting\n"
    code += "drafting.find_gpu = lambda: ''\n"
    code += "try: init.main(sys.argv[1:])\nfinally: assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True)
