"""The pages in a real browser: nothing is fetched, nothing complains, nothing sticks out.

Screenshots are left in build/screenshots.
"""

import base64
import io
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By

from dfkd.operations import audit
from dfkd.report import compare, page
from dfkd.report.gallery import data_uri
from dfkd.storage.local import open_storage
from dfkd.utils.strict_json import canonical
from tests.helpers.browsers import SCREENSHOTS, keep, requests, show
from tests.helpers.candidates import candidate, tree
from tests.helpers.finished_run import finished

CROWD = [
    candidate(
        f"{name}{classifier}",
        ([share + gain], ms, mb),
        ([share + gain - 0.01], ms / 1.7, mb / 3.8),
        gpu_ms=ms / 5,
    )
    for classifier, gain in (("", 0), (" text-only", 0.02))
    for name, share, ms, mb in (
        ("teacher", 0.85, 30, 344),
        ("MobileCLIP2-S0", 0.8, 9, 45.6),
        ("PE-Core-T", 0.78, 8, 36),
    )
] + [
    candidate(
        f"timm:{name}",
        ([share - 0.01, share, share + 0.015], ms, mb),
        ([share - 0.03, share, share + 0.005], ms / 1.7, mb / 3.8),
        images=4800,
    )
    for name, share, ms, mb in (
        ("test_resnet", 0.5, 1.1, 1.5),
        ("resnet18", 0.74, 12, 44.7),
        ("resnet50", 0.77, 28, 94),
        ("mobilenetv4_conv_small.e2400_r224", 0.73, 4, 10),
    )
]
"""Ten candidates, and so 20 points, many of them close to each other."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    manifest = finished(tmp_path_factory.mktemp("browser"))
    report = Path(page.write(manifest, "dfkd pipeline " + 40 * "long-"))
    storage = open_storage(manifest.storage.root)
    found = {"report": report, "comparison": Path(compare.write(storage, storage))}
    bare = open_storage(str(tmp_path_factory.mktemp("candidates")))
    bare.put("candidates.json", canonical(tree(*CROWD, measure="agreement", gpu="a GPU")))
    looked_at = open_storage(str(tmp_path_factory.mktemp("audit")))
    names = ["crane", *(f"{'very ' * 9}long name {number}" for number in range(7)), "W" * 40]
    audit.write_page(looked_at, *audited(names))
    return found | {
        "candidates": Path(page.write_stored(bare)),
        "audit": Path(looked_at.location("audit.html")),
    }


def audited(names: list[str]) -> tuple[dict[str, Any], dict[str, list[tuple[str, str, str]]], int]:
    """What an audit hands its page: eight noisy pictures of each class."""
    noise = np.random.default_rng(0)
    texts = np.eye(len(names) + 1)
    labels = np.repeat(np.arange(len(names)), 8)
    vectors = texts[labels] + noise.normal(size=(len(labels), len(texts)))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    far = 1 - vectors @ texts.T
    taken = [[*names, "bird"][i] for i in far.argmin(axis=1)]
    shown: dict[str, list[tuple[str, str, str]]] = {name: [] for name in names}
    for label, name in zip(labels.tolist(), taken, strict=True):
        png = io.BytesIO()
        Image.new("RGB", (64, 64), (28 * label, 120, 90)).save(png, "PNG")
        shown[names[label]].append((data_uri(png.getvalue()), f'a "{name}"', name))
    # All images of the last class failed.
    shown[names[-1]].clear()
    vectors, far, labels = (each[labels < len(names) - 1] for each in (vectors, far, labels))
    found = {
        "name": "cranes",
        "method": "contrastive",
        "classes": audit.judge(names, ["bird"], texts, vectors, far, labels),
        "images": 27000,
        "images_per_second": 1.234,
        "workers": 2,
        "hours": 6.08,
    }
    return found, shown, 1


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["report", "comparison", "audit"])
def test_a_page_is_whole_in_a_browser(
    browser: webdriver.Chrome, pages: dict[str, Path], name: str, width: int, theme: str
) -> None:
    show(browser, pages[name], width, theme)
    keep(browser, f"{name}-{width}-{theme}")
    assert browser.get_log("browser") == []
    sent = requests(browser)
    assert pages[name].as_uri() in sent
    assert [url for url in sent if not url.startswith(("file:", "data:"))] == []
    sizes = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(sizes) >= 48
    assert min(sizes) > 0
    wide, inner = browser.execute_script(
        "return [document.documentElement.scrollWidth, window.innerWidth]"
    )
    assert inner == width
    assert wide <= inner
    back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(255, 255, 255)") is (theme == "light")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["report", "candidates"])
def test_the_picture_of_the_candidates_is_legible(
    browser: webdriver.Chrome, pages: dict[str, Path], name: str, width: int, theme: str
) -> None:
    """Every name is there, beside all others and no mark, and no letter is smaller than 11 px."""
    show(browser, pages[name], width, theme)
    keep(browser, f"{name}-{width}-{theme}")
    panels = browser.execute_script(
        """const box = e => { const b = e.getBoundingClientRect();
                             return [b.left, b.top, b.right, b.bottom]; };
           return [...document.querySelectorAll("#ship figure svg")].map(svg => ({
             box: box(svg),
             names: [...svg.querySelectorAll("text.name")].map(e => [e.textContent, box(e)]),
             texts: [...svg.querySelectorAll("text")].map(box),
             marks: [...svg.querySelectorAll(".mark")].map(box),
             letters: parseFloat(getComputedStyle(svg.querySelector("text")).fontSize)
                      * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width,
             colours: [".name", ".mark", ".steps"].map(
               one => { const style = getComputedStyle(svg.querySelector(one));
                        return one == ".steps" ? style.stroke : style.fill; })}));"""
    )
    assert len(panels) == 2
    for panel in panels:
        assert panel["letters"] >= 11
        assert len(panel["names"]) == (4 if name == "report" else len(CROWD))
        assert len(panel["marks"]) == 2 * len(panel["names"])
        left, top, right, bottom = panel["box"]
        for box in panel["texts"]:
            assert left - 1 <= box[0]
            assert box[2] <= min(right, width) + 1
            assert top - 1 <= box[1]
            assert box[3] <= bottom + 1
        for (text, one), (other, two) in itertools.combinations(panel["names"], 2):
            assert not over(one, two), (text, other)
        for (text, one), mark in itertools.product(panel["names"], panel["marks"]):
            assert not over(one, mark), text
        assert len({light(colour) > 0.5 for colour in panel["colours"]}) == 1
        assert (light(panel["colours"][0]) > 0.5) is (theme == "dark")
    first, second = (panel["box"] for panel in panels)
    assert (second[1] >= first[3]) is (width == 390)  # stacked on a phone
    answer = browser.find_element(By.CSS_SELECTOR, "#ship .answer")
    assert answer.text.startswith("Ship teacher text-only ")
    wide = browser.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width


def over(one: list[float], other: list[float]) -> bool:
    """Whether two boxes overlap by more than the empty rim of a line of text."""
    return (
        min(one[2], other[2]) - max(one[0], other[0]) > 1
        and min(one[3], other[3]) - max(one[1], other[1]) > 4
    )


def light(colour: str) -> float:
    """The mean of the channels of `rgb(1, 2, 3)`, 0-1."""
    channels = [int(part) for part in re.findall(r"\d+", colour)[:3]]
    return sum(channels) / 3 / 255


def test_the_candidates_are_printed(browser: webdriver.Chrome, pages: dict[str, Path]) -> None:
    """A dark screen prints on white paper; a picture is not cut by the end of a page."""
    show(browser, pages["candidates"], 700, "dark")
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    media = {"media": "print", "features": [dark]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        keep(browser, "candidates-print")
        style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        assert light(browser.execute_script(style, "#ship .name", "fill")) < 0.2
        assert light(browser.execute_script(style, "#ship .mark", "fill")) < 0.2
        assert browser.execute_script(style, "#ship figure", "breakInside") == "avoid"
        assert browser.find_element(By.CSS_SELECTOR, "#ship .answer").is_displayed()
        paper = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": False})
        (SCREENSHOTS / "candidates.pdf").write_bytes(base64.b64decode(paper["data"]))
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_the_gallery_is_filtered_by_class_and_method(
    browser: webdriver.Chrome, pages: dict[str, Path]
) -> None:
    show(browser, pages["report"], 1280, "light")
    browser.execute_script(
        """for (const [name, value] of [["class", "1"], ["method", "contrastive"]]) {
             const select = document.querySelector(`#images select[name=${name}]`);
             select.value = value;
             select.dispatchEvent(new Event("change", {bubbles: true}));
           }"""
    )
    shown = [
        figure
        for figure in browser.find_elements(By.CSS_SELECTOR, "#images figure")
        if figure.is_displayed()
    ]
    assert len(shown) == 8


def test_without_scripts_all_is_shown_and_no_dead_control(
    browser: webdriver.Chrome, pages: dict[str, Path]
) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(browser, pages["report"], 1280, "light")
        assert browser.find_element(By.CSS_SELECTOR, "#accuracy .bars").is_displayed()
        assert browser.find_element(By.CSS_SELECTOR, "#ship .steps").is_displayed()
        assert all(
            not control.is_displayed()
            for control in browser.find_elements(By.CSS_SELECTOR, "select")
        )
        figures = browser.find_elements(By.CSS_SELECTOR, "#images figure")
        assert len(figures) == 48
        assert all(figure.is_displayed() for figure in figures[:3])
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
