"""What Prometheus would read at the endpoint of a Ray node."""

import re
import urllib.request


def scraped(url: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Our metrics by name: labels and value of each series."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for line in lines:
        if match := re.fullmatch(r"(ray_dfkd_\w+)\{(.*)\} (\S+)", line):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            found.setdefault(match[1], []).append((labels, float(match[3])))
    return found
