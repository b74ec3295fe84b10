"""How the name of a student's folder follows from its data and settings.

The folder is `students/{method}-s{seed}-{hash}`. The hash makes training safe to repeat: the same
settings find the finished student or its checkpoints, others get a new folder.
"""

import dataclasses
import functools
import hashlib

from dfkd.config.distillation import weights_file
from dfkd.config.hashing import sha256_file
from dfkd.config.manifest import Manifest
from dfkd.config.methods import Method
from dfkd.config.synthesis import TeacherConfig
from dfkd.utils.strict_json import canonical

SCHEMA = 1
"""Increase it with every code change that changes the student of unchanged settings."""

TRAINING_ONLY_KEYS = ("seeds", "workers", "checkpoint_epochs")
"""Keys of `distillation` that are not part of the name, because a training may resume with other
values of them."""


def student_name(manifest: Manifest, fingerprint: str, method: Method, seed: int) -> str:
    """`{method}-s{seed}-{hash12}`; the hash covers everything that determines the student.

    Args:
        manifest: names the student; of several the first is meant (`Manifest.with_student`).
        fingerprint: fingerprint of the data set that it is trained on.
    """
    config = manifest.distillation
    settings = dataclasses.asdict(config)
    for key in TRAINING_ONLY_KEYS:
        del settings[key]
    # As of a manifest that has no other students, which change nothing of this one.
    settings["student"] = config.architecture
    settings["weights"] = weights_identity(config.initial_weights)
    # The version's fingerprint has the teacher.
    del settings["labeller"]
    if not config.labelled_by_teacher:
        settings["labeller"] = labellers_identity(manifest)
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


def student_names(manifest: Manifest, fingerprint: str, method: Method) -> list[str]:
    """The names of the students of each architecture and seed; arguments as for `student_name`."""
    return [
        student_name(manifest.with_student(architecture), fingerprint, method, seed)
        for architecture in manifest.distillation.student
        for seed in manifest.distillation.seeds
    ]


def labellers_identity(manifest: Manifest) -> list[dict[str, str]]:
    """What determines the answers of each labeller: template, architecture, and the sha256 of its
    files by role.

    Raises:
        ManifestError, WeightsError: as `dfkd.models.labeller.file_hashes`.
    """
    from dfkd.models.labeller import errors_name

    found = []
    for name, config in manifest.labellers.items():
        with errors_name("teacher" if name == "teacher" else "distillation.labeller"):
            own = {"template": config.template, "teacher.model": config.model}
            # The hash of a configuration file takes the place of its path.
            found.append(own | _hashes(config, manifest.cache))
    return found


@functools.cache
def _hashes(config: TeacherConfig, cache: str) -> dict[str, str]:
    """The sha256 of a model's files, read once in a process: each student's name holds them."""
    from dfkd.models.labeller import file_hashes

    return file_hashes(config, cache)


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
