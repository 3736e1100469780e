"""An image's configuration in the form of the OCI image format, whose sha256 is the image's digest."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from shoal.actors.engines.image_store import ImageConfig
from shoal.actors.engines.oci.layers.digests import is_digest
from shoal.model.errors import InvalidRequest

_MOST_LAYERS: Final = 500  # overlayfs's own bound
_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


def architecture() -> str:
    """This machine's, in the words of image configurations."""
    machine = platform.machine().lower()
    return _ARCHITECTURES.get(machine, machine)


def architecture_of(blob: bytes | None) -> str:
    """The one that a configuration names."""
    return architecture() if blob is None else str(json.loads(blob).get("architecture") or architecture())


def make_config(config: ImageConfig, diff_ids: Sequence[str], made_for: str | None = None) -> bytes:
    """The configuration of an image of these layers, lowest first. The same image has the same bytes, and so the same
    digest, on every node: no time stands in it. `made_for`: the architecture (None: this machine's)."""
    said: dict[str, Any] = {"WorkingDir": config.workdir}
    if config.env:
        said["Env"] = [f"{name}={value}" for name, value in config.env.items()]
    if config.user:
        said["User"] = config.user
    if config.entrypoint:
        said["Entrypoint"] = list(config.entrypoint)
    if config.command:
        said["Cmd"] = list(config.command)
    if config.labels:
        said["Labels"] = dict(config.labels)
    whole = {
        "architecture": made_for or architecture(),
        "os": "linux",
        "config": said,
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }
    return json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()


def parse_config(blob: bytes) -> tuple[ImageConfig, tuple[str, ...], float]:
    """The defaults, the layers' diff ids (lowest first) and the time of creation (0: unknown). `InvalidRequest` (field
    `image`) for what is no configuration, or one for another kind of machine."""
    try:
        whole = json.loads(blob)
        if not isinstance(whole, dict):
            raise _invalid("it is no object")
        said = whole.get("config") or {}
        ids = whole["rootfs"]["diff_ids"] or []
        config = ImageConfig(
            env=_env(said.get("Env") or ()),
            user=_text(said.get("User") or ""),
            workdir=_text(said.get("WorkingDir") or "/"),
            entrypoint=tuple(_text(each) for each in said.get("Entrypoint") or ()),
            command=tuple(_text(each) for each in said.get("Cmd") or ()),
            labels={_text(name): _text(value) for name, value in (said.get("Labels") or {}).items()},
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _invalid(f"{type(error).__name__}: {str(error)[:200]}") from error
    if len(ids) > _MOST_LAYERS:
        raise _invalid(f"it has {len(ids)} layers, and the most is {_MOST_LAYERS}")
    if not all(isinstance(each, str) and is_digest(each) for each in ids):
        raise _invalid("a layer's diff id is no digest")
    _check_platform(whole)
    return config, tuple(ids), _seconds(whole.get("created"))


def _check_platform(whole: Mapping[str, Any]) -> None:
    made_for = (whole.get("os") or "linux", whole.get("architecture") or architecture())
    if made_for != ("linux", architecture()):
        raise InvalidRequest(
            f"image: it is for {made_for[0]}/{made_for[1]}, and this machine is linux/{architecture()}; "
            "name an image for this architecture",
            field="image",
        )


def _env(lines: Sequence[Any]) -> dict[str, str]:
    pairs = (_text(line).partition("=") for line in lines)
    return {name: value for name, _, value in pairs if name}


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise TypeError("a value is no text")
    return value


def _seconds(timestamp: Any) -> float:
    try:
        return max(0.0, datetime.fromisoformat(timestamp).timestamp())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _invalid(why: str) -> InvalidRequest:
    return InvalidRequest(f"image: its configuration cannot be used: {why}", field="image")
