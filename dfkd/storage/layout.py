"""The layout of a run's root: all folders and keys that more than one module uses.

data/{method}/versions/{id}/   one version of a method's data set:
    identity.json, manifest.json, receipts/{task}.json, shards/{task}.tar, prompts/{part}.parquet
data/{method}/current/         pointers to the version that readers use
students/{name}/               a student: checkpoints, then weights and card
cells/{name}/                  the results of a study's cell
regenerations/{number}/        one attempt at a better version
leases/, records/, tensorboard/, benchmarks/
"""

DATA = "data/"
VERSIONS = "versions/"
RECEIPTS = "receipts/"
SHARDS = "shards/"
PROMPTS = "prompts/"
STUDENTS = "students/"
CELLS = "cells/"
REGENERATIONS = "regenerations/"
LEASES = "leases/"
RECORDS = "records/"
TENSORBOARD = "tensorboard/"
BENCHMARKS = "benchmarks/"


def data(method: str) -> str:
    """The folder of a method's data set, relative to the root."""
    return f"{DATA}{method}"


def version(identifier: str) -> str:
    """The folder of a version, relative to the folder of its method."""
    return f"{VERSIONS}{identifier}"


def receipt(task: str) -> str:
    """The key of a task's receipt, relative to the folder of its version."""
    return f"{RECEIPTS}{task}.json"


def shard(task: str) -> str:
    """The key of a task's shard, relative to the folder of the version that made it."""
    return f"{SHARDS}{task}.tar"


def prompts(part: str) -> str:
    """The key of a part of the prompts, relative to the folder of its version."""
    return f"{PROMPTS}{part}.parquet"


def student(name: str) -> str:
    """The folder of a student, relative to the root."""
    return f"{STUDENTS}{name}"
