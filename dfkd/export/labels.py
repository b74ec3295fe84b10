"""`labels.json`: the class names of an exported student.

For a student of distances it is a list of names. For a student of embeddings it is an object with
the unit text embedding of each name. Another file gives it other classes
(`dfkd.export.predict --labels`): {"labeller": sha256 of the labeller's weights, "labels": such an
object}.
"""

import json
from collections.abc import Sequence

from torch import Tensor

from dfkd.config.manifest import Manifest
from dfkd.distillation.embedding import encode_classes
from dfkd.distillation.student_store import locate_student, require_replaceable_classes
from dfkd.errors import ManifestError
from dfkd.export.predict import LABELS, WEIGHTS
from dfkd.models.labeller import file_hashes
from dfkd.storage import layout
from dfkd.storage.local import open_storage

DIGITS = 8
"""Decimals of a vector's entries; the error of 5e-9 is far below what tells classes apart."""


def labels_json(classes: Sequence[str], texts: Tensor | None) -> str:
    """The content of `labels.json`.

    Args:
        classes: M names, in the order of the outputs.
        texts: their unit text embeddings [M, E]; None for a student of distances.
    """
    if texts is None:
        return json.dumps(list(classes), indent=2, ensure_ascii=False) + "\n"
    vectors = ([round(value, DIGITS) for value in vector] for vector in texts.tolist())
    lines = (
        f"  {json.dumps(name, ensure_ascii=False)}: {json.dumps(vector)}"
        for name, vector in zip(classes, vectors, strict=True)
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write_labels(manifest: Manifest, classes: tuple[str, ...]) -> str:
    """Write `other-classes/labels.json` for the exported student of a run; returns its location.

    Raises:
        ManifestError: the students learn distances or are not finished, or the labeller cannot read
            the names.
        WeightsError: the labeller's files are missing or damaged.
    """
    student = locate_student(manifest, manifest.methods[-1], manifest.distillation.seeds[0])
    require_replaceable_classes(manifest, student.method, student.version)
    if not student.finished:
        raise ManifestError(
            "distillation.target",
            "must be that of a finished student",
            manifest.distillation.target,
            "run dfkd pipeline with the same settings first",
        )
    labels = labels_json(classes, encode_classes(manifest, classes)).rstrip()
    (config,) = manifest.labellers.values()
    digest = file_hashes(config, manifest.cache)[WEIGHTS]
    content = f'{{"labeller": {json.dumps(digest)}, "labels": {labels}}}\n'
    folder = open_storage(manifest.storage.root).child(layout.OTHER_CLASSES)
    folder.put(LABELS, content.encode())
    return folder.location(LABELS)
