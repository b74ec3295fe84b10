"""YAML into checked dataclasses: the only reader of manifest files and `--set` overrides."""

import difflib
import json
import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from dfkd.errors import SECRET_PATTERN, ManifestError, as_utf8, conceal
from dfkd.utils.strict_json import rule_of

T = TypeVar("T")

Tree = dict[str, Any]
"""Nested keys and values of a YAML file."""

MAX_BYTES = 1 << 20
"""Maximal size of a manifest. People write them, so a larger file is a mistake or an attack."""

MAX_BITS = 64
"""Maximal size of a whole number. Python refuses to print very long ones."""

_SCALARS = {
    "tag:yaml.org,2002:bool": ("true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:int": (
        "[-+]?(0b[01]+|0x[0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)",
        "-+0123456789",
    ),
    "tag:yaml.org,2002:float": (
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
"""Pattern and possible first characters of the booleans and numbers of YAML 1.2, except that
integers also take PyYAML's octal `010` and binary `0b11`.

PyYAML implements 1.1, where `1e-3` is a string, `no` is a boolean, and `1:30` is 90."""


_TIMESTAMP = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    """Reads plain YAML; refuses aliases and repeated keys.

    A few nested aliases in a file of a kilobyte can expand to more than any memory holds. PyYAML
    itself silently keeps the last of two equal keys.
    """

    # PyYAML's rules without those that `_SCALARS` replaces, by the first character of a scalar. The
    # rule of dates goes too: YAML 1.2 has none, and `name: 2026-11-29` is text.
    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML declares it so
        first: [rule for rule in rules if rule[0] not in {*_SCALARS, _TIMESTAMP}]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """PyYAML's method, which sees an alias before it is expanded."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            line = event.start_mark.line + 1
            raise ManifestError(
                f"*{event.anchor}", "no aliases", f"one in line {line}", "write the value out"
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """PyYAML's method, which sees all keys of a mapping before equal ones are merged."""
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ManifestError(str(key), f"given twice (line {line})", key, "keep one of them")
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every string that YAML 1.1 or 1.2 would read as another type."""


for _tag, (_pattern, _first) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(rf"({_pattern})\Z"), list(_first))


def load(
    schema: type[T],
    path: str | Path,
    overrides: Iterable[str] = (),
    presets: Mapping[str, Tree] = MappingProxyType({}),
) -> T:
    """The dataclass `schema` filled from a YAML file and `key.sub=value` overrides.

    Args:
        presets: settings by the name that the key `preset` may hold. The file and the overrides
            take precedence over the settings of a preset.

    Raises:
        ManifestError: no such file, not YAML, an unknown key, a wrong type or a broken rule.
    """
    tree = read_tree(path)
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ManifestError(
                "--set", "takes key.sub=value", override, "write for example --set seed=1"
            )
        *parents, leaf = key.split(".")
        section = tree
        # Sections that the file does not mention are created on the way.
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ManifestError(
                    f"--set {key}", f"{parent} holds a value, not keys", section, "shorten the key"
                )
        section[leaf] = _parse(text, f"--set {key}")
    return check(schema, expand_preset(tree, presets))


def expand_preset(tree: Tree, presets: Mapping[str, Tree]) -> Tree:
    """`tree` with the settings of its preset added where it has none; the key `preset` is dropped.

    Raises:
        ManifestError: there is no such preset.
    """
    if "preset" not in tree or not presets:
        return tree
    name = tree["preset"]
    if not isinstance(name, str) or name not in presets:
        raise ManifestError("preset", f"must be one of {', '.join(presets)}", name, "change it")
    return merge(presets[name], {key: value for key, value in tree.items() if key != "preset"})


def merge(base: Tree, over: Tree) -> Tree:
    """`base` overridden by `over`: nested mappings are merged, other values are replaced."""
    tree = dict(base)
    for key, value in over.items():
        current = tree.get(key)
        both = isinstance(current, dict) and isinstance(value, dict)
        tree[key] = merge(current, value) if both else value  # type: ignore[arg-type]
    return tree


def read_tree(path: str | Path) -> Tree:
    """The unchecked mapping in a YAML file.

    Raises:
        ManifestError: no such file, not YAML, or not a mapping.
    """
    file = Path(path)
    if not file.is_file():
        raise ManifestError(
            "manifest",
            "must be an existing file",
            str(path),
            "give the path of a manifest, such as manifests/miniature.yaml",
        )
    if (size := file.stat().st_size) > MAX_BYTES:
        raise ManifestError("manifest", f"at most {MAX_BYTES} bytes", size, "check the path")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ManifestError("manifest", "must be UTF-8 text", str(path), "check the path") from None
    tree = _parse(text, str(path))
    if not isinstance(tree, dict):
        raise ManifestError(
            # Not the content, which may be a secret if the path leads to another file.
            str(path),
            "must be a mapping of keys to values",
            type(tree).__name__,
            "see manifests/",
        )
    return tree


def dump(value: object) -> str:
    """`value`, made of plain types, as YAML that reads back as the same."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def check(schema: type[T], tree: Tree, section: str = "") -> T:
    """`tree` as an instance of `schema`; no value is converted to another type.

    Args:
        schema: a dataclass. If people write a key otherwise than its field is, its class method
            `as_fields` makes one of the other.
        section: the section of the manifest that `tree` is; empty for a whole one.

    Raises:
        ManifestError: an unknown or missing key, a wrong type, a broken rule, or a credential.
    """
    as_fields: Callable[[Tree], Tree] | None = getattr(schema, "as_fields", None)
    try:
        for field, value in _leaves(tree, section):
            _require_plain(field, value)
        if as_fields:
            tree = as_fields(tree)
        # pydantic is given JSON, because its strict mode takes a list for a tuple only from JSON.
        encoded = json.dumps(tree, allow_nan=False)
    except RecursionError:
        raise ManifestError(
            "manifest", "must not be nested so deeply", None, "see manifests/"
        ) from None
    try:
        return TypeAdapter(schema).validate_json(encoded, strict=True)
    except ValidationError as error:
        # What pydantic has read: JSON has made texts of the keys that are numbers or flags.
        raise _first_problem(schema, error, json.loads(encoded), section) from None


def _leaves(tree: Any, field: str = "") -> Iterator[tuple[str, Any]]:
    """Every key and single value in `tree`, each with the field that a message names."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield field or "manifest", key
            yield from _leaves(value, f"{field}.{key}" if field else str(key))
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from _leaves(value, f"{field}.{number}")
    else:
        yield field, tree


def _require_plain(field: str, value: Any) -> None:
    """Refuse a value that JSON cannot express, and a text with a credential."""
    if isinstance(value, str) and SECRET_PATTERN.search(value):
        raise ManifestError(
            field, "must not hold credentials", conceal(value), "set environment variables"
        )
    # Half of a pair of UTF-16, which "\ud800" gives, is text that no file can hold.
    if isinstance(value, str) and as_utf8(value) != value:
        raise ManifestError(field, "must be text that UTF-8 can hold", value, "change it")
    if isinstance(value, str) and "\0" in value:
        raise ManifestError(field, "must not hold a null character", value, "remove it")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ManifestError(
            field, f"must have at most {MAX_BITS} bits", f"{value.bit_length()} bits", "change it"
        )
    finite = not isinstance(value, float) or math.isfinite(value)
    if not (finite and isinstance(value, str | int | float | None)):
        raise ManifestError(
            field, "must be text, a finite number, true, false or a list", value, "change it"
        )


def _parse(text: str, field: str) -> Any:
    """The value that a YAML text holds; `field` is what a message names."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - _Loader is a SafeLoader
    except ManifestError:
        raise
    # PyYAML leaves deep nesting, a list as a key, and a value that its tag contradicts
    # (`!!bool foo`) or that is too large (`!!float 1:1:...`) to Python, which raises many kinds.
    except Exception as error:
        # Not its whole text, which repeats the line: a path may lead to a file of secrets.
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        reason = place + (getattr(error, "problem", None) or type(error).__name__)
        raise ManifestError(field, "must be valid YAML", reason, "fix that line") from None


def _first_problem(
    schema: type[Any], error: ValidationError, tree: Tree, section: str
) -> ManifestError:
    """The first of pydantic's problems with `tree`, in terms of the manifest's keys."""
    # A rule that raised `ManifestError` never arrives here, because pydantic passes it on.
    problems = [(_known_path(each, tree), each) for each in error.errors(include_url=False)]
    first = problems[0][0]
    # Of the members of a union, the one that fits best fails deepest in the value.
    same_key = [each for each in problems if each[0][: len(first)] == first]
    path, problem = max(same_key, key=lambda each: len(each[0]))
    field = ".".join(str(part) for part in (section, *path) if part != "") or "manifest"
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = difflib.get_close_matches(str(path[-1]), _names(schema, path[:-1]), n=1)
        remedy = (
            f"did you mean {near[0]!r}?" if near else "remove it, or see manifests/ for all keys"
        )
        return ManifestError(field, "is not a key of the manifest", problem["input"], remedy)
    if problem["type"] in ("missing_argument", "missing"):
        return ManifestError(field, "is required", None, f"add {field} to the manifest")
    rule, change = rule_of(problem["msg"]), "change the value"
    if problem["type"] == "too_short":
        rule, change = f"must have {problem['ctx']['min_length']} or more entries", "add some"
    elif problem["type"] == "string_pattern_mismatch":
        rule, change = f"must match the pattern {problem['ctx']['pattern']}", "change the value"
    elif problem["type"] == "string_type":
        rule, change = "must be text", "put it in quotes"
    elif problem["type"] == "tuple_type":
        rule, change = "must be a list", "write it as [A, B]"
    return ManifestError(field, rule, problem["input"], change)


def _known_path(problem: Mapping[str, Any], tree: Tree) -> list[str | int]:
    """The keys and positions of a problem that `tree` has, and a missing key at the end.

    pydantic also names the member of a union that it tried, and the position in a list that a
    single value stands for.
    """
    path: list[str | int] = []
    node: Any = tree
    for part in problem["loc"]:
        known = range(len(node)) if isinstance(node, list) else node
        if isinstance(known, dict | range) and part in known:
            path.append(part)
            node = node[part]
    if problem["type"] in ("missing_argument", "missing"):
        path.append(problem["loc"][-1])
    return path


def _names(schema: Any, path: list[Any]) -> list[str]:
    """The keys of the section at `path` below the dataclass `schema`."""
    for part in path:
        fields = getattr(schema, "__dataclass_fields__", {})
        schema = fields[part].type if part in fields else None
    return list(getattr(schema, "__dataclass_fields__", {}))
