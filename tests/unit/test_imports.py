"""Who may import whom: the package's floors, and what `import shoal` costs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "shoal"
HEAVY = {"ray", "docker", "pydantic", "pydantic_settings", "fastapi", "sqlalchemy", "typer", "rich", "numpy"}

# Floor → what it may import of the package, besides itself. "face" is every module right in `shoal`.
ALLOWED = {
    "model": set(),
    "wire": {"model"},
    "images": {"model"},
    "configs": {"model"},
    "transport": {"model", "wire"},
    "actors": {"model", "wire", "images", "configs"},
    "cluster": {"model", "wire", "images", "configs", "actors", "transport", "face"},
    "face": {"model", "wire", "transport"},
    "cli": {"model", "wire", "transport", "face", "cluster"},
}


def floor_of(module: str) -> str:
    """The floor that a module of the package is on."""
    parts = module.split(".")
    if len(parts) == 1:
        return "face"
    return parts[1] if (PACKAGE / parts[1]).is_dir() else "face"


def imports_of(path: Path) -> Iterator[tuple[str, int, bool]]:
    """(module, line, whether it happens on import) of all imports of the package's own modules."""
    tree = ast.parse(path.read_text("utf-8"), str(path))
    inside = {
        id(child)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(function)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module]
            if node.module == "shoal":
                names = [f"shoal.{a.name}" if floor_of(f"shoal.{a.name}") != "face" else "shoal" for a in node.names]
        for name in names:
            if name.split(".")[0] == "shoal":
                yield name, node.lineno, id(node) not in inside


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    own = "face" if len(relative.parts) == 1 else relative.parts[0]
    assert own in ALLOWED, f"{own} is on no floor: give it one here"
    wrong = [
        f"{relative}:{line} imports {name}"
        for name, line, _ in imports_of(path)
        if floor_of(name) != own and floor_of(name) not in ALLOWED[own]
    ]
    assert wrong == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").rglob("*.py")), ids=lambda path: path.name)
def test_the_command_line_loads_the_cluster_only_when_it_needs_it(path: Path) -> None:
    early = [
        f"{name} in line {line}" for name, line, at_once in imports_of(path) if at_once and floor_of(name) == "cluster"
    ]
    assert early == []


def test_engines_know_nothing_of_ray_and_their_contract_nothing_of_docker() -> None:
    engines = PACKAGE / "actors" / "engines"
    for path in engines.rglob("*.py"):
        found = {name for name in _all_imports(path) if name.split(".")[0] == "ray"}
        assert not found, path
    assert "docker" not in (engines / "contract.py").read_text("utf-8").lower()


def _all_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module


def loaded_by(code: str) -> set[str]:
    """The top-level modules that `code` has loaded, in an interpreter of its own."""
    full = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", full], capture_output=True, check=True, timeout=60)
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def test_importing_shoal_is_light() -> None:
    loaded = loaded_by("import shoal")
    assert "shoal" in loaded
    assert not loaded & {*HEAVY, "asyncio"}


def test_the_face_loads_no_cluster_before_it_connects() -> None:
    loaded = loaded_by("import shoal\nfor name in shoal.__all__: getattr(shoal, name)")
    assert "asyncio" in loaded
    assert not loaded & HEAVY
