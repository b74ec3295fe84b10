"""Plug points: what a manifest enters by name, whether it comes from here or from another package.

    group                 entered in          makes
    dfkd.prompt_methods   `prompts.method`    a text and its embedding for each image
    dfkd.generators       `generator.kind`    pixels from latents
    dfkd.image_sources    `synthesis.source`  the pixels of a unit of work, from its prompts

A package declares an entry point in one of these groups. It names a frozen dataclass, a subclass of
`PromptSettings`, `GeneratorSettings` or `SourceSettings`, which holds the settings of the kind and
says in `made_by` what does the work. The settings stand in the manifest in a section of the entry
point's name (`prompts.contrastive`), and are part of the fingerprint with the version of their
package. They are checked before any model is loaded, so their module should import neither torch
nor Ray: then a wrong manifest is refused at once. For the same reason this module names classes of
higher packages in its texts alone.
"""

import dataclasses
import difflib
import functools
import pkgutil
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic_core import ArgsKwargs

from dfkd.config.hashing import sha256_file
from dfkd.errors import ManifestError
from dfkd.utils import yaml
from dfkd.utils.types import Precision

PROMPT_METHODS, GENERATORS, IMAGE_SOURCES = (
    "dfkd.prompt_methods",
    "dfkd.generators",
    "dfkd.image_sources",
)

NAME = re.compile("[a-z][a-z0-9_]*")
"""A name stands in keys and in the names of methods, where `-` joins two."""

KINDS = "kinds"
"""The field that holds the settings of a section's kinds, by name."""


class PromptSettings:
    """The settings of a prompt method."""

    made_by: ClassVar[str]
    """`module:class` of the `dfkd.prompts.method.PromptMethod`, made with manifest, teacher and
    these settings."""
    reads: ClassVar[tuple[str, ...]] = ("template", "styles")
    """The keys of `prompts` that the method reads. Leave out one that it does not read, so that a
    change of that key makes no new data set."""

    def files(self) -> dict[str, Path]:
        """The files that can change a prompt, by the key that names them, as of a generator.

        Raises:
            ManifestError: a file is missing.
        """
        return {}

    def hashes(self) -> dict[str, str]:
        """The sha256 of each of the `files`, which are read completely."""
        return {role: sha256_file(path) for role, path in self.files().items()}

    def load(self, manifest: Any, teacher: Any) -> Any:
        """The `PromptMethod` of a run.

        Args:
            manifest: a `Manifest` of a single method.
            teacher: the `Teacher` whose text tower embeds the prompts.
        """
        return pkgutil.resolve_name(self.made_by)(manifest, teacher, self)


class GeneratorSettings:
    """The settings of a generator."""

    made_by: ClassVar[str]
    """`module:class` of the `dfkd.models.generators.generator.Generator`, whose class methods
    `files` and `load` take these settings."""

    @property
    def sampling_steps(self) -> int:
        """Steps in which the generator makes a latent; 0 for latents that start at random."""
        return 0

    @property
    def optimisation_steps(self) -> int:
        """Steps in which the teacher's gradient moves a latent, of which the last only measures its
        distance; 0 for latents that are only decoded."""
        raise NotImplementedError

    @property
    def latent_rate(self) -> float:
        """Adam's learning rate in these steps."""
        raise NotImplementedError

    @property
    def gpu_batch_size(self) -> int | None:
        """Images that a GPU makes together at first with `synthesis.batch_size: 0`; None: those of
        a shard."""
        return None

    def notes(self, classes: Sequence[str]) -> list[str]:
        """What a person should know before images of these classes are made."""
        return []

    def files(self, cache: str) -> dict[str, Path]:
        """The files that can change a pixel, by the key that names them.

        Of a folder the role is the key and the part: `generator.diffusers.weights/unet`. Their
        hashes take the place of the key in the fingerprint.

        Args:
            cache: the folder with published files.

        Raises:
            WeightsError: a file is missing.
        """
        found: dict[str, Path] = pkgutil.resolve_name(self.made_by).files(self, cache)
        return found

    def hashes(self, cache: str) -> dict[str, str]:
        """The sha256 of each of the `files`, which are read completely."""
        return {role: sha256_file(path) for role, path in self.files(cache).items()}

    def load(self, device: Any, precision: Precision, cache: str) -> Any:
        """The `Generator` on a device.

        Args:
            device: the `torch.device` where its weights are put.
            precision: `bfloat16` autocasts its networks on devices with such instructions.
            cache: the folder with published files.

        Raises:
            WeightsError: a file is missing, corrupt or hostile, or of another architecture.
        """
        return pkgutil.resolve_name(self.made_by).load(self, device, precision, cache)


class SourceSettings:
    """The settings of an image source."""

    made_by: ClassVar[str]
    """`module:class` of the `dfkd.synthesis.image_source.ImageSource`, made with its context and
    these settings."""
    scope: ClassVar[Literal["image", "part", "run"]] = "image"
    """What the images depend on. With `image` each depends on itself alone, and a task is made at a
    time; with `part` a shard of every class is made at once; with `run` one worker makes all parts
    in their order."""
    follows_prompts: ClassVar[bool] = True
    """Whether it makes images from the prompts of `prompts.method` by the generator. Otherwise it
    knows the classes alone, and its name is that of its method."""
    reads: ClassVar[tuple[str, ...]] = ("batch_size", "views", "view_noise", "compile")
    """The keys of `synthesis` that the source reads beside sizes, `precision` and `format`,
    likewise."""

    def check(self, manifest: Any, teacher: Any) -> None:
        """Raise `ManifestError` if the source cannot work with this `Manifest` and `Teacher`."""

    def load(self, context: Any) -> Any:
        """The `ImageSource` of a run, from a `SourceContext`."""
        return pkgutil.resolve_name(self.made_by)(context, self)


BASES: dict[str, type] = {
    PROMPT_METHODS: PromptSettings,
    GENERATORS: GeneratorSettings,
    IMAGE_SOURCES: SourceSettings,
}


@functools.cache
def _entry_points(group: str) -> dict[str, metadata.EntryPoint]:
    """The entry points of a group by name, without loading them."""
    found: dict[str, metadata.EntryPoint] = {}
    for point in metadata.entry_points(group=group):
        if not NAME.fullmatch(point.name):
            raise ManifestError(
                group, f"a name must match {NAME.pattern}", point.name, "rename the entry point"
            )
        if point.name in found and found[point.name].value != point.value:
            both = f"{found[point.name].value} and {point.value}"
            raise ManifestError(
                group, f"two packages enter {point.name!r}", both, "uninstall one of them"
            )
        found[point.name] = point
    return found


def names(group: str) -> list[str]:
    """The names that a manifest can enter, sorted."""
    return sorted(_entry_points(group))


@functools.cache
def settings_class(group: str, name: str, field: str) -> type[Any]:
    """The dataclass of a kind's settings.

    Args:
        field: the key that an error names.

    Raises:
        ManifestError: no installed package enters such a name, or its module cannot be imported.
    """
    point = _entry_points(group).get(name)
    if point is None:
        known = ", ".join(names(group)) or "none, as dfkd itself is not installed"
        raise ManifestError(
            field, f"must be one of {known}", name, "choose one, or install the package that has it"
        )
    try:
        found = point.load()
    except Exception as error:
        raise ManifestError(
            field, f"{point.value} cannot be imported ({error})", name, "fix its package"
        ) from error
    if not (isinstance(found, type) and issubclass(found, BASES[group])):
        raise ManifestError(
            field, f"{point.value} must be a {BASES[group].__name__}", name,
            "fix its package",
        )  # fmt: skip
    return found


def package(group: str, name: str) -> str:
    """The package of a kind with its version; empty for this one, whose results have a version of
    their own (`dfkd.config.identity.SCHEMA`).
    """
    distribution = _entry_points(group)[name].dist
    if distribution is None or distribution.name == "dfkd":
        return ""
    return f"{distribution.name} {distribution.version}"


def gather(section: str, group: str, key: str, fields: Mapping[str, object], given: Any) -> Any:
    """Collect the sections of kinds in what a section of the manifest is made of.

    A kind that is chosen without a section gets its defaults. It is a pydantic validator that runs
    before the fields are checked.

    Args:
        section: the section of the manifest.
        group: of the kinds.
        key: the field with the names of the chosen ones.
        fields: all fields of the section with their defaults.
        given: a mapping from a file, or arguments of the constructor.

    Returns:
        The same with the settings in `kinds`.
    """
    if not isinstance(given, dict | ArgsKwargs):
        return given  # pydantic refuses it
    if isinstance(given, ArgsKwargs):
        values = dict(given.kwargs or {})
    else:
        # What a validator returns is checked as Python, where a list is no tuple.
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    # A file has no such key; the constructor takes settings that are made already.
    kinds: dict[str, Any] = dict(values.pop(KINDS, {})) if isinstance(given, ArgsKwargs) else {}
    for name in values.keys() - set(fields):
        if name not in names(group):
            near = difflib.get_close_matches(name, [*fields, *names(group)], n=1)
            raise ManifestError(
                f"{section}.{name}",
                f"is neither a key nor a kind of {section}",
                values[name],
                f"did you mean {near[0]!r}?" if near else "remove it, or install its package",
            )
        schema = settings_class(group, name, f"{section}.{name}")
        kinds[name] = _settings(schema, values.pop(name), f"{section}.{name}")
    chosen: Any = values.get(key, fields[key])
    for name in chosen if isinstance(chosen, list | tuple) else (chosen,):
        if isinstance(name, str) and name not in kinds:
            schema = settings_class(group, name, f"{section}.{key}")
            kinds[name] = _settings(schema, {}, f"{section}.{name}")
    values[KINDS] = kinds
    return ArgsKwargs(given.args, values) if isinstance(given, ArgsKwargs) else values


def _settings(schema: type[Any], tree: Any, section: str) -> Any:
    """Settings from a mapping, with errors that name the section."""
    if isinstance(tree, schema):
        return tree
    if not isinstance(tree, dict):
        raise ManifestError(section, "must be a mapping of keys to values", tree, "see its keys")
    known = [each.name for each in dataclasses.fields(schema)]
    for key in tree.keys() - set(known):
        rule = f"is not a key of {section}, which has {', '.join(known) or 'none'}"
        raise ManifestError(f"{section}.{key}", rule, tree[key], "remove it")
    checked: Any = yaml.check(schema, tree, section)
    return checked


def plain(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section as it stands in a file: its kinds are sections of their own."""
    return {**{key: value for key, value in section.items() if key != KINDS}, **section[KINDS]}
