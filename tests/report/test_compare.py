import dataclasses
import re
from pathlib import Path

import pytest

from dfkd.config.manifest import Manifest
from dfkd.report import compare
from dfkd.report.facts import Facts, RunOrigin, collect
from dfkd.storage.local import open_storage
from tests.helpers import small_manifest
from tests.helpers.finished_run import METHODS, finished


@pytest.fixture(scope="module")
def better(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """A run with other images, whose students are right in 10 percent more."""
    folder, other = tmp_path_factory.mktemp("better"), small_manifest.vqgan(steps=7)
    manifest = finished(folder, gain=0.1, generator=other)
    return collect(open_storage(manifest.storage.root))


def differences(first: Facts, second: Facts) -> list[str]:
    """What the table of accuracies shows in percentage points, cell by cell."""
    table = compare.render(first, second).partition('<section id="accuracy">')[2]
    cells = re.findall(r'<td class="n">(.*?)<br>', table.partition("</section>")[0])
    return [re.sub("<.*?>", "", cell) for cell in cells]


def test_differences_are_percentage_points(facts: Facts, better: Facts) -> None:
    found = dict(compare.compared_models(facts, better, [*facts.images, ""]))
    assert list(found) == ["teacher", *METHODS]
    assert found["vanilla"] == [pytest.approx((0.425, 0.525))] * 4
    assert differences(facts, better) == 4 * ["+0.0"] + 8 * ["+10.0"]


def test_what_only_one_run_has_scored_has_no_difference(facts: Facts) -> None:
    less = dataclasses.replace(facts, scored=facts.scored[:2])
    found = dict(compare.compared_models(facts, less, ["elsewhere", ""]))
    assert found["vanilla"][0] == (None, None)
    assert found["contrastive"][1] == (pytest.approx(0.625), None)
    assert differences(facts, less) == 8 * ["+0.0"] + 4 * ["-"]


def test_what_differs_in_the_data_sets_is_named(facts: Facts, better: Facts) -> None:
    assert compare.settings(facts, facts) == []
    assert compare.settings(facts, better) == [
        (f"{method}: generator.vqgan.steps", "500", "7") for method in sorted(METHODS)
    ]


def test_manifests_are_compared_where_both_are_kept(facts: Facts, run: Manifest) -> None:
    def with_epochs(epochs: int) -> Facts:
        tree = run.as_dict() | {"distillation": {"epochs": epochs}}
        return dataclasses.replace(facts, origin=RunOrigin(1, "command", None, tree))

    found = compare.settings(with_epochs(2), with_epochs(3))
    assert found == [("distillation.epochs", "2", "3")]
    assert compare.settings(with_epochs(2), facts) == []  # one manifest alone tells no difference


def test_of_a_method_that_one_run_has_alone_only_its_name_is_told(
    facts: Facts, run: Manifest
) -> None:
    first, second = (
        dataclasses.replace(
            facts,
            method_images=[each for each in facts.method_images if each.method in methods],
            origin=RunOrigin(1, "command", None, run.as_dict() | {"prompts": {"method": methods}}),
        )
        for methods in (list(METHODS), ["vanilla"])
    )
    assert compare.settings(first, second) == [
        ("prompts.method", ", ".join(METHODS), "vanilla"),
    ]


def test_two_versions_of_one_manifest_differ_in_salt(
    facts: Facts, better: Facts, run: Manifest
) -> None:
    """As in a regeneration, whose manifest has the salt of the candidate on both sides."""
    origin = RunOrigin(1, "command", None, run.as_dict())
    old, new = (dataclasses.replace(each, origin=origin) for each in (facts, better))
    assert compare.settings(old, new) == [
        (f"{method}: generator.vqgan.steps", "500", "7") for method in sorted(METHODS)
    ]


def test_runs_of_other_averages_do_not_compare(facts: Facts, better: Facts) -> None:
    """Their differences have no colour, which would praise or blame."""
    comparable = compare.render(facts, better)
    assert "the differences say little" not in comparable
    assert '<span class="up">' in comparable
    html = compare.render(facts, dataclasses.replace(better, average="classes"))
    assert "the differences say little" in html
    assert '<span class="up">' not in html


def test_runs_of_one_name_are_told_apart_by_their_locations(facts: Facts, better: Facts) -> None:
    named = [dataclasses.replace(each, name="tiny & small") for each in (facts, better)]
    first, second = (f"tiny &amp; small ({each.location})" for each in named)
    html = compare.render(*named)
    assert f"<title>{first} and {second}</title>" in html
    assert f"<b>A</b> · {first}" in html
    assert f"<b>B</b> · {second}" in html
    html = compare.render(named[0], dataclasses.replace(named[1], name="other"))
    assert "<title>tiny &amp; small and other</title>" in html


def test_both_runs_are_on_the_page(facts: Facts, better: Facts, run: Manifest) -> None:
    place = compare.write(open_storage(run.storage.root), open_storage(better.location))
    html = Path(place).read_text()
    Path(place).unlink()
    assert html.count("<h1>") == 2
    assert "+10.0" in html
    assert "generator.vqgan.steps" in html
    assert html.count("<img") == 2 * 2 * 3 * 8
    assert "onerror=alert" not in html.replace("&lt;img src=x onerror=alert(1)&gt;", "")
    assert len(html) < 5_000_000
