import io
import itertools
import os
import tarfile
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dfkd.config.distillation import Evaluation
from dfkd.errors import CorruptionError, ManifestError
from dfkd.evaluation.data import Domains, open_bundle, open_data
from dfkd.evaluation.public_data_sets import normalise_name

CLASSES = ("dog", "alarm clock", "house")


def write(root: Path, *names: str, content: bytes = b"never decoded") -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def bundle(path: Path, *names: str, kind: bytes = tarfile.REGTYPE, size: int = 3) -> Path:
    with tarfile.open(path, "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.type = kind
            member.linkname = "photo/dog/target.png"
            member.size = size if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def open_folder(root: Path, classes: tuple[str, ...] = CLASSES) -> Domains:
    return open_data(Evaluation(data=str(root)), classes)


def counts(data: Domains) -> Counter[tuple[str, str]]:
    return Counter((item.domain, data.classes[item.class_index]) for item in data.items)


def test_a_folder_gives_domains_classes_and_files(tmp_path: Path) -> None:
    write(tmp_path, "photo/dog/1.png", "photo/dog/2.JPG", "photo/house/1.webp", "sketch/dog/1.bmp")
    write(tmp_path, "sketch/Alarm_Clock/1.jpeg", "sketch/house/1.png", "photo/alarm-clock/1.png")
    data = open_folder(tmp_path)
    assert data.names == ("photo", "sketch")
    each_once = dict.fromkeys(itertools.product(("photo", "sketch"), CLASSES), 1)
    assert counts(data) == each_once | {("photo", "dog"): 2}
    assert data.notes == ("the layout is domain/class folders",)
    assert data.unscored == ()
    assert data.items == tuple(sorted(data.items, key=lambda i: (i.domain, i.class_index, i.name)))
    assert data.items[0].read() == b"never decoded"


def test_what_the_manifest_does_not_use_is_ignored_and_counted(tmp_path: Path) -> None:
    write(tmp_path, "photo/dog/1.png", "photo/house/1.png", "photo/alarm clock/1.png")
    write(tmp_path, "photo/cat/1.png", "photo/dog/notes.txt", "photo/dog/.hidden.png", "read.me")
    write(tmp_path, "photo/list.txt", "photo/dog/deeper/1.png", "photo/cat/not looked at.txt")
    data = open_folder(tmp_path)
    assert len(data.items) == 3
    assert data.notes == (
        "the layout is domain/class folders",
        "ignored: 1 other classes (cat)",
        "ignored: 1 files beside the class folders",
        "ignored: 1 files beside the domain folders",
        "ignored: 2 files that are not png, jpg, jpeg, webp or bmp images",
        "ignored: 1 folders in class folders, with all that they hold",
    )


@pytest.mark.parametrize("beside", ["photo/cat/2.png", "photo/alarm clock/notes.txt"])
def test_a_class_without_images_is_refused_by_name_before_any_image_is_read(
    tmp_path: Path, beside: str
) -> None:
    write(tmp_path, "photo/dog/1.png", "photo/house/1.png", "photo/cat/1.png", beside)
    with pytest.raises(ManifestError, match=r"'alarm clock'.*also has cat") as caught:
        open_folder(tmp_path)
    assert caught.value.field == "evaluation.data"
    assert caught.value.exit_code == 2


def test_a_note_names_the_first_of_many_classes_that_have_labels_only(tmp_path: Path) -> None:
    classes = tuple(f"class {chr(97 + label)}" for label in range(14))
    write(tmp_path, *(f"photo/{label}/1.png" for label in range(14)))
    listed = ", ".join(f"{label} {name}" for label, name in enumerate(classes[:12]))
    assert open_folder(tmp_path, classes).notes[1:] == (
        f"labels are the manifest's classes in their order: {listed} and 2 more",
    )


def test_a_class_missing_from_one_domain_only_is_reported(tmp_path: Path) -> None:
    write(tmp_path, "photo/dog/1.png", "photo/house/1.png", "photo/alarm clock/1.png")
    write(tmp_path, "sketch/dog/1.png")
    data = open_folder(tmp_path)
    assert data.notes[1:] == ("domain sketch has no image of alarm clock, house",)


@pytest.mark.parametrize(
    ("classes", "aliases", "rule"),
    [
        (("hot dog", "hot-dog"), {}, "classes: must differ .* 'hot dog', got 'hot-dog'"),
        (("car", "plane"), {"plane": "Car"}, "aliases: must differ .* 'car', got 'Car'"),
    ],
)
def test_classes_that_no_folder_name_could_tell_apart_are_refused(
    tmp_path: Path, classes: tuple[str, ...], aliases: dict[str, str], rule: str
) -> None:
    with pytest.raises(ManifestError, match=rule):
        open_data(Evaluation(data=str(tmp_path), aliases=aliases), classes)


@pytest.mark.parametrize("domains", [(), ("photo",)])
def test_two_spellings_of_a_domain_are_refused(tmp_path: Path, domains: tuple[str, ...]) -> None:
    rule = r"evaluation\.data: domains must differ .* 'Real World', got 'real_world'"
    write(tmp_path, "photo/dog/1.png", "Real World/dog/1.png", "real_world/dog/1.png")
    with pytest.raises(ManifestError, match=rule):
        open_data(Evaluation(data=str(tmp_path), domains=domains), ("dog",))
    rows = "photo/dog/1.png,Real World,dog\nreal_world/dog/1.png,real_world,dog\n"
    (tmp_path / "list.csv").write_text(rows)
    with pytest.raises(ManifestError, match=rule):
        open_data(Evaluation(data=str(tmp_path / "list.csv"), domains=domains), ("dog",))


@pytest.mark.parametrize("kind", ["folder", "list"])
def test_an_accent_matches_as_one_character_or_two(tmp_path: Path, kind: str) -> None:
    """Archives that were packed on macOS have two."""
    domain, name = "élan", "übung"
    packed = [unicodedata.normalize("NFD", word) for word in (domain, name)]
    image = "/".join([*packed, "1.png"])
    write(tmp_path / "data", image)
    (tmp_path / "list.csv").write_text(",".join([f"data/{image}", *packed]))
    source = tmp_path / ("data" if kind == "folder" else "list.csv")
    data = open_data(Evaluation(data=str(source), domains=(domain,)), (name,))
    assert (len(data.items), data.names) == (1, (packed[0],))


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\x01b", b"two\nlines"])
def test_a_domain_with_an_unprintable_name_is_refused(tmp_path: Path, name: bytes) -> None:
    write(tmp_path, "photo/dog/1.png", f"{os.fsdecode(name)}/dog/1.png")
    with pytest.raises(ManifestError, match="the name of a domain must be printable"):
        open_folder(tmp_path, ("dog",))


def test_notes_escape_names_that_are_no_utf8_or_would_move_a_cursor(tmp_path: Path) -> None:
    names = os.fsdecode(b"photo/caf\xe9/1.png"), "photo/th\xe9/1.png", "photo/\x1b[2J/1.png"
    write(tmp_path, "photo/dog/1.png", *names)
    assert open_folder(tmp_path, ("dog",)).notes[1:] == (
        r"ignored: 3 other classes (\x1b[2J, caf\udce9, thé)",
    )


@pytest.mark.parametrize("name", ["missing", "file.json", "s3://bucket/data"])
def test_data_that_is_neither_folder_nor_list_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, "file.json")
    with pytest.raises(ManifestError, match=r"evaluation\.data: must be a folder"):
        open_data(Evaluation(data=str(tmp_path / name)), CLASSES)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "a b.png\tphoto\tdog\n#\n\nc.png\tphoto\tAlarm clock\nd.png\tink\thouse\n"),
        (
            "list.csv",
            'path,Domain,class\n"a b.png",photo,dog\nc.png, photo,alarm-clock\nd.png,ink,house',
        ),
        ("list.txt", '"a b.png" photo dog\nc.png photo "alarm clock"\nd.png ink house\n'),
        ("list.txt", "\ufeffa b.png,photo,dog\r\nc.png,photo,alarm clock\r\nd.png,ink,house\r\n"),
    ],
)
def test_a_list_file_names_images_beside_it(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path, "a b.png", "c.png", "d.png")
    (tmp_path / name).write_text(text, encoding="utf-8")
    data = open_folder(tmp_path / name)
    shown = [("photo", "dog"), ("photo", "alarm clock"), ("ink", "house")]
    assert counts(data) == dict.fromkeys(shown, 1)
    assert {Path(item.name).name for item in data.items} == {"a b.png", "c.png", "d.png"}
    assert all(item.read() == b"never decoded" for item in data.items)


@pytest.mark.parametrize("name", ["/abs/a.png", "abs\\a.png", "./abs//a.png"])
def test_a_path_of_a_list_starts_beside_it(tmp_path: Path, name: str) -> None:
    write(tmp_path, "here/abs/a.png", "b.png")
    path = tmp_path / "here" / "list.txt"
    path.write_text(f"{name}\tphoto\tdog\n")
    (item,) = open_folder(path, ("dog",)).items
    assert item.name == str(tmp_path / "here/abs/a.png")
    path.write_text(f"{tmp_path / 'b.png'}\tphoto\tdog\n")
    with pytest.raises(ManifestError, match=r"list\.txt:1: must name a png"):
        open_folder(path, ("dog",))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("b.png\tphoto", "must be: path, domain, class"),
        ("b.png\tphoto\tdog\tmore", "must be: path, domain, class"),
        ("\tphoto\tdog", "must be: path, domain, class"),
        ("nowhere.png\tphoto\tdog", "must name a png"),
        ("list.txt\tphoto\tdog", "must name a png"),
        ("../a.png\tphoto\tdog", r"must not lead through '\.\.'"),
        ("a.png\tink\tdog", "repeats the image of line 1"),
        ('"b.png\tphoto\tdog', "must be: path, domain, class"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path: Path, line: str, reason: str) -> None:
    write(tmp_path, "a.png", "b.png")
    path = tmp_path / "list.txt"
    path.write_text(f"a.png\tphoto\tdog\n\n{line}\n")
    with pytest.raises(ManifestError, match=rf"list\.txt:3: {reason}"):
        open_folder(path, ("dog",))


def test_domains_and_aliases_hold_for_lists_and_the_bundle_too(tmp_path: Path) -> None:
    names = ("flat/hound/1.png", "ink/hound/1.png", "oil/hound/1.png")
    write(tmp_path, *names)
    path = tmp_path / "list.csv"
    path.write_text("".join(f"{name},{name.partition('/')[0]},hound\n" for name in names))
    settings = Evaluation(data=str(path), domains=("oil", "flat"), aliases={"dog": "hound"})
    assert open_data(settings, ("dog",)).names == ("oil", "flat")
    settings = Evaluation(domains=("oil", "flat"), aliases={"dog": "hound"})
    data = open_bundle(bundle(tmp_path / "set.tar", *names), ("dog", "cat"), settings)
    assert data.names == ("oil", "flat")
    assert data.unscored == ("cat",)
    with pytest.raises(ManifestError, match=r"evaluation\.domains: .* flat, ink, oil, got 'tar'"):
        open_bundle(
            tmp_path / "set.tar", ("dog",), Evaluation(domains=("tar",), aliases={"dog": "hound"})
        )


def test_the_bundle_is_read_without_unpacking_it(tmp_path: Path) -> None:
    names = ("flat/dog/1.png", "flat/house/1.png", "ink/alarm-clock/a.png", "ink/cat/1.png")
    data = open_bundle(bundle(tmp_path / "set.tar", *names), CLASSES, Evaluation())
    assert counts(data) == {("flat", "dog"): 1, ("flat", "house"): 1, ("ink", "alarm clock"): 1}
    assert data.items[0].read() == b"xxx"
    assert list(tmp_path.iterdir()) == [tmp_path / "set.tar"]


def test_classes_that_the_bundle_lacks_are_unscored_and_noted(tmp_path: Path) -> None:
    path = bundle(tmp_path / "set.tar", "flat/dog/1.webp", "flat/cat/1.png")
    data = open_bundle(path, ("rocket", "dog", "pizza"), Evaluation())
    assert data.classes == ("rocket", "dog", "pizza")
    assert data.unscored == ("rocket", "pizza")
    assert [item.class_index for item in data.items] == [1]
    (lacking,) = data.notes
    assert "no pizza, rocket" in lacking
    assert "cat" in lacking


def test_a_bundle_with_none_of_the_classes_is_refused_with_what_it_has(tmp_path: Path) -> None:
    path = bundle(tmp_path / "set.tar", "flat/dog/1.png", "flat/cat/1.png")
    with pytest.raises(ManifestError, match=r"only cat, dog.*root/domain/class"):
        open_bundle(path, ("rocket", "pizza"), Evaluation())


SMALL = "flat/dog/1.png"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in ("../dog/1.png", "/flat/dog/1.png", "flat/../1.png")),
        *((name, {}) for name in ("flat/dog", "a/b/dog/1.png", "a/dog/1.py")),
        *((SMALL, {"kind": kind}) for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)),
        (SMALL, {"size": (1 << 20) + 1}),
    ],
)
def test_a_bundle_with_a_strange_member_is_refused(
    tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(CorruptionError, match="not a small domain/class/image file"):
        open_bundle(bundle(tmp_path / "set.tar", name, **changes), CLASSES, Evaluation())


def test_a_truncated_or_missing_bundle_is_refused(tmp_path: Path) -> None:
    path = bundle(tmp_path / "set.tar", "flat/dog/1.png", "flat/house/1.png", size=4000)
    path.write_bytes(path.read_bytes()[:3000])
    for damaged in (path, tmp_path / "missing.tar"):
        with pytest.raises(CorruptionError, match="no readable tar"):
            open_bundle(damaged, CLASSES, Evaluation())


@given(st.text(alphabet="ab -_AB", max_size=12))
def test_normalised_names_ignore_case_and_separators_and_stay_as_they_are(name: str) -> None:
    assert normalise_name(normalise_name(name)) == normalise_name(name)
    assert normalise_name(name.upper().replace("-", "_")) == normalise_name(name)
