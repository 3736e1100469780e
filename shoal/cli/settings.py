"""The settings of this machine, with errors as one line."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING

from shoal.model.errors import InvalidRequest

if TYPE_CHECKING:
    from shoal.model.settings import Settings


def load() -> Settings:
    """The settings from defaults, file and environment; `InvalidRequest` names the setting and the remedy."""
    from pydantic import ValidationError

    from shoal.model.settings import Settings

    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        variable = f"SHOAL_{'__'.join(str(part) for part in first['loc']).upper()}"
        raise InvalidRequest(
            f"settings: {field}: {first['msg']}; look at {variable} and at settings.toml", field=field
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(f"settings: settings.toml is not valid TOML: {error}", field="settings") from None
