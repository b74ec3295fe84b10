"""Label pictures with an exported student: `python -m dfkd.export.predict FOLDER PICTURE...`.

It needs onnxruntime, numpy and pillow, but neither torch nor a GPU. The folder is untrusted input:
an invalid file is reported in one line, with exit code 2. Only how long a model computes, and in
how much memory, is not bounded.
"""

import argparse
import hashlib
import io
import os
import stat
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import onnxruntime

from dfkd.errors import DfkdError, Exit, ManifestError, one_line, printable_line
from dfkd.utils import strict_json
from dfkd.utils.images import Array, batch, decode_image, read_picture

MODEL, INT8 = "model.onnx", "model.int8.onnx"
TEACHER = "teacher.weights"
"""The role of the teacher's weights among the hashes in `takehome.json`."""
LABELS, RULES, FACTS = "labels.json", "preprocess.json", "takehome.json"
"""The files that programs read; the last one is written last, so the folder is complete with it."""

MAX_SIZE = 4096
"""Largest input width in pixels; no classifier takes more, and more would fill the memory."""
MIN_TEMPERATURE = 1e-6
"""Smallest accepted temperature. Cosines are of the order of 1; a softmax of less overflows."""
MAX_MODEL = 1 << 31
"""Bytes at which ONNX files end, because protobuf has no longer messages."""
MAX_JSON = 16 << 20
"""Largest `preprocess.json` or `takehome.json` in bytes; dfkd writes a few kilobytes."""
MAX_LABELS = 1 << 28
"""Largest `labels.json` in bytes. With embeddings of 1,024 numbers a label takes 13 kB, so twenty
thousand labels fit."""
REMEDY = "give a student/ folder as dfkd wrote it"
"""Remedy of every error about the folder."""


@dataclass(frozen=True)
class Rules:
    """The entries of `preprocess.json` that prediction needs."""

    size: int
    """Input width and height in pixels."""
    temperature: float
    """Divides the cosines before the softmax."""


class Predictor:
    """An exported student on the CPU."""

    def __init__(self, folder: Path, int8: bool = False, labels: Path | None = None) -> None:
        """Load a `student/` folder.

        Args:
            int8: use `model.int8.onnx`, which is smaller and less accurate.
            labels: the `labels.json` of other classes, for a student of embeddings.

        Raises:
            ManifestError: the folder is not as `dfkd` wrote it, or the student is of distances and
                knows only its own classes.
        """
        facts = _mapping(_json(folder / FACTS, _read(folder / FACTS, MAX_JSON)))
        files = _mapping(facts.get("files"))
        hashes = {name: _mapping(file).get("sha256") for name, file in files.items()}
        path = folder / LABELS
        self.labels, self.texts = _labels(path, _json(path, _verified(path, hashes, MAX_LABELS)))
        if labels is not None:
            teacher = _mapping(_mapping(facts.get("data")).get("weights")).get(TEACHER)
            self.labels, self.texts = _replaced(self.texts, labels, teacher)
        path = folder / RULES
        self.rules = _rules(path, _verified(path, hashes, MAX_JSON))
        path = folder / (INT8 if int8 else MODEL)
        self._session = _session(path, _verified(path, hashes, MAX_MODEL))
        self._check()

    def _check(self) -> None:
        """Raise `ManifestError` if the model's input and output differ from the JSON files."""
        size, width = self.rules.size, self._width
        inputs = [_signature(port) for port in self._session.get_inputs()]
        outputs = [_signature(port) for port in self._session.get_outputs()]
        if inputs != [("tensor(float)", (3, size, size))]:
            _refuse("model", f"must take float32 [N, 3, {size}, {size}] as its one input", inputs)
        if outputs != [("tensor(float)", (width,))]:
            _refuse("model", f"must give float32 [N, {width}], as its labels say", outputs)

    @property
    def _width(self) -> int:
        """Number of the model's outputs: a distance for each label, or the entries of a text."""
        return len(self.labels) if self.texts is None else self.texts.shape[1]

    def distances(self, encoded: bytes) -> Array:
        """The distances float32 [M] of an encoded picture to the labels; smaller is closer.

        Raises:
            ValueError: not a picture, or it is truncated or too large.
            ManifestError: the model fails, or its output is neither finite distances nor an
                embedding that has a direction.
        """
        name = self._session.get_inputs()[0].name
        feed = {name: batch([decode_image(encoded, self.rules.size)])}
        try:
            output: Array = self._session.run(None, feed)[0]
        except Exception as error:  # onnxruntime's errors have no narrower base class
            _refuse("model", "must run on one picture", _short(one_line(error)))
        width = self._width
        if output.shape != (1, width) or not np.isfinite(output).all():
            _refuse("model", f"must give {width} finite numbers", output.shape)
        if self.texts is not None:
            # An embedding of length 0 has no angle to the texts, nor has one that overflows.
            if not 0 < (length := float(np.sqrt(np.vdot(output, output)))) < np.inf:
                _refuse("model", "must give an embedding of a finite length above 0", length)
            output = distances(output, self.texts)
        found: Array = output[0]
        return found

    def probabilities(self, encoded: bytes) -> npt.NDArray[np.float64]:
        """softmax(cosines / temperature), float64 [M], of a picture; raises as `distances`."""
        logits = cosines(self.distances(encoded).astype(np.float64)) / self.rules.temperature
        weights = np.exp(logits - logits.max())  # the largest is 1, so nothing overflows
        probabilities: npt.NDArray[np.float64] = weights / weights.sum()
        return probabilities


def _signature(port: Any) -> tuple[str, tuple[Any, ...]]:
    """Type, and shape without the batch dimension."""
    return port.type, tuple(port.shape[1:])


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


def _mapping(value: Any) -> dict[str, Any]:
    """A value of a stranger's JSON if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def _verified(path: Path, hashes: dict[str, Any], limit: int) -> bytes:
    """The content of a file of the folder, after a check of its sha256."""
    # Read once and hash what is used, because the file may change between two reads.
    data = _read(path, limit)
    digest = hashlib.sha256(data).hexdigest()
    if hashes.get(path.name) != digest:
        _refuse(str(path), f"must have the sha256 that {FACTS} states", digest)
    return data


def _labels(path: Path, labels: Any) -> tuple[tuple[str, ...], Array | None]:
    """The class names in labels, in the order of the outputs, and their texts [M, E]."""
    names = list(labels) if isinstance(labels, list | dict) else []
    texts = _vectors(labels.values()) if isinstance(labels, dict) else None
    # As in a manifest: with other names one could forge a line of output.
    valid = names and all(isinstance(n, str) and n and n.isprintable() for n in names)
    if not valid or (texts is not None and texts.ndim != 2):
        rule = "must be a list of printable names, or an object with a unit vector for each"
        _refuse(str(path), rule, _short(labels))
    if len(set(names)) < len(names):
        _refuse(str(path), "must hold each name once", _short(labels))
    return tuple(names), texts


def _vectors(rows: Iterable[Any]) -> Array:
    """Unit vectors float32 [M, E]; an empty array [0] if `rows` are something else."""
    try:
        with np.errstate(over="ignore"):  # else numpy warns, and one line is all that is printed
            vectors = np.array(list(rows), np.float32)
            if vectors.ndim == 2 and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
                return vectors
    except (ValueError, TypeError, OverflowError):
        pass
    return np.empty(0, np.float32)


def _replaced(own: Array | None, path: Path, teacher: object) -> tuple[tuple[str, ...], Array]:
    """Names and texts of the other classes in the file `path`, for a student with texts `own`.

    Args:
        teacher: the sha256 of the weights of the student's teacher, whose text tower has encoded
            its classes; the vectors of another one mean nothing to the student.
    """
    if own is None:
        raise ManifestError(
            "--labels",
            "needs a student of embeddings; this one knows only the classes in its labels.json",
            str(path),
            "leave it out, or distil with distillation.target=embedding",
        )
    remedy = "write it with jobs/labels.py"
    try:
        written = _mapping(_json(path, _read(path, MAX_LABELS)))
        names, texts = _labels(path, written.get("labels"))
    except ManifestError as error:
        # Only what is wrong: field and remedy are those of a student folder.
        reason = str(error).removeprefix(f"{error.field}: ").removesuffix(f"; {REMEDY}")
        readable = f"must be a readable file with a unit vector for each name ({reason})"
        raise ManifestError("--labels", readable, str(path), remedy) from None
    if texts is None or texts.shape[1] != own.shape[1]:
        rule = f"must have a vector of {own.shape[1]} numbers for each name"
        raise ManifestError("--labels", rule, str(path), remedy)
    if teacher is None or written.get("teacher") != teacher:
        rule = "must be of the student's own teacher"
        raise ManifestError("--labels", rule, str(path), f"{remedy} in the run of the student")
    return names, texts


def _rules(path: Path, data: bytes) -> Rules:
    """The checked content of `preprocess.json`."""
    rules = _json(path, data)
    if not isinstance(rules, dict) or rules.get("schema") != 1:
        _refuse(str(path), "must be an object with schema 1", _short(rules))
    size: Any = rules.get("size")
    # Not `isinstance`, because a bool is an int too.
    if type(size) is not int or not 0 < size <= MAX_SIZE:
        _refuse(f"{path} size", f"must be a whole number from 1 to {MAX_SIZE}", _short(size))
    temperature: Any = rules.get("temperature")
    if type(temperature) not in (int, float) or temperature < MIN_TEMPERATURE:
        rule = f"must be a number from {MIN_TEMPERATURE} on"
        _refuse(f"{path} temperature", rule, _short(temperature))
    return Rules(size, float(temperature))


def _session(path: Path, data: bytes) -> onnxruntime.InferenceSession:
    """A session of the ONNX model in `data`."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # no log: errors are reported below
    # Weights in other files, which no sha256 covers, would come from the working directory.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", os.devnull
    )
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no narrower base class
        _refuse(str(path), "must be an ONNX model", _short(one_line(error)))


def _json(path: Path, data: bytes) -> Any:
    """The JSON in `data`, the content of the file `path`."""
    try:
        return strict_json.parse(data)
    except ValueError as error:
        _refuse(str(path), "must be JSON", _short(one_line(error)))


def _read(path: Path, limit: int) -> bytes:
    """The content of a file; `ManifestError` if it cannot be read or is longer than `limit`."""
    try:
        facts = path.stat()
        # A link may lead to a device that never ends, or to a pipe that never begins.
        if not stat.S_ISREG(facts.st_mode):
            _refuse(str(path), "must be a readable file", stat.filemode(facts.st_mode))
        if facts.st_size > limit:
            _refuse(str(path), f"must have at most {limit} bytes", facts.st_size)
        return path.read_bytes()
    except OSError as error:
        _refuse(str(path), "must be a readable file", error.strerror)


def _refuse(field: str, rule: str, value: object) -> NoReturn:
    """Raise the `ManifestError` about a file of the folder."""
    raise ManifestError(f"student {field}", rule, value, REMEDY)


def _short(value: object) -> str:
    """`repr`, cut to 80 characters: the content of a foreign file may have any length."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def describe(probabilities: npt.NDArray[np.float64], labels: Sequence[str], top: int) -> str:
    """The `top` most probable labels with their probabilities: `cat 0.912, dog 0.051`."""
    order = np.argsort(-probabilities, kind="stable")[:top]
    return ", ".join(f"{labels[index]} {probabilities[index]:.3f}" for index in order)


def _positive(text: str) -> int:
    """The value of an option that must be a whole number above 0."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dfkd.export.predict", description=__doc__)
    parser.add_argument("folder", type=Path, help="the student/ folder of a run")
    parser.add_argument(
        "pictures", nargs="+", type=Path, metavar="picture", help="PNG, JPEG, WebP or BMP files"
    )
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="labels of other classes, from jobs/labels.py"
    )
    parser.add_argument("--int8", action="store_true", help=f"use {INT8}")
    parser.add_argument(
        "--top", type=_positive, default=3, metavar="K", help="labels a picture (3)"
    )
    return parser


def _label_pictures(options: argparse.Namespace) -> int:
    """Print a line for each picture; returns the exit code, as not every one may be readable."""
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
    options = _parser().parse_args(argv)
    # A class name may have letters that this terminal or file cannot show.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # The limit of pixels here is stricter than the one of which Pillow warns.
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")
    try:
        return _label_pictures(options)
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
