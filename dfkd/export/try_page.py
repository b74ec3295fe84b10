"""`try.html`: a page beside an exported model that classifies a picture in the browser, offline.

The page reads `labels.json`, `preprocess.json` and a model from its own folder, and runs the model
with ONNX Runtime Web, an npm package. No server but that of the folder is asked for anything.
"""

import base64
import hashlib
import re
import shutil
from importlib import resources
from pathlib import Path

PAGE, RUNTIME_FOLDER = "try.html", "ort"
RUNTIME = "onnxruntime-web@1.30.0"
"""The npm package and the release that was tested."""
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
"""What the page needs of the package's `dist/`: 14 MB."""


def write_try_page(folder: Path) -> list[str]:
    """Write `try.html`, and `ort/` with the browser's runtime if npm has installed that.

    The runtime is taken from `node_modules/onnxruntime-web` in the current folder or the nearest
    folder above it. Where there is none, the page says how to get it.

    Args:
        folder: a local folder with `model.onnx`, `model.int8.onnx`, `labels.json` and
            `preprocess.json`. Of the last the page reads `size`, `temperature`, and the fields of
            `dfkd.utils.images.Resizing`: `resize_mode` ("shortest" if it is missing, or "squash")
            and `interpolation` ("bicubic" if it is missing, or "bilinear").

    Returns:
        The names of the files that it wrote, relative to the folder.
    """
    page = resources.files(__package__).joinpath(PAGE).read_text("utf-8")
    # The page's policy allows its own script and style by their hashes, and nobody else's.
    for element in ("script", "style"):
        (content,) = re.findall(rf"<{element}[^>]*>(.*?)</{element}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        page = page.replace(f"'{element}-hash'", f"'sha256-{digest}'")
    page = page.replace("runtime-package", RUNTIME)
    (folder / PAGE).write_text(page, "utf-8", newline="\n")  # other ends of lines, other hashes
    written = [PAGE]
    here = Path.cwd()
    for place in (here, *here.parents):
        found = [place / "node_modules/onnxruntime-web/dist" / name for name in RUNTIME_FILES]
        if all(file.is_file() for file in found):
            (folder / RUNTIME_FOLDER).mkdir(exist_ok=True)
            for file in found:
                shutil.copyfile(file, folder / RUNTIME_FOLDER / file.name)
                written.append(f"{RUNTIME_FOLDER}/{file.name}")
            break
    return written
