"""The job's command line, and its refusals."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import yaml

from dfkd.config.manifest import Manifest
from dfkd.errors import Exit, ManifestError
from dfkd.lab.miniature.evaluation_set import OFFICIAL
from dfkd.lab.miniature.recipe import Recipe
from dfkd.models.generators.generator import Condition
from dfkd.models.teacher import Teacher
from dfkd.utils.device import CPU
from dfkd.utils.hardware import thread_limit
from dfkd.utils.yaml import load
from tests.helpers import icon_package, jobs
from tests.helpers.sources import load_generator

MANIFEST = jobs.ROOT / "manifests" / "pretrain.yaml"


def small(tmp_path: Path) -> dict[str, object]:
    """A recipe of seconds over a hand-made package."""
    tiny = {"steps": 2, "batch_size": 8, "checkpoint_every": 1}
    return {
        "threads": 1,
        "output": str(tmp_path / "out"),
        "data": {
            "directory": str(tmp_path / "package"),
            "clipart": str(tmp_path / "art"),
            "work": str(tmp_path / "work"),
        },
        "teacher": tiny | {
            "steps": 2, "groups": 1, "style_captions": 2, "compile": False,
            "embed_dim": 16, "image_width": 8, "text_width": 16, "text_layers": 1,
        },
        "tower": {"steps": 2},
        "generator": tiny | {"codes": 16, "free_steps": 1, "channel_multipliers": [1, 1, 1, 1]},
        "diffusion": {"channels": [64, 64], "steps": 2, "batch_size": 4},
        "backbone": {"architecture": "timm:test_resnet", "steps": 1, "batch_size": 4},
        "judge": {"architecture": "timm:test_resnet", "steps": 1, "batch_size": 4},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("generator: {channels: 40}", r"generator\.channels"),
        ("teacher: {batch_size: 40, groups: 11}", r"teacher\.batch_size: .* 11 groups"),
        ("generator: {latent_channels: 4}", r"diffusion\.components: .*latent_channels, got 8"),
    ],
)
def test_sizes_must_suit_each_other(tmp_path: Path, recipe: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    with pytest.raises(ManifestError, match=message):
        load(Recipe, path)


def run_here(manifest: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The job in this process, whose number of threads it leaves alone."""
    with thread_limit(0):
        return jobs.run_here("pretrain", manifest, *words)


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_from_icons_to_assets(tmp_path: Path) -> None:
    """The whole job, with a copy and a near copy of a held-out drawing planted in training."""
    crown, moved = icon_package.CROWN, icon_package.CROWN.replace("M2 20", "M2.405 20")
    more = {"lucide": {"crown": crown}, "mdi": {"crown": crown}, "ri": {"crown": moved}}
    icon_package.write(tmp_path / "package", more)
    icon_package.write_clipart(tmp_path / "art")
    manifest = tmp_path / "recipe.yaml"
    manifest.write_text(yaml.safe_dump(small(tmp_path)))
    done = jobs.run("pretrain", manifest)
    assert done.returncode == Exit.DONE, done.stderr
    out = tmp_path / "out"
    assert done.stdout.splitlines()[-1] == f"wrote {out / 'scores.json'}"
    scores = json.loads((out / "scores.json").read_text())
    removed = scores["data"]["separation"]["removed_from_training"]
    assert removed["path"] >= 1
    assert removed["hash"] >= 1
    assert scores["data"]["training"]["icons"] <= 2 * len(icon_package.NAMES) + 2
    teacher = scores["teacher"]
    assert teacher["first"]["steps"] == teacher["second"]["steps"] == 2
    assert scores["generator"]["steps"] == 2
    diffusion = json.loads((out / "diffusion/scores.json").read_text())
    assert jobs.contents(out).keys() == {
        *scores["files"], "scores.json", "NOTICE", "MODEL_CARD.md", "reconstructions.png",
        *diffusion["files"],
        *(f"diffusion/{name}" for name in ("scores.json", "samples.png", "training.svg")),
    }  # fmt: skip
    require_usable(out)
    before = jobs.contents(out)
    again = run_here(manifest)
    assert again.returncode == Exit.DONE, again.stderr
    assert "tower resumes at step 2" in again.stdout
    assert jobs.contents(out) == before
    assert scores["backbone"]["classes"] == len(classes_of(out / "backbone.safetensors"))
    done = run_here(manifest, "--only", "judge")
    assert done.returncode == Exit.DONE, done.stderr
    assert done.stdout.splitlines()[-1] == f"wrote {out / 'judge.safetensors'}"
    assert set(classes_of(out / "judge.safetensors")) <= set(OFFICIAL)
    done = run_here(manifest, "--only", "diffusion")
    assert done.returncode == Exit.DONE, done.stderr
    assert done.stdout.splitlines()[-1] == f"wrote {out / 'diffusion' / 'scores.json'}"
    assert f"teacher and generator of {out}" in done.stdout
    assert "diffusion resumes at step 2" in done.stdout
    assert "--only diffusion" in (out / "MODEL_CARD.md").read_text()
    more = ("diffusion.steps=3", f"diffusion.start={out / 'diffusion'}")
    settings = [word for each in more for word in ("--set", each)]
    done = run_here(manifest, "--only", "diffusion", *settings)
    assert done.returncode == Exit.DONE, done.stderr
    longer = json.loads((out / "diffusion/scores.json").read_text())
    assert (longer["steps"], longer["images_seen"]) == (3, 12)
    assert [each["images"] for each in longer["validations"]] == [8, 12]
    assert longer["validations"][0]["guidance 3"] == diffusion["validations"][-1]["guidance 3"]
    (out / "generator.yaml").write_text("{}")
    done = run_here(manifest, "--only", "diffusion")
    assert done.returncode == Exit.USAGE
    assert "output: must hold the teacher and the generator of this recipe" in done.stderr


def require_usable(assets: Path) -> None:
    """Images can be sampled with the diffusion model and the teacher in a folder."""
    files = {"model": assets / "teacher.json", "weights": assets / "teacher.safetensors"}
    manifest = Manifest.read(
        str(jobs.ROOT / "manifests" / "pacs_sd15.yaml"),
        (
            *(f"teacher.{key}={path}" for key, path in files.items()),
            *(
                f"generator.diffusers.weights={assets / 'diffusion'}",
                "generator.diffusers.guidance=2",
            ),
            *("prompts.method=mix", "generator.diffusers.steps=2"),
        ),
    )
    generator = load_generator(manifest)
    teacher = Teacher.load(manifest.teacher, CPU)
    generator.require(teacher, 64)
    ids = teacher.tokenize(["a cat", ""])
    states = teacher.hidden_states(teacher.embed_tokens(ids), generator.text.layers)
    latents = generator.init_latents([3], 64, Condition(states[:1], states[1:]))
    assert generator.decode(latents).shape == (1, 3, 64, 64)


def classes_of(path: Path) -> list[str]:
    """The classes in the metadata of a classifier's file."""
    with safetensors.safe_open(path, "numpy") as file:
        names: list[str] = json.loads(file.metadata()["classes"])
    return names


def test_a_missing_module_of_this_package_is_no_missing_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "dfkd.lab.miniature.making", None)
    with pytest.raises(ModuleNotFoundError):
        run_here(MANIFEST)


def test_dry_run_says_what_would_be_done() -> None:
    done = jobs.run_here("pretrain", MANIFEST, "--dry-run", "--set", "teacher.steps=7")
    assert json.loads(done.stdout)["teacher_steps"] == 7
