"""Who may import whom: the order of the package's parts, and what `import shoal` costs."""

from __future__ import annotations

import ast
import functools
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "shoal"
HEAVY = {"ray", "docker", "pydantic", "pydantic_settings", "fastapi", "sqlalchemy", "typer", "rich", "numpy"}

# Part of the package → the other parts that it may import. "shoal" is the package's own `__init__.py`.
ALLOWED = {
    "model": set(),
    "wire": {"model"},
    "images": {"model"},
    "configs": {"model"},
    "transport": {"model", "wire"},
    "actors": {"model", "wire", "images", "configs"},
    "client": {"model", "wire", "transport"},
    "cluster": {"model", "wire", "images", "configs", "actors", "transport", "client"},
    "shoal": {"model", "wire", "client"},
    "cli": {"model", "wire", "transport", "client", "cluster", "shoal"},
}


def part_of(module: str) -> str:
    """The part of the package that a module belongs to."""
    parts = module.split(".")
    if len(parts) == 1:
        return "shoal"
    return parts[1] if (PACKAGE / parts[1]).is_dir() else "shoal"


@functools.cache
def imports_of(path: Path) -> list[tuple[str, int, bool]]:
    """(module, line, whether it happens on import) of all imports of the package's own modules."""
    return list(_imports_of(path))


def _imports_of(path: Path) -> Iterator[tuple[str, int, bool]]:
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
            names = [_imported(node.module, alias.name) for alias in node.names]
        for name in names:
            if name.split(".")[0] == "shoal":
                yield name, node.lineno, id(node) not in inside


def _imported(module: str, name: str) -> str:
    """What `from module import name` imports: `module.name` if that is a module, else `module`."""
    path = PACKAGE.parent.joinpath(*module.split("."), name)
    return f"{module}.{name}" if path.is_dir() or path.with_suffix(".py").exists() else module


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def test_imports_go_one_way() -> None:
    wrong = []
    for path in modules():
        relative = path.relative_to(PACKAGE)
        own = "shoal" if len(relative.parts) == 1 else relative.parts[0]
        assert own in ALLOWED, f"{own} stands in no order yet: add it to ALLOWED"
        wrong += [
            f"{relative}:{line} imports {name}"
            for name, line, _ in imports_of(path)
            if part_of(name) != own and part_of(name) not in ALLOWED[own]
        ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports under `TYPE_CHECKING` and inside functions count, too."""
    names = {module_name(path): path for path in modules()}
    graph = {name: {each for each, _, _ in imports_of(path)} - {name} for name, path in names.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("a circle of imports: " + " -> ".join(reversed(error.args[1])))


def test_the_command_line_loads_the_cluster_only_when_it_needs_it() -> None:
    early = [
        f"{path.name}:{line} imports {name}"
        for path in sorted((PACKAGE / "cli").rglob("*.py"))
        for name, line, at_once in imports_of(path)
        if at_once and part_of(name) == "cluster"
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


def test_the_client_loads_no_cluster_before_it_connects() -> None:
    loaded = loaded_by("import shoal\nfor name in shoal.__all__: getattr(shoal, name)")
    assert "asyncio" in loaded
    assert not loaded & HEAVY
