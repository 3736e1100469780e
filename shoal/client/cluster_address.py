"""Which cluster to connect to: the caller's argument, the environment, the user's config file, in this order."""

from __future__ import annotations

import os
from dataclasses import dataclass

from shoal.client import config_file
from shoal.model.errors import FailedPrecondition, InvalidRequest
from shoal.model.validate import check_text


@dataclass(frozen=True, slots=True)
class Api:
    """The HTTP API at `url`."""

    url: str
    token: str | None
    ca: str | None

    def __repr__(self) -> str:
        return f"<Api {self.url}>"


@dataclass(frozen=True, slots=True)
class RayCluster:
    """A Ray cluster. `address` None: the one that this process is in, or this machine's."""

    address: str | None


def named(address: str, token: str | None, ca: str | None) -> Api | RayCluster:
    """The cluster at an address; `InvalidRequest` if the arguments do not fit it."""
    check_text("address", address, "an API's URL, or host:port of Ray")
    if "://" in address and not address.lower().startswith("ray://"):
        return api(address, token, ca)
    if token is not None or ca is not None:
        raise InvalidRequest(
            f"address: {address!r} is a Ray address, which takes no `token` or `ca`; an API's URL starts with "
            "http:// or https://",
            field="address",
        )
    return RayCluster(address)


def api(url: str, token: str | None, ca: str | None) -> Api:
    """The API at `url`. Token and CA default to SHOAL_TOKEN and SHOAL_CA, else to the config file's."""
    from shoal.transport.http_server import normal_url

    base = normal_url(url)
    token = token if token is not None else os.environ.get("SHOAL_TOKEN") or None
    ca = ca if ca is not None else os.environ.get("SHOAL_CA") or None
    if token is None or ca is None:
        known = config_file.read().servers.get(base, config_file.ServerEntry())
        token, ca = token if token is not None else known.token, ca if ca is not None else known.ca
    return Api(base, token, ca)


def from_environment(token: str | None, ca: str | None) -> Api | RayCluster | None:
    """The cluster that SHOAL_URL names, else RAY_ADDRESS; None if neither is set."""
    url = os.environ.get("SHOAL_URL")
    if url:
        return api(url, token, ca)
    address = os.environ.get("RAY_ADDRESS")
    return RayCluster(address) if address else None


def from_config(token: str | None, ca: str | None) -> Api | None:
    """The config file's default; None if it has none."""
    default = config_file.read().default
    return None if default is None else api(default, token, ca)


def nothing(*, is_joined: bool = False) -> FailedPrecondition:
    """No cluster was found; the message lists all ways to name one. `is_joined`: this machine is a node of one."""
    if is_joined:
        return FailedPrecondition(
            "this machine is a node of a cluster whose head answers: run this there, or name the head's API by "
            "`shoal login URL`, or SHOAL_URL with SHOAL_TOKEN",
            state="no_cluster",
        )
    return FailedPrecondition(
        "no cluster found: run `shoal up` to start one on this machine; or name an API by `shoal login URL`, SHOAL_URL "
        "with SHOAL_TOKEN, or `shoal.connect(url, token=...)`; or a Ray cluster by RAY_ADDRESS or "
        '`shoal.connect("host:port")`',
        state="no_cluster",
    )
