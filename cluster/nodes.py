"""A Ray cluster of several nodes on this machine: a head and workers, each of which can be killed.

Every node is a `ray start --block` with an address of its own on loopback. It dies with the process
that made it.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

PATIENCE = 240.0
"""Seconds until a node that does not come up is given up: a busy machine takes long."""

RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(frozen=True)
class Node:
    """One node: the `ray start` that keeps it, and its address."""

    process: subprocess.Popen[bytes]
    address: str

    def kill(self) -> None:
        """kill -9 of everything on it, as a machine does that loses power."""
        for pid in [*descendants(self.process.pid), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class RayCluster:
    """A head and the nodes that were added. Use as a context."""

    variables: dict[str, str] = field(default_factory=dict)
    """What jobs and workers see, beside the environment of this process."""
    cpus: int = 0
    """Of the head; 0 leaves it without work."""
    token: str = field(init=False, default_factory=lambda: secrets.token_hex(16), repr=False)
    """Without it nobody who reaches a port may use the cluster."""
    nodes: list[Node] = field(init=False, default_factory=list)
    """The head first."""
    port: int = field(init=False, default=0)
    dashboard: str = field(init=False, default="")
    """The URL that `ray job submit` takes as --address."""
    metrics: str = field(init=False, default="")
    """The URL that Prometheus would scrape on the head."""
    _folder: Path = field(init=False)

    def __enter__(self) -> Self:
        """Start the head; returns when it takes jobs."""
        # A short path: Ray's sockets lie below it, and their names may not be long.
        self._folder = Path(tempfile.mkdtemp(prefix="dfkd-"))
        self.port, dashboard = _free_port(), _free_port()
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        metrics = _free_port()
        try:
            self._start(
                "--head",
                f"--port={self.port}",
                f"--num-cpus={self.cpus}",
                f"--metrics-export-port={metrics}",
                f"--ray-client-server-port={_free_port()}",
                "--dashboard-host=127.0.0.1",
                f"--dashboard-port={dashboard}",
            )
            self.metrics = f"http://{self.nodes[0].address}:{metrics}/metrics"
            self._wait(self._takes_jobs)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Kill every node and remove their files."""
        for node in reversed(self.nodes):
            node.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """That of this process and what is needed to use the cluster."""
        # Jobs run `python`, which is to be the one that has the project.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        ours = {"PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        return {**os.environ, **self.variables, **ours}

    def add(self, cpus: int = 1) -> Node:
        """Start a node; returns when it has joined."""
        head = f"{self.nodes[0].address}:{self.port}"
        node = self._start(f"--address={head}", f"--num-cpus={cpus}")
        self._wait(lambda: "Ray runtime started" in self._log(node))
        return node

    def _start(self, *arguments: str) -> Node:
        # Ray rewrites 127.0.0.1 to the machine's address; the others of loopback it keeps.
        address = f"127.0.0.{2 + len(self.nodes)}"
        command = [RAY, "start", "--block", "--disable-usage-stats", "--num-gpus=0"]
        command += [f"--node-ip-address={address}", f"--object-store-memory={128 << 20}"]
        # Its usual port is the same on every node and cluster of a machine, and only one gets it.
        command += [f"--dashboard-agent-listen-port={_free_port()}"]
        # With one folder for all, a node would remove the files of jobs that the others unpacked.
        command += [f"--temp-dir={self._folder / address}"]
        with (self._folder / f"{address}.log").open("wb") as output:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command, *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.nodes.append(Node(process, address))
        return self.nodes[-1]

    def _takes_jobs(self) -> bool:
        """Whether an empty job is accepted: the dashboard answers before the head can run one."""
        job = json.dumps({"entrypoint": "true"}).encode()
        request = urllib.request.Request(  # noqa: S310
            f"{self.dashboard}/api/jobs/", job, {"Authorization": f"Bearer {self.token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE):  # noqa: S310
                return True
        except OSError:
            return False

    def _wait(self, ready: Callable[[], bool]) -> None:
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit:
            if self.nodes[-1].process.poll() is not None:
                break
            if ready():
                return
            time.sleep(0.2)
        raise RuntimeError(f"a node did not come up: {self._log(self.nodes[-1])[-2000:]}")

    def _log(self, node: Node) -> str:
        return (self._folder / f"{node.address}.log").read_text(errors="replace")


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(stat.parent.name))
    found, open_ends = [], [pid]
    while open_ends:
        children = parents.get(open_ends.pop(), [])
        found += children
        open_ends += children
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
