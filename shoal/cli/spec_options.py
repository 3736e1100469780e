"""The options of `shoal run` for fields of a sandbox: one for each field without an option of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, TypeVar

import typer

from shoal.model.errors import InvalidRequest
from shoal.model.options import PLAIN, default_of, docs

_ANSWERS = frozenset({"yes", "no", "true", "false", "on", "off", "1", "0"})

F = TypeVar("F", bound=Callable[..., None])

_NONE_HERE = frozenset({"tags", "volumes", "pty", "idempotency_key", "secrets"})
"""Fields without an option of that name: `--tag`, `--volume` and `--secret` give one of several; the command is run by
`exec`, and once."""


def with_spec_options(*, without: Collection[str] = ()) -> Callable[[F], F]:
    """Adds the options, which the command gets as `**spec_options`: text, a switch's value, or None where it is not
    given. `without`: fields of which it has none."""
    return lambda command: _with_options(command, _NONE_HERE | set(without))


def _with_options(command: F, none_of: Collection[str]) -> F:
    signature = inspect.signature(command, eval_str=True)
    own = {name: each for name, each in signature.parameters.items() if each.kind is not each.VAR_KEYWORD}
    added = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[bool | None, typer.Option(help=f"{text}.")]
            if _is_switch(name)
            else Annotated[str | None, typer.Option(metavar=name.upper(), help=f"{text}.")],
        )
        for name, text in docs().items()
        if name not in own and name not in none_of
    ]
    command.__signature__ = signature.replace(parameters=[*own.values(), *added])  # type: ignore[attr-defined]
    return command


def _is_switch(name: str) -> bool:
    return name in PLAIN and isinstance(default_of(PLAIN[name]), bool)


def check_switches(image: str, options: Mapping[str, str | bool | None]) -> None:
    """Raises `InvalidRequest` where a switch was given a value, which came to stand in the image's place."""
    switch = next((name.replace("_", "-") for name, given in options.items() if given is True), None)
    if switch is not None and image.lower() in _ANSWERS:
        raise InvalidRequest(f"--{switch} takes no value: write --{switch} or --no-{switch}", field="image")


def parsed(options: Mapping[str, str | bool | None]) -> dict[str, Any]:
    """The values that the texts stand for, by their fields' types. Raises `InvalidRequest`."""
    from shoal.model.spec_model import parse_option  # only now, for it loads pydantic

    return {
        name: parse_option(name, given) if isinstance(given, str) else given
        for name, given in options.items()
        if given is not None
    }
