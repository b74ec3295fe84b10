"""What the demonstration refuses before it starts anything; tests/faults runs it."""

import pytest

from local import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nope.yaml"], "manifest: must be an existing file, got 'nope.yaml'; give the path"),
        (["--set", "synthesis.stepz=1"], "synthesis.stepz: "),
        (
            ["--set", "storage.root=runs/mine"],
            "--set: the demonstration sets storage.root=s3://dfkd/demonstration, "
            "got 'storage.root=runs/mine'; leave it out",
        ),
        (["--set", " prompts.method = style"], "--set: the demonstration sets prompts.method="),
    ],
)
def test_a_wrong_command_line_is_one_line(
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("local.missing", lambda: "no S3 server")  # it would start else
    monkeypatch.setattr("sys.argv", ["cluster/local.py", *words])
    assert main() == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"error: {message}")


def test_a_machine_without_ceph_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("local.missing", lambda: "no S3 server")
    monkeypatch.setattr("sys.argv", ["cluster/local.py"])
    assert main() == 1
    assert capsys.readouterr() == ("", "error: no S3 server\n")
