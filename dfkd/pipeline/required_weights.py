"""What a manifest needs of the world outside: published weights, and models that a hub keeps."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from open_clip.pretrained import get_pretrained_cfg

from dfkd.config.manifest import Manifest, TeacherConfig
from dfkd.config.methods import prompt_method
from dfkd.distillation.text_only import errors_name_own_keys
from dfkd.models import student
from dfkd.models.generator import find_file
from dfkd.models.generator_config import read_model
from dfkd.models.teacher_architecture import find_weights, read_architecture, require_activation
from dfkd.models.weights import open_clip_tags
from dfkd.models.weights.artifacts import Artifact, published
from dfkd.models.weights.reading import read_state_dict


@dataclass(frozen=True)
class Need:
    """A published file that a key of a manifest names."""

    field: str
    """The key."""
    artifact: Artifact

    def check(self, path: Path) -> None:
        """Read a file as what it is to be.

        Raises:
            WeightsError: it is something else, or damaged.
        """
        if self.field == "generator.config":
            read_model(path)
        else:
            read_state_dict(self.field, path)


@dataclass(frozen=True)
class HubModel:
    """A model that a library fetches from its hub by itself."""

    field: str
    """The key."""
    library: str
    id: str


def needs(manifest: Manifest, few_shot: bool = False) -> list[Need]:
    """The published files that a manifest names, each once.

    Args:
        few_shot: whether those count that only `jobs/fewshot.py` starts from.

    Raises:
        ManifestError: an architecture, a file or a name of weights is not there, or weights do not
            go with their architecture: known before a long download.
    """
    found = {
        "teacher.weights": _teacher(manifest.teacher),
        "text_only.weights": _text_only(manifest),
        "generator.config": _generator(manifest, "config"),
        "generator.weights": _generator(manifest, "weights"),
        "distillation.weights": student.published(manifest.distillation),
        "fewshot.library": _few_shot(manifest) if few_shot else None,
    }
    files: dict[str, Need] = {}
    for field, artifact in found.items():
        if artifact:
            files.setdefault(artifact.file, Need(field, artifact))
    return list(files.values())


def _teacher(config: TeacherConfig) -> Artifact | None:
    shape = read_architecture(config.model)
    tag = get_pretrained_cfg(config.model, config.weights)
    if not tag:
        find_weights(config.weights, shape)
        return None
    require_activation(config.weights, bool(tag.get("quick_gelu")), shape)
    return open_clip_tags.published(config.model, config.weights)


def _text_only(manifest: Manifest) -> Artifact | None:
    if "text-only" not in manifest.evaluation.models:
        return None
    with errors_name_own_keys(manifest):
        return _teacher(manifest.text_tower)


def _generator(manifest: Manifest, key: str) -> Artifact | None:
    """Nothing where no method of the run has latents."""
    if not any(map(prompt_method, manifest.methods)):
        return None
    field, value = f"generator.{key}", getattr(manifest.generator, key)
    artifact = published(field, value)
    if artifact is None:
        find_file(field, value)
    return artifact


def _few_shot(manifest: Manifest) -> Artifact | None:
    if "library" not in manifest.fewshot.starts:
        return None
    weights = manifest.fewshot.library
    config = dataclasses.replace(manifest.distillation, weights=weights)
    return student.published(config, "fewshot.library")


def towers(manifest: Manifest) -> dict[str, TeacherConfig]:
    """The CLIP models that a manifest names, by the key of their weights."""
    found = {"teacher.weights": manifest.teacher}
    if "text-only" in manifest.evaluation.models and manifest.text_only.model:
        found["text_only.weights"] = manifest.text_tower
    return found


def hub_models(manifest: Manifest) -> list[HubModel]:
    """The models that a manifest names and that only a hub has."""
    config = manifest.distillation
    found = []
    for field, tower in towers(manifest).items():
        hub_id = open_clip_tags.hub_id(tower.model, tower.weights)
        if hub_id and not open_clip_tags.published(tower.model, tower.weights):
            found.append(HubModel(field, "open_clip", hub_id))
    if config.student.startswith("timm:") and student.names_library(config.weights):
        found.append(HubModel("distillation.weights", "timm", config.student))
    return found
