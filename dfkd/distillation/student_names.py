"""How the name of a student's folder follows from its data and settings, and which one is exported.

The folder is `students/{method}-s{seed}-{hash}`. The hash makes training safe to repeat: the same
settings find the finished student or its checkpoints, others get a new folder.
"""

import dataclasses
import hashlib

from dfkd.config.distillation import weights_file
from dfkd.config.hashing import sha256_file
from dfkd.config.manifest import Manifest
from dfkd.config.methods import Method
from dfkd.dataset.published import read_json
from dfkd.errors import CorruptionError
from dfkd.storage import layout
from dfkd.storage.base import Storage
from dfkd.utils.strict_json import canonical

SCHEMA = 1
"""Increase it with every code change that changes the student of unchanged settings."""

TRAINING_ONLY_KEYS = ("seeds", "workers", "checkpoint_epochs")
"""Keys of `distillation` that are not part of the name, because a training may resume with other
values of them."""


def student_name(manifest: Manifest, fingerprint: str, method: Method, seed: int) -> str:
    """`{method}-s{seed}-{hash12}`; the hash covers everything that determines the student.

    Args:
        fingerprint: fingerprint of the data set that it is trained on.
    """
    config = manifest.distillation
    settings = dataclasses.asdict(config)
    for key in TRAINING_ONLY_KEYS:
        del settings[key]
    settings["weights"] = weights_identity(config.weights)
    identity = {
        "schema": SCHEMA,
        "distillation": settings,
        "version": fingerprint,
        "seed": seed,
    }
    if config.optimizer == "sgd":
        identity["weight_decay"] = config.weight_decay  # without it, another student
    if config.texts == "styles":
        # Imported here and below, because these modules import torch and most names need neither.
        from dfkd.prompts.styles import dictionary

        identity["styles"] = [manifest.prompts.template, *dictionary(manifest.prompts)]
    return f"{method}-s{seed}-{hashlib.sha256(canonical(identity)).hexdigest()[:12]}"


def weights_identity(weights: str) -> str:
    """The sha256 of the file that initial weights name, whatever its path, or the library's name.

    Raises:
        WeightsError: there is no such file.
    """
    file = weights_file(weights)
    if not file:
        return weights
    from dfkd.models.weights.reading import existing_file

    return sha256_file(existing_file("distillation.weights", file))


def exported_student(root: Storage) -> str:
    """The folder's name of the student that `student/` holds for use elsewhere; empty without one.

    Raises:
        CorruptionError: its description is damaged.
    """
    if not root.exists(layout.TAKE_HOME):
        return ""
    student = read_json(root, layout.TAKE_HOME).get("student")
    if not isinstance(student, dict):
        where = root.location(layout.TAKE_HOME)
        raise CorruptionError(f"{where}: names no student; run dfkd pipeline again")
    return str(student.get("folder", ""))
