"""The page of errors and warnings is what the source says, and each has a remedy."""

import ast
import re
import tomllib

import pytest

from dfkd.config.manifest import Manifest
from dfkd.errors import DfkdError, ManifestError
from dfkd.utils.yaml import check
from tests.helpers.jobs import ROOT
from tests.repository import messages
from tests.repository.messages import Message, Module


def test_the_page_lists_what_the_source_says() -> None:
    assert messages.PAGE.read_text() == messages.page(), "run python -m tests.repository.messages"


def test_every_error_class_is_known_with_its_exit_code() -> None:
    def below(kind: type[DfkdError]) -> set[type[DfkdError]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    codes = messages.exit_codes()
    assert "MissingObject" in codes
    ours = {kind for kind in below(DfkdError) if kind.__module__.startswith("dfkd.")}
    assert {kind.__name__: int(kind.exit_code) for kind in ours}.items() <= codes.items()


def test_every_error_says_what_to_do() -> None:
    silent = [row for row in messages.messages() if not row.remedy]
    assert [row for row in silent if row.kind not in ("problem", "note")] == []


def test_jobs_options_and_extras_that_remedies_name_exist() -> None:
    """Jobs, options of the command line, and extras of the package."""
    remedies = [row.remedy for row in messages.messages()]

    def named(pattern: str) -> set[str]:
        return {name for remedy in remedies for name in re.findall(pattern, remedy)}

    sources = [
        *(ROOT / "jobs").glob("*.py"),
        ROOT / "dfkd" / "commands" / "command_line.py",
    ]
    assert named(r"jobs/(\w+)\.py") <= {file.stem for file in sources}
    taken = "".join(file.read_text() for file in sources)
    assert {option for option in named(r"--[a-z-]+") if f'"{option}"' not in taken} == set()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {f"-e '.[{name}]'" for name in project["optional-dependencies"]}
    assert named("pip install (.+)") <= extras


def test_no_module_that_makes_errors_is_left_out() -> None:
    """The list would not see an error that is made under a qualified name."""
    known = messages.exit_codes()
    for module in messages.modules():
        called = [node.func for node in ast.walk(module.tree) if isinstance(node, ast.Call)]
        made = [name for name in called if ast.unparse(name).split(".")[-1] in known]
        assert all(isinstance(name, ast.Name) for name in made), module.name
        assert bool(made) == bool(list(messages.errors(module))), module.name


@pytest.mark.parametrize(
    "override", [{"storage": {"root": "x"}, "classes": ["a", "a"]}, {"classes": ["a", "b"]}]
)
def test_a_real_error_is_one_of_the_list(override: dict[str, object]) -> None:
    with pytest.raises(ManifestError) as caught:
        check(Manifest, {"name": "x", **override})
    said = str(caught.value)

    def fits(row: Message) -> bool:
        parts = re.split(r"\{[^}]*\}", f"{row.text}; {row.remedy}")
        return re.fullmatch(".*".join(map(re.escape, parts)), said) is not None

    found = [row for row in messages.messages() if row.kind == "ManifestError" and fits(row)]
    assert found, said


SOURCE = """
LIMIT = 3
REMEDY = "ask again"

def direct(name: str) -> None:
    rule = f"at most {LIMIT}"
    raise ManifestError("classes", rule, name, REMEDY)

def plain(items: list[str]) -> None:
    if items:
        raise CorruptionError(f"{', '.join(items)}: torn; " "fix it")

def _refuse(place: str, why: str) -> NoReturn:
    raise CorruptionError(f"shard {place}: {why}; restore it")

def user(key: str) -> None:
    _refuse(key, "cut" if key else "empty")

def _unused(place: str) -> InfrastructureError:
    return InfrastructureError(f"{place.strip()}: away; wait")
"""


def test_errors_are_collected_from_the_source() -> None:
    assert sorted(messages.errors(Module("made.up", ast.parse(SOURCE)))) == [
        Message(1, "CorruptionError", "shard {key}: [cut | empty]", "restore it"),
        Message(1, "CorruptionError", "{items}: torn", "fix it"),
        Message(2, "ManifestError", "classes: at most 3, got {name}", "ask again"),
        Message(4, "InfrastructureError", "{place}: away", "wait"),
    ]
