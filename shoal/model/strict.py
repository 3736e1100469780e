"""What all models of what clients send share: unknown members are refused, types are not converted, and wrong data
costs no more than right.

Pydantic collects all that is wrong, at a hundred bytes and more for each; here a client is told the first, so nothing
beyond that is looked for.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails


class Strict(BaseModel):
    """What a client sends."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, data: Any) -> Any:
        """Ends at the first unknown member. What is no object, pydantic refuses."""
        if isinstance(data, dict):
            known = cls.model_fields
            for name in data:
                if name not in known:
                    shown = name[:100] if isinstance(name, str) else "…"
                    wrong = InitErrorDetails(type="extra_forbidden", loc=(shown,), input=None)
                    raise ValidationError.from_exception_data(cls.__name__, [wrong])
        return data
