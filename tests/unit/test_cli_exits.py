"""Exit codes: every error has one, and they say what they promise."""

from __future__ import annotations

import pytest

from shoal.cli.exits import EXIT_CODES, HELP, exit_code_of, exit_code_of_process
from shoal.model.errors import (
    CommandNotFound,
    ImageNotFound,
    InvalidRequest,
    SandboxEnded,
    ShoalError,
    Unavailable,
    error_classes,
)


@pytest.mark.parametrize("cls", list(error_classes()), ids=lambda cls: cls.__name__)
def test_every_error_has_an_exit_code_of_its_own_class_or_its_parents(cls: type[ShoalError]) -> None:
    mapped = next(base for base in cls.__mro__ if base in EXIT_CODES)
    assert exit_code_of(cls("x")) == EXIT_CODES[mapped]
    assert str(EXIT_CODES[mapped]) in HELP.split() or cls.__name__ in ("CommandFailed", "NoScore")


def test_classes_right_below_the_root_are_all_mapped_themselves() -> None:
    """So that no new branch of the tree is taken for a defect."""
    assert set(ShoalError.__subclasses__()) <= set(EXIT_CODES)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("x"), 2),
        (CommandNotFound("x"), 127),
        (ImageNotFound("x"), 66),
        (Unavailable("x"), 69),
        (SandboxEnded("x", reason="terminated"), 137),
        (SandboxEnded("x", reason="out_of_memory"), 137),
        (SandboxEnded("x", reason="timeout"), 124),
        (SandboxEnded("x", reason="idle_timeout"), 124),
        (SandboxEnded("x", reason="start_failed"), 125),
        (SandboxEnded("x", reason="completed"), 137),
        (SandboxEnded("x", reason="of a newer cluster"), 137),
    ],
)
def test_exit_codes(error: ShoalError, code: int) -> None:
    assert exit_code_of(error) == code


@pytest.mark.parametrize(("returncode", "code"), [(0, 0), (3, 3), (255, 255), (-9, 137), (-15, 143)])
def test_a_process_that_a_signal_ended_is_reported_as_a_shell_would(returncode: int, code: int) -> None:
    assert exit_code_of_process(returncode) == code
