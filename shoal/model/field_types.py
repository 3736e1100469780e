"""The types of fields that the sandbox's spec and the API's models share, with their bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema
from pydantic_core import PydanticKnownError

from shoal.model import ids, mounts, secrets, validate
from shoal.model.validate import KEY, MAX_ARGV_BYTES, MAX_ARGV_ITEM, MAX_ARGV_ITEMS, MAX_KEY, MAX_REGIONS, MAX_TAGS


@dataclass(frozen=True, slots=True)
class Check:
    """What bounds cannot say: a function of the field's name and value that raises `InvalidRequest`.

    `check_spec` calls it.
    """

    function: Callable[[str, Any], None]


def at_most(members: int) -> BeforeValidator:
    """Refuses an object with more members before any of them is looked at, which `max_length` does only after all."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > members:
            context = {"field_type": "Dictionary", "max_length": members, "actual_length": len(value)}
            raise PydanticKnownError("too_long", context)
        return value

    return BeforeValidator(check)


NAME = f"^{ids.NAME.pattern}$"
Name = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=NAME)]
"""A name of a sandbox or an environment."""

Text = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TagValue = Annotated[str, StringConstraints(max_length=256)]
Tags = Annotated[
    Mapping[Text, TagValue],
    Field(max_length=MAX_TAGS, examples=[{"run": "42"}]),
    at_most(MAX_TAGS),
    Check(validate.check_tags),
]
LABEL = "^[a-zA-Z0-9]([a-zA-Z0-9_.-]*[a-zA-Z0-9])?$"
Region = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=LABEL), Field(examples=["eu-west-1"])]
"""A region or a zone: a value of a label, as Ray and Kubernetes allow it."""


def _regions(value: Any) -> Any:
    """One region, or several with commas between them, may be written as one text."""
    return tuple(each.strip() for each in value.split(",")) if isinstance(value, str) else value


Regions = Annotated[
    tuple[Region, ...],
    Field(max_length=MAX_REGIONS, strict=False, examples=[["eu-west-1", "us-east-1"]]),
    BeforeValidator(_regions, json_schema_input_type=str | list[str]),
    Check(validate.check_regions),
]
Argument = Annotated[str, Field(max_length=MAX_ARGV_ITEM)]
Command = Annotated[
    tuple[Argument, ...],
    Field(max_length=MAX_ARGV_ITEMS, fail_fast=True, strict=False, examples=[["sleep", "60"]]),
    Check(validate.check_command),
]
Variables = Annotated[
    Mapping[str, Annotated[str, Field(max_length=MAX_ARGV_BYTES)]],
    Field(max_length=MAX_ARGV_ITEMS),
    at_most(MAX_ARGV_ITEMS),
    Check(validate.check_environment_variables),
]
Mounts = Annotated[
    tuple[Annotated[mounts.MountSpec, BeforeValidator(mounts.mount_of)], ...],
    Field(
        max_length=mounts.MOST_MOUNTS,
        strict=False,
        examples=[[{"path": "/data", "volume": "data", "read_only": True}]],
    ),
    Check(mounts.check_mounts),
]
SECRET_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "pattern": NAME, "maxLength": 64},
        "keys": {"type": "array", "items": {"type": "string"}, "maxItems": secrets.MOST_KEYS},
        "values": {"type": "object", "additionalProperties": {"type": "string"}},
        "directory": {"type": "string"},
    },
}
_SECRETS_SCHEMA = {
    "type": "array",
    "maxItems": secrets.MOST_USES,
    "items": SECRET_SCHEMA,
    "examples": [[{"name": "openai"}, {"values": {"TOKEN": "…"}, "directory": "/run/secrets"}]],
}
Secrets = Annotated[
    tuple[Any, ...],
    Field(strict=False),
    BeforeValidator(secrets.secret_uses),
    WithJsonSchema(_SECRETS_SCHEMA),
    Check(secrets.check_uses),
]
"""Secrets of a sandbox. Checked by functions of its own: what pydantic says of a wrong value shows it."""

AbsolutePath = Annotated[str, StringConstraints(min_length=1, max_length=4096), Check(validate.check_absolute)]
IdempotencyKey = Annotated[str, StringConstraints(min_length=1, max_length=MAX_KEY, pattern=f"^{KEY}$")]
Cores = Annotated[float, Field(gt=0, le=1024)]
Mebibytes = Annotated[int, Field(gt=0, le=16 * 1024 * 1024)]
OwnerLease = Annotated[float, Field(ge=5, le=86400)]
Seconds = Annotated[float, Field(gt=0, le=365 * 86400)]
