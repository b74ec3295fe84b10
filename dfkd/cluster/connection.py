"""Joining a cluster: the one that is there, or a local one that ends with the job."""

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from dfkd.cluster.ray_internals import quiet_authentication
from dfkd.errors import InfrastructureError, ManifestError

LOCAL_OBJECT_STORE = 128 << 20
"""Bytes. Shards travel through storage, so that Ray's object store carries only small messages."""

CONNECT_SECONDS = 5.0
"""Seconds that a cluster's head has to accept a connection; Ray itself asks for minutes."""


def cluster_address() -> str:
    """The cluster that RAY_ADDRESS names, which `ray job submit` sets; empty if none is named."""
    return os.environ.get("RAY_ADDRESS", "")


@contextmanager
def connected() -> Iterator[None]:
    """A Ray connection for the duration of a job.

    Uses the connection that the caller has and leaves it open; else joins the cluster that
    RAY_ADDRESS names; else starts a local one, which ends with the job.

    Raises:
        InfrastructureError: the cluster does not answer.
        ManifestError: RAY_ADDRESS is no address.
    """
    if ray.is_initialized():
        yield
        return
    # Threads that spin while they wait can make two workers on two cores many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    address = cluster_address()
    quiet_authentication()
    options: dict[str, Any] = {"address": address or "local", "logging_level": logging.WARNING}
    if not address:
        options |= {"include_dashboard": False, "object_store_memory": LOCAL_OBJECT_STORE}
    try:
        _check_reachable(address)
        ray.init(**options)
    except ValueError:
        raise ManifestError(
            "RAY_ADDRESS", "must be an address of Ray", address, "give host:port, or unset it"
        ) from None
    except Exception as error:  # Ray raises that very class when a machine is too busy to start it
        raise InfrastructureError(
            f"RAY_ADDRESS: no Ray cluster answered at {address or 'local'} ({error}); "
            "start one, or unset RAY_ADDRESS to run locally"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise `OSError` if `address` is a plain host:port at which nothing listens.

    Other kinds of address (auto, local, ray://...) are Ray's to understand.
    """
    if found := re.fullmatch(r"\[?([^/\]]+)\]?:(\d+)", address):
        socket.create_connection((found[1], int(found[2])), timeout=CONNECT_SECONDS).close()
