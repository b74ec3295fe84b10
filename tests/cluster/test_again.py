"""again.sh repeats a job that ends with exit code 4, and no other."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.jobs import ROOT


@pytest.mark.parametrize(
    ("codes", "runs", "code"),
    [
        ([0], 1, 0),
        ([4, 4, 0], 3, 0),
        ([4, 4, 4, 0], 3, 4),
        ([3, 0], 1, 3),
        ([4, 2, 0], 2, 2),
    ],
)
def test_a_job_is_repeated_after_exit_code_4(
    tmp_path: Path, codes: list[int], runs: int, code: int
) -> None:
    log = tmp_path / "log"
    job = (
        "import sys; log = open(sys.argv[1], 'a+'); log.write('a run\\n'); log.seek(0); "
        f"sys.exit({codes}[len(log.readlines()) - 1])"
    )
    words = ["sh", "cluster/again.sh", "0", sys.executable, "-c", job, str(log)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "")
    assert len(log.read_text().splitlines()) == runs
