"""What a manifest needs from outside: published weights, and models of hubs."""

from dataclasses import dataclass

from open_clip.pretrained import get_pretrained_cfg

from dfkd.config.manifest import Manifest
from dfkd.config.paths import local_path
from dfkd.config.pipelines import PIPELINES, Pipeline
from dfkd.config.synthesis import TeacherConfig
from dfkd.models import backbone
from dfkd.models.generators.diffusers_folder import find_folder
from dfkd.models.generators.settings import Diffusers, Vqgan
from dfkd.models.generators.vqgan import find_file
from dfkd.models.labeller import errors_name
from dfkd.models.teacher_architecture import (
    find_weights,
    hub_tokenizer,
    read_architecture,
    require_activation,
    tokenizer_beside,
    tokenizer_file,
)
from dfkd.models.teacher_checks import require_token_embeddings
from dfkd.models.tokenizer_file import TOKENIZER
from dfkd.models.weights.artifacts import (
    PIPELINE_FILES,
    Artifact,
    hub_id,
    published,
)


@dataclass(frozen=True)
class Need:
    """A published file that a key of the manifest names."""

    field: str
    """Key of the manifest."""
    artifact: Artifact


@dataclass(frozen=True)
class HubModel:
    """A model that a hub's own client downloads."""

    field: str
    """Key of the manifest."""
    library: str
    """The library that reads it."""
    id: str
    """Its name on the hub, and for a tokenizer that of the file."""
    licence: str = "see its model card"


def needs(manifest: Manifest) -> list[Need]:
    """The published files that a manifest names, without duplicates.

    Raises:
        ManifestError: an architecture, a file or a name of weights does not exist, or weights
            do not fit their architecture. This is known before a long download.
    """
    teacher = read_architecture(manifest.teacher.model)
    require_token_embeddings(teacher.name, teacher.model)
    for field, tower in towers(manifest).items():
        with errors_name(field):
            _check_tower(tower)
    by_field = [*_generator(manifest)]
    for architecture in manifest.distillation.student:
        config = manifest.distillation.of_student(architecture)
        by_field.append(("distillation.weights", backbone.library_file(config)))
    files: dict[str, Need] = {}
    for field, artifact in by_field:
        if artifact:
            # Two keys may name the same file.
            files.setdefault(artifact.file, Need(field, artifact))
    return list(files.values())


def _check_tower(config: TeacherConfig) -> None:
    """Raise `ManifestError` unless weights are a tag of open_clip or exist, and have the activation
    of their architecture."""
    shape = read_architecture(config.model)
    tag = get_pretrained_cfg(config.model, config.weights)
    if not tag:
        source = find_weights(config.weights, shape)
        if not hub_tokenizer(shape):
            tokenizer_file(shape, source)
    else:
        # With another activation the weights load, but give wrong embeddings.
        require_activation(config.weights, bool(tag.get("quick_gelu")), shape)


def _generator(manifest: Manifest) -> list[tuple[str, Artifact | None]]:
    """The generator's files by manifest key; none if no method of the run uses it, or if it is a
    kind of which nothing is published as single files."""
    settings = manifest.generator.settings
    if not manifest.follows_prompts:
        return []
    if isinstance(settings, Diffusers) and settings.weights not in PIPELINES:
        find_folder(settings.weights)
    if not isinstance(settings, Vqgan):
        return []
    named = {
        "generator.vqgan.config": settings.config,
        "generator.vqgan.weights": settings.weights,
    }
    for field, value in named.items():
        if not published(field, value):
            find_file(field, value)
    return [(field, published(field, value)) for field, value in named.items()]


def published_pipeline(manifest: Manifest) -> tuple[str, Pipeline] | None:
    """The published diffusion model that a manifest names and one of its methods uses, by name."""
    settings = manifest.generator.settings
    if not isinstance(settings, Diffusers) or not manifest.follows_prompts:
        return None
    pipeline = PIPELINES.get(settings.weights)
    return (settings.weights, pipeline) if pipeline and pipeline.repository else None


def missing_of_pipeline(manifest: Manifest) -> list[str]:
    """The files of the published diffusion model that are not in the cache, by their paths there;
    none if the manifest names no such model.
    """
    found = published_pipeline(manifest)
    names = [f"{found[0]}/{file}" for file in PIPELINE_FILES] if found else []
    return [name for name in names if not (local_path(manifest.cache) / name).is_file()]


def towers(manifest: Manifest) -> dict[str, TeacherConfig]:
    """The open_clip models that a manifest names, by the section of their keys."""
    found = {"teacher": manifest.teacher}
    for section, models in (
        ("distillation.labeller", manifest.distillation.labeller),
        ("candidates.towers", manifest.candidates.towers),
    ):
        for number, each in enumerate(models):
            if not isinstance(each, str):
                # One labeller is mostly written without a list.
                alone = section == "distillation.labeller" and len(models) == 1
                found[section if alone else f"{section}.{number}"] = each
    return found


def hub_models(manifest: Manifest) -> list[HubModel]:
    """The models that a manifest names and that a hub's own client downloads."""
    models = []
    for field, tower in towers(manifest).items():
        tag = get_pretrained_cfg(tower.model, tower.weights)
        if hub_id(tag):
            models.append(HubModel(f"{field}.weights", "open_clip", hub_id(tag)))
        shape = read_architecture(tower.model)
        repository = hub_tokenizer(shape)
        # Weights that are files of this machine may have it beside them.
        there = not tag and tokenizer_beside(shape, find_weights(tower.weights, shape))
        if repository and not there:
            models.append(HubModel(f"{field}.model", "tokenizers", f"{repository}/{TOKENIZER}"))
    if found := published_pipeline(manifest):
        names = found[1].repository, found[1].licence
        models.append(HubModel("generator.diffusers.weights", "diffusers", *names))
    for architecture in manifest.distillation.student:
        config = manifest.distillation.of_student(architecture)
        if architecture.startswith("timm:") and backbone.names_library(config.initial_weights):
            models.append(HubModel("distillation.weights", "timm", architecture))
    return models
