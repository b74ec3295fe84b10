"""The pages of the repository: their links, their code blocks, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.jobs import ROOT

FOLDERS = (".", ".ci", "cluster", "dfkd", "jobs", "manifests", "tests")
PAGES = sorted(
    {
        page
        for folder in FOLDERS
        for page in (ROOT / folder).glob("*.md" if folder == "." else "**/*.md")
    }
)

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:python|make|ray job submit) [^`\n]+)`")
PLACEHOLDER = re.compile(r"\b[A-Z]+\b(?!=)|\.\.\.|\$")
"""What a reader puts something in place of: `JOB`, `MANIFEST`, `...`."""
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Command:
    """A command line of a page, split into words as a shell would, without its comment."""

    page: str
    """Relative to the root."""
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page that are fenced as this language."""
    return [code for found, code in FENCE.findall(page.read_text()) if found == language]


def links(page: Path) -> list[str]:
    """The links of a page to files of the repository."""
    text = FENCE.sub("", page.read_text())
    return [link for link in LINK.findall(text) if "://" not in link]


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: Path) -> Iterator[Command]:
    """Every command of a page, of its bash blocks and within its sentences.

    In a block, a variable stands for what it was given before, and `"$(...)"` for one word. A
    sentence's command with a placeholder is none.
    """
    name = str(page.relative_to(ROOT))
    for line in INLINE.findall(FENCE.sub("", page.read_text())):
        if not PLACEHOLDER.search(line):
            yield Command(name, tuple(shlex.split(line)))
    for code in blocks(page, "bash"):
        variables: dict[str, str] = {}
        for line in re.sub(r"\\\n\s*", "", code).splitlines():
            if given := re.fullmatch(r'(\w+)="(.*)"', line):
                variables[given[1]] = given[2]
                continue
            line = re.sub(r'"\$\([^)]*\)[^"]*"', "ID", line)
            for variable, value in variables.items():
                line = line.replace(f"${variable}", value)
            if words := shlex.split(line, comments=True):
                yield Command(name, tuple(words))
        # A command that is only named, to be submitted or run by the reader.
        for value in variables.values():
            if value.startswith("jobs/"):
                yield Command(name, ("python", *shlex.split(value)))
