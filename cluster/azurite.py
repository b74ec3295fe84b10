"""A real Azure Blob server for demonstrations and tests: Azurite on loopback, from npm.

`python cluster/azurite.py` starts one, prints the variables to export, and stops it at Ctrl-C.
"""

import base64
import email.utils
import hashlib
import hmac
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from servers import PATIENCE, free_ports, serve, wait_until

PROGRAM = Path(__file__).parents[1] / ".cache/azurite/node_modules/.bin/azurite-blob"
INSTALL = "npm install --prefix .cache/azurite azurite@3.35.0"
"""The command that installs `PROGRAM`; `.ci/run` does it too."""
ACCOUNT = "tester"
KEY = base64.b64encode(b"not-a-secret-on-loopback").decode()
VERSION = "2021-12-02"
"""The version of the service's API that the request for a new container follows."""


def missing() -> str:
    """One line that names what is missing and how to get it; empty if nothing is missing."""
    if shutil.which("node") and PROGRAM.is_file():
        return ""
    absent = "Azurite" if shutil.which("node") else "node"
    return f"no Azure server ({absent} not found): {INSTALL}"


@dataclass
class Azurite:
    """A server in a process of its own, which dies with the process that made it.

    Use as a context.
    """

    endpoint: str = field(init=False, default="")
    """The URL of the server, without the account."""
    _folder: Path = field(init=False)
    _server: subprocess.Popen[bytes] | None = field(init=False, default=None)

    def __enter__(self) -> "Azurite":
        """Start it; returns when containers can be made."""
        self._folder = Path(tempfile.mkdtemp(prefix="dfkd-azurite-"))
        self.endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
        try:
            self._start()
        except BaseException as error:
            error.add_note((self._folder / "out").read_text(errors="replace")[-1500:])
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it and remove its folder."""
        if self._server:
            self._server.kill()
            self._server.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that obstore needs to use it."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": f"{self.endpoint}/{ACCOUNT}",
        }

    def make_bucket(self, name: str) -> None:
        """Make an empty container; obstore cannot."""
        date = email.utils.formatdate(usegmt=True)
        headers = {"x-ms-date": date, "x-ms-version": VERSION}
        # A signature by the account's key: method, eleven empty headers, those of Azure, resource.
        signed = "PUT" + "\n" * 12 + "".join(f"{k}:{v}\n" for k, v in headers.items())
        signed += f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
        digest = hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
        address = f"{self.endpoint}/{ACCOUNT}/{name}?restype=container"
        request = urllib.request.Request(address, method="PUT", headers=headers)  # noqa: S310
        urllib.request.urlopen(request, timeout=PATIENCE).close()  # noqa: S310

    def new_root(self) -> str:
        """`az://container/prefix` in a container of its own."""
        container = f"test-{uuid.uuid4().hex}"
        self.make_bucket(container)
        return f"az://{container}/runs/one"

    def _start(self) -> None:
        """Start the server, with its objects in memory; returns when containers can be made."""
        port = self.endpoint.rpartition(":")[2]
        command = [str(PROGRAM), "--blobPort", port, "--silent", "--disableTelemetry"]
        command.append("--inMemoryPersistence")
        with (self._folder / "out").open("ab") as output:
            self._server = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                cwd=self._folder,
                env=os.environ | {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        wait_until(self._takes_containers, [self._server])

    def _takes_containers(self) -> bool:
        """Make a container; raises `OSError` while the server is not ready."""
        self.make_bucket(f"ready-{uuid.uuid4().hex}")
        return True


def main() -> int:
    """Serve until Ctrl-C or SIGTERM."""
    if absent := missing():
        print(f"error: {absent}", file=sys.stderr)
        return 1
    return serve(Azurite(), "az://dfkd")


if __name__ == "__main__":
    sys.exit(main())
