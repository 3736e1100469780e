"""Adds an image to this machine's engine, from a file, a directory or the machine's Docker engine."""

from __future__ import annotations

import os
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Final

import docker
import requests
from docker import APIClient

from shoal.actors.engines.references import check_reference
from shoal.cluster.local import engines, joined_file
from shoal.cluster.local import state as local_state
from shoal.cluster.local.engines import LocalEngine
from shoal.model import cluster_file
from shoal.model.errors import FailedPrecondition, ImageNotFound, InvalidRequest, Unavailable
from shoal.model.report import Report
from shoal.model.settings import Settings

DOCKER: Final = "docker:"
"""Before the name of an image that this machine's Docker engine has."""
_SAVE_S: Final = 300.0


def load(settings: Settings, source: str, reference: str, *, root: bool, report: Report) -> str:
    """Adds an image under a name; its digest. `source`: an archive of `docker save`, a directory in the OCI layout,
    with `root` a tar of a root filesystem, or `docker:NAME`. `InvalidRequest` (fields `source`, `image`),
    `ImageNotFound`, `FailedPrecondition` without an engine, `QuotaExceeded`."""
    check_reference(reference)
    engine = _engine(settings)
    if source.startswith(DOCKER):
        with tempfile.TemporaryDirectory(prefix="shoal-", dir=settings.state_dir) as directory:
            archive = Path(directory, "saved.tar")
            with report(f"Saving {source.removeprefix(DOCKER)} from Docker"):
                _save(source.removeprefix(DOCKER), archive)
            with report(f"Loading {reference}"):
                return engine.load_image(archive, reference, root=False)
    if not os.path.exists(source):
        raise InvalidRequest(f"SOURCE: there is no {source}", field="source")
    with report(f"Loading {reference}"):
        return engine.load_image(Path(source), reference, root=root)


def _engine(settings: Settings) -> LocalEngine:
    cluster = cluster_file.read(settings.state_dir)
    if cluster is not None:
        return engines.at(cluster.engine_address, local_state.settings_of(cluster))
    joined = joined_file.read(settings.state_dir)
    if joined is not None:
        return engines.at(joined.engine_address, Settings.from_dict(joined.settings))
    raise FailedPrecondition("this machine is in no cluster; run `shoal up` or `shoal join` first", state="down")


def _save(name: str, archive: Path) -> None:
    """Writes an image of the usual Docker engine to a file."""
    check_reference(name)
    try:
        with archive.open("wb") as file, closing(APIClient(version="auto", timeout=_SAVE_S)) as client:
            file.writelines(client.get_image(name))
    except docker.errors.ImageNotFound as error:
        raise ImageNotFound(f"the Docker engine has no image {name}") from error
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise Unavailable(f"the Docker engine does not answer: {error}") from error
