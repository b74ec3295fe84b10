"""Label pictures with an exported candidate: `dfkd predict FOLDER PICTURE...`.

It needs onnxruntime, numpy and pillow, but neither torch nor a GPU. The folder is one that dfkd
wrote, whose files have the sha256 in `candidate.json`; pictures may be anybody's.
"""

import argparse
import hashlib
import io
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from dfkd.errors import DfkdError, Exit, ManifestError, one_line, printable_line
from dfkd.utils.images import Array, Resizing, batch, decode_image, read_picture

MODEL, INT8 = "model.onnx", "model.int8.onnx"
WEIGHTS = "teacher.weights"
"""The role of the teacher's weights among the hashes in `candidate.json`."""
SHIPPED = "shipped.json"
"""In a folder that `dfkd ship` has written: which file was taken."""
LABELS, RULES, FACTS = "labels.json", "preprocess.json", "candidate.json"
"""The files that programs read; the last one is written last, so the folder is complete with it."""

MALFORMED = (OSError, ValueError, LookupError, TypeError, AttributeError)
"""What reading a file raises that is missing, or that no job of dfkd wrote."""


class Predictor:
    """An exported candidate on the CPU.

    Attributes:
        labels: the class names, in the order of the distances.
        texts: their unit text embeddings [M, E]; None for a student of distances.
    """

    def __init__(self, folder: Path, int8: bool | None = None, labels: Path | None = None) -> None:
        """Load the folder of a candidate.

        Args:
            int8: use `model.int8.onnx`, which is smaller; None is the file that `shipped.json` in
                the folder names, and `model.onnx` where there is none.
            labels: the `labels.json` of other classes, for a student of embeddings.

        Raises:
            ManifestError: a file of the folder is missing or damaged, or the student is of
                distances and knows only its own classes.
        """
        remedy = "give a folder of candidates/ or shipped/ as dfkd wrote it"
        try:
            model = INT8 if int8 else MODEL
            if int8 is None and (folder / SHIPPED).exists():
                model = json.loads((folder / SHIPPED).read_bytes())["file"]
                if model not in (MODEL, INT8):
                    raise ValueError(f"{SHIPPED} names no model")
            facts = json.loads((folder / FACTS).read_bytes())
            files = {name: (folder / name).read_bytes() for name in (LABELS, RULES, model)}
            stated = {name: facts["files"][name]["sha256"] for name in files}
        except MALFORMED as error:
            rule = f"must hold {FACTS} and what it lists ({one_line(error)})"
            raise ManifestError("folder", rule, str(folder), remedy) from None
        for name, data in files.items():
            # A file of another model would give wrong labels without any error.
            if (digest := hashlib.sha256(data).hexdigest()) != stated[name]:
                rule = f"must have the sha256 that {FACTS} states"
                raise ManifestError(f"folder {folder / name}", rule, digest, remedy)
        self.labels, self.texts = _labels(json.loads(files[LABELS]))
        if labels is not None:
            self._replace_labels(labels, [each["sha256"] for each in facts.get("labellers", [])])
        rules = json.loads(files[RULES])
        self._size, self._temperature = rules["size"], rules["temperature"]
        self._resizing = Resizing(rules["resize_mode"], rules["interpolation"])
        self._session = onnxruntime.InferenceSession(
            files[model], providers=["CPUExecutionProvider"]
        )

    def _replace_labels(self, path: Path, labellers: list[str]) -> None:
        """Answer with the other classes in the file `path` from now on.

        `labellers` has the sha256 of the weights of the student's labeller, whose text tower has
        encoded its classes; the vectors of another one mean nothing to the student.
        """
        if self.texts is None:
            raise ManifestError(
                "--labels",
                "needs a student of embeddings; this one knows only the classes in its labels.json",
                str(path),
                "leave it out, or distil with distillation.target=embedding",
            )
        remedy = "write it with dfkd labels in the run of the student"
        try:
            written = json.loads(path.read_bytes())
            labels, encoder = _labels(written["labels"]), written["labeller"]
        except MALFORMED as error:
            rule = f"must be a file that dfkd labels wrote ({one_line(error)})"
            raise ManifestError("--labels", rule, str(path), remedy) from None
        if [encoder] != labellers:
            rule = "must be of the student's own labeller"
            raise ManifestError("--labels", rule, str(path), remedy)
        self.labels, self.texts = labels

    def distances(self, encoded: bytes) -> Array:
        """The distances float32 [M] of an encoded picture to the labels; smaller is closer.

        Raises:
            ValueError: not a picture, or it is truncated or too large.
        """
        pixels = decode_image(encoded, self._size, self._resizing)
        name = self._session.get_inputs()[0].name
        output: Array = self._session.run(None, {name: batch([pixels])})[0]
        found: Array = (output if self.texts is None else distances(output, self.texts))[0]
        return found

    def probabilities(self, encoded: bytes) -> npt.NDArray[np.float64]:
        """softmax(cosines / temperature), float64 [M], of a picture; raises as `distances`."""
        logits = cosines(self.distances(encoded).astype(np.float64)) / self._temperature
        weights = np.exp(logits - logits.max())  # the largest is 1, so nothing overflows
        probabilities: npt.NDArray[np.float64] = weights / weights.sum()
        return probabilities


def _labels(content: Any) -> tuple[tuple[str, ...], Array | None]:
    """The class names in labels, in the order of the outputs, and their texts [M, E]."""
    texts = np.array(list(content.values()), np.float32) if isinstance(content, dict) else None
    return tuple(content), texts


def distances(embeddings: Array, texts: Array) -> Array:
    """Squared spherical distances float32 [N, M] of embeddings [N, E] to unit texts [M, E].

    This is angle^2 / 2, which equals the teacher's 2 * atan2(|a - b|, |a + b|)^2.
    """
    cosines = embeddings @ texts.T / np.linalg.norm(embeddings, axis=1, keepdims=True)
    found: Array = np.square(np.arccos(np.clip(cosines, -1, 1))) / 2
    return found


def cosines(squared_distances: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The cosines of the angles that squared spherical distances stand for, of any shape.

    A distance that a network estimates may lie outside [0, pi^2 / 2].
    """
    found: npt.NDArray[np.float64] = np.cos(
        np.sqrt(2 * np.clip(squared_distances, 0, np.pi**2 / 2))
    )
    return found


def describe(probabilities: npt.NDArray[np.float64], labels: Sequence[str], top: int) -> str:
    """The `top` most probable labels with their probabilities: `cat 0.912, dog 0.051`."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    return ", ".join(f"{labels[index]} {probabilities[index]:.3f}" for index in order)


def _positive(text: str) -> int:
    """The value of an option that must be a whole number above 0."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


def _label_pictures(argv: Sequence[str] | None) -> int:
    """Print a line for each picture; returns the exit code, as not every one may be readable."""
    parser = argparse.ArgumentParser(prog="dfkd predict", description=__doc__)
    parser.add_argument("folder", type=Path, help="candidates/NAME or shipped of a run")
    parser.add_argument(
        "pictures", nargs="+", type=Path, metavar="picture", help="PNG, JPEG, WebP or BMP files"
    )
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="labels of other classes, from dfkd labels"
    )
    parser.add_argument(
        "--int8",
        action=argparse.BooleanOptionalAction,
        help=f"use {INT8} or {MODEL} (in shipped/: the file that was shipped)",
    )
    parser.add_argument(
        "--top", type=_positive, default=3, metavar="K", help="labels a picture (3)"
    )
    options = parser.parse_args(argv)
    predictor, unreadable = Predictor(options.folder, options.int8, options.labels), 0
    for path in options.pictures:
        try:
            probabilities = predictor.probabilities(read_picture(path))
        except (OSError, ValueError) as error:
            unreadable += 1
            reason = error.strerror if isinstance(error, OSError) else one_line(error)
            told = printable_line(f"error: picture: cannot be read ({reason}), got {str(path)!r}")
            print(f"{told}; give a picture file", file=sys.stderr, flush=True)
            continue
        labels = describe(probabilities, predictor.labels, options.top)
        print(printable_line(f"{path}: {labels}"), flush=True)
    if unreadable:
        return Exit.PARTIAL if unreadable < len(options.pictures) else Exit.USAGE
    return Exit.DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Print the labels of each picture on a line; returns the exit code."""
    # A class name may have letters that this terminal or file cannot show.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # The limit of pixels here is stricter than the one of which Pillow warns.
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")
    try:
        return _label_pictures(argv)
    except DfkdError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return error.exit_code
    except BrokenPipeError:
        # The reader, such as `head`, has enough.
        _discard_output()
    except OSError as error:
        _discard_output()
        told = f"error: stdout: cannot be written ({error.strerror}); give another place"
        print(told, file=sys.stderr, flush=True)
        return Exit.RETRY
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    return Exit.DONE


def _discard_output() -> None:
    """Write the rest of stdout to nowhere, because Python's flush at exit would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
