"""Data in the layouts of DomainBed, Dassl, Transfer-Learning-Library, NOUN and VisDA."""

import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from dfkd.errors import ManifestError
from dfkd.evaluation.layouts import recognise
from dfkd.evaluation.public_data_sets import DATA_SETS
from tests.helpers.public_layouts import (
    CLEF,
    DOMAIN_NET,
    OFFICE_HOME,
    PACS,
    VISDA,
    VLCS,
    class_of,
    clef,
    counts,
    dassl_pacs,
    dassl_vlcs,
    folders,
    listed,
    opened,
    put,
    visda,
    write_list,
)

PACS_DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
VLCS_DOMAINS = ("Caltech101", "LabelMe", "SUN09", "VOC2007")
HOME_DOMAINS = ("art", "clipart", "product", "real_world")
NET_DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")


Write = Callable[[Path], Path]

LAYOUTS: dict[str, tuple[Write, tuple[str, ...], str, dict[str, int]]] = {
    "DomainBed PACS": (
        lambda root: folders(root, PACS_DOMAINS, PACS),
        PACS,
        "PACS as domain/class folders",
        dict.fromkeys(PACS_DOMAINS, 7),
    ),
    "PACS as published": (
        lambda root: folders(root / "kfold", PACS_DOMAINS, PACS).parent,
        PACS,
        "PACS as domain/class folders",
        dict.fromkeys(PACS_DOMAINS, 7),
    ),
    "DomainBed VLCS": (
        lambda root: folders(root, VLCS_DOMAINS, VLCS, "0a1b.jpg"),
        VLCS,
        "VLCS as domain/class folders",
        dict.fromkeys(VLCS_DOMAINS, 5),
    ),
    "DomainBed office_home": (
        lambda root: folders(root, ["Art", "Clipart", "Product", "Real World"], OFFICE_HOME),
        OFFICE_HOME,
        "Office-Home as domain/class folders",
        dict.fromkeys(HOME_DOMAINS, 65),
    ),
    "DomainBed domain_net": (
        lambda root: folders(folders(root, ["clipart"], DOMAIN_NET), NET_DOMAINS, DOMAIN_NET[:2]),
        DOMAIN_NET,
        "DomainNet as domain/class folders",
        {**dict.fromkeys(NET_DOMAINS, 2), "clipart": 345},
    ),
    "Dassl pacs": (
        dassl_pacs,
        PACS,
        "PACS as image lists",
        dict.fromkeys(PACS_DOMAINS, 14),
    ),
    "Dassl VLCS": (
        dassl_vlcs,
        VLCS,
        "VLCS as domain/split/class folders",
        dict.fromkeys(VLCS_DOMAINS, 15),
    ),
    "Dassl office_home_dg": (
        lambda root: folders(
            folders(root, [f"{name}/train" for name in HOME_DOMAINS], OFFICE_HOME),
            [f"{name}/val" for name in HOME_DOMAINS],
            OFFICE_HOME[:3],
            "2.png",
        ),
        OFFICE_HOME,
        "Office-Home as domain/split/class folders",
        dict.fromkeys(HOME_DOMAINS, 68),
    ),
    "Dassl domainnet": (
        lambda root: listed(
            root,
            DOMAIN_NET[:9],
            {
                name: f"splits/{name}_{'test' if name == 'real' else 'train'}.txt"
                for name in NET_DOMAINS
            },
        ),
        DOMAIN_NET[:9],
        "DomainNet as image lists",
        dict.fromkeys(NET_DOMAINS, 9),
    ),
    "NOUN ImageCLEF": (
        clef,
        CLEF,
        "ImageCLEF-DA as image lists",
        dict.fromkeys(("caltech", "imagenet", "pascal"), 12),
    ),
    "NOUN Office-Home": (
        lambda root: listed(
            root,
            OFFICE_HOME[:4],
            {
                name: f"{name.replace('_', '')}_list.txt"
                for name in ("Art", "Clipart", "Real_World")
            },
            "/xxxx/office_home/",
        ),
        OFFICE_HOME[:4],
        "Office-Home as image lists",
        dict.fromkeys(("art", "clipart", "real_world"), 4),
    ),
    "VisDA as published": (
        visda,
        VISDA,
        "VisDA-2017 as image lists",
        {"real": 12, "synthetic": 12},
    ),
    "VisDA without lists": (
        lambda root: folders(root, ["train", "validation", "test"], VISDA),
        VISDA,
        "VisDA-2017 as domain/class folders",
        {"real": 12, "synthetic": 12},
    ),
    "Transfer-Learning-Library Office-Home": (
        lambda root: listed(
            root, OFFICE_HOME, {name: f"image_list/{name}.txt" for name in ("Art", "Real_World")}
        ),
        OFFICE_HOME,
        "Office-Home as image lists",
        {"art": 65, "real_world": 65},
    ),
}
OWN: dict[str, tuple[Write, tuple[str, ...], dict[str, int]]] = {
    "any names": (
        lambda root: folders(root, ["photo", "Tinted Glass"], ["cup", "jug"]),
        ("cup", "jug"),
        {"Tinted Glass": 2, "photo": 2},
    ),
    "as many classes as VisDA": (
        lambda root: folders(root, ["train", "test"], OFFICE_HOME[:12]),
        OFFICE_HOME[:12],
        {"test": 12, "train": 12},
    ),
    "a domain more than PACS": (
        lambda root: folders(root, ["photo", "train", "sketch"], PACS[:3]),
        PACS[:3],
        {"photo": 3, "sketch": 3, "train": 3},
    ),
    "a class named like a split": (
        lambda root: folders(folders(root, ["ink"], ["train"]), ["oil"], ["train", "bus"]),
        ("train", "bus"),
        {"ink": 1, "oil": 2},
    ),
}
"""Folders that are no public data set."""
LAYOUTS |= {name: (w, c, "domain/class folders", n) for name, (w, c, n) in OWN.items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_papers_domains_and_the_right_labels(
    name: str, tmp_path: Path
) -> None:
    write, classes, form, expected = LAYOUTS[name]
    data = opened(write(tmp_path / "data"), classes)
    assert f"the layout is {form}" in data.notes
    assert counts(data) == expected
    assert data.names == tuple(sorted(expected))
    assert [class_of(item.read()) for item in data.items] == [i.class_index for i in data.items]
    assert len({item.name for item in data.items}) == len(data.items)
    if name not in OWN:  # the parent of a data set can be named too
        (tmp_path / "downloads").mkdir()
        data = opened(tmp_path, classes)
        assert counts(data) == expected
        assert any("ignored: the folders " in note and "downloads" in note for note in data.notes)


def test_the_published_numbers_are_those_of_the_sources() -> None:
    totals = {each.name: sum(each.images.values()) for each in DATA_SETS}
    assert totals == {
        "PACS": 9991,
        "VLCS": 10729,
        "Office-Home": 15588,
        "DomainNet": 586575,
        "ImageCLEF-DA": 1800,
        "VisDA-2017": 152397 + 55388,
    }
    assert all(len(each.class_order) in (0, each.classes) for each in DATA_SETS)


def test_differences_from_the_published_numbers_are_noted(tmp_path: Path) -> None:
    data = opened(folders(tmp_path, ["photo", "sketch"], PACS), PACS[:2])
    assert data.notes == (
        "the layout is PACS as domain/class folders",
        "PACS as published has 1,670 images of photo, this has 7",
        "PACS as published has 2,048 images of art_painting, this has 0",
        "PACS as published has 2,344 images of cartoon, this has 0",
        "PACS as published has 3,929 images of sketch, this has 7",
        "ignored: 5 other classes (giraffe, guitar, horse, house, person)",
    )
    chosen = opened(tmp_path, PACS, domains=("sketch",))
    assert chosen.notes[1:] == ("PACS as published has 3,929 images of sketch, this has 7",)


def test_complete_imageclef_gets_no_note_on_numbers_despite_images_of_two_classes(
    tmp_path: Path,
) -> None:
    for domain in "cip":
        names = [(f"{number}.jpg", number // 50) for number in range(600)]
        if domain == "p":  # as in the lists that are handed round: 9 of 591 images stand twice
            names[-9:] = [(f"{number}.jpg", 11) for number in range(9)]
        (tmp_path / domain).mkdir()
        for name in dict(names):
            (tmp_path / domain / name).touch()
        lines = [f"{domain}/{name} {label}" for name, label in names]
        write_list(tmp_path / f"{domain}_list.txt", lines)
    data = opened(tmp_path, CLEF)
    assert counts(data) == {"caltech": 600, "imagenet": 600, "pascal": 600}
    assert set(Counter((item.domain, item.class_index) for item in data.items).values()) == {50}
    assert data.notes == (
        "the layout is ImageCLEF-DA as image lists",
        "labels are the manifest's classes in their order: 0 aeroplane, 1 bike, 2 bird, 3 boat, "
        "4 bottle, 5 bus, 6 car, 7 dog, 8 horse, 9 monitor, 10 motorbike, 11 people",
        "the list of pascal gives 9 images to two classes, and each counts",
    )


def test_splits_are_read_together_and_each_image_counts_once(tmp_path: Path) -> None:
    data = opened(dassl_pacs(tmp_path), PACS, domains=("photo",))
    assert len(data.items) == 14
    vlcs = opened(dassl_vlcs(tmp_path / "VLCS"), VLCS)
    assert "ignored: 4 folders full/, which repeat train/ and crossval/" in vlcs.notes
    for domain in ("CALTECH", "LABELME", "PASCAL", "SUN"):
        shutil.rmtree(tmp_path / "VLCS" / domain / "train")
        shutil.rmtree(tmp_path / "VLCS" / domain / "crossval")
    assert len(opened(tmp_path / "VLCS", VLCS).items) == len(vlcs.items)


def test_images_that_no_list_names_are_ignored_and_counted(tmp_path: Path) -> None:
    visda(tmp_path)
    put(tmp_path / "train" / "bus" / "late.png", 2)
    (tmp_path / "train" / "bus" / "notes.md").touch()
    data = opened(tmp_path, VISDA)
    assert "ignored: 1 images that no list names" in data.notes
    assert "ignored: the folders test" in data.notes
    assert counts(data)["synthetic"] == 12


# Names of classes and domains


def test_an_alias_gives_the_name_of_a_class_in_the_data(tmp_path: Path) -> None:
    paper = ("plane", "bcycl", *VISDA[2:])
    aliases = {"plane": "Aeroplane", "bcycl": "bicycle"}
    data = opened(visda(tmp_path), paper, aliases=aliases)
    assert data.classes == paper
    assert [class_of(item.read()) for item in data.items] == [i.class_index for i in data.items]
    with pytest.raises(ManifestError, match=r"none has 'plane'.*evaluation\.aliases.*aeroplane"):
        opened(tmp_path, paper, aliases={"bcycl": "bicycle"})
    with pytest.raises(ManifestError, match=r"none has 'airplane'"):
        opened(tmp_path, paper, aliases={**aliases, "plane": "airplane"})


def test_domains_are_chosen_and_ordered(tmp_path: Path) -> None:
    dassl_pacs(tmp_path)
    order = ("photo", "art painting", "cartoon")
    data = opened(tmp_path, PACS, domains=order)
    assert data.names == ("photo", "art_painting", "cartoon")
    assert [item.domain for item in data.items[:14]] == ["photo"] * 14
    with pytest.raises(ManifestError, match=r"domains: .* photo, sketch, got 'P'; choose"):
        opened(tmp_path, PACS, domains=("photo", "P"))


def test_a_domain_that_is_not_scored_is_not_read(tmp_path: Path) -> None:
    visda(tmp_path)
    write_list(tmp_path / "train" / "image_list.txt", ["no line"])
    assert counts(opened(tmp_path, VISDA, domains=("real",))) == {"real": 12}
    with pytest.raises(ManifestError, match=r"image_list\.txt:1"):
        opened(tmp_path, VISDA)


def test_data_with_labels_only_need_the_published_order_of_classes(tmp_path: Path) -> None:
    dassl_vlcs(tmp_path)
    with pytest.raises(ManifestError, match=r"classes: .*published order.*'bird' is label 0"):
        opened(tmp_path, ("car", "bird", "chair", "dog", "person"))
    renamed = ("bird", "automobile", "chair", "dog", "human")
    assert opened(tmp_path, renamed).classes == renamed
    with pytest.raises(ManifestError, match=r"PASCAL.*must be one of the 4 classes.*got '4'"):
        opened(tmp_path, VLCS[:4])


def test_numbers_that_are_class_names_are_not_taken_for_positions(tmp_path: Path) -> None:
    folders(tmp_path, ["ink", "oil"], ["1", "0"])
    data = opened(tmp_path, ("1", "0"))
    assert [class_of(item.read()) for item in data.items] == [0, 1, 0, 1]
    assert data.notes == ("the layout is domain/class folders",)


# What is not recognised


def test_what_archives_and_tools_leave_behind_does_not_matter(tmp_path: Path) -> None:
    for above in ("", "__MACOSX/", ".git/"):
        folders(tmp_path, [above + domain for domain in PACS_DOMAINS], PACS)
    folders(tmp_path, ["photo"], ["__MACOSX", ".ipynb_checkpoints"])
    assert counts(opened(tmp_path, PACS)) == dict.fromkeys(PACS_DOMAINS, 7)


def test_a_text_file_named_like_a_domain_is_not_read_as_a_list(tmp_path: Path) -> None:
    folders(tmp_path, ["photo", "sketch"], PACS[:3])
    write_list(tmp_path / "photo.txt", ["What I have seen"])
    assert "the layout is domain/class folders" in opened(tmp_path, PACS[:3]).notes


def test_labels_without_class_folders_start_at_the_first_label_of_the_data_set(
    tmp_path: Path,
) -> None:
    for index in range(7):
        put(tmp_path / "photo" / f"{index}.png", index)
    names = [f"photo/{index}.png {index + 1}" for index in range(7)]
    write_list(tmp_path / "image_list" / "photo.txt", names)
    data = opened(tmp_path, PACS)
    assert [class_of(item.read()) for item in data.items] == list(range(7))


def test_several_data_sets_in_a_folder_are_refused(tmp_path: Path) -> None:
    folders(tmp_path / "PACS", PACS_DOMAINS, PACS)
    visda(tmp_path / "visda17")
    with pytest.raises(ManifestError, match=r"one data set, holds PACS, visda17, got .*; point"):
        opened(tmp_path, PACS)


def test_two_layouts_in_a_folder_are_refused(tmp_path: Path) -> None:
    folders(tmp_path, ["ink/train", "ink/val", "oil"], ["cup", "jug"])
    with pytest.raises(ManifestError, match="has splits in ink and classes in other domains"):
        opened(tmp_path, ("cup", "jug"))


def test_lists_that_fit_several_data_sets_are_refused_unless_their_classes_tell(
    tmp_path: Path,
) -> None:
    listed(tmp_path, PACS[:3], {"sketch": "image_list/sketch.txt"})
    with pytest.raises(ManifestError, match="has lists that fit PACS, DomainNet, got"):
        opened(tmp_path, PACS[:3])
    listed(tmp_path, DOMAIN_NET, {"sketch": "image_list/sketch.txt"})
    for name in PACS[:3]:
        shutil.rmtree(tmp_path / "sketch" / name)
    assert recognise(tmp_path).data_set is DATA_SETS[3]


@pytest.mark.parametrize("files", [[], ["1.png"], ["dog/1.png", "dog/2.png"], ["c_list.txt"]])
def test_a_folder_without_a_known_layout_is_refused_with_what_was_looked_for(
    tmp_path: Path, files: list[str]
) -> None:
    for name in files:
        put(tmp_path / name, 0)
    told = r"domain/split/class.*looked for splits/, image_list.*; put class folders into a folder"
    with pytest.raises(ManifestError, match=told):
        opened(tmp_path, ("dog",))


def test_no_image_is_opened_to_open_data(tmp_path: Path) -> None:
    seen: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event == "open":
            seen.append(str(arguments[0]))

    sys.addaudithook(watch)  # stays until the process ends, and then hears nothing
    for name in ("Dassl pacs", "Dassl VLCS", "NOUN ImageCLEF", "DomainBed PACS"):
        write, classes, _, _ = LAYOUTS[name]
        root = write(tmp_path / name)
        seen.clear()
        opened(root, classes)
        assert {Path(each).suffix for each in seen if str(root) in each} <= {".txt"}
    watching = False
