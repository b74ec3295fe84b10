"""Run a command once EC2 announces that it takes this spot instance away, two minutes before.

    python cluster/spot.py ray drain-node --reason=... --reason-message=spot

Ray itself does not ask EC2 for the notice, so aws.yaml starts this program on each worker.
"""

import argparse
import http.client
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence

UNANSWERED = (OSError, http.client.HTTPException)
"""Errors of a request; `HTTPError` and `URLError` are kinds of `OSError`."""
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Requests without a proxy, which would ask for the notice of its own machine."""


def ask(url: str, method: str, headers: Mapping[str, str]) -> str:
    """The text that the metadata service answers; raises one of `UNANSWERED` if it refuses."""
    request = urllib.request.Request(url, headers=dict(headers), method=method)  # noqa: S310
    with DIRECT.open(request, timeout=5) as answer:
        text: str = answer.read().decode()
        return text


def announced(metadata: str) -> bool:
    """Whether EC2 has announced the end of this instance; False if the service does not answer."""
    try:
        token = ask(
            f"{metadata}/latest/api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
        )
        ask(
            f"{metadata}/latest/meta-data/spot/instance-action",
            "GET",
            {"X-aws-ec2-metadata-token": token},
        )
    except UNANSWERED as error:
        # Without a notice, there is no such page.
        if getattr(error, "code", 0) != 404:
            print(f"waiting: {error}", file=sys.stderr, flush=True)
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Wait for the notice and run the command, again if it fails; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metadata", default="http://169.254.169.254", metavar="URL")
    parser.add_argument("--pause", type=float, default=5.0, metavar="SECONDS")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(argv)
    while not (announced(options.metadata) and subprocess.call(options.command) == 0):
        time.sleep(options.pause)
    return 0


if __name__ == "__main__":
    sys.exit(main())
