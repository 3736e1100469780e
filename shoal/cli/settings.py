"""The settings of this machine, with errors as one line."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shoal.model.errors import InvalidRequest

if TYPE_CHECKING:
    from shoal.model.settings import Settings

_OTHER_VARIABLES = {"SHOAL_URL", "SHOAL_TOKEN", "SHOAL_CA", "SHOAL_CONFIG", "SHOAL_SETTINGS", "SHOAL_DEBUG"}
_NEARLY = 0.85


def load() -> Settings:
    """The settings from defaults, file and environment; `InvalidRequest` names the setting and the remedy."""
    from pydantic import ValidationError

    from shoal.model.settings import Settings

    check_variables(os.environ)
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        variable = f"SHOAL_{'__'.join(str(part) for part in first['loc']).upper()}"
        raise InvalidRequest(
            f"settings: {field}: {_reason(first, field)}; look at {variable} and at settings.toml", field=field
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(f"settings: settings.toml is not valid TOML: {error}", field="settings") from None


def check_variables(environ: Mapping[str, str]) -> None:
    """`InvalidRequest` for a variable that is nearly a setting's: pydantic does not look at it."""
    variables = {f"SHOAL_{name.replace('.', '__').upper()}" for name in _names()}
    for name in environ:
        if name.startswith("SHOAL_") and "__" not in name and name not in variables | _OTHER_VARIABLES:
            close = difflib.get_close_matches(name, variables, n=1, cutoff=_NEARLY)
            if close:
                raise InvalidRequest(
                    f"settings: {name}: there is no such setting, perhaps {close[0]} is meant", field=name
                )


def _reason(first: Mapping[str, Any], field: str) -> str:
    if first["type"] != "extra_forbidden":
        return str(first["msg"])
    close = difflib.get_close_matches(field, _names(), n=1)
    return "there is no such setting" + (f", perhaps {close[0]} is meant" if close else "")


def _names() -> list[str]:
    """All settings, as they are written in the documentation."""
    from shoal.model.settings import Settings

    found = []
    for name, field in Settings.model_fields.items():
        section = getattr(field.annotation, "model_fields", None)
        found += [name] if section is None else [f"{name}.{each}" for each in section]
    return found
