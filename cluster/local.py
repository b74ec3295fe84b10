"""A demonstration on this machine: S3, a head, and two workers, one of which dies half-way.

    python cluster/local.py [MANIFEST] [--set key=value ...]

Starts a Ceph S3 server and a Ray cluster of three nodes, submits jobs/synthesize.py through
`ray job submit`, kills a worker node once half of the shards are there, and lets jobs/verify.py
read what was published. Ends with exit code 0 if the job ended well and every byte is right.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from ceph import Ceph, missing
from dfkd.commands import command_line
from dfkd.config.manifest import Manifest
from dfkd.config.plan import task_count
from dfkd.errors import DfkdError, ManifestError
from dfkd.storage.base import Storage
from dfkd.storage.local import open_storage
from nodes import RAY, RayCluster

ROOT = Path(__file__).parents[1]
BUCKET = "dfkd"
FIXED = {"storage.root": f"s3://{BUCKET}/demonstration", "prompts.method": "vanilla"}
"""The keys that the demonstration sets itself."""


def main() -> int:
    """Run the demonstration; returns the exit code of the job, or else of the verification."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "manifest", nargs="?", default="manifests/miniature.yaml", help="%(default)s"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="another value for a key of the manifest",
    )
    options = parser.parse_args()
    try:
        _refuse_fixed(options.overrides)
        overrides = [*options.overrides, *(f"{key}={value}" for key, value in FIXED.items())]
        manifest = Manifest.read(options.manifest, tuple(overrides))
        if absent := missing():
            raise DfkdError(absent)
        return _demonstrate(options.manifest, overrides, manifest)
    except DfkdError as error:
        return command_line.fail(error)


def _refuse_fixed(overrides: Iterable[str]) -> None:
    """Raise `ManifestError` if an override is of a key that the demonstration sets itself."""
    for override in overrides:
        if (key := override.partition("=")[0].strip()) in FIXED:
            rule = f"the demonstration sets {key}={FIXED[key]}"
            raise ManifestError("--set", rule, override, "leave it out")


def _demonstrate(path: str, overrides: list[str], manifest: Manifest) -> int:
    """Start S3 and the cluster, and run both jobs there on `manifest`, the file `path` with
    `overrides`; returns the exit code.
    """
    with Ceph() as ceph, RayCluster(ceph.environment) as cluster:
        ceph.make_bucket(BUCKET)
        os.environ.update(ceph.environment)
        workers = [cluster.add(), cluster.add()]
        print(
            f"S3 at {ceph.endpoint}, Ray at {cluster.dashboard}: a head and 2 workers", flush=True
        )
        job = _submit(cluster, "synthesize", path, overrides)
        if _half_done(open_storage(manifest.storage.root), manifest, job):
            print(f"killing the worker node {workers[1].address}", flush=True)
            workers[1].kill()
        return job.wait() or _submit(cluster, "verify", path, overrides).wait()


def _submit(
    cluster: RayCluster, job: str, manifest: str, overrides: list[str]
) -> subprocess.Popen[bytes]:
    """`ray job submit`, which follows the job's log and ends as the job does."""
    command = [RAY, "job", "submit", "--address", cluster.dashboard, "--working-dir", str(ROOT)]
    command += ["--submission-id", f"demonstration-{job}", "--", "python", f"jobs/{job}.py"]
    command += [manifest, *(word for item in overrides for word in ("--set", item))]
    return subprocess.Popen(command, env=cluster.environment)


def _half_done(root: Storage, manifest: Manifest, job: subprocess.Popen[bytes]) -> bool:
    """Wait until half of the shards have a receipt; False if the job ends before."""
    data, total = root.child("data/vanilla"), task_count(manifest)
    done = 0
    while 2 * done < total and job.poll() is None:
        time.sleep(0.5)
        done = sum("/receipts/" in key for key in data.list("versions/"))
    print(f"{done} of {total} shards are there", flush=True)
    return job.poll() is None


if __name__ == "__main__":
    sys.exit(main())
