"""What the README, the guide and the notebook show is what happens: their code runs here, against a real cluster."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
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


def test_notebook_runs(cluster: object, capsys: pytest.CaptureFixture[str]) -> None:
    notebook = json.loads((ROOT / "notebooks" / "rollouts.ipynb").read_text("utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells), "clear the outputs"
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with asyncio.Runner() as runner:
        for number, cell in enumerate(cells):
            code = compile("".join(cell["source"]), f"<cell {number}>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            result = eval(code, namespace)
            if inspect.iscoroutine(result):  # a cell that awaits, all in one loop as in a notebook
                runner.run(result)
    assert " 1.00  sorts\n" in capsys.readouterr().out
