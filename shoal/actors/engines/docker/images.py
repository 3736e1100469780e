"""Looks images up and pulls them. Blocks: called in the engine's threads."""

from __future__ import annotations

import time
from typing import Any

from docker import APIClient
from docker.errors import APIError
from docker.utils import parse_repository_tag

from shoal.actors.engines.contract import ImageInfo
from shoal.actors.engines.docker.failures import docker_errors, explanation, from_pull
from shoal.actors.engines.references import check_reference
from shoal.model.errors import ImageNotFound


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

    def pull(self, reference: str) -> ImageInfo:
        """Fetches the image, or the missing parts of it. Takes minutes for a large one."""
        check_reference(reference)
        repository, tag = parse_repository_tag(reference)
        # Without a tag the daemon would fetch all tags.
        tag = tag or "latest"
        with docker_errors(f"pull image {reference}"):
            try:
                for message in self._client.pull(repository, tag=tag, stream=True, decode=True):
                    if "error" in message:
                        raise from_pull(str(message["error"]), reference)
            except APIError as error:
                raise from_pull(explanation(error), reference) from error
        self.forget(reference)
        return self.need(reference)

    def forget(self, reference: str) -> None:
        self._known.pop(reference, None)


def _image_info(reference: str, found: dict[str, Any]) -> ImageInfo:
    config = found.get("Config") or {}
    pairs = (entry.partition("=") for entry in config.get("Env") or ())
    return ImageInfo(
        reference=reference,
        digest=found["Id"],
        env={name: value for name, _, value in pairs},
        user=config.get("User") or "",
        workdir=config.get("WorkingDir") or "/",
        size=int(found.get("Size") or 0),
    )
