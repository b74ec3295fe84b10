"""A study as a user makes it: cells, table, figure; found again, shared, broken, refused."""

import hashlib
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dfkd.errors import Exit
from dfkd.lab.studies import listing, study
from dfkd.storage import layout
from tests.helpers import jobs
from tests.helpers.tiny_judge import write_judge
from tests.helpers.tiny_study import EPOCHS, write

PAPER = {
    "of": "Table 1",
    "data": "PACS",
    "columns": ["P", "Avg."],
    "rows": {"CLIP": [99.46, 94.15], "Random_Prompt": [91.27, 69.0]},
}

pytestmark = pytest.mark.usefixtures("two_cpus")
ALONE = ("--threads", "1")


def reproduce(*words: str | Path) -> tuple[int, str, str]:
    """Run the job in this process; its exit code, stdout and stderr."""
    found = jobs.run_here("reproduce", *map(str, words), *ALONE)
    return found.returncode, found.stdout, found.stderr


def finish(*words: str | Path) -> str:
    """What the job prints when it has found or made all cells."""
    code, out, err = reproduce(*words)
    assert code == Exit.DONE, err
    return out


@pytest.fixture(scope="module")
def made(two_cpus: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of two methods and two seeds, made once: its root, its files."""
    folder = tmp_path_factory.mktemp("study")
    path = write(folder, teacher="CLIP", paper=[PAPER], notes=["A note."])
    finish(path)
    return folder


def write_beside(made: Path, folder: Path, **changes: Any) -> Path:
    """The file of another study with the same root."""
    return write(folder, {"storage": {"root": str(made / "root")}}, **changes)


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def trained(folder: Path) -> dict[str, Any]:
    """What lies in the folders of all students."""
    found = jobs.contents(folder / "root")
    return {name: content for name, content in found.items() if "/students/" in f"/{name}"}


def shown(values: list[float]) -> str:
    """Accuracies of seeds as a table shows them."""
    mean = f"{100 * statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def test_the_table_follows_from_the_cells(made: Path) -> None:
    found = results(made)
    domains = list(found["domains"])
    head = ["Method", *domains, "mean", "MB", "ms", "P (PACS, paper)", "Avg. (PACS, paper)"]
    printed = {"CLIP": ["99.46", "94.15"], "Random_Prompt": ["91.27", "69.00"]}
    lines = []
    latency = json.loads((made / "latency.json").read_text())["ms"]
    teacher, student = (latency[name] for name in sorted(latency))
    for row, seeds in zip(found["rows"], ([0], [0, 1], [0, 1]), strict=True):
        assert [cell["seed"] for cell in row["cells"]] == seeds
        cells = [
            json.loads((made / "root" / cell["folder"] / "cell.json").read_text())
            for cell in row["cells"]
        ]
        scores = [{s["domain"]: s["accuracy"] for s in cell["scores"]} for cell in cells]
        values = [[score[name] for score in scores] for name in domains]
        means = [statistics.fmean(score.values()) for score in scores]
        (name,) = row["names"]
        ms = student if row["model"] == "student" else teacher
        size = [f"{4 * row['parameters'] / 1e6:.1f}", f"{ms:.1f}"]
        cells = [*map(shown, [*values, means]), *size, *printed.get(name, ["-", "-"])]
        lines.append([name, *cells])
    assert [line[0] for line in lines] == ["CLIP", "Baseline", "Random_Prompt"]
    table = (made / "table.md").read_text().splitlines()
    assert table[0] == "# Tiny & small"
    grid = [line.strip("| ").split("|") for line in table if line.startswith("|")]
    assert [[cell.strip() for cell in line] for line in (grid[0], *grid[2:])] == [head, *lines]
    images = ", ".join(f"{name} {count}" for name, count in found["domains"].items())
    assert table[-6:] == [
        "- Accuracy in percent, mean ± standard deviation over 2 students of one data set. Images "
        f"scored: {images}.",
        "- mean: over domains, each with the same weight.",
        "- MB: size of the model's parameters in float32. ms: one image on one core of the "
        "machine that wrote this table.",
        "- (PACS, paper): printed in Table 1 of the paper, about its own data, teacher and "
        "students; not part of any mean here.",
        "- A note.",
        f"- {found['notes'][0]}",
    ]


def test_results_say_where_they_come_from(made: Path) -> None:
    found = results(made)
    assert found["command"] == f"dfkd reproduce {made / 'study.yaml'}"
    assert {cell["outcome"]["version"] for row in found["rows"][1:] for cell in row["cells"]} == {
        json.loads(path.read_text())["fingerprint"]
        for path in (made / "root").glob("*/data/*/versions/*/version.json")
    }
    for outcome in (cell["outcome"] for row in found["rows"] for cell in row["cells"]):
        assert {"python", "torch"} <= outcome["environment"].keys()
        assert outcome["machine"]["cpus"] >= 1
        assert len(outcome["date"]) == len("2026-01-01")


def test_what_is_finished_is_found_and_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    before = jobs.contents(made / "root")
    (tmp_path / "again").mkdir()  # latencies are measured, and kept beside the tables
    shutil.copy(made / "latency.json", tmp_path / "again")
    out = finish(made / "study.yaml", "--output", tmp_path / "again")
    assert out.count(": found ") == 4
    assert ": finished " not in out
    assert jobs.contents(made / "root") == before
    for name in ("results.json", "table.md"):
        assert (tmp_path / "again" / name).read_bytes() == (made / name).read_bytes()


def test_cells_share_what_they_have_in_common(made: Path, tmp_path: Path) -> None:
    """Of another study too: one data set, one student of each number of epochs, made once."""
    axes = [{"name": "Epochs", "values": EPOCHS}]
    path = write_beside(made, tmp_path, axes=axes, kind="curve", x="Epochs", seeds=[0])
    before = {path.name for path in (made / "root").glob("*/students/*")}
    out = finish(path)
    assert "1 seed 0: found " in out
    assert "2 seed 0: finished " in out
    assert len(list((made / "root").glob("*/data/vanilla/versions/*"))) == 1
    after = {path.name for path in (made / "root").glob("*/students/*")}
    assert len(after) == len(before) + 1
    svg = (tmp_path / "figure.svg").read_text()
    assert svg.startswith("<svg")
    assert "accuracy, %" in svg
    assert Image.open(tmp_path / "figure.png").width > 400


def test_whole_runs_are_compared_with_each_other(made: Path, tmp_path: Path) -> None:
    """Run 0 has its data set already; run 1 makes its own, and students of it."""
    shutil.copytree(made / "root", tmp_path / "root")
    axes = [{"name": "Epochs", "values": {"Baseline": EPOCHS[1], "Longer": EPOCHS[2]}}]
    out = finish(write(tmp_path, axes=axes, repeat="run", compare="Baseline"))
    assert "Baseline seed 0: found " in out
    assert out.count("seed 1: finished ") == 2
    rows = results(tmp_path)["rows"]
    versions = [cell["outcome"]["version"] for row in rows for cell in row["cells"]]
    assert versions[:2] == versions[2:]
    assert len(set(versions)) == 2
    salts = {
        json.loads(path.read_text())["identity"].get("salt", 0)
        for path in (tmp_path / "root").glob("*/data/*/versions/*/version.json")
    }
    assert salts == {0, 1}
    table = (tmp_path / "table.md").read_text()
    assert " vs Baseline |" in table
    assert "over 2 whole runs (data set and student). " in table


def test_a_judge_recognises_the_images_of_the_class_that_it_names(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of clocks and books those of one; another judge scores anew, with the same students."""
    shutil.copytree(made / "root", tmp_path / "root")
    judge, students = tmp_path / "judge", trained(tmp_path)
    judged = {"judge": str(judge), "teacher": "CLIP"}
    for answer, share in (("key", 0.0), ("clock", 0.5)):
        write_judge(judge, ("key", "clock", "book"), answer)
        assert finish(write(tmp_path, **judged)).count(": finished ") == 4
        found = results(tmp_path)
        assert found["judge"] == hashlib.sha256(judge.read_bytes()).hexdigest()
        assert f"It names {100 * found['judge_accuracy']:.1f} % of the evaluation images." in (
            tmp_path / "table.md"
        ).read_text("utf-8")
        shares = [[cell["outcome"]["recognised"] for cell in row["cells"]] for row in found["rows"]]
        assert shares == [[None], [share, share], [share, share]]
    lines = [line.split("|") for line in (tmp_path / "table.md").read_text("utf-8").splitlines()]
    shown = lines[2].index(" recognised ")
    assert [line[shown].strip()[:4] for line in lines[4:7]] == ["-", "50.0", "50.0"]
    assert trained(tmp_path) == students
    monkeypatch.delattr("dfkd.lab.studies.judge.Judge.recognised")
    before = jobs.contents(tmp_path / "root")
    for changes in (judged, {}):  # a study without a judge has cells of its own
        assert finish(write(tmp_path, **changes)).count(": found ") == 4
        assert jobs.contents(tmp_path / "root") == before


@pytest.mark.parametrize("kind", ["bars", "embedding"])
def test_a_figure_is_drawn(made: Path, tmp_path: Path, kind: str) -> None:
    shown = {"adaptation": {"domain": "pixel_art", "shots": 2}} if kind == "embedding" else {}
    out = finish(write_beside(made, tmp_path, kind=kind, seeds=[0], **shown))
    assert out.count(": found ") == 2
    svg = (tmp_path / "figure.svg").read_text()
    assert "Random_Prompt" in svg
    assert ("pixel_art" in svg) == (kind == "bars")
    maps = results(tmp_path)["maps"]
    rows = ("Baseline", "Random_Prompt") if kind == "embedding" else ()
    assert [(each["row"], each["shots"]) for each in maps] == [(r, k) for r in rows for k in (0, 2)]
    for each in maps:
        images = results(tmp_path)["domains"]["pixel_art"]
        assert len(each["points"]) == len(each["classes"]) == len(each["taught"]) == images
        assert sum(each["taught"]) == 2 * 2
        assert set(each["classes"]) == {"clock", "book"}


def test_the_student_of_a_map_is_made_again_if_it_is_gone(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "root", tmp_path / "root")
    for folder in (tmp_path / "root").glob("*/students"):
        shutil.rmtree(folder)
    shown = {"kind": "embedding", "adaptation": {"domain": "pixel_art", "shots": 2}}
    out = finish(write(tmp_path, **shown))
    assert (out.count(": found "), out.count(": finished ")) == (2, 2)  # one seed of each row
    assert len(results(tmp_path)["maps"]) == 2 * 2


def test_a_case_shows_one_class_made_and_real(made: Path, tmp_path: Path) -> None:
    pictures = {"classes": ["book"], "count": 3}
    out = finish(write_beside(made, tmp_path, kind="case", pictures=pictures))
    found = results(tmp_path)
    row = next(line for line in out.splitlines() if line.startswith("| Baseline"))
    scores = [s for cell in found["rows"][0]["cells"] for s in cell["outcome"]["scores"]]
    values = [s["per_class"]["book"] for s in scores if s["domain"] == "pixel_art"]
    at = 1 + list(found["domains"]).index("pixel_art")
    assert row.strip("| ").split("|")[at].strip() == shown(values)
    with Image.open(tmp_path / "figure.png") as sheet:  # two methods above nine domains
        assert sheet.height > 11 * 64


def test_a_gallery_needs_no_student(made: Path, tmp_path: Path) -> None:
    pictures = {"classes": ["book"], "count": 2}
    out = finish(write_beside(made, tmp_path, kind="gallery", pictures=pictures))
    assert out.splitlines()[-1] == f"wrote {tmp_path / 'figure.png'}"
    assert Image.open(tmp_path / "figure.png").width > 4 * 64
    assert not (tmp_path / "table.md").exists()
    assert (made / "root" / layout.STUDIES).exists()
    versions = [row["version"] for row in results(tmp_path)["rows"]]
    assert len(set(versions)) == 2


def test_a_failed_cell_is_named_and_the_rest_is_kept(made: Path, tmp_path: Path) -> None:
    """A shard of one data set is damaged before a third seed is asked for."""
    root = tmp_path / "root"
    shutil.copytree(made / "root", root)
    shard = next(root.glob("*/data/random/versions/*/shards/*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1])
    path = write(tmp_path, seeds=[0, 1, 2])
    code, out, err = reproduce(path)
    assert code == Exit.PARTIAL
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: study tiny: 1 of 6 cells failed (Random_Prompt seed 2: ")
    assert shard.name in last
    assert out.count(": found ") == 4
    assert "Baseline seed 2: finished " in out
    assert "Random_Prompt seed 2: failed: " in out
    assert out.splitlines()[-1] == f"wrote {tmp_path / 'table.md'}"
    table = (tmp_path / "table.md").read_text()
    assert "- Random_Prompt: 2 of 3 seeds." in table
    assert "- Missing: Random_Prompt seed 2 (" in table
    assert [len(row["cells"]) for row in results(tmp_path)["rows"]] == [3, 2]
    shutil.copy(made / shard.relative_to(tmp_path), shard)
    assert finish(path).count(": found ") == 5
    assert "Missing" not in (tmp_path / "table.md").read_text()


def test_a_study_without_any_finished_cell_has_no_table(made: Path, tmp_path: Path) -> None:
    """An evaluation set with a torn image: no cell is scored on what the others are not."""
    for name in ("clock", "book"):
        (tmp_path / "data" / "photo" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / "data" / "photo" / name / "0.png")
    (tmp_path / "data" / "photo" / "book" / "1.png").write_bytes(b"torn")
    shutil.copytree(made / "root", tmp_path / "root")
    path = write(tmp_path, settings={"evaluation": {"data": str(tmp_path / "data")}})
    code, out, err = reproduce(path)
    assert code == Exit.PARTIAL
    assert "4 of 4 cells failed (Baseline seed 0: evaluation.data: 1 images could not" in err
    assert "found" not in out
    assert not (tmp_path / "table.md").exists()


BATCHES = {n: {"distillation": {"batch_size": n}} for n in (4, 5)}
TEMPLATES = {n: {"teacher": {"template": n + " {class}"}} for n in "AB"}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"settings": {"distillation": {"student": "resnet1"}}}, "distillation.student"),
        ({"settings": {"synthesis": {"image_size": 65}}}, "synthesis.image_size"),
        (
            {"axes": [{"name": "B", "values": BATCHES}]},
            "distillation.batch_size: must not exceed the 4 images, got 5",
        ),
        ({"settings": {"teacher": {"weights": "absent.pt"}}}, "teacher.weights"),
        ({"judge": "absent.safetensors"}, "judge: must be a safetensors file"),
        (
            {"kind": "embedding", "adaptation": {"domain": "photo"}},
            "adaptation.domain: must be among those of evaluation.data",
        ),
        (
            {"teacher": "CLIP", "axes": [{"name": "t", "values": TEMPLATES}]},
            "teacher: must be empty where rows have several teachers, as B has another",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    require_refusal(write(tmp_path, **changes), complaint)


def test_a_class_without_evaluation_data_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "data" / "photo" / "clock").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "data" / "photo" / "clock" / "0.png")
    data = {"data": str(tmp_path / "data")}
    settings = {"classes": ["clock", "zebra"], "evaluation": data}
    require_refusal(write(tmp_path, settings=settings), "evaluation.data")


def require_refusal(path: Path, complaint: str) -> None:
    assert complaint in jobs.refusal("reproduce", path, *ALONE)
    assert not list((path.parent / "root").glob("*/data"))


def test_a_study_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "did you mean 'dictionary'?" in jobs.refusal("reproduce", "dictionry")
    (tmp_path / "file").write_text("")
    line = jobs.refusal("reproduce", write(tmp_path), "--output", str(tmp_path / "file"))
    assert line.startswith("--output: must be a folder, s3://bucket/prefix, az://")


def test_the_list_names_every_table_and_figure(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        jobs.load("reproduce").main(["--list"])
    assert ended.value.code == Exit.DONE
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["study", "shows", "rows", "seeds"]
    names = {path.parent.name for path in study.files()}
    blank = lines.index("")
    assert {line.split()[0] for line in lines[:blank]} == names
    dictionary = next(line for line in lines if line.startswith("dictionary"))
    # 3 x 5 data sets of 12 x 96 images; a student of each, of 80 epochs.
    assert dictionary.split()[1:] == ["Table", "6", "3", "5", "17,280", "1,382,400"]
    index = dict(line.split(": ", 1) for line in lines[blank + 1 :])
    assert list(index) == [
        *(f"Figure {n}" for n in range(1, 12)),
        *(f"Table {n}" for n in range(1, 9)),
    ]
    assert index["Table 2"] == "methods"
    assert index["Figure 4"].startswith("a drawing")


def test_the_steps_of_a_study_are_those_of_its_generators(tmp_path: Path) -> None:
    dfad = [{"name": "Method", "values": {"DFAD": {"synthesis": {"source": "dfad"}}}}]
    without_latents = listing.cost(study.find(str(write(tmp_path, axes=dfad)), ()))
    assert without_latents["images"] > 0
    assert (without_latents["optimisation_steps"], without_latents["sampling_steps"]) == (0, 0)
    sampled = listing.cost(study.find("dictionary", ()))
    assert (sampled["optimisation_steps"], sampled["sampling_steps"]) == (0, 8 * sampled["images"])


def test_the_plan_counts_and_makes_nothing(tmp_path: Path) -> None:
    settings = {"storage": {"root": str(tmp_path / "quick")}, "generator": {"vqgan": {"steps": 3}}}
    path = write(tmp_path, quick={"settings": settings})
    plan = jobs.plan("reproduce", path, "--quick")
    assert plan["size"] == "quick"
    assert plan["seeds"] == [0]
    assert (plan["data_sets"], plan["images"]) == (2, 2 * 4)
    assert (plan["optimisation_steps"], plan["sampling_steps"]) == (2 * 4 * 3, 0)
    assert (plan["students"], plan["student_images"]) == (2, 2 * 4)
    assert not (tmp_path / "quick").exists()


def test_quick_results_lie_under_its_own_root(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "root", tmp_path / "quick")
    quick = {"settings": {"storage": {"root": str(tmp_path / "quick")}}}
    absent = "absent.safetensors"  # the full study's judge, which a quick one does without
    out = finish(write(tmp_path, quick=quick, judge=absent), "--quick")
    assert out.count(": found ") == 2
    place = tmp_path / "quick" / "studies" / "tiny"
    assert out.splitlines()[-1] == f"wrote {place / 'table.md'}"
    assert "it shows that the study runs, and measures nothing" in (place / "table.md").read_text()
    assert results(place)["size"] == "quick"
    assert not (tmp_path / "table.md").exists()
    assert not (tmp_path / "root").exists()
