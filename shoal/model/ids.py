"""Identifiers: a prefix for the kind, and 80 random bits in base 32 (lower case, without order, not guessable)."""

from __future__ import annotations

import base64
import re
import secrets

SANDBOX = re.compile(r"sb-[0-9a-z]{1,32}")
PROCESS = re.compile(r"p-[0-9a-z]{1,32}")
CONTAINER = re.compile(r"c-[0-9a-z]{1,32}")
IMAGE = re.compile(r"im-[0-9a-z]{1,32}")
VOLUME = re.compile(r"vol-[0-9a-z]{1,32}")
ROLLOUT = re.compile(r"ro-[0-9a-z]{1,32}")
NAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9._-]{0,62}[a-zA-Z0-9])?")
"""Names of sandboxes and environments: 1 to 64 letters, digits, dots, dashes and underscores."""

MAIN_PROCESS = "p-main"
"""The process id of a sandbox's own command."""

NAMESPACE = "shoal"
"""Of all of Shoal's actors in Ray."""

CONTROLLER = "controller"
SCALER = "scaler"
BUILDER = "builder"
"""Names there."""


def _random() -> str:
    return base64.b32encode(secrets.token_bytes(10)).decode("ascii").lower()


def new_sandbox_id() -> str:
    return f"sb-{_random()}"


def new_process_id() -> str:
    return f"p-{_random()}"


def new_container_key() -> str:
    """A container's key: Shoal's own name for it, known before the engine assigns an id."""
    return f"c-{_random()}"


def new_image_id() -> str:
    return f"im-{_random()}"


def new_volume_id() -> str:
    return f"vol-{_random()}"


def new_rollout_id() -> str:
    return f"ro-{_random()}"


def new_machine_id() -> str:
    """What a machine is called for as long as its state directory lives."""
    return f"m-{_random()}"


def new_slot_id() -> str:
    return f"slot-{_random()}"
