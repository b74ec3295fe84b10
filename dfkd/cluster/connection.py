"""Connection to Ray: an existing cluster, or a local one that ends with the job."""

import logging
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from dfkd.cluster.capacity import count_nodes, has_autoscaler
from dfkd.cluster.ray_internals import in_submitted_folder, quiet_authentication
from dfkd.errors import DfkdError, InfrastructureError, ManifestError, one_line
from dfkd.storage.base import BUCKET_ROOTS, Storage
from dfkd.utils.progress import say

LOCAL_OBJECT_STORE = 128 << 20
"""Bytes of Ray's object store, which carries only small messages; shards go through storage."""

CONNECT_SECONDS = 5.0
"""Seconds for the head node to accept a connection. Ray itself retries for minutes."""


def cluster_address() -> str:
    """The value of RAY_ADDRESS, which `ray job submit` sets; empty if it is not set."""
    return os.environ.get("RAY_ADDRESS", "")


@contextmanager
def connected() -> Iterator[None]:
    """A Ray connection for the duration of a job.

    A connection of the caller is used and left open. Otherwise the job joins the cluster of
    RAY_ADDRESS, or starts a local one that ends with the job.

    Raises:
        InfrastructureError: the cluster does not answer, or Ray does not start here.
        ManifestError: RAY_ADDRESS is no address, or of a cluster that this process cannot join; or
            TMPDIR is too long for Ray.
    """
    if ray.is_initialized():  # whoever started Ray also stops it
        yield
        return
    # Waiting threads that spin can make two workers on two cores many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    address = cluster_address()
    say("joins the Ray cluster of RAY_ADDRESS" if address else "starts Ray on this machine")
    quiet_authentication()
    # Escape codes before each line of a worker make no sense in a file.
    if not sys.stderr.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    options: dict[str, Any] = {"address": address or "local", "logging_level": logging.WARNING}
    if not address:
        import torch  # here, because it takes seconds, and only a local Ray needs it

        options |= {"include_dashboard": False, "object_store_memory": LOCAL_OBJECT_STORE}
        # A torch without CUDA could use no GPU that Ray finds.
        if not torch.backends.cuda.is_built():
            options["num_gpus"] = 0
        # Otherwise Ray writes one into `~/.ray`, for everyone to read who may enter there, and a
        # container's user may have no home.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    own_handler = signal.getsignal(signal.SIGTERM)
    try:
        # Fail within seconds where Ray would retry for minutes.
        _check_reachable(address)
        ray.init(**options)
    except Exception as error:  # Ray raises plain Exception if the machine is too busy to start it
        raise _no_connection(address, error) from None
    finally:
        # Ray's would abort the process with a stack trace and leave an open progress bar.
        if callable(own_handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, own_handler)
    try:
        yield
    finally:
        ray.shutdown()


def _no_connection(address: str, error: Exception) -> DfkdError:
    """What it means that the cluster of RAY_ADDRESS could not be joined, or no Ray be started."""
    if not address:
        # Ray puts its sockets below this folder, and the path of a socket has at most 107 bytes.
        if "AF_UNIX path length" in str(error):
            folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
            rule = "must be short enough for Ray's sockets"
            return ManifestError("TMPDIR", rule, folder, "set RAY_TMPDIR=/tmp")
        return InfrastructureError(
            f"Ray does not start on this machine ({one_line(error)}); run the same command again"
        )
    if isinstance(error, ValueError):
        return ManifestError(
            "RAY_ADDRESS",
            "must be host:port or auto, and not an address of Ray's client",
            address,
            "give one of the two, or unset it",
        )
    if "Version mismatch" in str(error) or isinstance(error, AuthenticationError):
        return ManifestError(
            "RAY_ADDRESS",
            "must be a cluster with this Python and Ray, whose token you have",
            one_line(error),
            "use the cluster's environment, see cluster/README.md",
        )
    return InfrastructureError(
        f"RAY_ADDRESS: no Ray cluster answered at {address} ({error}); start one, set "
        "RAY_AUTH_MODE=token if it has a token, or unset RAY_ADDRESS to run locally"
    )


def _check_reachable(address: str) -> None:
    """Raise `OSError` if `address` is host:port and nothing listens there; other words (auto,
    local) are left to Ray.

    Raises:
        ValueError: it has a scheme (ray://...). A job needs a process of its own in the cluster,
            which Ray's client does not give it.
    """
    if "://" in address:
        raise ValueError(address)
    if match := re.fullmatch(r"\[?([^/\]]+)\]?:(\d+)", address):
        socket.create_connection((match[1], int(match[2])), timeout=CONNECT_SECONDS).close()


def require_shared_storage(root: str) -> None:
    """Raise `ManifestError` for a relative root on several nodes, which would not share it, or in a
    job of `ray job submit`, with whose folder Ray would remove it.

    A cluster with an autoscaler may begin with one node and get others later.
    """
    shared = count_nodes() > 1 or (ray.is_initialized() and has_autoscaler())
    if (shared or in_submitted_folder()) and "://" not in root and not os.path.isabs(root):
        raise ManifestError(
            "storage.root",
            f"must be {BUCKET_ROOTS}, or the absolute path of a folder that all nodes share",
            root,
            "name one, for example by --set storage.root=s3://bucket/prefix",
        )


def require_on_this_node(storage: Storage, key: str) -> None:
    """Raise `ManifestError` if an object that the driver has seen is not there for this process,
    because the root is a folder that its node does not share.
    """
    if not storage.exists(key):
        raise ManifestError(
            "storage.root",
            "must be a folder that all nodes share, or a bucket",
            f"no {storage.location(key)} on node {ray.util.get_node_ip_address()}",
            "mount it there, or give a bucket",
        )
