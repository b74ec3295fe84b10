"""The manifest: the YAML file that fully describes a run, as checked dataclasses.

Defaults are the paper's values. If the paper states none, the key's docstring explains the default.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from dfkd.config.distillation import Candidates, Distillation, Evaluation
from dfkd.config.methods import LATENTS, Method, method_name
from dfkd.config.paths import CACHE, manifest_file
from dfkd.config.plugins import KINDS, PromptSettings, SourceSettings, plain
from dfkd.config.presets import PRESETS
from dfkd.config.synthesis import (
    OPTIMISER_KEYS,
    GeneratorConfig,
    Prompts,
    Synthesis,
    TeacherConfig,
)
from dfkd.errors import ManifestError
from dfkd.storage.base import split_root
from dfkd.utils.types import (
    CHECKED,
    Count,
    Fraction,
    Name,
    Natural,
    NonNegative,
    Positive,
    require_folder,
    require_unique,
)
from dfkd.utils.yaml import load


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class StorageConfig:
    """The location of a run's results."""

    root: Annotated[Name, AfterValidator(os.path.expanduser)]
    """A directory, `s3://bucket/prefix`, `az://container/prefix` or `gs://bucket/prefix`. A
    relative directory is one of the current folder. On a cluster of several nodes, the directory
    must be an absolute path on a file system that all nodes share."""

    def __post_init__(self) -> None:
        split_root("storage.root", self.root)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Cluster:
    """Number, resources and retries of the synthesis workers."""

    workers: Natural = 0
    """Maximal number of synthesis actors, and of students of one rank that train side by side.

    0: as many as fit, also on nodes that join later.

    An autoscaler adds nodes for that many workers. With 0 it is asked for one worker per task, at
    most 256; then only its own maximum limits the cost."""
    cpus_per_worker: Positive = 1.0
    """CPUs that a worker reserves, and its torch threads. Raise it on nodes with many CPUs and no
    GPU."""
    gpus_per_worker: NonNegative | None = None
    """GPUs that a worker reserves. None: one if any node has a GPU when the stage begins, else
    zero. Set it to 1 if the nodes with GPUs join later."""
    attempts: Count = 3
    """Attempts at a task before it is quarantined. One that is lost with its node does not count,
    ten times at most."""
    task_timeout: NonNegative = 3600.0
    """Seconds after which a worker that has not finished its task counts as hung, or a student that
    has not made a step; 0: never. After the first step the limit is at most 20 minutes, or ten
    times the slowest step so far if that is longer.

    The prompts of one shard of every class are one task, so raise it for a thousand classes."""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Regeneration:
    """The images that `dfkd regenerate` makes anew, and the quality that it requires.

    These keys are for runs of that job on a schedule.
    """

    classes: tuple[Name, ...] = ()
    """Classes that are made anew; the others are carried over from the current version. Empty for
    all classes."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the tasks of each such class that are made anew, at least one; the salt selects
    them."""
    tolerance: Fraction = 0.02
    """Mean accuracy (0-1) by which the new student may be worse than the current one."""
    diversity_floor: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Minimal diversity: 1 - the mean cosine between the teacher's embeddings of a class, averaged
    over classes."""
    worker_seconds: Natural = 0
    """Worker-seconds that one call may spend on synthesis, summed over workers; 0 for no limit."""

    def __post_init__(self) -> None:
        require_unique("regeneration.classes", self.classes)

    @property
    def whole(self) -> bool:
        """Whether all tasks are made anew."""
        return not self.classes and self.share == 1.0


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Manifest:
    """A whole run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    """Name of the run in its reports: letters, digits, `-` and `_`."""
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    """Class names in the order of the labels. One that needs more words in prompts and in the texts
    that images are compared with is `{name: crane, prompt: "crane, a wading bird"}`."""
    storage: StorageConfig
    teacher: TeacherConfig
    """Required like the generator, because both must know the same kind of images."""
    generator: GeneratorConfig
    cache: Name = CACHE
    """The folder that `dfkd fetch` fills with published weights. Set another one if the home
    folder is too small; on a cluster each node needs the folder. Results do not depend on it."""
    seed: Natural = 0
    """Seed from which every random number of the run is derived."""
    salt: Natural = 0
    """Number that gives another data set from the same settings; `dfkd regenerate` increments
    it."""
    prompts: Prompts = dataclasses.field(default_factory=Prompts)
    synthesis: Synthesis = dataclasses.field(default_factory=Synthesis)
    distillation: Distillation = Distillation()
    candidates: Candidates = Candidates()
    evaluation: Evaluation = Evaluation()
    cluster: Cluster = Cluster()
    regeneration: Regeneration = Regeneration()
    given_meanings: dict[str, str] = dataclasses.field(default_factory=dict)
    """`prompt` of the entries of `classes` that have one, by their names; no key of a file."""

    def __post_init__(self) -> None:
        for name in self.classes:
            if not name.strip():
                raise ManifestError(
                    "classes", "a class name must not be empty", name, "name or remove it"
                )
            # A slash would split a folder's name, braces would be slots of a template, and outer
            # spaces would change the prompt unseen.
            if set("/{}") & set(name) or name != name.strip() or not name.isprintable():
                raise ManifestError(
                    "classes",
                    "a class name is printable, without '/', '{', '}' and without outer spaces",
                    name,
                    "rename it",
                )
        require_unique("classes", self.classes)
        for name, meaning in self.given_meanings.items():
            # Braces would be slots of a template.
            if set("{}") & set(meaning) or meaning != meaning.strip() or not meaning.isprintable():
                raise ManifestError(
                    f"classes.{name}.prompt",
                    "is printable, without '{', '}' and without outer spaces",
                    meaning,
                    "change it",
                )
            if not meaning:
                raise ManifestError(
                    f"classes.{name}.prompt", "must not be empty", meaning, "write or remove it"
                )
        require_folder("cache", self.cache)
        for name in self.regeneration.classes:
            if name not in self.classes:
                raise ManifestError(
                    "regeneration.classes", "must be among classes", name, "name one of them"
                )
        for name in self.evaluation.aliases:
            if name not in self.classes:
                raise ManifestError(
                    "evaluation.aliases",
                    "must give classes the names of the data, and have none but classes",
                    name,
                    "write it as {class: what the data call it}",
                )
        if self.distillation.texts == "styles" and not self.prompts.styles:
            raise ManifestError(
                "prompts.styles",
                "must have a style with distillation.texts=styles",
                self.prompts.styles,
                "add styles or set distillation.texts=template",
            )
        if len(self.distillation.labeller) > 1 and "text-only" in self.evaluation.models:
            raise ManifestError(
                "evaluation.models",
                "must be without text-only where distillation.labeller has several models, none of "
                "which is the classifier's tower",
                list(self.evaluation.models),
                "leave it out; candidates.classifiers has one for each tower",
            )
        if self.follows_prompts and not self.generator.settings.optimisation_steps:
            for each in dataclasses.fields(self.synthesis):
                value = getattr(self.synthesis, each.name)
                if each.name in OPTIMISER_KEYS and value != each.default:
                    raise ManifestError(
                        f"synthesis.{each.name}",
                        f"has no effect with generator.kind {self.generator.kind}, which does not "
                        "optimise latents",
                        value,
                        "remove it",
                    )

    @classmethod
    def read(cls, path: str | Path, overrides: tuple[str, ...] = ()) -> "Manifest":
        """The manifest in a file, or the shipped one of that name, with `key.sub=value` overrides.

        The file's keys override those of its `preset`, also if an override names the preset. Each
        override takes precedence over the file and over earlier overrides.

        Raises:
            ManifestError: the file or an override breaks a rule, which the text names.
        """
        return load(cls, manifest_file(path), overrides, PRESETS)

    @classmethod
    def as_fields(cls, tree: dict[str, Any]) -> dict[str, Any]:
        """The keys of a file as fields: names and meanings of `classes` apart.

        Raises:
            ManifestError: an entry is neither a name nor a mapping of `name` and `prompt`.
        """
        if "given_meanings" in tree:
            raise ManifestError(
                "given_meanings",
                "is not a key of the manifest",
                tree["given_meanings"],
                "write classes: [{name: ..., prompt: ...}]",
            )
        classes = tree.get("classes")
        if not isinstance(classes, list):
            return tree  # which the check of the fields refuses
        names, meanings = list[Any](), dict[str, str]()
        for number, entry in enumerate(classes):
            if not isinstance(entry, dict):
                names.append(entry)
                continue
            texts = all(isinstance(value, str) for value in entry.values())
            if set(entry) != {"name", "prompt"} or not texts:
                raise ManifestError(
                    f"classes.{number}",
                    "must be a name, or a mapping with the texts name and prompt",
                    entry,
                    'write for example {name: crane, prompt: "crane, a wading bird"}',
                )
            names.append(entry["name"])
            # A class that means its name is the same manifest as the name alone.
            if entry["prompt"] != entry["name"]:
                meanings[entry["name"]] = entry["prompt"]
        return tree | {"classes": names, "given_meanings": meanings}

    @property
    def meanings(self) -> tuple[str, ...]:
        """What prompts and class texts call each class, in the order of the labels: its name, or
        the words that it has for them."""
        return tuple(self.given_meanings.get(name, name) for name in self.classes)

    @property
    def labellers(self) -> dict[str, TeacherConfig]:
        """The models of `distillation.labeller` by name; the teacher's is `teacher`."""
        return self._named(self.distillation.labeller)

    @property
    def towers(self) -> dict[str, TeacherConfig]:
        """The image towers that are candidates, by their names among the candidates."""
        chosen: list[Literal["teacher"] | TeacherConfig] = []
        for tower in self.candidates.towers:
            chosen += self.distillation.labeller if tower == "labeller" else (tower,)
        return self._named(dict.fromkeys(chosen))

    def _named(
        self, models: Iterable[Literal["teacher"] | TeacherConfig]
    ) -> dict[str, TeacherConfig]:
        """The sections of some models by name."""
        found: dict[str, TeacherConfig] = {}
        for each in models:
            if each == "teacher":
                found[each] = self.teacher
            else:
                # Two weights of one architecture differ in their weights only, and two templates
                # of one model in those.
                longer = f"{each.model} {each.weights}"
                names = (each.model, longer, f"{longer} {each.template}")
                found[next(name for name in names if name not in found)] = each
        return found

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods that are compared, each with its own data set and its own row of results."""
        found: list[Method] = []
        for name in self.synthesis.source:
            follows = self.synthesis.kinds[name].follows_prompts
            found += [
                method_name(each, name) for each in (self.prompts.method if follows else (None,))
            ]
        return tuple(found)

    @property
    def method(self) -> Method:
        """The first of `methods`; a manifest from `with_method` has only this one."""
        return self.methods[0]

    @property
    def source(self) -> SourceSettings:
        """The settings of the first image source, likewise."""
        settings: SourceSettings = self.synthesis.kinds[self.synthesis.source[0]]
        return settings

    @property
    def follows_prompts(self) -> bool:
        """Whether an image source makes images from prompts, by the generator."""
        return any(self.synthesis.kinds[name].follows_prompts for name in self.synthesis.source)

    @property
    def prompt_settings(self) -> PromptSettings:
        """The settings of the first prompt method, likewise."""
        settings: PromptSettings = self.prompts.kinds[self.prompts.method[0]]
        return settings

    def with_classes(self, classes: tuple[str, ...]) -> "Manifest":
        """The same manifest for other classes, which nothing of it was made for. A class of both
        keeps its meaning."""
        # pydantic's own error for a short list would be no `ManifestError` here.
        if len(classes) < 2:
            raise ManifestError("classes", "must be two or more", classes, "name more")
        aliases = {k: v for k, v in self.evaluation.aliases.items() if k in classes}
        return dataclasses.replace(
            self,
            classes=classes,
            given_meanings={k: v for k, v in self.given_meanings.items() if k in classes},
            evaluation=dataclasses.replace(self.evaluation, aliases=aliases),
            regeneration=Regeneration(),
        )

    def with_values(self, **sections: Mapping[str, Any]) -> "Manifest":
        """The same manifest with new values for some keys of some sections, by the section's name.

        Raises:
            ManifestError: the values break a rule.
        """
        changed = {
            name: dataclasses.replace(getattr(self, name), **values)
            for name, values in sections.items()
        }
        return dataclasses.replace(self, **changed)

    def with_method(self, method: Method) -> "Manifest":
        """The same manifest with only one method, for the fingerprint of its data set."""
        prompts, _, source = method.partition("-")
        if method in self.synthesis.source and method not in self.prompts.method:
            prompts, source = "vanilla", method
        source = source or LATENTS
        return self.with_values(
            prompts={"method": (prompts,), KINDS: _only(self.prompts.kinds, prompts)},
            synthesis={"source": (source,), KINDS: _only(self.synthesis.kinds, source)},
            generator={KINDS: _only(self.generator.kinds, self.generator.kind)},
        )

    def with_student(self, architecture: str) -> "Manifest":
        """The same manifest with only one of the students in `distillation.student`."""
        return dataclasses.replace(self, distillation=self.distillation.of_student(architecture))

    def as_dict(self) -> dict[str, Any]:
        """The manifest as plain lists, dicts and scalars, as in a YAML or JSON file."""
        tree: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        meanings = tree.pop("given_meanings")
        tree["classes"] = [
            {"name": name, "prompt": meanings[name]} if name in meanings else name
            for name in tree["classes"]
        ]
        return tree | {key: plain(tree[key]) for key in ("generator", "prompts", "synthesis")}


def _only(kinds: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The settings of one kind; without any, the kind gets its defaults."""
    return {name: kinds[name]} if name in kinds else {}
