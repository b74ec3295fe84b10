"""The pages in a real browser: nothing is fetched, nothing complains, nothing sticks out.

Screenshots are left in build/screenshots.
"""

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from dfkd.report import compare, page
from dfkd.storage.local import open_storage
from tests.helpers.finished_run import finished

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
]  # fmt: skip

pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="install chromium and chromium-driver"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))
    driver.set_page_load_timeout(120)
    driver.set_script_timeout(120)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    manifest = finished(tmp_path_factory.mktemp("browser"))
    report = Path(page.write(manifest, "dfkd pipeline " + 40 * "long-"))
    storage = open_storage(manifest.storage.root)
    return {"report": report, "comparison": Path(compare.write(storage, storage))}


def show(browser: webdriver.Chrome, path: Path, width: int, theme: str) -> None:
    """Open a file at a width and in a theme, with empty logs before."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(path.as_uri())


def requests(browser: webdriver.Chrome) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        m["params"]["request"]["url"]
        for m in messages
        if m["method"] == "Network.requestWillBeSent"
    ]


def keep(browser: webdriver.Chrome, name: str) -> None:
    """Leave a picture of the whole page for people."""
    height = browser.execute_script("return document.documentElement.scrollHeight")
    width = browser.execute_script("return innerWidth")
    clip = {"x": 0, "y": 0, "width": width, "height": min(height, 16000), "scale": 1}
    options = {"format": "png", "captureBeyondViewport": True, "clip": clip}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", options)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    (SCREENSHOTS / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))


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
