"""What `import shoal` offers."""

from __future__ import annotations

import ast
import asyncio
import inspect
from pathlib import Path

import pytest

import shoal
from shoal.client.dual_method import DualCall, dual_method
from shoal.model import errors


def test_every_exported_name_is_there_and_listed_once() -> None:
    assert list(shoal.__all__) == sorted(set(shoal.__all__))
    for name in shoal.__all__:
        assert getattr(shoal, name).__name__ == name
    assert set(shoal.__all__) <= set(dir(shoal))


def test_type_checkers_see_the_names_that_load_lazily() -> None:
    tree = ast.parse(Path(str(shoal.__file__)).read_text("utf-8"))
    declared = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert declared - {"annotations", "TYPE_CHECKING", "Any"} == set(shoal.__all__)


def test_every_error_is_exported() -> None:
    assert {cls.__name__ for cls in errors.error_classes() if cls.__module__ == errors.__name__} <= set(shoal.__all__)


def test_every_error_is_in_the_guide() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    names = {cls.__name__ for cls in errors.error_classes() if cls.__module__ == errors.__name__}
    assert [name for name in names if f"`{name}`" not in guide and name != "ShoalError"] == []


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(AttributeError) as caught:
        shoal.Sandcastle  # noqa: B018
    assert caught.value.name == "Sandcastle"


CLASSES = [
    *(shoal.Sandbox, shoal.Process, shoal.Output, shoal.Input),
    *(shoal.FileSystem, shoal.SandboxFile, shoal.Watch, shoal.Forward, shoal.Client),
]


@pytest.mark.parametrize("cls", CLASSES)
def test_public_calls_have_both_forms_and_documented(cls: type) -> None:
    assert cls.__doc__
    ours = [base for base in cls.__mro__ if base.__module__.startswith("shoal.")]
    for name, member in (each for base in ours for each in vars(base).items()):
        if name.startswith("_"):
            continue
        assert not asyncio.iscoroutinefunction(member), f"{cls.__name__}.{name} has no blocking form"
        if isinstance(member, dual_method | DualCall | property) or inspect.isfunction(member):
            assert member.__doc__, f"{cls.__name__}.{name} has no docstring"
