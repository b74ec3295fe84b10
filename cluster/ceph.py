"""A real S3 server for demonstrations and tests: Ceph on loopback, from the system's packages.

`python cluster/ceph.py` starts one, prints the variables to export, and stops it at Ctrl-C.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import boto3
import botocore.config

from servers import PATIENCE, free_ports, serve, wait_until

PACKAGES = "ceph-mon ceph-osd radosgw ceph-common"
PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "monmaptool")
KEYS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "not-a-secret-on-loopback"}
CONFIGURATION = """
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon}/0]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc
run_dir = {folder}
admin_socket = {folder}/$name.asok
log_file = {folder}/$name.log
crash_dir = {folder}/crash
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
# A single machine need not wait for others, measure its disk, or doubt for long that a client died.
paxos_propose_interval = 0.01
paxos_min_wait = 0.01
objecter_tick_interval = 0.5
objecter_timeout = 1
osd_mclock_skip_benchmark = true
osd_op_queue = wpq
osd_client_watch_timeout = 3
erasure_code_dir = {libraries}/ceph/erasure-code
plugin_dir = {libraries}/ceph

[mon]
mon_data = {folder}/mon
mon_data_avail_crit = 0
mon_data_avail_warn = 0

[osd]
osd_data = {folder}/osd
osd_objectstore = {store}
osd_class_dir = {libraries}/rados-classes
osd_memory_target = 939524096
memstore_device_bytes = 4294967296
bluestore_block_size = 8589934592

[client]
# Without tcp_nodelay an answer's body waits 40 ms until the client has acknowledged its header.
rgw_frontends = beast endpoint=127.0.0.1:{rgw} tcp_nodelay=1
rgw_run_sync_thread = false
rgw_thread_pool_size = 32
"""


def missing() -> str:
    """One line that names missing programs and how to get them; empty if none is missing."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if not absent:
        return ""
    return f"no S3 server ({', '.join(absent)} not found): apt-get install {PACKAGES}"


@dataclass
class Ceph:
    """One monitor, one store, one gateway, in a temporary folder and a process group of their own.

    Use as a context. It dies with the process that made it, however that ends.
    """

    persistent: bool = False
    """Whether its objects outlive `kill` and `restart`; in memory is faster."""
    endpoint: str = field(init=False, default="")
    """The URL of the gateway."""
    _folder: Path = field(init=False)
    _daemons: list[subprocess.Popen[bytes]] = field(init=False, default_factory=list)

    def __enter__(self) -> "Ceph":
        """Start it; returns when objects can be written and read."""
        self._folder = Path(tempfile.mkdtemp(prefix="dfkd-ceph-"))
        try:
            self._prepare()
            self._start_daemons()
            self.make_bucket("ready")
            self._client().put_object(Bucket="ready", Key="ready", Body=b"")
        except BaseException as error:
            error.add_note(self._logs())
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it and remove its folder with all objects."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that S3 clients need to use it."""
        return {**KEYS, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": self.endpoint}

    def make_bucket(self, name: str) -> None:
        """Make an empty bucket."""
        self._client().create_bucket(Bucket=name)

    def new_root(self) -> str:
        """`s3://bucket/prefix` in a bucket of its own."""
        bucket = f"test-{uuid.uuid4().hex}"
        self.make_bucket(bucket)
        return f"s3://{bucket}/runs/one"

    def kill(self) -> None:
        """kill -9 of every daemon."""
        for daemon in self._daemons:
            daemon.kill()
        for daemon in self._daemons:
            daemon.wait()
        self._daemons = []

    def restart(self) -> None:
        """Start again after `kill`, on the same port; returns when objects can be read."""
        self._start_daemons()
        if self.persistent:
            self._client().head_object(Bucket="ready", Key="ready")

    def _client(self) -> Any:
        config = botocore.config.Config(
            retries={"mode": "standard", "max_attempts": 10}, s3={"addressing_style": "path"}
        )
        return boto3.client(
            "s3",
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
            endpoint_url=self.endpoint,
            config=config,
        )

    def _prepare(self) -> None:
        folder, fsid, (mon, rgw) = self._folder, str(uuid.uuid4()), free_ports(2)
        self.endpoint = f"http://127.0.0.1:{rgw}"
        libraries = next(Path("/usr").glob("lib*/**/rados-classes"), Path("/usr/lib/rados-classes"))
        settings = CONFIGURATION.format(
            folder=folder,
            fsid=fsid,
            mon=mon,
            rgw=rgw,
            store="bluestore" if self.persistent else "memstore",
            libraries=libraries.parent,
        )
        (folder / "ceph.conf").write_text(settings)
        for name in ("mon", "osd", "crash"):
            (folder / name).mkdir()
        address = ["--addv", "a", f"[v2:127.0.0.1:{mon}]"]
        monmap = str(folder / "monmap")
        self._run("monmaptool", "--create", "--fsid", fsid, *address, monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        self._daemon("ceph-mon", "-i", "a")
        disk = str(uuid.uuid4())
        self._run("ceph", "osd", "new", disk)
        self._run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", disk)
        self._daemon("ceph-osd", "-i", "0")
        user = ["--uid=tester", "--display-name=tester"]
        keys = [f"--access-key={KEYS['AWS_ACCESS_KEY_ID']}"]
        keys += [f"--secret-key={KEYS['AWS_SECRET_ACCESS_KEY']}"]
        self._run("radosgw-admin", "user", "create", *user, *keys)

    def _start_daemons(self) -> None:
        if not self._daemons:
            self._daemon("ceph-mon", "-i", "a")
            self._daemon("ceph-osd", "-i", "0")
        self._daemon("radosgw", "-n", "client.rgw")
        wait_until(lambda: urlopen(self.endpoint, timeout=30), self._daemons)  # noqa: S310

    def _command(self, program: str, *arguments: str) -> list[str]:
        return [program, "--conf", str(self._folder / "ceph.conf"), *arguments]

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            self._command(program, *arguments), capture_output=True, text=True, timeout=PATIENCE
        )
        if done.returncode:
            raise RuntimeError(f"{program} {arguments[0]}: {done.stderr[-2000:]}")

    def _daemon(self, program: str, *arguments: str) -> None:
        group = self._daemons[0].pid if self._daemons else 0
        with (self._folder / f"{program}.out").open("ab") as output:
            self._daemons.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", *self._command(program, *arguments, "-f")],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    process_group=group,
                )
            )

    def _logs(self) -> str:
        tails = [path.read_text(errors="replace")[-1500:] for path in self._folder.glob("*.out")]
        return "\n".join(tails)


def main() -> int:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--persistent",
        action="store_true",
        help="keep objects in files, which survive a restart, instead of in memory",
    )
    options = parser.parse_args()
    if absent := missing():
        print(f"error: {absent}", file=sys.stderr)
        return 1
    return serve(Ceph(persistent=options.persistent), "s3://dfkd")


if __name__ == "__main__":
    sys.exit(main())
