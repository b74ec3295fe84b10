"""Shared fixtures: the miniature world's models. Also puts this folder's modules on the path."""

import os

import pytest
import torch

from dfkd import manifest
from dfkd.generator import VQGAN
from dfkd.teacher import Teacher

# Ray's workers otherwise wait for all else that runs on the machine, and tests for them. Ray reads
# this when it is first imported, by the modules of tests or by the jobs they start.
os.environ.setdefault("RAY_worker_niceness", "0")


@pytest.fixture(scope="session")
def teacher() -> Teacher:
    """The miniature teacher, on the CPU."""
    config = manifest.Teacher(model="miniature", weights="miniature")
    return Teacher.load(config, torch.device("cpu"))


@pytest.fixture(scope="session")
def generator() -> VQGAN:
    """The miniature generator, on the CPU."""
    return VQGAN.load(manifest.Generator(), torch.device("cpu"))
