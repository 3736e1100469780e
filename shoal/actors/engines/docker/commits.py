"""Makes images of containers. Blocks: called in the engine's threads.

The daemon's own commit also records what the container was given for itself: its variables, labels and entry point. So
the daemon stores the layer, and then gets a description of the image that names this layer and holds what an image
should.
"""

from __future__ import annotations

import io
import json
import tarfile
from contextlib import ExitStack
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

from docker import APIClient
from docker.errors import APIError
from docker.utils import parse_repository_tag

from shoal.actors.engines.disks import Disks
from shoal.actors.engines.docker import disk as own_disk
from shoal.actors.engines.docker.failures import docker_errors
from shoal.actors.engines.docker.images import CONFIG_LABEL, Images
from shoal.actors.engines.docker.request import container_name
from shoal.actors.engines.image_store import ImageConfig, ImageInfo
from shoal.actors.engines.references import check_reference
from shoal.model.errors import FailedPrecondition, NotFound

UNFINISHED: Final = "-unfinished"
"""What the name of an image ends with whose description is not right yet."""


def commit(
    client: APIClient, images: Images, disks: Disks | None, key: str, config: ImageConfig | None, reference: str
) -> ImageInfo:
    """An image of a container's root filesystem, under that name."""
    check_reference(reference)
    unfinished = f"{reference}{UNFINISHED}"
    with ExitStack() as undo, docker_errors(f"take an image of container {key}"):
        try:
            container = client.inspect_container(container_name(key))
        except APIError as error:
            if error.status_code == 404:
                raise NotFound(f"there is no container {key} on this node") from error
            raise
        _mount_disk(disks, key, container, undo)
        repository, tag = parse_repository_tag(unfinished)
        below = client.inspect_image(container["Image"])
        undo.callback(images.remove, unfinished)
        layers = client.commit(container_name(key), repository=repository, tag=tag, pause=True)
        found = client.inspect_image(layers["Id"])
        wanted = images.config_of(below) if config is None else config
        description = json.dumps(_description(found, below.get("Config") or {}, wanted)).encode()
        for message in client.load_image(_archive(description, reference, len(found["RootFS"]["Layers"]))):
            if "error" in message:
                raise FailedPrecondition(f"could not take an image of container {key}: {message['error']}")
    images.forget(reference)
    made = images.need(reference)
    if made.digest != f"sha256:{sha256(description).hexdigest()}":
        raise FailedPrecondition(f"the engine has taken another image for that of container {key}: {made.digest}")
    return made


def _mount_disk(disks: Disks | None, key: str, container: dict[str, Any], undo: ExitStack) -> None:
    """The disk of a container that is kept and has exited is put away: it is mounted meanwhile."""
    stopped = container["State"]["Status"] not in ("running", "paused")
    if stopped and disks is not None and own_disk.point_of(container) is not None:
        own_disk.open_again(disks, key, container)
        undo.callback(own_disk.put_away, key, container)


def _description(found: dict[str, Any], below: dict[str, Any], config: ImageConfig) -> dict[str, Any]:
    """An image as the daemon reads it. `found`: the one that it made, whose layers are right; `below`: what the image
    below says of its processes, which holds but for what `config` says."""
    labels = {name: value for name, value in config.labels.items() if name != CONFIG_LABEL}
    return {
        "architecture": found["Architecture"],
        "os": found["Os"],
        "created": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "config": {
            **{name: below[name] for name in ("Volumes", "ExposedPorts", "StopSignal") if below.get(name)},
            "Env": [f"{name}={value}" for name, value in config.env.items()],
            "User": config.user,
            "WorkingDir": config.workdir,
            "Entrypoint": list(config.entrypoint) or None,
            "Cmd": list(config.command) or None,
            "Labels": labels or None,
        },
        "rootfs": {"type": "layers", "diff_ids": found["RootFS"]["Layers"]},
    }


def _archive(description: bytes, reference: str, layers: int) -> bytes:
    """An archive of an image all of whose layers the daemon has: so it reads none of them."""
    name = f"{sha256(description).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [reference], "Layers": [f"{number}.tar" for number in range(layers)]}]
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for path, data in ((name, description), ("manifest.json", json.dumps(manifest).encode())):
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return made.getvalue()
