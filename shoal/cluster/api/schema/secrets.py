"""The JSON of secrets. No answer has a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import Path
from pydantic import BeforeValidator, Field, WithJsonSchema

from shoal.cluster.api.schema.control import Sent, Told
from shoal.model.field_types import Name
from shoal.model.ids import NAME
from shoal.model.secrets import check_values

SecretName = Annotated[
    str, Path(description="The secret's name.", max_length=64, pattern=f"^{NAME.pattern}$", examples=["openai"])
]


def _checked(values: Any) -> Any:
    """By a function of its own: what pydantic says of a wrong value shows it."""
    check_values("values", values)
    return values


class SecretCreate(Sent):
    """A secret to store."""

    name: Annotated[Name, Field(examples=["openai"])]
    """Unique in its environment"""
    values: Annotated[
        Any,
        BeforeValidator(_checked),
        WithJsonSchema(
            {
                "type": "object",
                "additionalProperties": {"type": "string"},
                "minProperties": 1,
                "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_.-]{0,254}$"},
                "examples": [{"OPENAI_API_KEY": "…"}],
            }
        ),
    ]
    """Its values, which are never told again"""
    environment: Name | None = None
    """By default the token's, or `main` for a token of all"""
    replace: bool = False
    """Put them in the place of those of that name"""

    def given(self) -> Mapping[str, str]:
        """The values."""
        found: Mapping[str, str] = self.values
        return found


class Secret(Told):
    """A stored secret, without its values. Times in unix seconds."""

    name: str
    environment: str
    keys: Sequence[str]
    """Names of its values"""
    version: int
    """Rises with each change"""
    bytes: int
    """Of keys and values"""
    key_id: str
    """Which of the cluster's keys it is encrypted with"""
    created_at: float
    updated_at: float


class Secrets(Told):
    """Secrets, by environment and name."""

    secrets: Sequence[Secret]
