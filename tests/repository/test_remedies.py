"""Commands, options and extras that the package's texts name to a user exist."""

import ast
import re
import tomllib

from dfkd.commands import main
from tests.helpers.jobs import ROOT

FILES = list((ROOT / "dfkd").rglob("*.py"))
TEXTS = [
    node.value
    for file in FILES
    for node in ast.walk(ast.parse(file.read_text()))
    if isinstance(node, ast.Constant) and isinstance(node.value, str)
]


def named(pattern: str) -> set[str]:
    return {name for text in TEXTS for name in re.findall(pattern, text)}


def test_commands_and_their_options_exist() -> None:
    found = named(r"(?:\brun |again with |^|`)dfkd ([a-z]+)\b")
    assert len(found) > 5
    assert found <= main.COMMANDS.keys()
    options = named(r"(?:add|with|of|use|give|name|without|repeat) (--[a-z]+(?:-[a-z]+)*)")
    assert len(options) > 3
    declared = "".join(file.read_text() for file in FILES)
    assert {option for option in options if f'"{option}"' not in declared} == set()


def test_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = named(r"pip install .*\.\[([\w,]+)\]")
    assert extras
    assert extras <= project["optional-dependencies"].keys()
