"""The daemon's images: looks them up, pulls, loads, tags and removes them. Blocks: called in the engine's
threads."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from docker import APIClient
from docker.errors import APIError
from docker.utils import parse_repository_tag

from shoal.actors.engines.docker.failures import docker_errors, explanation, from_pull
from shoal.actors.engines.image_store import ImageConfig, ImageInfo
from shoal.actors.engines.references import check_reference
from shoal.model.errors import FailedPrecondition, ImageNotFound

CONFIG_LABEL: Final = "shoal.config"
"""The defaults of an image that Shoal made, as JSON. The daemon's own record of them would also hold what a container
was given for itself."""


class Images:
    """The node's images. The answer for a reference is remembered for `ttl` seconds."""

    def __init__(self, client: APIClient, *, ttl: float = 10.0) -> None:
        self._client = client
        self._ttl = ttl
        self._known: dict[str, tuple[float, ImageInfo]] = {}

    def get(self, reference: str) -> ImageInfo | None:
        """The image, if it is on this node."""
        check_reference(reference)
        at, image = self._known.get(reference, (0.0, None))
        if image is not None and time.monotonic() - at < self._ttl:
            return image
        with docker_errors(f"look up image {reference}"):
            try:
                found = self._client.inspect_image(reference)
            except APIError as error:
                if error.status_code != 404:
                    raise
                self.forget(reference)
                return None
        image = _image_info(reference, found)
        self._known[reference] = (time.monotonic(), image)
        return image

    def need(self, reference: str) -> ImageInfo:
        """The image; `ImageNotFound` if it is not on this node."""
        image = self.get(reference)
        if image is None:
            raise ImageNotFound(f"image {reference} is not on this node; pull it first, or load it on the node")
        return image

    def pull_as(self, reference: str, name: str, username: str, password: str) -> ImageInfo:
        """Fetches it with credentials. It has the reference, which the daemon gives it, only meanwhile."""
        named = self.get(reference)
        self.pull(reference, {"username": username, "password": password})
        try:
            self.tag(reference, name)
        finally:
            if named is None:
                self.remove(reference)
            else:
                self.tag(named.digest, reference)
        return self.need(name)

    def pull(self, reference: str, auth: dict[str, str] | None = None) -> ImageInfo:
        """Fetches the image, or the missing parts of it. Takes minutes for a large one. `auth`: the credentials; None:
        those that the daemon's client has."""
        check_reference(reference)
        repository, tag = parse_repository_tag(reference)
        # Without a tag the daemon would fetch all tags.
        tag = tag or "latest"
        with docker_errors(f"pull image {reference}"):
            try:
                for message in self._client.pull(repository, tag=tag, stream=True, decode=True, auth_config=auth):
                    if "error" in message:
                        raise from_pull(str(message["error"]), reference)
            except APIError as error:
                raise from_pull(explanation(error), reference) from error
        self.forget(reference)
        return self.need(reference)

    def all(self) -> list[ImageInfo]:
        """Every image of the daemon."""
        with docker_errors("list the images"):
            found = self._client.images()
        images = []
        for each in found:
            tags = [tag for tag in each.get("RepoTags") or () if tag != "<none>:<none>"]
            images += [_image_info(reference, self._inspect(each["Id"])) for reference in tags or [each["Id"]]]
        return images

    def load(self, archive: Path, reference: str, config: ImageConfig) -> ImageInfo:
        """Imports a tar of a root filesystem."""
        check_reference(reference)
        repository, tag = parse_repository_tag(reference)
        with docker_errors(f"load image {reference}"):
            answer = self._client.import_image_from_file(
                str(archive), repository=repository, tag=tag or "latest", changes=_changes(config)
            )
        self.forget(reference)
        found = self.get(reference)
        if found is None:
            raise FailedPrecondition(f"the engine did not load {archive}: {answer[-300:]}")
        return found

    def config_of(self, found: dict[str, Any]) -> ImageConfig:
        """The defaults of an image. `found`: the daemon's description."""
        return _image_info("", found).config

    def tag(self, digest: str, reference: str) -> None:
        """Gives an image a name."""
        check_reference(reference)
        repository, tag = parse_repository_tag(reference)
        with docker_errors(f"name image {reference}"):
            self._client.tag(digest, repository, tag or "latest", force=True)
        self.forget(reference)

    def push(self, digest: str, reference: str) -> str:
        """Sends an image to a registry, under a name that it has only meanwhile. Takes minutes for a large one."""
        check_reference(reference, "reference")
        self.need(digest)
        named = self.get(reference)
        self.tag(digest, reference)
        repository, tag = parse_repository_tag(reference)
        pushed = ""
        try:
            with docker_errors(f"push image {reference}"):
                for message in self._client.push(repository, tag=tag or "latest", stream=True, decode=True):
                    if "error" in message:
                        raise FailedPrecondition(
                            f"image: the registry does not take {reference}: {message['error']}", field="reference"
                        )
                    pushed = (message.get("aux") or {}).get("Digest", pushed)
        finally:
            if named is None:
                self.remove(reference)
            else:
                self.tag(named.digest, reference)
        return pushed

    def remove(self, reference: str) -> None:
        """Removes a name, or an image with all its names."""
        check_reference(reference)
        names = [reference]
        with docker_errors(f"remove image {reference}"):
            try:
                if reference.startswith("sha256:"):
                    names = self._client.inspect_image(reference).get("RepoTags") or names
                for name in names:
                    self._client.remove_image(name)
            except APIError as error:
                if error.status_code != 404:
                    raise
        for name in (reference, *names):
            self.forget(name)

    def _inspect(self, digest: str) -> dict[str, Any]:
        with docker_errors(f"look up image {digest}"):
            found: dict[str, Any] = self._client.inspect_image(digest)
            return found

    def forget(self, reference: str) -> None:
        self._known.pop(reference, None)


def _changes(config: ImageConfig) -> list[str]:
    """The lines that give an image its defaults, as the daemon takes them."""
    lines = [f"ENV {name}={json.dumps(value)}" for name, value in config.env.items()]
    lines += [f"WORKDIR {config.workdir}", f"LABEL {CONFIG_LABEL}={json.dumps(json.dumps(asdict(config)))}"]
    if config.user:
        lines.append(f"USER {config.user}")
    return lines


def _image_info(reference: str, found: dict[str, Any]) -> ImageInfo:
    config = found.get("Config") or {}
    return ImageInfo(
        reference=reference,
        digest=found["Id"],
        config=_own_config(config) or _config(config),
        size=int(found.get("Size") or 0),
        created_at=_seconds(found.get("Created") or ""),
    )


def _own_config(config: dict[str, Any]) -> ImageConfig | None:
    text = (config.get("Labels") or {}).get(CONFIG_LABEL)
    if text is None:
        return None
    said = json.loads(text)
    return ImageConfig(**{**said, "entrypoint": tuple(said["entrypoint"]), "command": tuple(said["command"])})


def _config(config: dict[str, Any]) -> ImageConfig:
    pairs = (entry.partition("=") for entry in config.get("Env") or ())
    return ImageConfig(
        env={name: value for name, _, value in pairs},
        user=config.get("User") or "",
        workdir=config.get("WorkingDir") or "/",
        entrypoint=tuple(config.get("Entrypoint") or ()),
        command=tuple(config.get("Cmd") or ()),
        labels=dict(config.get("Labels") or {}),
    )


def _seconds(timestamp: str) -> float:
    try:
        return datetime.fromisoformat(timestamp).timestamp()
    except ValueError:
        return 0.0
