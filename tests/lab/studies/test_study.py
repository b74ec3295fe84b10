"""What a study's file comes to, and what is refused before anything starts."""

import argparse
import contextlib
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dfkd.commands.command_line import submission_id
from dfkd.config.hashing import fingerprint
from dfkd.config.identity import identity
from dfkd.errors import ManifestError
from dfkd.lab.studies.study import read
from dfkd.prompts.styles import MINIATURE
from tests.helpers.fuzzing import changed, places
from tests.helpers.tiny_study import EPOCHS, METHODS, description, write

SHIPPED = sorted((Path(__file__).parents[3] / "manifests" / "studies").glob("*/study.yaml"))
TWO = [{"name": "Method", "values": METHODS}, {"name": "Epochs", "values": EPOCHS}]


def test_axes_span_rows_and_seeds_cells(tmp_path: Path) -> None:
    study = read(write(tmp_path, axes=TWO, settings={"generator": {"vqgan": {"steps": 7}}}))
    rows = [("Baseline", "1"), ("Baseline", "2"), ("Random_Prompt", "1"), ("Random_Prompt", "2")]
    found = [(cell.names, cell.seed) for cell in study.cells]
    assert found == [(names, seed) for names in rows for seed in (0, 1)]
    assert list(study.rows) == [" ".join(names) for names in rows]
    last = study.cells[-1]
    assert last.label == "Random_Prompt 2 seed 1"
    manifest = last.manifest
    assert (manifest.name, manifest.evaluation.models) == ("tiny", ("student",))
    assert (manifest.distillation.seeds, manifest.distillation.epochs) == ((1,), 2)
    assert (
        manifest.generator.settings.optimisation_steps,
        manifest.synthesis.images_per_class,
    ) == (7, 2)
    assert len(study.data_sets()) == 2  # epochs are no matter of the data set


def test_skipped_rows_are_left_out(tmp_path: Path) -> None:
    skip = [{"Method": "Baseline", "Epochs": "2"}]
    study = read(write(tmp_path, axes=TWO, skip=skip))
    assert list(study.rows) == ["Baseline 1", "Random_Prompt 1", "Random_Prompt 2"]


def test_each_seed_uses_the_next_entry_of_a_list_of_settings(tmp_path: Path) -> None:
    words = [["a", "b"], ["c", "d"]]
    lists = [{"prompts": {"method": "mix", "styles": each}} for each in words]
    axes = [{"name": "Size", "values": {2: lists, "all": {"prompts": {"method": "mix"}}}}]
    study = read(write(tmp_path, axes=axes))
    styles = [cell.manifest.prompts.styles for cell in study.cells]
    assert styles == [("a", "b"), ("c", "d"), "miniature", "miniature"]
    assert len(study.data_sets()) == 3


def test_a_seed_may_be_a_whole_run(tmp_path: Path) -> None:
    """Then it is its data set's salt too, and salt 0 is the data set that other studies have."""
    study = read(write(tmp_path, repeat="run", seeds=[0, 3]))
    salts = [(cell.manifest.salt, cell.manifest.distillation.seeds) for cell in study.cells]
    assert salts == [(0, (0,)), (3, (3,))] * 2
    assert len(study.data_sets()) == 4
    roots, of_students = (
        {manifest.storage.root for manifest in each.data_sets()}
        for each in (study, read(write(tmp_path)))
    )
    assert roots > of_students


def test_all_cells_of_one_synthesis_share_the_held_out_data_set(tmp_path: Path) -> None:
    axes = [{"name": "Epochs", "values": EPOCHS}]
    study = read(write(tmp_path, axes=axes, repeat="run", seeds=[0, 3], held_out_images=1))
    held_out = [study.held_out(cell) for cell in study.cells]
    assert len({fingerprint(identity(each, {})) for each in held_out if each}) == 1
    assert held_out[0] is not None
    assert held_out[0].synthesis.images_per_class == 1
    assert len(study.data_sets()) == 2 + 1
    plain = read(write(tmp_path, axes=axes, repeat="run", seeds=[0, 3]))
    assert plain.held_out(plain.cells[0]) is None
    assert len(plain.data_sets()) == 2


def test_quick_is_beneath_the_axes_and_has_its_own_root(tmp_path: Path) -> None:
    quick = {"settings": {"storage": {"root": "elsewhere"}, "distillation": {"epochs": 9}}}
    path = write(tmp_path, axes=TWO, quick=quick)
    study = read(path, ("size=quick",))
    assert [cell.manifest.distillation.epochs for cell in study.cells] == [1, 2, 1, 2]
    assert {cell.seed for cell in study.cells} == {0}
    assert study.manifest.storage.root == "elsewhere"
    assert read(path).manifest.storage.root != "elsewhere"
    other = [{"name": "Steps", "values": {3: {"generator": {"vqgan": {"steps": 3}}}}}]
    study = read(write(tmp_path, axes=TWO, quick={**quick, "axes": other}), ("size=quick",))
    assert list(study.rows) == ["3"]
    assert study.manifest.distillation.epochs == 9


def test_an_override_changes_a_key_of_the_file(tmp_path: Path) -> None:
    study = read(write(tmp_path), ("seeds=[7]", "settings.generator.vqgan.steps=3"))
    assert [cell.seed for cell in study.cells] == [7, 7]
    assert study.manifest.generator.settings.optimisation_steps == 3
    assert study.as_dict()["seeds"] == [7]


def test_a_submission_is_named_by_the_base_too(tmp_path: Path) -> None:
    options = argparse.Namespace()

    def name(**start: Any) -> str:
        return submission_id("reproduce", read(write(tmp_path, start)), options)

    assert name() == name() != name(seed=7)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 3))
def test_the_number_of_cells_is_a_product(lengths: list[int], seeds: int) -> None:
    keys = ("views", "batch_size", "shard_size")
    axes = [
        {"name": key, "values": {n: {"synthesis": {key: n}} for n in range(1, length + 1)}}
        for key, length in zip(keys, lengths, strict=False)
    ]
    with tempfile.TemporaryDirectory() as folder:
        study = read(write(Path(folder), axes=axes, seeds=list(range(seeds))))
    assert len(study.rows) == math.prod(lengths)
    assert len(study.cells) == seeds * math.prod(lengths)
    assert len({cell.label for cell in study.cells}) == len(study.cells)
    assert len(study.data_sets()) == math.prod(lengths)


PAPER_ROW = {"of": "Table 1", "data": "PACS", "columns": ["P", "A"]}


def axis(**values: Any) -> dict[str, Any]:
    """A study with the one axis `e`."""
    return {"axes": [{"name": "e", "values": values}]}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"axes": []}, "axes"),
    (axis(), "axes.0.values"),
    ({"axes": [*TWO, {"name": "Method", "values": {"x": {}}}]}, "every entry once, got 'Method'"),
    (axis(x={"prompts": {"stles": 1}}), "axes: x: must be a manifest (prompts.stles"),
    (axis(x={"prompts": {"stles": 1}}), "did you mean 'styles'?"),
    (axis(x=3), "axes.0.values.x: must be an object, got 3"),
    (axis(x={"distillation": 3}), "axes: x: must be a manifest (distillation: "),
    (axis(x={"evaluation": None}), "axes: x: must be a manifest (evaluation: "),
    ({"teacher": "Baseline"}, "teacher: must not be a row's name, got 'Baseline'"),
    (
        {"held_out_images": 1, "settings": {"distillation": {"texts": "styles"}}},
        "held_out_images: must be 0 where students learn with distillation.texts=styles, got 1",
    ),
    (
        axis(x={"prompts": {"method": ["mix", "random"]}}),
        "x: prompts.method and synthesis.source must make one method",
    ),
    (
        {
            "axes": [
                {"name": "a", "values": {"x": {"seed": 1}, "x y": {"seed": 2}}},
                {"name": "b", "values": {"y z": {"salt": 1}, "z": {"salt": 2}}},
            ]
        },
        "axes: must give each row a name of its own",
    ),
    (axis(x={"storage": {"root": "y"}}, y={}), "axes: y: storage must be the same in all rows"),
    (axis(x={"classes": ["a", "b"]}, y={}), "axes: y: classes must be the same"),
    (axis(x=[{"seed": 3}]), "axes: x: a list of settings must have one for each seed, got 1"),
    (axis(x={"evaluation": {"models": "teacher"}}), "axes: x: must not hold evaluation.models"),
    ({"settings": {"distillation": {"seeds": [1]}}}, "settings: must not hold distillation.seeds"),
    ({"repeat": "run", "settings": {"salt": 3}}, "settings: must not hold salt, which the study"),
    ({"quick": {"settings": {"name": "q"}}}, "quick.settings: must not hold name"),
    (
        {"compare": "Mix"},
        "compare: must be a value of one axis, among Baseline, Random_Prompt, got 'Mix'",
    ),
    ({"seeds": [1, 1]}, "seeds: must have every entry once, got 1"),
    ({"seeds": []}, "seeds"),
    ({"skip": [{"Method": "Baselin"}]}, "skip: must name values by their axes"),
    ({"skip": [{}]}, "skip: must leave a row"),
    ({"kind": "curve"}, "x: must name an axis of a curve whose values are numbers, got ''"),
    ({"kind": "curve", "x": "Method"}, "got 'Method'; name one of Method"),
    ({"kind": "curve", "x": "e", **axis(**{"-inf": {}})}, "x: must name an axis of a curve"),
    ({"kind": "gallery"}, "pictures: names classes in a gallery"),
    ({"kind": "case", "pictures": {"classes": ["clock", "book"]}}, "pictures: names classes"),
    ({"pictures": {"classes": ["clock"]}}, "pictures: names classes"),
    ({"kind": "case", "pictures": {"classes": ["owl"]}}, "pictures.classes: must be among classes"),
    ({"kind": "embedding"}, "adaptation: names the domain of an embedding"),
    ({"adaptation": {"domain": "pixel"}}, "adaptation: names the domain of an embedding"),
    ({"paper": [{**PAPER_ROW, "rows": {"Baseline": [1.0]}}]}, "a figure for each of 2 columns"),
    ({"paper": [{**PAPER_ROW, "rows": {"Mix": [1.0, 2.0]}}]}, "paper.0.rows: must be among Base"),
    ({"base": "absent.yaml"}, "manifest: must be an existing file"),
    ({"titel": "x"}, "titel: is not a key of the manifest, got 'x'; did you mean 'title'?"),
    ({"name": "../x"}, "name"),
]


@pytest.mark.parametrize(("changes", "complaint"), REFUSED)
def test_an_invalid_study_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ManifestError) as caught:
        read(write(tmp_path, **changes))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.floats()
    | st.sampled_from(["", "mix", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "values", "x", "prompts"]), inner, max_size=3)
    ),
    max_leaves=5,
)


FILE = json.loads(json.dumps(description(axes=TWO, paper=[{**PAPER_ROW, "rows": {}}])))


@given(st.sampled_from([place for place in places(FILE) if place]), JSON)
def test_any_change_of_a_study_is_valid_or_refused(place: tuple[Any, ...], value: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder))
        path.write_text(yaml.safe_dump(changed(FILE, place, value)))
        with contextlib.suppress(ManifestError):
            assert read(path).cells


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parent.name)
@pytest.mark.parametrize("size", ["full", "quick"])
def test_every_study_that_is_shipped_can_be_read(path: Path, size: str) -> None:
    study = read(path, (f"size={size}",))
    assert study.described.name == path.parent.name
    steps = {cell.manifest.generator.settings.sampling_steps for cell in study.cells}
    roots = {cell.manifest.storage.root for cell in study.cells}
    assert roots == {"runs/studies" if size == "full" else "runs/studies-quick"}
    assert size == "full" or max(steps) <= 12


def test_sub_dictionaries_consist_of_words_of_the_miniature() -> None:
    (path,) = (path for path in SHIPPED if path.parent.name == "dictionary")
    values = yaml.safe_load(path.read_text())["axes"][0]["values"]
    for size in (10, 40):
        lists = [each["prompts"]["styles"] for each in values[size]]
        assert [len(set(words)) for words in lists] == [size] * 5
        assert all(set(words) <= set(MINIATURE) for words in lists)
        assert len({tuple(sorted(words)) for words in lists}) == 5
