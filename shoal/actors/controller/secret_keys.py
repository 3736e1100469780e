"""The keys that secrets are encrypted with, and encryption by them.

AES-256-GCM of `cryptography`: what it encrypts cannot be changed, and is bound to a context, so that nobody who may
write to the store can move a secret to another environment. (`Fernet`, the recipe of the same package, binds nothing,
and has 128-bit keys. From it is the way of rotation: the newest key encrypts, all decrypt.)

The keys come from a file with a key per line, the newest first, that is made at the first use; or from the stdout of a
command in the same form, such as a client of a KMS. A key is 32 bytes in base64.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import os
import secrets
import shlex
import subprocess
from pathlib import Path

from shoal.model.errors import FailedPrecondition

_SIZE = 32
_NONCE = 12
_VERSION = "1"
_COMMAND_S = 30.0
_MOST_OUTPUT = 64 << 10


class SecretKeys:
    """The keys of a cluster. `command`: None for the file."""

    def __init__(self, file: Path, command: str | None = None) -> None:
        self._file = file
        self._command = command
        self._keys: dict[str, bytes] = {}
        self._loading = asyncio.Lock()

    @property
    def loaded(self) -> bool:
        """Whether the keys are at hand."""
        return bool(self._keys)

    @property
    def newest(self) -> str:
        """The id of the key that encrypts. After `load`."""
        return next(iter(self._keys))

    async def load(self, *, may_make: bool) -> None:
        """Reads the keys, once. `may_make`: nothing was encrypted yet, so there may be none so far. Raises
        `FailedPrecondition`, with the remedy."""
        async with self._loading:
            if not self._keys:
                self._keys = await asyncio.to_thread(self._read, may_make)

    async def renew(self) -> str:
        """Has a new key encrypt from now on, and returns its id: one that is made and added to the file, or the newest
        of what the command tells now."""
        async with self._loading:
            self._keys = await asyncio.to_thread(self._renewed)
            return self.newest

    def seal(self, data: bytes, context: str) -> str:
        """`data` encrypted, as text. After `load`."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # only where there are secrets

        nonce = os.urandom(_NONCE)
        sealed = AESGCM(self._keys[self.newest]).encrypt(nonce, data, context.encode())
        return f"{_VERSION}.{self.newest}.{base64.b64encode(nonce + sealed).decode()}"

    def unseal(self, sealed: str, context: str) -> bytes:
        """The inverse of `seal`. `FailedPrecondition` without its key, or where it was changed."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        key = self._keys.get(key_id(sealed))
        if key is None:
            raise FailedPrecondition(
                f"a secret is encrypted with key {key_id(sealed)[:16]}, which {self._source} does not have; "
                "put it back, or store the secret again",
                state="no_key",
            )
        try:
            data = base64.b64decode(sealed.rpartition(".")[2], validate=True)
            return AESGCM(key).decrypt(data[:_NONCE], data[_NONCE:], context.encode())
        except (InvalidTag, binascii.Error, ValueError):
            raise FailedPrecondition(
                "a stored secret was changed, or moved from elsewhere; store it again", state="damaged"
            ) from None

    @property
    def _source(self) -> str:
        return str(self._file) if self._command is None else "`secrets.key_command`"

    def _read(self, may_make: bool) -> dict[str, bytes]:
        if self._command is not None:
            return self._told_by_command(self._command)
        try:
            text = self._file.read_text("ascii")
        except FileNotFoundError:
            if not may_make:
                raise FailedPrecondition(
                    f"the key of the cluster's secrets, {self._file}, is gone; put it back, or delete the secrets",
                    state="no_key",
                ) from None
            return self._add({})
        except (OSError, UnicodeDecodeError) as error:
            raise FailedPrecondition(f"{self._file} cannot be read: {error}", state="no_key") from None
        return _parsed(text, str(self._file))

    def _renewed(self) -> dict[str, bytes]:
        if self._command is not None:
            told = self._told_by_command(self._command)
            return {**told, **{name: key for name, key in self._keys.items() if name not in told}}
        return self._add(self._read(may_make=True))

    def _add(self, known: dict[str, bytes]) -> dict[str, bytes]:
        """Writes a new key before the known ones: a crash leaves the file as it was, or as it is to be."""
        key = secrets.token_bytes(_SIZE)
        keys = {_id(key): key, **known}
        new = self._file.with_suffix(".new")
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.writelines(f"{base64.b64encode(each).decode()}\n" for each in keys.values())
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._file)
        directory = os.open(self._file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        return keys

    def _told_by_command(self, command: str) -> dict[str, bytes]:
        try:
            done = subprocess.run(
                shlex.split(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMMAND_S, check=False
            )
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            why = f"took longer than {_COMMAND_S:g} s" if isinstance(error, subprocess.TimeoutExpired) else str(error)
            raise FailedPrecondition(f"secrets.key_command: {command[:100]!r} {why}", state="no_key") from None
        if done.returncode != 0:
            last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
            raise FailedPrecondition(
                f"secrets.key_command: {command[:100]!r} exited with {done.returncode}: {last}", state="no_key"
            )
        return _parsed(done.stdout[:_MOST_OUTPUT].decode("ascii", "replace"), "what secrets.key_command printed")


def key_id(sealed: str) -> str:
    """Which key it is encrypted with."""
    return sealed.split(".", 2)[1] if sealed.count(".") == 2 else "?"


def _parsed(text: str, source: str) -> dict[str, bytes]:
    keys: dict[str, bytes] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        try:
            key = base64.b64decode(line, validate=True)
        except binascii.Error:
            key = b""
        if len(key) != _SIZE:
            raise FailedPrecondition(f"{source}: a line is no key of {_SIZE} bytes in base64", state="no_key")
        keys[_id(key)] = key
    if not keys:
        raise FailedPrecondition(f"{source}: it has no key; give one of {_SIZE} bytes in base64", state="no_key")
    return keys


def _id(key: bytes) -> str:
    """Its name, which tells nothing of it."""
    return hashlib.sha256(b"shoal key id\n" + key).hexdigest()[:16]
