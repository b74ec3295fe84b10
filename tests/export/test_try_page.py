"""try.html in a real browser, over loopback: it answers as `dfkd.export.predict` does."""

import functools
import io
import json
import tarfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from torch import Tensor, nn

from dfkd.export.labels import labels_json
from dfkd.export.onnx_graphs import EMBEDDING, export, quantise
from dfkd.export.predict import INT8, LABELS, MODEL, RULES, Predictor
from dfkd.export.try_page import RUNTIME, RUNTIME_FILES, write_try_page
from dfkd.models.teacher import Teacher
from dfkd.utils.images import Resizing, decode_image
from tests.export.test_predict import NAMES, SIZE, colours, put, put_rules
from tests.helpers.browsers import keep, requests, show
from tests.helpers.jobs import ROOT
from tests.helpers.loopback import Loopback
from tests.helpers.waiting import wait_for

INSTALLED = ROOT / ".cache" / "onnxruntime-web"
CLASSES = ("airplane", "book", "camera", "car", "cat", "clock", "dog", "fish", "heart", "house")
TOP = 5


class Files(SimpleHTTPRequestHandler):
    """What `python -m http.server` does, without its lines on the terminal."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def runtime() -> Path:
    """A folder in which npm has installed the browser's runtime."""
    if not (INSTALLED / "node_modules/onnxruntime-web").is_dir():
        pytest.skip(f"npm install --prefix .cache/onnxruntime-web {RUNTIME}")
    return INSTALLED


@pytest.fixture(scope="module")
def drawings() -> dict[str, bytes]:
    """A picture of each class from the bundled evaluation set."""
    with tarfile.open(ROOT / "dfkd/bundled/evaluation.tar") as tar:
        found = {
            name: [m for m in tar.getnames() if f"color_emoji/{name}/" in m] for name in CLASSES
        }
        return {name: tar.extractfile(members[0]).read() for name, members in found.items()}


@pytest.fixture(scope="module")
def tower(
    runtime: Path,
    teacher: Teacher,
    drawings: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Path, str]]:
    """The bundled teacher's image tower as an exported folder, and the address of its page."""

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual, self.mean, self.std = teacher.visual, teacher.mean, teacher.std

        def forward(self, pixels: Tensor) -> Tensor:
            return self.visual((pixels - self.mean) / self.std)

    folder, size = tmp_path_factory.mktemp("tower"), teacher.image_size
    export(Tower().eval(), size, folder / MODEL, EMBEDDING)
    quantise(
        folder / MODEL, folder / INT8, [decode_image(each, size) for each in drawings.values()]
    )
    texts = teacher.encode_text([f"a {name}" for name in CLASSES])
    put(folder, labels_json(CLASSES, texts).encode(), LABELS)
    put_rules(folder, size=size, temperature=1 / teacher.logit_scale)
    for name in (MODEL, INT8):
        put(folder, (folder / name).read_bytes(), name)
    with served(folder, runtime) as server:
        yield folder, f"{server.address}/try.html"


@pytest.fixture
def simple(runtime: Path, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """An exported folder whose graph gives distances, and the address of its page."""
    put(tmp_path, json.dumps(NAMES).encode(), LABELS)
    put_rules(tmp_path, temperature=0.5)
    put(tmp_path, colours())
    put(tmp_path, colours(offset=1.3), INT8)
    with served(tmp_path, runtime) as server:
        yield tmp_path, f"{server.address}/try.html"


def served(folder: Path, runtime: Path) -> Loopback:
    """A server of the folder, with the page and the runtime in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runtime)
        write_try_page(folder)
    return Loopback(functools.partial(Files, directory=str(folder)))


def settled(browser: webdriver.Chrome) -> str:
    """What the page says when it is ready, has an answer, or an error."""

    def told() -> str:
        text = browser.find_element(By.ID, "status").text
        return "" if text.startswith("Loading") else text

    return wait_for(told, "an answer of the page", limit=60)


def forget(browser: webdriver.Chrome) -> None:
    """Wait until the page is settled, and remove what it says, so that what it says next is new."""
    settled(browser)
    browser.execute_script("document.getElementById('status').textContent = ''")


def choose(browser: webdriver.Chrome, path: Path) -> str:
    """Give a file to the page's field; returns what it says then."""
    forget(browser)
    browser.find_element(By.ID, "file").send_keys(str(path))
    return settled(browser)


def choose_int8(browser: webdriver.Chrome) -> None:
    forget(browser)
    browser.find_element(By.CSS_SELECTOR, f"input[value='{INT8}']").click()
    assert f"by {INT8} in" in settled(browser)


def answer(browser: webdriver.Chrome) -> dict[str, float]:
    """Labels and probabilities in the order of the page."""
    found = browser.execute_script(
        """return [...document.querySelectorAll("#answer li")].map(
             line => [line.querySelector("span").textContent, line.querySelector("data").value])"""
    )
    return {name: float(value) for name, value in found}


def seen(browser: webdriver.Chrome) -> npt.NDArray[np.uint8]:
    """The pixels [S, S, 3] that the page gave to the model."""
    size, values = browser.execute_script(
        """const canvas = document.getElementById("seen");
           const context = canvas.getContext("2d");
           const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
           return [canvas.width, [...data]];"""
    )
    return np.array(values, np.uint8).reshape(size, size, 4)[..., :3]


def require_same(browser: webdriver.Chrome, folder: Path, picture: Path, **limits: float) -> None:
    """The page shows the labels and the probabilities of `Predictor`."""
    int8 = browser.execute_script("return controls.elements.model.value") == INT8
    predictor = Predictor(folder, int8)
    expected = predictor.probabilities(picture.read_bytes())
    order = np.argsort(-expected, kind="stable")[:TOP]
    found = answer(browser)
    assert list(found) == [predictor.labels[index] for index in order]
    np.testing.assert_allclose(list(found.values()), expected[order], **limits)


def test_a_real_picture_gets_the_answer_of_predict_and_nobody_else_is_asked(
    browser: webdriver.Chrome, tower: tuple[Path, str], drawings: dict[str, bytes], tmp_path: Path
) -> None:
    folder, address = tower
    show(browser, address, 1280, "light")
    assert settled(browser) == "Ready."
    for name in ("house", "cat"):  # the tower is sure of the one and in doubt about the other
        (tmp_path / name).write_bytes(drawings[name])
        told = choose(browser, tmp_path / name)
        assert told.startswith(f"{next(iter(answer(browser)))}, ")
        require_same(browser, folder, tmp_path / name, atol=1e-5)
    choose_int8(browser)
    # An activation that lies between two steps of int8 may fall on either side.
    require_same(browser, folder, tmp_path / "cat", atol=0.02)
    assert browser.get_log("browser") == []
    sent = requests(browser)
    home = address.removesuffix("try.html")
    for file in (MODEL, INT8, LABELS, RULES, *(f"ort/{name}" for name in RUNTIME_FILES)):
        assert home + file in sent
    assert [url for url in sent if not url.startswith((home, f"blob:{home}", "data:"))] == []


def test_distances_are_answered_too_and_a_picture_may_be_dropped(
    browser: webdriver.Chrome, simple: tuple[Path, str], tmp_path: Path
) -> None:
    folder, address = simple
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    noise[..., 1] |= 128
    Image.fromarray(noise).save(tmp_path / "noise.png")
    show(browser, address, 1280, "light")
    forget(browser)
    browser.execute_script(
        """const bytes = Uint8Array.from(arguments[0]);
           const dropped = new DataTransfer();
           dropped.items.add(new File([bytes], "noise.png", {type: "image/png"}));
           document.body.dispatchEvent(
             new DragEvent("drop", {dataTransfer: dropped, bubbles: true, cancelable: true}));""",
        list((tmp_path / "noise.png").read_bytes()),
    )
    assert settled(browser).startswith("green, ")
    require_same(browser, folder, tmp_path / "noise.png", atol=1e-5)
    choose_int8(browser)
    require_same(browser, folder, tmp_path / "noise.png", atol=1e-5)


def pictures() -> dict[str, tuple[bytes, int]]:
    """Encoded pictures, and how far a pixel may differ from Pillow's.

    Of a tall picture Pillow 13 scales the rows first, earlier ones the columns. Two decoders round
    the colours of a JPEG differently, and two programs what is half transparent.
    """
    noise = np.random.default_rng(1)

    def encoded(kind: str, shape: tuple[int, ...], **options: object) -> bytes:
        stream = io.BytesIO()
        smooth = noise.integers(0, 256, (6, 5, *shape[2:]), dtype=np.uint8)
        image = Image.fromarray(smooth).resize(shape[1::-1], Image.Resampling.BICUBIC)
        image.save(stream, kind, **options)
        return stream.getvalue()

    # sRGB with red and green exchanged, so that nobody can apply it without being seen.
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"?").replace(b"gXYZ", b"rXYZ").replace(b"?", b"gXYZ")
    sixteen = io.BytesIO()
    Image.fromarray(noise.integers(0, 1 << 16, (30, 20), dtype=np.uint16)).save(sixteen, "PNG")
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "wide": (encoded("PNG", (41, 90, 3)), 0),
        "upright": (encoded("PNG", (120, 77, 3)), 0),
        "tall": (encoded("PNG", (213, 77, 3)), 2),
        "smaller than the input": (encoded("PNG", (3, 5, 3)), 0),
        "as large as the input": (encoded("PNG", (SIZE, SIZE, 3)), 0),
        "a strip": (encoded("PNG", (9, 301, 3)), 0),
        "grey": (encoded("PNG", (30, 31)), 0),
        "16 bits": (sixteen.getvalue(), 1),
        "a colour profile": (encoded("PNG", (30, 31, 3), icc_profile=swapped), 0),
        "transparent": (encoded("PNG", (50, 33, 4)), 1),
        "a JPEG on its side": (encoded("JPEG", (60, 44, 3), quality=95, exif=turned), 2),
        "WebP": (encoded("WEBP", (60, 44, 3), lossless=True), 0),
    }


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_the_model_sees_the_pixels_that_pillow_gives(
    browser: webdriver.Chrome,
    simple: tuple[Path, str],
    mode: str,
    interpolation: str,
    tmp_path: Path,
) -> None:
    folder, address = simple
    put_rules(folder, resize_mode=mode, interpolation=interpolation)
    show(browser, address, 1280, "light")
    for name, (encoded, tolerance) in pictures().items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(encoded)
        choose(browser, path)
        expected = decode_image(encoded, SIZE, Resizing(mode, interpolation))
        difference = np.abs(seen(browser).astype(int) - expected)
        assert difference.max() <= tolerance, (name, difference.max())


def test_what_is_no_picture_is_said_and_the_next_one_is_answered(
    browser: webdriver.Chrome, simple: tuple[Path, str], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (9, 9), "red").save(tmp_path / "red.png")
    show(browser, simple[1], 1280, "light")
    assert choose(browser, tmp_path / "broken.png").startswith("Error: broken.png cannot be read")
    assert not browser.find_element(By.ID, "result").is_displayed()
    assert choose(browser, tmp_path / "red.png").startswith("red, ")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_whole_and_works_by_keyboard(
    browser: webdriver.Chrome,
    tower: tuple[Path, str],
    drawings: dict[str, bytes],
    width: int,
    theme: str,
    tmp_path: Path,
) -> None:
    (tmp_path / "cat.webp").write_bytes(drawings["cat"])
    show(browser, tower[1], width, theme)
    choose(browser, tmp_path / "cat.webp")
    forget(browser)
    browser.execute_script("document.activeElement.blur()")
    ActionChains(browser).send_keys(Keys.TAB).perform()
    assert browser.switch_to.active_element.get_attribute("id") == "file"
    ActionChains(browser).send_keys(Keys.TAB, Keys.ARROW_RIGHT).perform()
    assert f"by {INT8} in" in settled(browser)
    keep(browser, f"try-{width}-{theme}")
    wide, inner = browser.execute_script(
        "return [document.documentElement.scrollWidth, window.innerWidth]"
    )
    assert wide <= inner == width
    back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(255, 255, 255)") is (theme == "light")


def test_without_the_runtime_the_page_says_what_to_fetch(
    browser: webdriver.Chrome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert write_try_page(tmp_path) == ["try.html"]
    with Loopback(functools.partial(Files, directory=str(tmp_path))) as server:
        show(browser, f"{server.address}/try.html", 390, "light")
        notice = browser.find_element(By.ID, "no-runtime")
        wait_for(notice.is_displayed, "the notice", limit=60)
        assert f"npm install {RUNTIME}" in notice.text
        keep(browser, "try-no-runtime")
    assert not browser.find_element(By.ID, "controls").is_displayed()
    assert not browser.find_element(By.ID, "no-server").is_displayed()


def test_opened_as_a_file_the_page_says_how_to_serve_it(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    write_try_page(tmp_path)
    show(browser, tmp_path / "try.html", 390, "dark")
    notice = browser.find_element(By.ID, "no-server")
    assert "python -m http.server" in notice.text
    assert "http://127.0.0.1:8000/try.html" in notice.text
    keep(browser, "try-as-a-file")
    assert not browser.find_element(By.ID, "controls").is_displayed()
    assert browser.get_log("browser") == []


def test_the_runtime_is_that_of_the_nearest_folder_above_that_has_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, names in (("", RUNTIME_FILES), ("a", RUNTIME_FILES), ("a/b", RUNTIME_FILES[:1])):
        dist = tmp_path / place / "node_modules/onnxruntime-web/dist"
        dist.mkdir(parents=True)
        for name in names:
            (dist / name).write_text(f"{name} of {place!r}")
    (tmp_path / "a/b/c").mkdir()
    folder = tmp_path / "student"
    folder.mkdir()
    monkeypatch.chdir(tmp_path / "a/b/c")
    written = write_try_page(folder)
    assert written == ["try.html", *(f"ort/{name}" for name in RUNTIME_FILES)]
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == set(written)
    for name in RUNTIME_FILES:
        assert (folder / "ort" / name).read_text() == f"{name} of 'a'"
