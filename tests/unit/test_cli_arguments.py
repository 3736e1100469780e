"""What the command line's words mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.cli.console import age, printable
from shoal.cli.copy import RemotePath, parse_path
from shoal.cli.options import amount, command_words, mebibytes, pairs, seconds
from shoal.model.errors import InvalidRequest, RelativePath


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("web:/srv/a", RemotePath("web", "/srv/a")),
        ("sb-abc:/", RemotePath("sb-abc", "/")),
        ("web:/a:b", RemotePath("web", "/a:b")),
        ("main.py", None),
        ("./a:b", None),
        ("/tmp/a:/b", None),
        (":/a", None),
    ],
)
def test_parse_path(text: str, expected: RemotePath | None) -> None:
    assert parse_path(text) == expected


@pytest.mark.parametrize("text", ["web:srv", "web:", "web:~/x"])
def test_a_relative_path_in_a_sandbox_is_refused(text: str) -> None:
    with pytest.raises(RelativePath):
        parse_path(text)


@pytest.mark.parametrize(("text", "expected"), [(None, None), ("2", 2.0), ("0.5:2", (0.5, 2.0))])
def test_amount(text: str | None, expected: object) -> None:
    assert amount("cpu", text) == expected


@pytest.mark.parametrize("text", ["", "x", "1:2:3", "1:", ":"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        amount("cpu", text)
    assert caught.value.field == "cpu"


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, None), ("512", 512), ("512m", 512), ("2g", 2048), ("2G", 2048), ("1t", 1048576), ("256:1g", (256, 1024))],
)
def test_mebibytes(text: str | None, expected: object) -> None:
    assert mebibytes("memory", text) == expected


@pytest.mark.parametrize("text", ["", "g", "1.5g", "-1", "²", "1:2:3", "1k"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        mebibytes("memory", text)
    assert caught.value.field == "memory"


def test_pairs_take_a_value_or_that_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "there")
    assert pairs("env", ["A=1", "B=", "C=x=y", "HERE"]) == {"A": "1", "B": "", "C": "x=y", "HERE": "there"}


def test_a_variable_that_is_not_here_has_no_value_to_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(InvalidRequest) as caught:
        pairs("env", ["NOWHERE"])
    assert caught.value.field == "env"


def test_a_tag_needs_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "there")
    with pytest.raises(InvalidRequest) as caught:
        pairs("tag", ["HERE"])
    assert caught.value.field == "tag"


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0s"), (4.9, "4s"), (60, "1m"), (3599, "59m"), (7200, "2h"), (200_000, "2d")]
)
def test_age(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_what_a_sandbox_says_cannot_steer_the_terminal() -> None:
    assert printable("ok\x1b[2J\x07\nnext") == "ok\ufffd[2J\ufffd\ufffdnext"


def test_no_module_of_the_command_imports_what_is_heavy() -> None:
    """`shoal --help` is immediate only as long as this holds."""
    heavy = ("import ray", "import docker", "import pydantic", "from pydantic", "from shoal.cluster", "from rich")
    for path in Path(parse_path.__code__.co_filename).parent.glob("*.py"):
        top = [line for line in path.read_text("utf-8").splitlines() if line.startswith(heavy)]
        assert not top, path.name


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, None), ("90", 90.0), ("0.5", 0.5), ("90s", 90.0), ("1.5h", 5400.0), ("4W", 4 * 7 * 86400.0)],
)
def test_seconds(text: str | None, expected: object) -> None:
    assert seconds("timeout", text) == expected


@pytest.mark.parametrize("text", ["", "h", "0", "0.0", "-1", "1e3", "inf", "²", "1.s", "10 m"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        seconds("timeout", text)
    assert caught.value.field == "timeout"


def test_a_command_may_stand_behind_two_dashes() -> None:
    assert command_words(["--", "echo", "--", "x"]) == ("echo", "--", "x")
    assert command_words(["echo", "--"]) == ("echo", "--")
    assert command_words(["--"]) == command_words(None) == ()
