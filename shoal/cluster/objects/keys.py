"""Credentials for an S3 service."""

from __future__ import annotations

import configparser
from dataclasses import dataclass, field
from pathlib import Path

from shoal.model.errors import PermissionDenied


@dataclass(frozen=True, slots=True)
class Keys:
    """Credentials. `session`: the token of temporary ones."""

    access: str
    secret: str = field(repr=False)
    session: str | None = field(default=None, repr=False)


def read_keys(file: Path) -> Keys:
    """The credentials of the section `default` of a file as `~/.aws/credentials`; `PermissionDenied` (field
    `objects.credentials`) if it has none."""
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(file.read_text("utf-8"))
        section = parser["default"]
        return Keys(
            section["aws_access_key_id"], section["aws_secret_access_key"], section.get("aws_session_token") or None
        )
    except OSError as error:
        why = error.strerror or "it cannot be read"
    except KeyError as error:
        why = f"it has no {error.args[0]}"
    except (configparser.Error, UnicodeDecodeError):
        why = "it is no credentials file"  # without the parser's words, which quote the line
    raise PermissionDenied(
        f"objects.credentials: {file}: {why}; it needs a section [default] with aws_access_key_id and "
        "aws_secret_access_key",
        field="objects.credentials",
    )
