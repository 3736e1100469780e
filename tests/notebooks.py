"""The notebooks, run as a reader runs them: cell by cell, in a kernel of their own.

`python -m tests.notebooks` runs all of them on the cluster that is up, and keeps their outputs in the files.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "notebooks"
_CELL_S = 120
_CLEAR = "%reset -f"


def paths() -> Sequence[Path]:
    return sorted(FOLDER.glob("*.ipynb"))


@contextmanager
def kernel(**variables: str) -> Iterator[KernelManager]:
    """A kernel for several notebooks, one after the other: it starts, imports and connects once. `variables`: of its
    environment, such as the sizes of a notebook."""
    with tempfile.TemporaryDirectory(prefix="shoal-kernel-") as place:  # its sockets, and what it leaves
        files = {"connection_file": f"{place}/connection.json", "ip": f"{place}/socket"}
        manager = KernelManager(kernel_name="python3", transport="ipc", **files)
        manager.start_kernel(cwd=str(FOLDER), env={**os.environ, "IPYTHONDIR": place, **variables})
        try:
            yield manager
        finally:
            manager.shutdown_kernel(now=True)
            manager.cleanup_resources()


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def run(path: Path, manager: KernelManager) -> NotebookNode:
    """The notebook with the outputs of this run. `CellExecutionError` if a cell fails."""
    notebook = read(path)
    client = NotebookClient(notebook, km=manager, timeout=_CELL_S, record_timing=False, coalesce_streams=True)
    with client.setup_kernel():
        assert client.kc is not None
        try:
            client.kc.execute(_CLEAR, silent=True, store_history=False)
            for number, cell in enumerate(notebook.cells):
                client.execute_cell(cell, number, store_history=True)
        finally:
            client.kc.stop_channels()
    return _tidy(notebook)


def _tidy(notebook: NotebookNode) -> NotebookNode:
    """Without what differs from machine to machine and from run to run, but tells a reader nothing."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    count = 0
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        cell.outputs = [each for each in cell.outputs if each.output_type != "stream" or _is_the_cell_s(each)]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
            output.pop("transient", None)
    return notebook


def _is_the_cell_s(stream: NotebookNode) -> bool:
    """Whether anything is left of it without what Ray tells its drivers of the machine, which is taken out."""
    lines = [line for line in stream.text.splitlines(keepends=True) if "(raylet)" not in line]
    stream.text = "".join(lines).rstrip("\n") + "\n"
    return stream.name == "stdout" and bool(stream.text.strip())


def kinds(notebook: NotebookNode) -> list[list[str]]:
    """What kind of output each cell of code has."""
    return [
        [" ".join(sorted(each.data)) if "data" in each else each.output_type for each in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def main() -> None:
    with kernel() as manager:
        for path in paths():
            print(path.name, flush=True)
            nbformat.write(run(path, manager), path)


if __name__ == "__main__":
    sys.exit(main())
