"""The files, directories and tests that the documentation names exist."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "shoal/images/agent/PROTOCOL.md"])
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"[\w./-]+\.(?:py|go|tsx?|ipynb)")
DIRECTORY = re.compile(r"(?:shoal|tests|examples|docs|notebooks)(?:/[\w-]+)+/?")
PYTHON_TEST = re.compile(r"(?:([\w./]+\.py))?(?:::)?(test_\w+)")
GO_TEST = re.compile(r"Test[A-Z]\w+")
IMAGES = {"shoal/base", "shoal/dev"}


@cache
def tree() -> list[str]:
    """Every file of the repository that documentation may name, from its root."""
    tops = ("shoal", "tests", "examples", "notebooks")
    found = (
        path
        for top in tops
        for path in (ROOT / top).rglob("*")
        if path.suffix in {".py", ".go", ".ts", ".tsx", ".ipynb"}
    )
    return [f"/{path.relative_to(ROOT)}" for path in found if "node_modules" not in path.parts]


def files(name: str) -> list[str]:
    return [path for path in tree() if path.endswith(f"/{name.removeprefix('./')}")]


def says(name: str, what: str) -> bool:
    """Whether a file of that name, or of any where it is empty, defines the test."""
    paths = (
        files(name)
        if name
        else [path for path in tree() if Path(path).name.startswith("test_") or path.endswith("_test.go")]
    )
    return any(re.search(rf"(?:def|class|func) {what}\b", (ROOT / path[1:]).read_text("utf-8")) for path in paths)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_directories_exist(page: Path) -> None:
    words = set(CODE.findall(page.read_text("utf-8")))
    missing = [word for word in words if FILE.fullmatch(word) and not files(word)]
    missing += [
        word for word in words if DIRECTORY.fullmatch(word) and word not in IMAGES and not (ROOT / word).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_exist(page: Path) -> None:
    for word in CODE.findall(page.read_text("utf-8")):
        if found := PYTHON_TEST.fullmatch(word):
            assert says(found[1] or "", found[2]), word
        elif "::" in word and "Test" in word:
            name, _, test = word.partition("::")
            assert says(name, test), word
        elif GO_TEST.fullmatch(word):
            assert says("", word), word
