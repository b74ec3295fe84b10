"""Which icons may be used: hold-outs, licences, names."""

import itertools
import json
from pathlib import Path

import pytest

from dfkd.errors import ManifestError
from dfkd.lab.miniature.icons import (
    EVALUATION,
    LICENCES,
    RESERVED,
    SIBLINGS,
    VALIDATION,
    Catalogue,
    Icon,
    choose,
    package_folder,
    split_name,
)
from dfkd.lab.miniature.recipe import IconData
from tests.helpers import icon_package


def trained(tmp_path: Path, collections: dict[str, object]) -> set[str]:
    (tmp_path / "collections.json").write_text(json.dumps(collections))
    return {collection.prefix for collection in Catalogue(tmp_path).training()}


def test_the_sets_of_collections_do_not_overlap() -> None:
    groups = [{*EVALUATION}, RESERVED, SIBLINGS, VALIDATION]
    for one, other in itertools.combinations(groups, 2):
        assert not one & other


def test_held_out_reserved_and_sibling_sets_are_never_trained_on(tmp_path: Path) -> None:
    forbidden = {*EVALUATION, *RESERVED, *SIBLINGS}
    offered = {p: icon_package.described(p) for p in (*forbidden, "mdi")}
    assert trained(tmp_path, offered) == {"mdi"}


@pytest.mark.parametrize("licence", sorted(LICENCES))
def test_permissive_licences_are_used(tmp_path: Path, licence: str) -> None:
    assert trained(tmp_path, {"mdi": icon_package.described("mdi", licence)}) == {"mdi"}


def test_other_licences_logos_flags_and_hidden_sets_are_left_out(tmp_path: Path) -> None:
    licences = ("GPL-3.0", "CC-BY-NC-4.0", "CC-BY-SA-4.0", "MPL-2.0", "OFL")
    offered = {
        **{f"a{n}": icon_package.described(f"a{n}", each) for n, each in enumerate(licences)},
        "logos": icon_package.described("logos", category="Logos"),
        "flagpack": icon_package.described("flagpack"),
        "old": icon_package.described("old", hidden=True),
        "fa7-brands": icon_package.described("fa7-brands"),
    }
    assert not trained(tmp_path, offered)


def test_only_the_whole_package_of_the_release_is_taken(tmp_path: Path) -> None:
    root = icon_package.write(tmp_path / "package")
    data = IconData(directory=str(root))
    assert package_folder(data) == root
    description, none = root / "package.json", "no package of icons"
    older = json.dumps({"name": "@iconify/json", "version": "2.2.1"})
    for content, found in ((older, "@iconify/json@2.2.1"), ("[]", none), ("{", none)):
        description.write_text(content)
        with pytest.raises(ManifestError, match=rf"@iconify/json@2\.2\.535.*with {found}"):
            package_folder(data)
    for name in ("collections.json", "package.json"):  # as an unpacking that was killed leaves it
        icon_package.write(root)
        (root / name).unlink()
        with pytest.raises(ManifestError, match=none):
            package_folder(data)


def test_trademarks_and_brands_are_left_out(tmp_path: Path) -> None:
    root = icon_package.write(
        tmp_path / "p", {"mdi": {"acme": icon_package.CROWN, "brand-x": icon_package.CROWN}}
    )
    record = {"prefix": "simple-icons", "icons": {"acme": {"body": ""}, "clock": {"body": ""}}}
    (root / "json" / "simple-icons.json").write_text(json.dumps(record))
    names = {i.name for i in Catalogue(root).icons("mdi")}
    assert names == set(icon_package.NAMES)  # `clock` is a word of generic sets, so no trademark


def test_names_lose_their_style() -> None:
    raw = {"prefix": "x", "prefixes": {"outline": "Outline"}, "suffixes": {"bold": "Bold"}}
    assert split_name("outline-alarm-clock-24", raw) == (("alarm", "clock"), ("outline",))
    assert split_name("house-bold", raw) == (("house",), ("bold",))


def test_variants_of_a_drawing_are_limited() -> None:
    icon = Icon("mdi", "clock", ("clock",), (), (), (), icon_package.CROWN, (0, 0, 24, 24))
    assert len(choose([icon] * 5, 3)) == 3
