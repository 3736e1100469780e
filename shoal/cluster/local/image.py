"""Provides an engine with the default image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import docker

from shoal.cluster.local import packages
from shoal.images import base
from shoal.model.errors import FailedPrecondition, ImageNotFound, Unavailable
from shoal.model.report import Report

RECIPE_LABEL = "shoal.base.recipe"

_TIMEOUT_S = 300.0


def ensure(address: str, reference: str, cache: Path, report: Report) -> None:
    """Provides the engine at `address` with the image `reference`.

    `shoal/base` is built here where it is missing; any other reference is pulled. `shoal/base` itself is never looked
    for in a registry: it names none, and what a public registry has under it is not ours.
    """
    client = _connect(address)
    try:
        if present(client, reference):
            return
        if reference.removesuffix(":latest") == base.REFERENCE:
            packages.ensure(packages.BASE_IMAGE_PROGRAMS, report)
            _import(client, base.build(base.recipe(), cache, report), report)
        else:
            _pull(client, reference, report)
    finally:
        client.close()


def there(address: str, reference: str) -> bool:
    """Whether the engine at `address` has the image."""
    client = _connect(address)
    try:
        return present(client, reference)
    finally:
        client.close()


def present(client: Any, reference: str) -> bool:
    try:
        client.images.get(reference)
    except docker.errors.ImageNotFound:
        return False
    return True


def _connect(address: str) -> Any:
    try:
        return docker.DockerClient(base_url=address, timeout=_TIMEOUT_S, version="auto")
    except docker.errors.DockerException as error:
        raise Unavailable(f"no Docker engine answers at {address}: {error}") from None


def _import(client: Any, archive: Path, report: Report) -> None:
    changes = [*base.IMAGE_CHANGES, f"LABEL {RECIPE_LABEL}={archive.stem.rpartition('-')[2]}"]
    with report(f"Importing {base.REFERENCE}"):
        try:
            answer = client.api.import_image_from_file(
                str(archive), repository=base.REFERENCE, tag="latest", changes=changes
            )
        except docker.errors.APIError as error:
            raise FailedPrecondition(f"the engine refused {archive}: {error.explanation}") from None
        if not present(client, base.REFERENCE):
            raise FailedPrecondition(f"the engine did not import {archive}: {answer[-300:]}")


def _pull(client: Any, reference: str, report: Report) -> None:
    tag = None if ":" in reference.rpartition("/")[2] or "@" in reference else "latest"
    with report(f"Pulling {reference}"):
        try:
            client.images.pull(reference, tag=tag)
        except docker.errors.APIError as error:
            raise ImageNotFound(
                f"image: cannot pull {reference} ({error.explanation}); choose another, or unset SHOAL_SANDBOX__IMAGE"
            ) from None
