"""Pages say what is true: links lead somewhere, commands are accepted, examples run."""

import contextlib
import importlib.util
import json
import re
import runpy
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from open_clip.pretrained import get_pretrained_cfg
from open_clip.utils import to_2tuple

from dfkd import Manifest
from dfkd.commands import main
from dfkd.evaluation.results import read_results
from dfkd.evaluation.scoring import parameters
from dfkd.export import choice
from dfkd.lab import footprint
from dfkd.models.teacher_architecture import build, read_architecture, require_activation
from dfkd.operations import drafting
from dfkd.report import tables
from dfkd.storage.local import open_storage
from tests.helpers import jobs
from tests.helpers.jobs import ROOT
from tests.repository import manifest_keys
from tests.repository.pages import PAGES, Command, anchors, blocks, commands, links

MINIATURE = ROOT / "manifests" / "miniature.yaml"
ELSEWHERE = {
    "aws": "an account at AWS",
    "docker": "Docker",
    "kubectl": "a Kubernetes cluster",
    "ray": "a cluster, or an account at AWS",
    "pip": "a machine of a cluster",
    "srun": "a Slurm cluster",
    "tensorboard": "a finished run",
    ".venv/bin/pre-commit": "changes the clone's git hooks",
}
"""Programs whose commands need what is not here."""
SHELL = {"echo", "export", "."}
"""What only prepares a shell."""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


ALL = [command for page in PAGES for command in commands(page)]


@cache
def written() -> dict[str, str]:
    """The manifests that pages make with `dfkd init` where there is no GPU, by file name."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(drafting, "find_gpu", lambda: "")
            for words in {each.words for each in ALL if each.words[:2] == ("dfkd", "init")}:
                assert main.main(words[1:]) == 0, words
        return {path.name: path.read_text() for path in Path().iterdir()}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """The manifest that README.md makes."""
    path = tmp_path / "mine.yaml"
    path.write_text(written()["mine.yaml"])
    return path


def script(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """The file of `jobs/` that a command runs, or would submit to Ray, and its options."""
    if words[:3] == ("ray", "job", "submit") and "--" in words:
        words = words[words.index("--") + 1 :]
    match words:
        case ("python" | ".venv/bin/python", path, *options) if path.endswith(".py"):
            return path, options
        case ("dfkd" | ".venv/bin/dfkd", name, *options) if (
            ROOT / "jobs" / f"{name}.py"
        ).is_file():
            return f"jobs/{name}.py", options
    return None


JOBS = [each for each in ALL if (found := script(each.words)) and found[0].startswith("jobs/")]


def exit_code(job: str, words: list[str]) -> object:
    """The exit code of a job in this process; an option such as --list prints and exits itself."""
    try:
        return jobs.load(job).main(words)
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize("command", JOBS, ids=str)
def test_every_job_takes_its_command(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Options are known, and the manifest, the study or the run is read with what is set."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "manifests").symlink_to(ROOT / "manifests")
    found = script(command.words)
    path, words = found
    for manifest, content in written().items():
        (tmp_path / manifest).write_text(content)
    for run in (word for word in words if word.startswith("runs/")):  # of the reader
        (tmp_path / run).mkdir(parents=True)
    assert exit_code(Path(path).stem, [*words, "--print-manifest"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("job", ["audit", "pipeline"])
def test_the_run_of_the_mugs_has_a_plan(
    job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the miniature's models in place of 6 GB of weights, and their size of images."""
    monkeypatch.chdir(tmp_path)
    small = yaml.safe_load(MINIATURE.read_text())
    mugs = yaml.safe_load(written()["mugs.yaml"])
    mugs |= {"teacher": small["teacher"], "generator": small["generator"]}
    mugs["synthesis"]["image_size"] = 64
    mugs["distillation"] |= {"student": "timm:test_resnet", "weights": "miniature"}
    Path("mugs.yaml").write_text(yaml.safe_dump(mugs))
    assert exit_code(job, ["mugs.yaml", "--dry-run"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("command", [each for each in ALL if each not in JOBS], ids=str)
def test_every_other_command_names_what_is_there(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, *words = command.words
    if found := script(command.words):
        assert (ROOT / found[0]).is_file()
    elif program.endswith("dfkd"):
        with pytest.raises(SystemExit) as stop:
            main.main([words[0], "--help"])
        assert stop.value.code == 0
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words) <= set(targets)
    elif program.endswith("python") and words[:2] == ["-m", "pytest"]:
        assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))
    elif program.endswith("python") and words[0] == "-m" and words[1].startswith("tests."):
        assert importlib.util.find_spec(words[1])
    elif program.endswith("python") and words[0] == "-m":
        monkeypatch.setattr("sys.argv", [*words[1:], "--help"])
        with pytest.raises(SystemExit) as stop:
            runpy.run_module(words[1], run_name="__main__")
        assert stop.value.code == 0
    elif program == ".ci/run":
        assert (ROOT / program).is_file()
    else:
        assert program in SHELL or program in ELSEWHERE, f"nothing tests this: {command}"


YAML = [(page, number) for page in PAGES for number in range(len(blocks(page, "yaml")))]


@pytest.mark.parametrize(("page", "number"), YAML)
def test_every_manifest_is_valid(page: Path, number: int, mine: Path, tmp_path: Path) -> None:
    """As it stands, or with its sections in the place of those of the reader's own."""
    shown = yaml.safe_load(blocks(page, "yaml")[number])
    path = tmp_path / "manifest.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(mine.read_text()) | shown))
    Manifest.read(path)


DEMO = ROOT / "manifests" / "studies" / "demo"


def test_the_table_of_the_demo_is_that_of_its_results() -> None:
    shown = tables.table(read_results(open_storage(str(DEMO))))
    assert f"```text\n{shown}\n```" in (DEMO / "README.md").read_text()


def test_the_answer_of_the_readme_is_that_of_the_demo() -> None:
    quoted = re.findall("^> (.+)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    found = choice.read_candidates(open_storage(str(DEMO)))
    assert " ".join(quoted) == choice.answer(found).sentence


def test_the_towers_and_students_of_the_readme_are_those_that_were_measured() -> None:
    record = json.loads((ROOT / "manifests/benchmarks/towers.json").read_text())
    assert record["date"] in (text := (ROOT / "README.md").read_text())
    results = record["results"]
    for figure in results["figures"]:
        name = figure["name"]
        size, count = results["image_size"][name], results["parameters"][name]
        cells = f"{size} | {footprint.megabytes(count):.1f} | {figure['median']:.1f} |"
        assert re.search(rf"\| `{name}` \| (tower|student) \| {re.escape(cells)}", text), cells


def test_the_teachers_are_accepted_and_as_large_as_their_table_says() -> None:
    page = (ROOT / "manifests" / "README.md").read_text()
    row = r"^\| [\w-]+ \| `(.+)` \| `(.+)` \| (\d+) \| ([\d.]+) \| (\d+) \| .+ \|$"
    rows = re.findall(row, page, re.MULTILINE)
    assert len(rows) > 10
    for model, tag, *cells in rows:
        architecture, published = read_architecture(model), get_pretrained_cfg(model, tag)
        assert published
        require_activation(tag, bool(published.get("quick_gelu")), architecture)
        with torch.device("meta"):
            tower = build(architecture).get_submodule("visual")
        side, count = max(to_2tuple(tower.image_size)), parameters(tower)
        assert cells == [f"{side}", f"{count / 1e6:.1f}", f"{footprint.megabytes(count):.0f}"], (
            model
        )


def test_the_keys_are_those_of_the_code() -> None:
    assert manifest_keys.PAGE.read_text() == manifest_keys.page(), (
        "run python -m tests.repository.manifest_keys"
    )


def test_the_keys_are_all_keys() -> None:
    sections = {section.name: section for section in manifest_keys.sections()}
    keys = {key.name: key for section in sections.values() for key in section.keys}

    def leaves(tree: dict[str, object], prefix: str = "") -> set[str]:
        return {
            leaf
            for key, value in tree.items()
            for leaf in (
                leaves(value, f"{prefix}{key}.")
                if isinstance(value, dict) and f"{prefix}{key}" in sections
                else {f"{prefix}{key}"}
            )
        }

    assert leaves(Manifest.read(MINIATURE).as_dict()) <= keys.keys()


def test_a_wrong_command_is_found(mine: Path) -> None:
    """The check of jobs can fail: an unknown key, an unknown option."""
    for wrong in (["--set", "synthesis.nonsense=1"], ["--nonsense"]):
        assert exit_code("pipeline", [str(mine), *wrong, "--print-manifest"]) == 2
