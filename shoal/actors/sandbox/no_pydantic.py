"""Keeps pydantic out of a slot's process: 7 MB of each idle sandbox's 55 (Ray 2.60).

Ray's serializer imports pydantic in every worker where it is installed, and does without it where it is not, as in
Ray's minimal installation. A slot sends and takes plain dataclasses only, so in its process pydantic counts as not
installed: `None` in `sys.modules` is Python's own way to say that (the import system's reference, "The module cache").
"""

from __future__ import annotations

import sys


def hide_pydantic() -> None:
    """Makes `import pydantic` fail in this process. Call it before Ray first serializes anything.

    Does nothing outside of Ray's workers, nor where pydantic is loaded already.
    """
    if sys.argv[0].endswith("default_worker.py"):
        sys.modules.setdefault("pydantic", None)  # type: ignore[arg-type]  # the cache takes None, its type does not say so
