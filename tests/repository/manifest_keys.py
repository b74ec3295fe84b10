"""Every key of a manifest, collected from the dataclasses that check it, for manifests/KEYS.md.

`python -m tests.repository.manifest_keys` writes that page anew; a test fails where it no longer is
what the code says.
"""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types
import yaml
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from dfkd import Manifest
from dfkd.config.plugins import (
    GENERATORS,
    IMAGE_SOURCES,
    KINDS,
    PROMPT_METHODS,
    names,
    package,
    settings_class,
)
from tests.helpers.jobs import ROOT

PAGE = ROOT / "manifests" / "KEYS.md"

GROUPS = {"generator.": GENERATORS, "prompts.": PROMPT_METHODS, "synthesis.": IMAGE_SOURCES}
"""The plug points by the beginning of their keys."""

PLAIN = {bool: "true or false", int: "whole number", float: "number", str: "text"}


@dataclasses.dataclass(frozen=True)
class Key:
    """A row of the list."""

    name: str
    """The key with the names of its sections, as `--set` takes it."""
    type: str
    default: str
    sentence: str


@dataclasses.dataclass(frozen=True)
class Section:
    """A dataclass of the manifest: its dotted name, what it is about, and its own keys."""

    name: str
    about: str
    keys: tuple[Key, ...]


@cache
def docstrings(schema: type) -> dict[str, str]:
    """The text below each field of a dataclass and of its bases, on one line."""
    texts: dict[str, str] = {}
    for base in reversed(schema.__mro__[:-1]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                texts[ast.unparse(field.target)] = " ".join(ast.literal_eval(below.value).split())
    return texts


def type_text(annotation: Any) -> str:
    """The values that an annotation allows, for people."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        base, *rules = arguments
        text = type_text(base) + _limits(rules)
        single = any(isinstance(rule, BeforeValidator) for rule in rules)
        return f"{text.removeprefix('list of ')}, or a list" if single else text
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join("null" if each is NoneType else type_text(each) for each in arguments)
    if origin is tuple:
        return f"list of {type_text(arguments[0])}"
    if origin is dict:
        return "mapping of text to text"
    if dataclasses.is_dataclass(annotation):
        names = (f"`{field.name}`" for field in dataclasses.fields(annotation))
        return f"mapping with {', '.join(names)}"
    return PLAIN[annotation]


def _limits(rules: list[Any]) -> str:
    """The bounds of a number; how long a text or a list must be is left to the error."""
    flat = [part for rule in rules if isinstance(rule, FieldInfo) for part in rule.metadata]
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    kinds = (annotated_types.Ge, annotated_types.Gt, annotated_types.Le, annotated_types.Lt)
    bounds = [
        f"{sign} {getattr(part, name)}"
        for part in flat
        if isinstance(part, kinds)
        for name, sign in signs.items()
        if hasattr(part, name)
    ]
    return f" {' and '.join(bounds)}" if bounds else ""


def default_text(field: dataclasses.Field[Any]) -> str:
    """The default as YAML writes it on one line."""
    value = field.default
    if value is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return "required"
    plain = list(value) if isinstance(value, tuple) else value
    # A document of a single scalar ends in a line of three dots.
    text = yaml.safe_dump(plain, default_flow_style=True, width=10_000).splitlines()[0]
    return f"`{text}`"


def sections(schema: type = Manifest, prefix: str = "") -> Iterator[Section]:
    """The sections of a dataclass: itself, then those below it, in the order of the code."""
    hints, texts = get_type_hints(schema, include_extras=True), docstrings(schema)
    fields = dataclasses.fields(schema)
    nested = [field for field in fields if dataclasses.is_dataclass(hints[field.name])]
    keys = tuple(
        Key(
            f"{prefix}{field.name}",
            type_text(hints[field.name]),
            default_text(field),
            texts.get(field.name, ""),
        )
        for field in fields
        if field not in nested and field.name not in (KINDS, "given_meanings")
    )
    about = " ".join((schema.__doc__ or "").split())
    yield Section(prefix.removesuffix("."), about, keys)
    if group := GROUPS.get(prefix):
        # Not those of packages that happen to be installed beside this one.
        for name in names(group):
            if not package(group, name):
                yield from sections(settings_class(group, name, prefix), f"{prefix}{name}.")
    for field in nested:
        yield from sections(hints[field.name], f"{prefix}{field.name}.")


def _cell(words: str) -> str:
    return words.replace("|", "\\|")


def of_the_laboratory(section: Section) -> bool:
    """Whether these are settings of a kind that the laboratory brings."""
    prefix, _, name = section.name.partition(".")
    group = GROUPS.get(f"{prefix}.")
    if not (group and name):
        return False
    return settings_class(group, name, prefix).__module__.startswith("dfkd.lab.")


def page() -> str:
    """The text of the page."""
    found = [section for section in sections() if section.keys]
    core = [section for section in found if not of_the_laboratory(section)]
    own = [section for section in found if of_the_laboratory(section)]
    written = "Written by `python -m tests.repository.manifest_keys`"
    lines = ["# All keys of a manifest", "", f"{_count(core)} keys. {written}.", ""]
    lines += [
        "The keys of a prompt method, a generator or an image source stand in a section of its "
        f"name. The laboratory brings {_count(own)} more, which are below; so may "
        "[other packages](../dfkd/README.md#how-to-add).",
    ]
    for section in core:
        lines += _table(section)
    lines += ["", "# Keys of the laboratory"]
    for section in own:
        lines += _table(section)
    return "\n".join(lines) + "\n"


def _count(found: Sequence[Section]) -> int:
    return sum(len(section.keys) for section in found)


def _table(section: Section) -> list[str]:
    """The lines of a section."""
    title = f"`{section.name}`" if section.name else "Top level"
    lines = ["", f"## {title}", "", section.about, ""]
    lines += ["| key | type | default | |", "|---|---|---|---|"]
    lines += [
        f"| `{key.name}` | {_cell(key.type)} | {_cell(key.default)} | {_cell(key.sentence)} |"
        for key in section.keys
    ]
    return lines


if __name__ == "__main__":
    PAGE.write_text(page())
