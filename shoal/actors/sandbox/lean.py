"""Keeps a slot's process small: what Ray would load into it for nothing.

Ray's serializer teaches itself pydantic's models in every worker, which loads pydantic: 7 MB of each idle sandbox's 55 (Ray 2.60). A slot
speaks in plain dataclasses, so it has Ray find an empty teacher instead.
"""

from __future__ import annotations

import sys
from types import ModuleType

_TEACHER = "ray._common.pydantic_compat"


def spare_pydantic() -> None:
    """To be called before Ray's first (de)serialization in this process. Outside of Ray's workers, in those that use pydantic, and with
    a Ray that does it another way it changes nothing."""
    in_worker = sys.argv[0].endswith("default_worker.py")
    if not in_worker or _TEACHER in sys.modules or "pydantic" in sys.modules:
        return
    teacher = ModuleType(_TEACHER)
    teacher.register_pydantic_serializers = lambda _context: None  # type: ignore[attr-defined]
    sys.modules[_TEACHER] = teacher
