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
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from dfkd.lab.benchmarks.memory import descendants
from servers import PATIENCE, free_ports, wait_until

RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(frozen=True)
class Node:
    """One node: its `ray start` process and its address."""

    process: subprocess.Popen[bytes]
    address: str

    def kill(self) -> None:
        """Kill all its processes at once, as if the machine lost power."""
        for pid in [*descendants(self.process.pid), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class RayCluster:
    """A head and the nodes that were added. Use as a context."""

    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables of jobs and workers, in addition to those of this process."""
    cpus: int = 0
    """CPUs of the head; with 0 it runs no tasks."""
    token: str = field(init=False, default_factory=lambda: secrets.token_hex(16), repr=False)
    """Requests to the cluster need this token, because other users can reach its ports too."""
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
        self.port, dashboard, metrics, client = free_ports(4)
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        try:
            self._start(
                "--head",
                f"--port={self.port}",
                f"--num-cpus={self.cpus}",
                f"--metrics-export-port={metrics}",
                f"--ray-client-server-port={client}",
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
        """The environment of this process, with the variables that the cluster's users need."""
        # Jobs run `python`, which must be the interpreter that has the project.
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
        # Ray replaces 127.0.0.1 by the machine's address, but keeps other loopback addresses.
        address = f"127.0.0.{2 + len(self.nodes)}"
        command = [RAY, "start", "--block", "--disable-usage-stats", "--num-gpus=0"]
        command += [f"--node-ip-address={address}", f"--object-store-memory={128 << 20}"]
        # The default port is the same for all nodes and clusters of a machine, so they would clash.
        command += [f"--dashboard-agent-listen-port={free_ports(1)[0]}"]
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
        """Submit an empty job, because the dashboard answers before the head can run one.

        Raises:
            OSError: the head does not take jobs yet.
        """
        job = json.dumps({"entrypoint": "true"}).encode()
        request = urllib.request.Request(  # noqa: S310
            f"{self.dashboard}/api/jobs/", job, {"Authorization": f"Bearer {self.token}"}
        )
        urllib.request.urlopen(request, timeout=PATIENCE).close()  # noqa: S310
        return True

    def _wait(self, ready: Callable[[], object]) -> None:
        """Wait until the newest node is `ready`; an error has the end of its log."""
        try:
            wait_until(ready, [self.nodes[-1].process])
        except RuntimeError as error:
            error.add_note(self._log(self.nodes[-1])[-2000:])
            raise

    def _log(self, node: Node) -> str:
        return (self._folder / f"{node.address}.log").read_text(errors="replace")
