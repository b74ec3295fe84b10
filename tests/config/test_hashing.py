"""Hashes are those of other programs, and do not depend on the order of keys."""

from pathlib import Path

from dfkd.config.hashing import fingerprint, sha256_file

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
"""The example of FIPS 180-2."""


def test_a_file_has_the_hash_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_file(tmp_path / "file") == sha256_file(str(tmp_path / "file")) == ABC


def test_the_order_of_keys_does_not_change_a_fingerprint() -> None:
    one, other = {"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) != fingerprint({"a": 1, "b": {"c": 3, "d": 2}})
