"""What Prometheus would read at the endpoint of a Ray node."""

import contextlib
import re
import urllib.request
from collections.abc import Callable

from tests.helpers import waiting

PATIENCE = 240.0
"""Seconds for Ray's agent to come up and export, on a machine that does other things too."""

Found = dict[str, list[tuple[dict[str, str], float]]]
"""By name, the labels and the value of each series."""


def scraped(url: str) -> Found:
    """Our metrics at an endpoint."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found: Found = {}
    for line in lines:
        if match := re.fullmatch(r"(ray_dfkd_\w+)\{(.*)\} (\S+)", line):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            found.setdefault(match[1], []).append((labels, float(match[3])))
    return found


def wait_for(url: str, whole: Callable[[Found], object]) -> Found:
    """What is scraped once it is `whole`."""
    found: Found = {}

    def complete() -> bool:
        nonlocal found
        with contextlib.suppress(OSError):
            found = scraped(url)
        return bool(whole(found))

    waiting.wait_for(complete, url, limit=PATIENCE, pause=0.5)
    return found
