"""What Prometheus would read at the endpoint of a Ray node."""

import contextlib
import re
import time
import urllib.request
from collections.abc import Callable

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
    end = time.monotonic() + PATIENCE
    found: Found = {}
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            found = scraped(url)
        if whole(found):
            return found
        time.sleep(0.5)
    raise AssertionError(f"{url} is not whole: {found}")
