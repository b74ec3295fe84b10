import argparse
import dataclasses
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from dfkd.commands import command_line
from dfkd.config.manifest import Manifest
from dfkd.distillation.student_store import locate_students
from dfkd.errors import ManifestError
from dfkd.evaluation.data import Domains, Item
from dfkd.evaluation.results import results, row, write_results
from dfkd.export.choice import answer
from dfkd.report import compare, page
from dfkd.report.facts import Facts, RunOrigin, collect, note_origin
from dfkd.report.wording import figures, headline
from dfkd.storage.local import open_storage
from dfkd.utils.strict_json import canonical
from tests.helpers.candidates import FOUR, parsed, tree
from tests.helpers.finished_run import CLASSES, SIZES, TEXT, finished

COMMAND = "dfkd pipeline 'my <run>.yaml'"


class Outline(HTMLParser):
    """Tags with their attributes, and the text outside of styles and scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = [("", {})]
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data if self.tags[-1][0] not in ("style", "script") else ""

    @property
    def words(self) -> str:
        """The text with single, breaking spaces."""
        return " ".join(self.text.replace("\u00a0", " ").split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, str]:
    manifest = finished(tmp_path_factory.mktemp("written"))
    return manifest, Path(page.write(manifest, COMMAND)).read_text()


def test_the_headline_and_its_numbers_follow_from_the_results(
    written: tuple[Manifest, str],
) -> None:
    words = Outline(written[1]).words
    # (60 + 65) / 2 of 80 percent.
    assert "that has never seen a real image keeps 78.1 % of its teacher's accuracy over" in words
    assert "over 3 domains." in words
    assert "mean accuracy, contrastive 62.5 %" in words
    assert "images synthesised, all methods 48 real images used 0" in words
    assert "worker time, all stages 1:56 h" in words
    assert "total adds up processes that ran side by side" in words
    assert "±3.5" in words


def test_a_bar_is_as_long_as_its_accuracy_and_its_line_as_the_deviation(facts: Facts) -> None:
    (_, _, bars), *_ = page.accuracy_charts(facts, page.slots_of(facts))
    assert [(bar.name, bar.slot, round(bar.mean, 6)) for bar in bars] == [
        ("teacher", 0, 80.0), ("vanilla", 1, 42.5), ("contrastive", 4, 62.5),
    ]  # fmt: skip
    chart = page.render(facts).partition('<div class="bars">')[2].partition("ticks")[0]
    assert chart.count('class="track') == 3
    assert '<div style="width:62.50%"></div><i style="left:58.96%;right:33.96%"></i>' in chart
    assert '<b style="left:66.04%">62.5</b>' in chart
    assert 'title="contrastive on Mean of 3 domains: 62.5 % ± 3.5"' in chart
    assert chart.count("<i ") == 2  # the teacher has no deviation


def test_every_part_is_there(written: tuple[Manifest, str]) -> None:
    outline = Outline(written[1])
    sections = [attributes.get("id") for attributes in outline.all("section")]
    assert sections == list(page.SECTIONS)
    assert {a["href"] for a in outline.all("a")} >= {f"#{name}" for name in page.SECTIONS}
    assert COMMAND in outline.text
    assert "1 h 00 min" in outline.words
    assert [a.get("class") for a in outline.all("div")].count("bars") == 1 + 3
    assert "in TensorBoard's files" in outline.text


def test_all_images_are_in_the_page_with_their_captions(written: tuple[Manifest, str]) -> None:
    images = Outline(written[1]).all("img")
    assert len(images) >= 2 * 3 * 8
    assert all(str(image["src"]).startswith("data:image/") for image in images)
    assert {str(image["alt"]).rpartition(", image")[0] for image in images} == set(CLASSES)
    assert written[1].count("confidence 90.0\u00a0%") == len(images)


def test_names_of_classes_and_notes_are_escaped(written: tuple[Manifest, str]) -> None:
    html = written[1]
    outline = Outline(html)
    assert all("onerror" not in attributes for _, attributes in outline.tags)
    assert len(outline.all("script")) == 1
    assert "<i>" not in html
    assert TEXT not in html
    assert CLASSES[1] in outline.text
    assert "<i>a note</i>" in outline.text


def test_nothing_is_fetched_from_anywhere(written: tuple[Manifest, str]) -> None:
    html = written[1]
    assert "default-src 'none'; img-src data:" in html
    assert "url(" not in re.sub(r"url\(#\w+\)", "", html)
    for tag, attributes in Outline(html).tags:
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            target = attributes.get(name) or ""
            assert "//" not in target.partition("base64,")[0], (tag, target)
    assert all(a.get("src") is None for a in Outline(html).all("script"))


def test_a_manifest_of_other_images_is_refused(written: tuple[Manifest, str]) -> None:
    """Its students would be found on the current version, and the page would show its settings."""
    manifest, _ = written
    other = dataclasses.replace(manifest, seed=manifest.seed + 1)
    page._require_scored(dataclasses.replace(manifest, salt=manifest.salt + 1), names_of(manifest))
    with pytest.raises(
        ManifestError, match=r"^seed: must be that of version \w{16}, 0, got 1; give"
    ):
        page._require_scored(other, names_of(manifest))


def names_of(manifest: Manifest) -> list[str]:
    """The names of the manifest's students."""
    return [location.name for location in locate_students(manifest)]


def test_the_same_run_gives_the_same_page_from_manifest_and_from_folder(
    written: tuple[Manifest, str],
) -> None:
    manifest, html = written
    storage = open_storage(manifest.storage.root)
    assert Path(page.write_stored(storage)).read_text() == html
    assert Path(page.write(manifest, COMMAND)).read_text() == html


def test_a_run_below_a_folder_that_is_no_utf_8_has_its_pages(run: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(run.storage.root, folder / "run")
    storage = open_storage(str(folder / "run"))
    options = argparse.Namespace(manifest=f"{folder}/run.yaml", overrides=[])
    note_origin(storage, run, command_line.again("pipeline", options))
    shown = f"{tmp_path}/caf\\udce9/run"
    html = Path(page.write_stored(storage)).read_text()
    assert f"<code>{shown}</code>" in html
    assert f"{shown}.yaml" in html
    assert f"<code>{shown}</code>" in Path(compare.write(storage, storage)).read_text()


def test_the_page_says_what_the_students_learned(facts: Facts) -> None:
    def rendered(target: str) -> str:
        trained = [
            dataclasses.replace(each, card={**each.card, "target": target})
            for each in facts.trained_students
        ]
        return Outline(page.render(dataclasses.replace(facts, trained_students=trained))).words

    assert "learns the teacher's distances, not a class" in rendered("distances")
    assert "learns the teacher's embedding of each image, not a class" in rendered("embedding")


def test_a_folder_without_its_manifest_claims_less(facts: Facts) -> None:
    text = Outline(page.render(facts)).words
    assert "of 250,000 parameters" in text  # as results.json says
    assert text.count(", 250,000 parameters,") == len(facts.trained_students)
    assert "parameters that was distilled from synthesised images alone" in text
    assert "never seen a real image" not in text
    assert "real images used" not in text
    assert "command that made it was not kept" in text


def test_a_page_without_student_and_teacher_is_about_what_was_scored(facts: Facts) -> None:
    summary = facts.scored[0].summary | {"model": "text-only", "method": "classifier", "mean": 0.7}
    alone = [dataclasses.replace(facts.scored[0], summary=summary)]
    facts = dataclasses.replace(facts, scored=alone)
    assert "text-only classifier alone has a mean accuracy of <em>70.0" in headline(facts)
    assert next(name for name, _, _ in figures(facts)) == "mean accuracy, text-only classifier"


def test_a_student_with_pretrained_weights_has_seen_real_images(facts: Facts) -> None:
    def claimed(*weights: str) -> str:
        origin = RunOrigin(1, COMMAND, None, {"distillation": {"weights": list(weights)}})
        shown = dataclasses.replace(facts, origin=origin)
        return str(headline(shown)) + str(figures(shown))

    assert "never seen a real image" in claimed("none")
    assert "('real images used', '0', '')" in claimed("none", "none")
    assert "never seen a real image" not in claimed("IMAGENET1K_V1")
    assert "('initial weights', 'IMAGENET1K_V1', '')" in claimed("IMAGENET1K_V1")
    # The scored student is the first one; the figure is about all of them.
    several = claimed("none", "pretrained")
    assert "never seen a real image" in several
    assert "('initial weights', 'none, pretrained', '')" in several
    assert "real images used" not in several


def test_a_run_that_is_not_finished_is_refused_and_nothing_written(
    run: Manifest, tmp_path: Path
) -> None:
    empty = str(tmp_path / "empty")
    with pytest.raises(
        ManifestError, match=r"storage\.root: must hold a finished run.*first, with labelled images"
    ):
        page.write(run.with_values(storage={"root": empty}), COMMAND)
    assert list(open_storage(empty).list()) == []


def test_a_run_with_no_more_than_its_results_has_a_page(run: Manifest, tmp_path: Path) -> None:
    source = open_storage(run.storage.root)
    bare = open_storage(str(tmp_path / "bare"))
    bare.put("results.json", source.get("results.json"))
    outline = Outline(Path(page.write_stored(bare)).read_text())
    present = {attributes.get("id") for attributes in outline.all("section")}
    assert present == set(page.SECTIONS) - {"ship", "images", "doubtful", "prompts", "takehome"}
    assert "#ship" not in {a["href"] for a in outline.all("a")}
    assert "left no records of time" in outline.text
    assert "TensorBoard" not in outline.text
    assert "A student that" in outline.words


def test_the_page_opens_with_the_candidates_and_what_to_ship(facts: Facts) -> None:
    section = page.render(facts).partition('<section id="ship">')[2].partition("</section>")[0]
    outline = Outline(section)
    found = answer(facts.candidates)
    assert found.sentence in outline.words
    assert all(remark in outline.words for remark in found.remarks)
    assert "21.5\u00a0MB" in section
    kinds = [attributes.get("class") for attributes in outline.all("rect") + outline.all("circle")]
    # In each panel, and once in the legend.
    assert [kinds.count(kind) for kind in ("mark", "mark hollow")] == [2 * 4 + 2] * 2
    rows = [" ".join(row.split()) for row in outline.text.splitlines() if "float32" in row]
    assert "timm:test_resnet float32 62.0 ±5.0 2.2 1.5 48" in rows
    assert "teacher text-only float32 82.0 3.2 21.5 0" in rows
    assert "candidates/teacher-text-only/" in {a["href"] for a in outline.all("a")}
    assert section.count('<th scope="row" class="chosen">') == len(found.choices) == 3
    assert "half of a 95 % interval over seeds" in outline.words
    assert "GPU" not in outline.words


def test_time_on_a_gpu_is_shown_where_it_was_measured(facts: Facts) -> None:
    fast, *others = FOUR
    found = parsed(fast | {"gpu_ms": 0.25}, *others, gpu="NVIDIA H100")
    words = Outline(page.render(dataclasses.replace(facts, candidates=found))).words
    assert "teacher float32 80.0 3.2 21.5 0 0.25 " in words
    assert "teacher text-only float32 82.0 3.2 21.5 0 - " in words
    assert "or on NVIDIA H100" in words


def test_a_run_without_labelled_images_has_a_page_about_its_candidates(
    run: Manifest, tmp_path: Path
) -> None:
    shutil.copytree(run.storage.root, tmp_path / "run")
    unscored = run.with_values(storage={"root": str(tmp_path / "run")}, evaluation={"data": "none"})
    storage = open_storage(unscored.storage.root)
    storage.delete("results.json")
    storage.delete("candidates.json")
    with pytest.raises(ManifestError, match=r"with candidates\.json.*run dfkd pipeline first"):
        page.write(unscored, COMMAND)
    storage.put("candidates.json", canonical(tree(*FOUR, measure="agreement")))
    html = Path(page.write(unscored, COMMAND)).read_text()
    outline = Outline(html)
    present = [attributes.get("id") for attributes in outline.all("section")]
    absent = {"accuracy", "confusion", "classes"}
    assert present == [name for name in page.SECTIONS if name not in absent]
    assert {a["href"] for a in outline.all("a")}.isdisjoint(f"#{name}" for name in absent)
    assert "Of 4 candidates, ship teacher text-only. What to ship" in outline.words
    assert "Ship teacher text-only (82.0 % agreement, 3.2 ms, 21.5 MB) unless" in outline.words
    assert "This favours the labeller, whose own answers these are." in outline.words
    assert "3 classes · no labelled images" in outline.words
    assert len(outline.all("img")) >= 2 * 3 * 8
    assert COMMAND in outline.text
    assert Path(page.write_stored(storage)).read_text() == html


@pytest.mark.parametrize(
    ("classes", "matrices", "lines"), [(70, 5, 70), (101, 0, 101), (300, 0, 200)]
)
def test_many_classes_are_still_a_page(
    tmp_path: Path, classes: int, matrices: int, lines: int
) -> None:
    storage = open_storage(str(tmp_path))
    names = [f"class {c}" for c in range(classes)]
    noise = np.random.default_rng(0)
    rows = [
        row(model, method, 0, "photo", names, noise.integers(0, 20, (classes, classes)))
        for model, method in [
            ("teacher", "zero-shot"), ("student", "vanilla"), ("student", "mix"),
            ("student", "random"), ("student", "another"),
        ]
    ]  # fmt: skip
    data = Domains("here", tuple(names), (Item("photo", 0, "a"),), ())
    write_results(storage, results(data, rows, [], SIZES, []))
    html = Path(page.write_stored(storage)).read_text()
    assert len(html) < 5_000_000
    assert html.count('<table class="grid') == matrices
    table = html.partition('<table class="classes">')[2].partition("</table>")[0]
    assert table.count("<tr>") == lines + 1
    assert ("The 200 classes that the best student knows least, of 300" in html) is (classes == 300)
    assert '<span class="tag t5">another</span>' in html


def test_means_over_classes_are_shown_as_such(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    counts = np.array([[90, 10, 0], [1, 1, 0], [0, 0, 0]])
    rows = [
        row(model, method, 0, domain, CLASSES, counts)
        for model, method in [("teacher", "zero-shot"), ("student", "mix")]
        for domain in ("real", "synthetic")
    ]
    data = Domains("here", CLASSES, (Item("synthetic", 0, "a"), Item("real", 0, "b")), ())
    write_results(storage, results(data, rows, [], SIZES, [], "classes"))
    words = Outline(Path(page.write_stored(storage)).read_text()).words
    assert "Mean over classes of the share of their images" in words
    assert "class mean, % synthetic real mean teacher 70.0 70.0 70.0 mix 70.0 70.0 70.0" in words
    assert "mean class accuracy, mix 70.0 %" in words
    assert "89.2" not in words.partition("Confusions")[0]


def test_a_version_whose_images_all_failed_has_a_page(written: tuple[Manifest, str]) -> None:
    facts = collect(open_storage(written[0].storage.root))
    (first, *_) = facts.method_images
    empty = dataclasses.replace(first.version, facts=first.version.facts | {"samples": 0})
    images = dataclasses.replace(first, version=empty)
    html = page.render(dataclasses.replace(facts, method_images=[images]))
    assert "Of 0 images the teacher takes" in html


def test_diversity_stands_beside_accuracy(facts: Facts) -> None:
    table = page.render(facts).partition('<section id="prompts">')[2].partition("</section>")[0]
    (line,) = (line for line in Outline(table).text.splitlines() if "62.5" in line)
    prompts, words = facts.method_images[1].prompts, " ".join(line.split())
    assert words.startswith(f"contrastive 24 {prompts['similarity_in_class']:.3f} ")
    assert words.endswith(" 100.0 100.0 62.5 ±3.5")
