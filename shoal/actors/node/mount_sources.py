"""The node's files that its containers mount: the agent, a few settings, and a directory each with the relay's socket.

They lie in a file system of their own, in memory, because code in a container reads in `/proc/self/mountinfo` where in
its file system a mounted file lies. Here that is a short path which says nothing of the node.

<run_dir>/<cluster>/mounted/            the file system; 0700, as is the directory above it
<run_dir>/<cluster>/mounted/<name>      a file for all containers
<run_dir>/<cluster>/mounted/<digest>/   a container's directory: the socket, and the secret until its agent has used it
<run_dir>/<cluster>/c/<key>             a link to it, by which the relay finds it
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

from shoal.actors.engines.disks import mounts
from shoal.model.private_directory import make_private_directory

log = logging.getLogger("shoal.node")

_SIZE_MIB = 256
"""An upper bound: some MiB for the agent, and a few pages for each container."""
_COMMAND_S = 10.0


class MountSources:
    """The files of one node. `top`: `<run_dir>/<cluster>`. All methods block and are idempotent."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.root = top / "mounted"
        self.links = top / "c"

    def open(self) -> None:
        """Makes the directories and mounts the file system, unless it is; goes without it where it may not mount."""
        for directory in (self.top, self.links, self.root):
            make_private_directory(directory)
        if self.root.is_mount():
            return
        options = f"mode=0700,nosuid,nodev,size={_SIZE_MIB}m"
        error = _run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.root))
        if error:
            log.warning("sandboxes can read the path of %s, because mounting a tmpfs there failed: %s", self.top, error)

    def put(self, name: str, content: bytes, mode: int = 0o444) -> Path:
        """A file with this content. Containers that have mounted an earlier one of this name keep that."""
        file = self.root / name
        if not file.exists() or file.read_bytes() != content:
            temporary = self.root / f"{name}.new"
            temporary.write_bytes(content)
            temporary.chmod(mode)
            temporary.replace(file)
        return file

    def make(self, key: str, secret: bytes) -> Path:
        """A container's directory, with the secret that its agent reads when it starts."""
        directory = self._directory(key)
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)  # with user namespaces the agent is an unprivileged user of the node
        file = directory / "secret"
        file.write_bytes(secret)
        file.chmod(0o444)
        link = self.links / key
        if not link.is_symlink():
            link.symlink_to(directory)
        return directory

    def remove(self, key: str) -> None:
        """Removes a container's directory. Its container is gone."""
        (self.links / key).unlink(missing_ok=True)
        shutil.rmtree(self._directory(key), ignore_errors=True)

    def close(self) -> None:
        """Removes everything, with the directory above. No container is left that uses it."""
        if self.root.is_mount():
            error = _run("umount", "--lazy", str(self.root))
            if error:
                log.warning("%s cannot be unmounted: %s", self.root, error)
        if not unmount_below(self.top):
            log.warning("%s stays: something is still mounted there", self.top)
            return
        shutil.rmtree(self.top, ignore_errors=True)

    def _directory(self, key: str) -> Path:
        """Named by a digest of the key, so that the key is not in the path."""
        return self.root / hashlib.sha256(key.encode()).hexdigest()[:16]


def unmount_below(directory: Path) -> bool:
    """Unmounts everything below a directory; whether nothing is mounted there any more. Before a tree is removed: what
    is mounted, such as a volume, would be removed with it."""
    for entry in reversed(mounts.table()):
        if directory in entry.point.parents:
            with suppress(OSError):
                mounts.detach(entry.point)
    return not any(directory in entry.point.parents for entry in mounts.table())


def _run(*command: str) -> str:
    """What a command says if it fails; empty if it succeeds."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_COMMAND_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"status {done.returncode}"
