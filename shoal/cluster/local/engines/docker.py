"""A Docker engine: the one that runs, or one of Shoal's own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import docker
import requests
from docker.utils import parse_repository_tag
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from shoal.actors.engines.docker.failures import docker_errors
from shoal.actors.engines.docker.removal import remove_container, stop_container
from shoal.actors.engines.docker.request import KEY_LABEL, is_kept
from shoal.actors.names import CLUSTER_LABEL, image_reference
from shoal.cluster.local import packages
from shoal.cluster.local.checks import Check
from shoal.cluster.local.engines import docker_daemon as daemon
from shoal.cluster.local.engines.contract import EngineKind, LocalEngine
from shoal.cluster.local.engines.docker_daemon import Daemon
from shoal.cluster.local.mounts import unmount_below
from shoal.images import base
from shoal.model import programs
from shoal.model.errors import FailedPrecondition, ImageNotFound, InvalidRequest, ShoalError, Unavailable
from shoal.model.report import Report
from shoal.model.settings import Settings

RECIPE_LABEL = "shoal.base.recipe"

_TIMEOUT_S = 300.0
_REMOVE_S = 60.0


class DockerLocal(LocalEngine):
    """The engine of one daemon."""

    kind = "docker"

    def __init__(self, found: Daemon, settings: Settings) -> None:
        self.address = found.address
        self.process = found.process
        self._settings = settings

    def answers(self, timeout_s: float = 3.0) -> bool:
        return daemon.answers(self.address, timeout_s)

    def has_image(self, reference: str) -> bool:
        with self._client() as client:
            return _present(client, reference)

    def ensure_image(self, reference: str, cache: Path, report: Report) -> None:
        with self._client() as client:
            if _present(client, reference):
                return
            if base.is_base(reference):
                packages.ensure(packages.BASE_IMAGE_PROGRAMS, report)
                _import(client, base.build(base.recipe(), cache, report), report)
            else:
                _pull(client, reference, report)

    def load_image(self, source: Path, reference: str, *, root: bool) -> str:
        if source.is_dir():
            raise InvalidRequest("image: the Docker engine loads archives of `docker save` only", field="image")
        repository, tag = parse_repository_tag(reference)
        with self._client() as client, docker_errors(f"load {source}"):
            if root:
                client.api.import_image_from_file(str(source), repository=repository, tag=tag or "latest")
                return str(client.api.inspect_image(reference)["Id"])
            with source.open("rb") as archive:
                loaded = client.images.load(archive)
            if len(loaded) != 1:
                raise InvalidRequest(f"image: the archive holds {len(loaded)} images, not one", field="image")
            loaded[0].tag(repository, tag or "latest")
            return str(loaded[0].id)

    def containers(self, labels: Mapping[str, str]) -> list[str]:
        with self._client(_REMOVE_S) as client:
            found = client.api.containers(all=True, filters=_filters({KEY_LABEL: None, **labels}))
        return [container["Labels"][KEY_LABEL] for container in found]

    def processes(self) -> set[int]:
        found = {daemon.listener(self.address)}
        with self._client(_REMOVE_S) as client:
            for container in client.api.containers():
                with contextlib.suppress(docker.errors.NotFound):  # gone since
                    first = int(client.api.inspect_container(container["Id"])["State"]["Pid"])
                    found |= {first, _parent(first)}
        return {pid for pid in found if pid > 1}

    def sweep(self, labels: Mapping[str, str], *, keep: bool) -> None:
        filters = _filters(labels)
        try:
            with self._client(_REMOVE_S) as client:
                for container in client.api.containers(all=True, filters=filters):
                    own = container["Labels"] or {}
                    if keep and is_kept(own):
                        _insist(stop_container, client.api, container["Id"], own[KEY_LABEL])
                    else:
                        _insist(remove_container, client.api, container["Id"], own.get(KEY_LABEL))
                found = client.api.containers(all=True, filters=filters)
                if not keep and (cluster := labels.get(CLUSTER_LABEL)) is not None:
                    _remove_images(client, cluster)
        except (docker.errors.DockerException, requests.RequestException) as error:
            raise FailedPrecondition(
                f"the engine at {self.address} does not answer: {error}; start it, then `shoal down` again"
            ) from None
        left = [container for container in found if not (keep and _rests(container))]
        if left:
            raise FailedPrecondition(
                f"the engine at {self.address} does not remove {len(left)} containers; "
                "restart it, then `shoal down` again"
            )

    def stop(self, *, keep: bool) -> None:
        if self.process is None:
            return
        self.sweep({}, keep=keep)
        daemon.stop(self.process)
        unmount_below(self._settings.run_dir)
        unmount_below(self._settings.state_dir / "engine")
        daemon.forget(self._settings.run_dir)

    @contextmanager
    def _client(self, timeout_s: float = _TIMEOUT_S) -> Iterator[Any]:
        try:
            client = docker.DockerClient(base_url=self.address, timeout=timeout_s, version="auto")
        except docker.errors.DockerException as error:
            raise Unavailable(f"no Docker engine answers at {self.address}: {error}") from None
        with closing(client):
            yield client


def _remove_images(client: Any, cluster: str) -> None:
    """Those of a cluster's sandboxes and builds. One that somebody else's container uses stays."""
    for image in client.api.images(filters={"reference": f"{image_reference(cluster)}*"}):
        for name in image["RepoTags"] or ():
            if name.startswith(image_reference(cluster)):
                with contextlib.suppress(docker.errors.APIError):
                    client.api.remove_image(name)


class DockerKind(EngineKind):
    name = "docker"

    def problem(self, settings: Settings) -> str | None:
        return None if self.there(settings) or programs.find("dockerd") else "it is not on this machine"

    def provide(self, settings: Settings, report: Report) -> LocalEngine:
        found = daemon.ensure(settings.engine_address, settings.state_dir, settings.run_dir, report)
        return DockerLocal(found, settings)

    def at(self, address: str, settings: Settings) -> LocalEngine | None:
        return DockerLocal(Daemon(address), settings) if _is_address(address) else None

    def again(self, address: str, settings: Settings, *, own: bool) -> LocalEngine | None:
        run_dir = settings.run_dir
        if address and not _is_address(address):
            return None
        if address and address != daemon.own_address(run_dir):
            return DockerLocal(Daemon(address), settings) if daemon.answers(address) else None
        if own or daemon.leftover(run_dir) is not None:
            try:
                return DockerLocal(daemon.start(settings.state_dir, run_dir), settings)
            except ShoalError:
                return None
        return None

    def there(self, settings: Settings) -> LocalEngine | None:
        own = daemon.leftover(settings.run_dir)
        if not settings.engine_address and own is not None:
            return DockerLocal(Daemon(daemon.own_address(settings.run_dir), own), settings)
        address = daemon.running(settings.engine_address, os.environ)
        return None if address is None else DockerLocal(Daemon(address, own), settings)

    def leftover(self, settings: Settings) -> bool:
        return daemon.leftover(settings.run_dir) is not None

    def checks(self, settings: Settings) -> Iterator[Check]:
        for program, package in {"iptables": "iptables", "dockerd": "docker.io"}.items():
            path = programs.find(program)
            if path is None and program == "dockerd" and daemon.answers(daemon.USUAL_ADDRESS):
                yield Check(program, True, "not here, but an engine answers")
            elif path is None:
                yield Check(program, False, "not on this machine", packages.install_command([package]))
            else:
                yield Check(program, True, path)


def _is_address(address: str) -> bool:
    return address.partition("://")[0] in ("unix", "tcp", "http", "https", "ssh", "npipe")


def _filters(labels: Mapping[str, str | None]) -> dict[str, list[str]]:
    return {"label": [name if value is None else f"{name}={value}" for name, value in labels.items()]}


def _parent(pid: int) -> int:
    """Of a container's first process: what stands between it and the daemon."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _insist(work: Callable[..., None], *arguments: Any) -> None:
    """Removes or stops one container, however often that fails within a minute. If it stays, the caller sees it."""
    with contextlib.suppress(docker.errors.APIError, requests.RequestException, OSError, Unavailable):
        Retrying(
            retry=retry_if_exception_type((docker.errors.APIError, requests.RequestException, Unavailable)),
            wait=wait_fixed(0.1),
            stop=stop_after_delay(_REMOVE_S),
            reraise=True,
        )(work, *arguments)


def _rests(container: dict[str, Any]) -> bool:
    return is_kept(container["Labels"]) and container["State"] not in ("running", "paused", "restarting")


def _present(client: Any, reference: str) -> bool:
    try:
        client.images.get(reference)
    except docker.errors.ImageNotFound:
        return False
    return True


def _import(client: Any, archive: Path, report: Report) -> None:
    changes = [*base.IMAGE_CHANGES, f"LABEL {RECIPE_LABEL}={archive.stem.rpartition('-')[2]}"]
    with report(f"Importing {base.REFERENCE}"):
        try:
            answer = client.api.import_image_from_file(
                str(archive), repository=base.REFERENCE, tag="latest", changes=changes
            )
        except docker.errors.APIError as error:
            raise FailedPrecondition(f"the engine refused {archive}: {error.explanation}") from None
        if not _present(client, base.REFERENCE):
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
