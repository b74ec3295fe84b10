"""The stages as functions: `import dfkd` and a few calls, from a version to predictions."""

import ast
import dataclasses
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import dfkd
from tests.helpers.tiny_version import CLASSES, fill, publish, write_manifest
from tests.jobs.test_evaluate import PURE, paint

ROOT = Path(__file__).parents[1]
MINIATURE = ROOT / "manifests" / "miniature.yaml"


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.heavy
def test_importing_is_light_and_errors_stay_so() -> None:
    heavy = "{'torch', 'ray', 'numpy', 'pydantic'}"
    done = python(
        f"import sys, dfkd; assert not {heavy} & set(sys.modules), sys.modules\n"
        "dfkd.ManifestError, dfkd.__version__, dir(dfkd)\n"
        f"assert not {heavy} & set(sys.modules)\n"
        "dfkd.Manifest; assert 'pydantic' in sys.modules"
    )
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there_and_no_other() -> None:
    for name in dfkd.__all__:
        assert getattr(dfkd, name).__name__ == name
        assert name in dir(dfkd)
    assert issubclass(dfkd.WeightsError, dfkd.ManifestError)
    with pytest.raises(AttributeError, match="nonsense"):
        dfkd.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_a_manifest_is_read_with_other_values(tmp_path: Path) -> None:
    manifest = dfkd.read_manifest(
        MINIATURE,
        classes=["café", "tree: big", "🚀"],
        storage={"root": tmp_path},
        prompts={"method": "mix", "contrastive": {"updates": 1}},
        generator={"diffusers": {"refine_steps": 2, "refine_rate": 1e-05}},
        synthesis={"precision": "float32"},
    )
    assert manifest.classes == ("café", "tree: big", "🚀")
    assert manifest.storage.root == str(tmp_path)
    assert manifest.prompts.method == ("mix",)
    assert manifest.prompts.kinds["contrastive"].updates == 1
    generator = manifest.generator.settings
    assert (generator.optimisation_steps, generator.latent_rate) == (3, 1e-05)
    assert manifest.synthesis.precision == "float32"
    own = dfkd.read_manifest(MINIATURE).generator.settings
    assert generator.sampling_steps == own.sampling_steps
    with pytest.raises(dfkd.ManifestError, match=r"generator\.diffusers\.steps.*got '9'"):
        dfkd.read_manifest(MINIATURE, generator={"diffusers": {"steps": "9"}})
    dotted: dict[str, object] = {
        "prompts.contrastive": {"updates": 1},
        "prompts.contrastive.bank": 2,
    }
    found = dfkd.read_manifest(MINIATURE, **dotted)
    contrastive = found.prompts.kinds["contrastive"]
    assert (contrastive.updates, contrastive.bank) == (1, 2)
    aliases = {"T.V.": "tv", "a=b": "="}  # names, whose dots and signs separate nothing
    found = dfkd.read_manifest(MINIATURE, classes=list(aliases), evaluation={"aliases": aliases})
    assert found.evaluation.aliases == aliases
    with pytest.raises(dfkd.ManifestError, match="classes: must be text, a finite number"):
        dfkd.read_manifest(MINIATURE, classes={"tree", "rocket"})


def test_a_later_method_s_unfinished_work_is_refused_before_the_first_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = dfkd.read_manifest(write_manifest(tmp_path), prompts={"method": ["vanilla", "mix"]})
    fill(dataclasses.replace(manifest, seed=1), [], "mix")
    monkeypatch.setattr("dfkd.api.build", lambda *_: pytest.fail("made before the refusal"))
    with pytest.raises(dfkd.FingerprintError, match=r"data/mix/.* seed: 1 there, 0 here"):
        dfkd.synthesize(manifest)
    assert not (tmp_path / "run" / "data" / "vanilla").exists()


@pytest.mark.heavy
def test_each_stage_is_a_call_and_the_student_answers_with_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in PURE:
        paint(tmp_path / "data", "flat", name)
    manifest = dfkd.read_manifest(
        write_manifest(tmp_path),
        distillation={
            "epochs": 12,
            "warmup_epochs": 0,
            "optimizer": "adamw",
            "learning_rate": 0.01,
            "finetune_factor": 1.0,
            "seeds": [0, 1],
        },
        evaluation={"data": str(tmp_path / "data"), "models": "student"},
    )
    with pytest.raises(dfkd.ManifestError, match=r"run dfkd synthesize first"):
        dfkd.distill(manifest)
    publish(manifest)
    both = manifest.with_values(prompts={"method": ("vanilla", "mix")})
    with pytest.raises(dfkd.ManifestError, match="published version of method mix"):
        dfkd.distill(both, on_student=lambda _: pytest.fail("trained before the refusal"))

    told: list[dfkd.FinishedStudent] = []
    students = dfkd.distill(manifest, on_student=told.append)
    assert students == sorted(told, key=lambda each: each.student.seed)
    assert [(found.student.seed, found.reused) for found in students] == [(0, False), (1, False)]
    assert all(found.reused for found in dfkd.distill(manifest))

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.2:1")  # of a cluster that is gone: none is needed
    threads = torch.get_num_threads()
    evaluated = dfkd.evaluate(manifest, threads=threads + 1)
    assert torch.get_num_threads() == threads
    assert evaluated.location == str(tmp_path / "run" / "results.json")
    assert Path(evaluated.sheet).read_bytes().startswith(b"\x89PNG")
    assert {row["seed"] for row in evaluated.results["rows"]} == {0, 1}

    student = dfkd.load_student(students[0], torch.device("cpu"))
    assert (student.classes, student.image_size) == (CLASSES, 32)
    path = tmp_path / "data" / "flat" / "red" / "0.png"
    pictures = [path, str(path), path.read_bytes(), Image.open(path)]
    distances = student.distances(pictures)
    assert (distances.shape, distances.dtype) == ((4, 3), torch.float32)
    assert torch.equal(distances, distances[:1].expand(4, 3))
    answers = student.predict([Image.new("RGB", (90, 50), colour) for colour in PURE.values()])
    scored = next(row for row in evaluated.results["rows"] if row["seed"] == 0)
    assert [CLASSES.index(name) for name in answers] == [
        counts.index(max(counts)) for counts in scored["confusion"]
    ]
    folder = dfkd.load_student(Path(students[0].student.location).parent)
    assert folder.predict([path]) == student.predict([path])
    with pytest.raises(ValueError, match="is no PNG, JPEG, WEBP or BMP file"):
        student.predict([b"no picture"])


class Pixels(torch.nn.Module):
    """A student that answers with the red of each pixel."""

    mean = torch.zeros(1)

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels[:, 0].flatten(1)


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_picture_is_the_same_as_a_file_and_as_an_open_image(tmp_path: Path, mode: str) -> None:
    """Also one that a phone has turned, or that was made for print."""
    exif, path = Image.Exif(), tmp_path / "turned.jpg"
    exif[0x0112] = 6
    Image.linear_gradient("L").convert("RGB").convert(mode).save(path, exif=exif)
    student = dfkd.NamedStudent(Pixels(), (), 8)  # type: ignore[arg-type]
    file, image = student.distances([path, Image.open(path)])
    assert file[0] > 0.9 > 0.1 > file[7]  # from left to right, so it was turned
    assert torch.equal(file, image)


def test_an_open_image_of_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    student = dfkd.NamedStudent(Pixels(), (), 8)  # type: ignore[arg-type]
    for picture in (path, Image.open(path)):
        with pytest.raises(ValueError, match="truncated"):
            student.predict([picture])


def test_of_many_pictures_the_one_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.gif"
    for path in (good, bad):
        Image.new("RGB", (8, 8)).save(path)
    student = dfkd.NamedStudent(Pixels(), (), 8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"bad\.gif: is no PNG, JPEG, WEBP or BMP file"):
        student.distances([good, bad])


def test_an_exported_student_is_refused_with_what_runs_it(tmp_path: Path) -> None:
    (tmp_path / "candidate.json").write_text("{}")
    with pytest.raises(dfkd.ManifestError, match=r"not an exported student.*dfkd\.export\.predict"):
        dfkd.load_student(tmp_path)


def test_a_folder_without_a_student_is_refused(tmp_path: Path) -> None:
    with pytest.raises(dfkd.CorruptionError, match="no such object"):
        dfkd.load_student(tmp_path)


def lines_for_python() -> str:
    """The code in dfkd/README.md that begins with `import dfkd`."""
    text = (ROOT / "dfkd" / "README.md").read_text()
    found = re.search(r"^( *)import dfkd\n(?:\1(?!```).*\n|\n)+", text, re.MULTILINE)
    return textwrap.dedent(found[0])


@pytest.mark.slow
@pytest.mark.usefixtures("two_cpus")
def test_the_lines_for_python_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one prompt method, and fewer images, steps, epochs and styles than they ask for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "manifests").symlink_to(ROOT / "manifests")
    statements = [ast.unparse(node) for node in ast.parse(lines_for_python()).body]
    assert statements[1].startswith("manifest = ")
    names: dict[str, object] = {}
    for statement in statements[:2]:
        exec(statement, names)
    given = names["manifest"]
    assert isinstance(given, dfkd.Manifest)
    contrastive = dataclasses.replace(given.prompts.kinds["contrastive"], updates=2)
    sampler = dataclasses.replace(given.generator.kinds["diffusers"], steps=2)
    names["manifest"] = given.with_values(
        cluster={"workers": 1},
        prompts={"method": ("contrastive",), "kinds": {"contrastive": contrastive}},
        generator={"kinds": {"diffusers": sampler}},
        synthesis={"images_per_class": 4, "shard_size": 4},
        distillation={"epochs": 1, "batch_size": 8},
        candidates={"styles": 1},
    )
    for statement in statements[2:-1]:
        exec(statement, names)
    (answer,) = eval(statements[-1], names)
    assert answer in given.classes
