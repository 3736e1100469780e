"""Where images come from and go to, other than nodes: registries, archives of `docker save`, directories in the OCI
layout."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from shoal.actors.engines.oci.layers import ecr
from shoal.actors.engines.oci.layers.config_blob import parse_config
from shoal.actors.engines.oci.layers.drafts import Draft
from shoal.actors.engines.oci.layers.image_files import Image
from shoal.actors.engines.oci.layers.maker import Maker, check_archive
from shoal.actors.engines.oci.layers.program import Progress, run_layers
from shoal.model.errors import InvalidRequest, Unavailable

_AT_ONCE: Final = 3  # layers of one image
_ATTEMPTS: Final = 3  # for a layer, while the registry does not answer
_PAUSE_S: Final = 0.5  # after the first attempt
_INSPECT_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """For one registry. `insecure`: it speaks plain HTTP, or nobody vouches for its certificate."""

    username: str = ""
    password: str = field(default="", repr=False)
    insecure: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """Where an image lies. `reference`: in a registry; else that of one of several images, or empty."""

    kind: str
    reference: str = ""
    path: str = ""
    credentials: Credentials = field(default_factory=Credentials)

    def request(self) -> dict[str, Any]:
        """As the program takes it."""
        access = self.credentials
        registry = {"username": access.username, "password": access.password, "insecure": access.insecure}
        return {"kind": self.kind, "reference": self.reference, "path": self.path, "registry": registry}


def in_registry(reference: str, credentials: Credentials | None = None) -> Source:
    """Without credentials AWS's own count for its registries, and else those of Docker's configuration."""
    if credentials is None:
        credentials = Credentials(*(ecr.login(reference) or ()))
    return Source("registry", reference, credentials=credentials)


def at_path(path: Path, name: str = "") -> Source:
    """An archive of `docker save`, or a directory in the OCI layout; `InvalidRequest` (field `image`) without it."""
    checked = check_archive(path)
    return Source("oci-layout" if Path(checked).is_dir() else "docker-archive", name, checked)


@dataclass(frozen=True, slots=True)
class _Missing:
    """A layer that is to be fetched."""

    diff_id: str
    listed: dict[str, Any]


def fetch(
    maker: Maker, source: Source, name: str | None, draft: Draft, *, replaceable: bool, progress: Progress | None
) -> Image:
    """Fetches an image, layers that are not here several at a time, and names it. `InvalidRequest` (field `image`) for
    one that is broken, hostile or for another architecture, `ImageNotFound`, `Unavailable`, `QuotaExceeded`."""
    found = run_layers("inspect", {"source": source.request()}, timeout=_INSPECT_S)
    config, listed = base64.b64decode(found["config"]), found["layers"] or []
    _, diff_ids, _ = parse_config(config)
    if len(diff_ids) != len(listed):
        raise InvalidRequest(
            f"image: its configuration has {len(diff_ids)} layers and its manifest {len(listed)}", field="image"
        )
    draft.want(diff_ids)
    wanted = [_Missing(*pair) for pair in dict(zip(diff_ids, listed, strict=True)).items()]
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="shoal-layers") as threads:
        running = [threads.submit(_fetch_layer, maker, source, each, draft, progress) for each in wanted]
        try:
            for each in running:
                each.result()
        except BaseException:
            threads.shutdown(wait=True, cancel_futures=True)
            raise
    return maker.publish(config, name, draft, replaceable=replaceable)


def _fetch_layer(maker: Maker, source: Source, missing: _Missing, draft: Draft, progress: Progress | None) -> None:
    request: dict[str, Any] = {"source": source.request(), "layer": missing.listed, "diff_id": missing.diff_id}
    for attempt in range(_ATTEMPTS):
        with maker.only_one(missing.diff_id):
            if maker.layers.find(missing.diff_id) is not None:
                return
            try:
                maker.unpack("fetch", request, draft, progress)
                return
            except Unavailable:
                if attempt == _ATTEMPTS - 1:
                    raise
        time.sleep(_PAUSE_S * 2**attempt)


def push(source: Source, config: bytes, layers: Sequence[tuple[str, Path]], draft: Draft) -> str:
    """Sends an image to a registry, and returns the digest by which that knows it. `layers`: diff id and directory,
    lowest first."""
    run_layers("may-push", {"source": source.request()}, timeout=_INSPECT_S)  # before layers are packed for it
    files = []
    for number, (diff_id, directory) in enumerate(layers):
        path = draft.path / f"blob-{number}"
        export = {"layer": str(directory), "diff_id": diff_id, "output": str(path), "compression": "gzip"}
        made = run_layers("export", export, keep=(draft.descriptor,))
        files.append({"path": str(path), **made})
    request: dict[str, Any] = {"source": source.request(), "config": base64.b64encode(config).decode(), "layers": files}
    return str(run_layers("push", request, keep=(draft.descriptor,))["digest"])
