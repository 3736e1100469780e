"""The text by which another machine may join: Ray's token, the cluster's id, and the versions that must agree.

Whoever has it owns the cluster, as whoever has Ray's token does. It is void once the cluster is started anew.
"""

from __future__ import annotations

import base64
import binascii
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from shoal.model.cluster_file import ClusterFile
from shoal.model.errors import FailedPrecondition, InvalidRequest

VARIABLE = "SHOAL_JOIN_TOKEN"
MOST_BYTES = 4096

_PREFIX = "shoaljoin_"


@dataclass(frozen=True, slots=True)
class JoinToken:
    """`versions`: of Shoal, Ray and Python (`3.11`) on the head, by their names."""

    cluster: str
    ray_token: str
    versions: Mapping[str, str]

    def text(self) -> str:
        data = {"cluster": self.cluster, "ray_token": self.ray_token, "versions": dict(self.versions)}
        return _PREFIX + base64.urlsafe_b64encode(json.dumps(data, separators=(",", ":")).encode()).decode().rstrip("=")

    def check_versions(self) -> None:
        """`FailedPrecondition` where the head's versions are others than this machine's: Ray's processes of different
        versions do not understand each other, and neither do Shoal's."""
        here = versions_here()
        other = {name: (there, here.get(name)) for name, there in self.versions.items() if here.get(name) != there}
        if not other:
            return
        told = ", ".join(f"{name} {mine} instead of {there}" for name, (there, mine) in sorted(other.items()))
        packages = [f"{name}=={there}" for name, (there, _) in sorted(other.items()) if name != "python"]
        remedies = [f"pip install {' '.join(packages)}"] if packages else []
        if "python" in other:
            remedies.append(f"use Python {other['python'][0]}")
        raise FailedPrecondition(
            f"this machine has {told}, which the head has; {' and '.join(remedies)} here, then join again",
            state="other_version",
        )


def of_cluster(cluster: ClusterFile) -> JoinToken:
    """The token of the cluster that runs on this machine."""
    try:
        ray_token = Path(cluster.auth_token_path).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPrecondition(f"Ray's token cannot be read ({error}); run as the user of `shoal up`") from None
    return JoinToken(cluster.cluster, ray_token, versions_here())


def parse(text: str) -> JoinToken:
    """The token in `text`; `InvalidRequest` if it is none."""
    body = text.strip()
    try:
        if not body.startswith(_PREFIX) or len(body) > MOST_BYTES:
            raise ValueError
        encoded = body.removeprefix(_PREFIX).encode("ascii")
        data = json.loads(base64.b64decode(encoded + b"=" * (-len(encoded) % 4), altchars=b"-_", validate=True))
        cluster, ray_token, versions = data["cluster"], data["ray_token"], data["versions"]
        if not all(isinstance(each, str) for each in (cluster, ray_token, *versions, *versions.values())):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
        raise InvalidRequest(
            f"token: this is no join token, which begins with {_PREFIX}; `shoal node token` on the head prints it",
            field="token",
        ) from None
    if not (cluster.isascii() and cluster.isalnum() and len(cluster) <= 64):  # becomes part of paths
        raise InvalidRequest("token: the cluster's id in it makes no sense", field="token")
    return JoinToken(cluster, ray_token, versions)


def versions_here() -> dict[str, str]:
    return {
        "shoal": version("shoal"),
        "ray": version("ray"),
        "python": ".".join(platform.python_version_tuple()[:2]),
    }
