"""Paths in a volume, and in the sandbox through which its files are reached."""

from __future__ import annotations

import pytest

from shoal.model.errors import InvalidRequest, PathNotFound
from shoal.model.volume_paths import OTHER, errors_name_the_volumes_paths, inside, outside


@pytest.mark.parametrize(
    ("path", "found"),
    [("a/b", "/volume/a/b"), ("/a//b/.", "/volume/a/b"), ("", "/volume"), ("d/", "/volume/d/"), ("/", "/volume/")],
)
def test_inside(path: str, found: str) -> None:
    assert inside(path) == found
    assert inside(path, OTHER) == found.replace("/volume", "/other")


def test_no_path_leads_out() -> None:
    with pytest.raises(InvalidRequest) as caught:
        inside("a/../../etc")
    assert caught.value.field == "path"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("path: open /volume/no/such: no such file", "path: open /no/such: no such file"),
        ("path: /volume is a directory: name a file", "path: / is a directory: name a file"),
        ("/volume/volume/other/x", "/volume/other/x"),
        ("to: '/other/a': it exists already", "to: '/a': it exists already"),
        ("remove /volume: busy", "remove /: busy"),
        ("/volumes/a and /other-one and a/volume/b", "/volumes/a and /other-one and a/volume/b"),
    ],
)
def test_outside(text: str, told: str) -> None:
    assert outside(text) == told


def test_errors_keep_all_but_the_path() -> None:
    with pytest.raises(PathNotFound) as caught, errors_name_the_volumes_paths():
        raise PathNotFound("path: open /volume/a", field="path")
    assert (str(caught.value), caught.value.field) == ("path: open /a", "path")
    with pytest.raises(InvalidRequest, match="local: /volume/x exists"), errors_name_the_volumes_paths():
        raise InvalidRequest("local: /volume/x exists", field="local")
