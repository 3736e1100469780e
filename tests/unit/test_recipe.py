"""Recipes: their JSON, what is refused, and the keys of their steps."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shoal.model.errors import InvalidRequest
from shoal.model.recipe import (
    Add,
    ImageDefaults,
    Recipe,
    Run,
    SetCommand,
    SetEntrypoint,
    SetEnv,
    SetLabels,
    SetUser,
    SetWorkdir,
    changed,
    keys_of,
    title_of,
)

DIGEST = "ab" * 32
ALL = Recipe(
    "shoal/base",
    (
        Run(("/bin/sh", "-c", "pip install six"), {"A": "1"}, "0", "pip_install('six')"),
        Add(DIGEST, 2048, "/srv", "app", ("a",)),
        SetEnv({"PATH": "/x:${PATH}"}, expand=True),
        SetWorkdir("/srv"),
        SetUser("app"),
        SetEntrypoint(("python3",)),
        SetCommand(("-m", "app")),
        SetLabels({"a": "b"}),
    ),
)


def test_a_recipe_travels_as_json() -> None:
    data = json.loads(json.dumps(ALL.to_dict()))
    assert Recipe.from_dict(data) == ALL
    assert data["steps"][1] == {
        "step": "add",
        "digest": DIGEST,
        "size": 2048,
        "path": "/srv",
        "owner": "app",
        "entries": ["a"],
    }


@pytest.mark.parametrize(
    ("step", "field"),
    [
        ({"step": "fly"}, "steps[0]"),
        ({"argv": ["x"]}, "steps[0]"),
        ("run", "steps[0]"),
        ({"step": "run"}, "steps[0]"),
        ({"step": "run", "argv": "ls"}, "steps[0]"),
        ({"step": "run", "argv": []}, "steps[0]"),
        ({"step": "run", "argv": ["a\0b"]}, "steps[0]"),
        ({"step": "run", "argv": ["x"], "shell": "bash"}, "steps[0]"),
        ({"step": "run", "argv": ["x"], "env": ["A=1"]}, "steps[0]"),
        ({"step": "run", "argv": ["x"], "env": {"A": 1}}, "steps[0]"),
        ({"step": "run", "argv": ["x"], "title": 7}, "steps[0]"),
        ({"step": "add", "digest": "../../etc", "size": 1, "path": "/a"}, "steps[0]"),
        ({"step": "add", "digest": DIGEST, "size": 1 << 40, "path": "/a"}, "steps[0]"),
        ({"step": "add", "digest": DIGEST, "size": True, "path": "/a"}, "steps[0]"),
        ({"step": "add", "digest": DIGEST, "size": 1, "path": "a"}, "steps[0]"),
        ({"step": "add", "digest": DIGEST, "size": 1, "path": "/a", "owner": "b", "entries": ["../x"]}, "steps[0]"),
        ({"step": "workdir", "path": "srv"}, "steps[0]"),
        *(({"step": "env", "variables": {name: "1"}}, "steps[0]") for name in ("A=B", "A B", "A\0", "A\n", "")),
        ({"step": "env", "variables": {"A": "1"}, "expand": "yes"}, "steps[0]"),
        ({"step": "user", "user": ""}, "steps[0]"),
    ],
)
def test_a_wrong_step_is_named(step: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Recipe.from_dict({"base": "shoal/base", "steps": [step]})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ([], "recipe"),
        ({"steps": []}, "base"),
        ({"base": "x" * 600, "steps": []}, "base"),
        ({"base": "x", "steps": [{"step": "user", "user": "a"}] * 201}, "steps"),
        ({"base": "x", "steps": [{"step": "run", "argv": ["a"]}] * 101}, "steps"),
    ],
)
def test_a_wrong_recipe_is_refused(data: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Recipe.from_dict(data)
    assert caught.value.field == field


def test_keys_depend_on_content_and_order_and_not_on_titles() -> None:
    a, b = Run(("a",)), Run(("b",))
    keys = keys_of("sha256:1", (a, b))
    assert keys == keys_of("sha256:1", (Run(("a",), title="the first"), b))
    assert keys[:1] == keys_of("sha256:1", (a,))
    others = [keys_of("sha256:2", (a, b)), keys_of("sha256:1", (b, a)), keys_of("sha256:1", (a, Run(("b",), user="0")))]
    assert len({keys[-1], *(other[-1] for other in others)}) == 4
    assert keys_of("sha256:1", (SetEnv({"A": "1", "B": "2"}),)) == keys_of("sha256:1", (SetEnv({"B": "2", "A": "1"}),))
    # These are on disk: a change makes every user build anew.
    assert keys[1].startswith("7059303e7df50792")


def test_defaults_follow_the_steps() -> None:
    defaults = ImageDefaults()
    for step in ALL.steps:
        defaults = changed(defaults, step, {"PATH": "/bin"})
    assert defaults == ImageDefaults({"PATH": "/x:/bin"}, "/srv", "app", ("python3",), ("-m", "app"), {"a": "b"})
    more = changed(defaults, SetEnv({"PATH": "/y:${PATH}:${NONE}$$"}, expand=True), {"PATH": "/bin"})
    assert more.env == {"PATH": "/y:/x:/bin:$"}
    assert changed(defaults, SetEnv({"A": "$${PATH}"}), {}).env["A"] == "$${PATH}"
    assert changed(defaults, SetEntrypoint(("sh",)), {}).command == ()


def test_a_step_can_be_told() -> None:
    assert [title_of(step) for step in ALL.steps[:2]] == ["pip_install('six')", "add files to /srv"]
    assert title_of(Run(("/bin/sh", "-c", "\nset -e\nmake\n"))) == "set -e …"
