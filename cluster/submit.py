"""Create the RayJob of a file and wait for its end: what the CronJob's pod runs, in Kubernetes.

The RayJob has the name of the Kubernetes Job that the pod belongs to, and that Job owns it. So a
pod that replaces another one finds the RayJob of its predecessor, and Kubernetes deletes Job and
RayJob together.
"""

import argparse
import http.client
import json
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

UNANSWERED = (OSError, http.client.HTTPException)
"""Errors of a request; `HTTPError` and `URLError` are kinds of `OSError`."""
CREATIONS = 30
"""Requests at most to create the RayJob: five minutes with the default pause."""
FINAL = (400, 401, 403, 404, 422)
"""Answers that a repetition would get again."""
LAST = ("Complete", "Failed", "ValidationFailed")
"""Final values of `jobDeploymentStatus`."""


@dataclass(frozen=True)
class Kubernetes:
    """The Kubernetes API, used with a pod's service account."""

    url: str
    account: Path
    """Where Kubernetes puts the token, the certificate authority and the namespace."""

    def call(self, name: str = "", body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Read the RayJob `name` of this namespace, or create one from `body`; returns it.

        Raises:
            OSError, http.client.HTTPException: no answer, or (`HTTPError`) a refusal.
        """
        namespace = (self.account / "namespace").read_text().strip()
        token = (self.account / "token").read_text().strip()  # each time: Kubernetes renews it
        request = urllib.request.Request(  # noqa: S310 - the operator gives the address
            f"{self.url}/apis/ray.io/v1/namespaces/{namespace}/rayjobs/{name}".rstrip("/"),
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        # Python would send an ordinary header to wherever an answer redirects the request.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
        context = ssl.create_default_context(cafile=self.account / "ca.crt")
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:  # noqa: S310
            found: dict[str, Any] = json.load(answer)
            return found


def owned(rayjob: dict[str, Any], name: str, uid: str) -> dict[str, Any]:
    """The RayJob with the name of the Job, which owns it: both are deleted together."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}
    return rayjob | {"metadata": rayjob["metadata"] | {"name": name, "ownerReferences": [owner]}}


def ensure(kubernetes: Kubernetes, rayjob: dict[str, Any], pause: float) -> None:
    """Create the RayJob, unless an earlier pod of the same Job has created it.

    A request without an answer is sent again, `CREATIONS` times in all: the operator may be
    restarting.
    """
    for left in reversed(range(CREATIONS)):
        try:
            kubernetes.call(body=rayjob)
            return
        except UNANSWERED as error:
            code = getattr(error, "code", 0)
            if code == 409:
                return
            if code in FINAL or not left:
                raise
            print(f"waiting: {error}", file=sys.stderr, flush=True)
        time.sleep(pause)


def follow(kubernetes: Kubernetes, name: str, pause: float) -> bool:
    """Print each new state of the RayJob until its last; returns whether the run succeeded.

    A request without an answer is sent again. A deleted RayJob is a run that failed.
    """
    seen = ""
    while seen not in LAST:
        try:
            status = kubernetes.call(name).get("status", {})
        except UNANSWERED as error:
            code = getattr(error, "code", 0)
            if code == 404:
                print(f"{name}: was deleted", file=sys.stderr, flush=True)
                return False
            if code in FINAL:
                raise
            print(f"waiting: {error}", file=sys.stderr, flush=True)
        else:
            state = status.get("jobDeploymentStatus", "")
            if state != seen:
                print(f"{name}: {state} {status.get('message', '')}".rstrip(), flush=True)
                seen = state
        if seen not in LAST:
            time.sleep(pause)
    return bool(status.get("jobStatus") == "SUCCEEDED")


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns 0 if the RayJob succeeded, 1 if it failed or is refused, 4 if the API failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rayjob", type=Path, help="YAML file of the RayJob")
    parser.add_argument("--name", required=True, help="name of the Job that this pod belongs to")
    parser.add_argument("--uid", required=True, help="uid of that Job")
    parser.add_argument("--api", default="https://kubernetes.default.svc", metavar="URL")
    account = Path("/var/run/secrets/kubernetes.io/serviceaccount")
    parser.add_argument("--account", type=Path, default=account, metavar="FOLDER")
    parser.add_argument("--pause", type=float, default=10.0, metavar="SECONDS")
    options = parser.parse_args(argv)
    kubernetes = Kubernetes(options.api, options.account)
    rayjob = yaml.safe_load(options.rayjob.read_text())
    try:
        ensure(kubernetes, owned(rayjob, options.name, options.uid), options.pause)
        return 0 if follow(kubernetes, options.name, options.pause) else 1
    except UNANSWERED as error:
        print(f"error: {options.api}: {error}; see cluster/README.md", file=sys.stderr)
        return 1 if getattr(error, "code", 0) in FINAL else 4


if __name__ == "__main__":
    sys.exit(main())
