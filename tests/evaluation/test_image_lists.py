"""Lists of images as strangers write them."""

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfkd.errors import ManifestError
from dfkd.evaluation.image_lists import MAX_LINE_BYTES
from tests.helpers.public_layouts import (
    PACS,
    VISDA,
    class_of,
    counts,
    dassl_pacs,
    folders,
    lines,
    listed,
    opened,
    put,
    write_list,
)


def noun(root: Path, *names: str) -> Path:
    """VisDA with NOUN's lists, the one of `train` made of these lines; returns the root."""
    listed(root, VISDA, {"train": "train_list.txt", "validation": "validation_list.txt"})
    write_list(root / "train_list.txt", names)
    return root


ALL = lines("train", VISDA)


@pytest.mark.parametrize(
    "prefix", ["", "./", "/xxxx/", "/a b/train/VisDA/", "C:\\data\\", "s3://b/"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n# no image\n", " \t\n"])
def test_prefixes_line_ends_and_marks_of_other_machines_do_not_matter(
    tmp_path: Path, prefix: str, end: str
) -> None:
    noun(tmp_path)
    path = tmp_path / "train_list.txt"
    for head in ("", "\ufeff"):
        write_list(path, [prefix + line for line in ALL], end, head)
        assert counts(opened(tmp_path, VISDA)) == {"real": 12, "synthetic": 12}


def test_spaces_belong_to_the_path(tmp_path: Path) -> None:
    root = folders(tmp_path, ["Art", "Real World"], ["Alarm Clock", "Soda  Can"], "a  b (1).png")
    for domain in ("Art", "Real World"):
        names = lines(domain, ["Alarm Clock", "Soda  Can"], "a  b (1).png", prefix="/My Data/")
        write_list(root / "image_list" / f"{domain}.txt", names)
    data = opened(root, ("alarm_clock", "soda can"))
    assert counts(data) == {"art": 2, "real_world": 2}
    assert [class_of(item.read()) for item in data.items] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("train/bus/1.png", r"must be: path, label \(a number\)"),
        ("train/bus/1.png two", "must be: path, label"),
        ("train/bus/1.png -2", "must be: path, label"),
        ("train/bus/1.png \u0662", "must be: path, label"),
        ("train/bus/1.png 9999999", "must be: path, label"),
        ("2", "must be: path, label"),
        ("train/bus/1.png 12", "a label must be from 0 to 11, got 12"),
        (
            "train/bus/1.png 3",
            r"must agree .*: folder bus goes with label 2 in .*train_list\.txt:3, got 'label 3'",
        ),
        (
            "train/truck/1.png 2",
            r"must agree .*: label 2 goes with folder bus in .*list\.txt:3, got 'folder truck'",
        ),
        ("train/bus/1.png 2", "repeats line 3, got 'train/bus/1.png'"),
        ("train/bus/none.png 2", "must name an image of that domain"),
        ("train/none/1.png 2", "must name an image of that domain"),
        ("train/bus/bus.txt 2", "must name an image of that domain"),
        ("train/bus/out.png 2", "must name an image of that domain, not through links"),
        ("train/out/1.png 2", "must name an image of that domain, not through links"),
        ("1.png 2", "must lead to synthetic/class/image"),
        ("validation/bus/1.png 2", "must lead to synthetic/class/image"),
        ("/etc/passwd 2", "must name an image of that domain"),
        ("/etc/bus/1.png 2", "must lead to synthetic/class/image"),
        ("train/bus/../../../secret/bus/1.png 2", r"must not lead through '\.\.'"),
        ("../train/bus/1.png 2", r"must not lead through '\.\.'"),
        ("..\\train\\bus\\1.png 2", r"must not lead through '\.\.'"),
        (
            "train/bus/" + "x" * MAX_LINE_BYTES + ".png 2",
            f"must be at most {MAX_LINE_BYTES} bytes long",
        ),
        ("train/bus/\udcff.png 2", "must be UTF-8 text"),
    ],
)
def test_a_bad_line_is_refused_by_file_and_number(tmp_path: Path, line: str, reason: str) -> None:
    root, secret = tmp_path / "data", tmp_path / "secret"
    noun(root, *ALL)
    (root / "train" / "bus" / "bus.txt").touch()
    folders(secret, ["bus"], ["."])
    (root / "train" / "bus" / "out.png").symlink_to(secret / "bus" / "1.png")
    (root / "train" / "out").symlink_to(secret / "bus")
    names = "\n".join([*ALL[:3], line, *ALL[3:]])
    (root / "train_list.txt").write_bytes(names.encode("utf-8", "surrogateescape"))
    with pytest.raises(ManifestError, match=rf"train_list\.txt:4: {reason}") as caught:
        opened(root, VISDA)
    assert len(str(caught.value)) < 900
    assert "\n" not in str(caught.value)


def test_links_within_the_domain_are_images_like_others(tmp_path: Path) -> None:
    root = noun(tmp_path / "data", *ALL, "train/bus/twin.png 2")
    (root / "train" / "bus" / "twin.png").symlink_to("1.png")
    (tmp_path / "link").symlink_to(root)
    assert counts(opened(tmp_path / "link", VISDA))["synthetic"] == 13


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("art_painting_crossval", lines("art_painting", PACS, "2.png"), "1 to 7, got 0"),
        ("photo_train", lines("photo", ("elephant", "dog"), first=1), "1 goes with folder dog in"),
    ],
    ids=["first label", "other lists"],
)
def test_a_list_that_does_not_fit_the_others_of_its_data_set_is_refused_at_once(
    tmp_path: Path, name: str, content: list[str], reason: str
) -> None:
    """A copy of the lists of PACS that is handed round has a label 0, and is caught by it."""
    dassl_pacs(tmp_path)
    write_list(tmp_path / "splits" / f"{name}_kfold.txt", content)
    with pytest.raises(ManifestError, match=rf"{name}_kfold\.txt:1: .*{reason}"):
        opened(tmp_path, PACS)


def test_the_image_that_some_copies_of_pacs_lack_may_be_missing(tmp_path: Path) -> None:
    dassl_pacs(tmp_path)
    path = tmp_path / "splits" / "sketch_train_kfold.txt"
    line = "sketch/dog/n02103406_4068-1.png 1"
    path.write_text(f"{line}\n{path.read_text()}")
    assert len(opened(tmp_path, PACS, domains=("sketch",)).items) == 14
    put(tmp_path / "images" / "sketch" / "dog" / "n02103406_4068-1.png", 0)
    assert len(opened(tmp_path, PACS, domains=("sketch",)).items) == 15


def test_a_link_to_itself_is_no_image_and_no_folder(tmp_path: Path) -> None:
    folders(tmp_path, ["ink"], ["cup", "jug"])
    for name in ("ink/cup/loop.png", "ink/loop", "loop"):
        os.symlink(tmp_path / name, tmp_path / name)
    assert len(opened(tmp_path, ("cup", "jug")).items) == 2


@given(
    st.binary(max_size=300)
    | st.lists(
        st.tuples(
            st.sampled_from(
                ["train", "validation", "..", ".", "", "x", "bus", "1.png", "\\", "\0"]
            ),
            st.sampled_from(["/", " ", "\n", "\r\n", "\t", " 2\n", " 99\n", "\ufeff", "#"]),
        ),
        max_size=20,
    ).map(lambda words: "".join(a + b for a, b in words).encode())
)
def test_any_content_of_a_list_gives_data_or_a_manifest_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    root = tmp_path_factory.getbasetemp() / "fuzzed"
    if not root.is_dir():
        noun(root)
    (root / "train_list.txt").write_bytes(content)
    with contextlib.suppress(ManifestError):
        assert all(Path(item.name).is_file() for item in opened(root, VISDA).items)
