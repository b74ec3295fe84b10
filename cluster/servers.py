"""What the servers of demonstrations and tests share: free ports, waiting, serving until Ctrl-C."""

import contextlib
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

PATIENCE = 240.0
"""Seconds to wait for a server to come up; on a busy machine that takes long."""


def free_ports(count: int) -> list[int]:
    """Unused ports, below those that the system gives to outgoing connections."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(20_000, 32_000)  # noqa: S311
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports += [port] if port not in ports else []
    return ports


def wait_until(ready: Callable[[], object], processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Return once `ready` gives a true value; an `OSError` in it means that it is not so yet.

    Raises:
        RuntimeError: one of `processes` has ended, or `PATIENCE` is over.
    """
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        for process in processes:
            if process.poll() is not None:
                raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        with contextlib.suppress(OSError):
            if ready():
                return
        time.sleep(0.1)
    raise RuntimeError(f"{processes[-1].args!r} did not come up in {PATIENCE:g} s")


def serve(server: Any, root: str) -> int:
    """Run a server until Ctrl-C or SIGTERM, with the bucket `dfkd` at `root`; returns 0.

    It prints the variables to export on stdout.
    """
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    with server:
        server.make_bucket("dfkd")
        for name, value in server.environment.items():
            print(f"export {name}={value}")
        print(f"# bucket: {root}; Ctrl-C stops the server", flush=True)
        stopped.wait()
    return 0
