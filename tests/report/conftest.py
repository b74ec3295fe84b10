"""Finished runs that tests of the page share; they only read them."""

import pytest

from dfkd.config.manifest import Manifest
from dfkd.report.facts import Facts, collect
from dfkd.storage.local import open_storage
from tests.helpers.finished_run import finished


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A finished run without a page."""
    return finished(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def facts(run: Manifest) -> Facts:
    """What its folder says."""
    return collect(open_storage(run.storage.root))
