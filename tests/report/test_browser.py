"""The pages in a real browser: nothing is fetched, nothing complains, nothing sticks out.

Screenshots are left in build/screenshots.
"""

from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from dfkd.report import compare, page
from dfkd.storage.local import open_storage
from tests.helpers.browsers import keep, requests, show
from tests.helpers.finished_run import finished


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    manifest = finished(tmp_path_factory.mktemp("browser"))
    report = Path(page.write(manifest, "dfkd pipeline " + 40 * "long-"))
    storage = open_storage(manifest.storage.root)
    return {"report": report, "comparison": Path(compare.write(storage, storage))}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["report", "comparison"])
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
        assert all(
            not control.is_displayed()
            for control in browser.find_elements(By.CSS_SELECTOR, "select")
        )
        figures = browser.find_elements(By.CSS_SELECTOR, "#images figure")
        assert len(figures) == 48
        assert all(figure.is_displayed() for figure in figures[:3])
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
