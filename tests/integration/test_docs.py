"""What the README and the guides show is what happens: their code runs here, against a real cluster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import shoal

pytestmark = pytest.mark.engine

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ["README.md", "docs/python.md", "docs/tunnels.md", "docs/images.md"])
def test_code_of_page_runs(name: str, cluster: object, capsys: pytest.CaptureFixture[str]) -> None:
    page = ROOT / name
    text = page.read_text("utf-8")
    namespace: dict[str, Any] = {"__name__": "page"}
    before = {sandbox.id for sandbox in shoal.Sandbox.list()}
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python")
    for block in blocks:
        lines_above = text.count("\n", 0, block.start(1))
        # The page's own line numbers, so that a traceback leads to the line that is wrong.
        exec(compile("\n" * lines_above + block[1], page, "exec"), namespace)
    if name == "README.md":
        said = capsys.readouterr().out.splitlines()
        # Ray warns each of its drivers once of the many workers that the tests before this one have left.
        assert [line for line in said if "(raylet)" not in line] == ["42", "", "42", "", "hello", ""]
    assert {sandbox.id for sandbox in shoal.Sandbox.list()} == before
