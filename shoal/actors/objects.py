"""The object storage contract: where images and snapshots are kept for the whole cluster, and volumes their data.

Terms
    key       what an object is called: segments with `/` between them, without the setting `objects.prefix`.
    blob      an object that is named by its content: `blobs/sha256/<hex>`. Writing one twice does no harm.
    access    how to reach the storage, with credentials: what a node gets from the controller.
    keeper    the head's side: knows the access, and keeps a server of the cluster's own alive where there is one.

Rules for every store
    - Methods block: they run in threads, and one store may be used by several at once.
    - A `put` that has returned can be read by everybody; one that failed or was killed has left nothing in sight, and
      may be made again. A `get` into a file goes on where the file ends.
    - Whoever reads a blob checks its digest: a store may have been tampered with, or have lost something.
    - Calls are tried a few times with bounded waits. Then: `Unavailable` (it does not answer: the same call may be
      repeated), `PermissionDenied` (field `objects.credentials`), `InvalidRequest` (field: the setting at fault, such
      as `objects.bucket`), `NotFound` (no such object), `Internal` (what no one has foreseen).

The implementation is `shoal.cluster.objects` (S3, by boto3); the actors are given one and never import it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PIECE = 1 << 20
"""The most bytes that a read yields at once."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object. `size`: bytes; `modified`: seconds since the epoch, by the storage's clock."""

    key: str
    size: int
    modified: float


class ObjectStore(ABC):
    """A connection to the storage. See the module for the rules that hold for every method."""

    @abstractmethod
    def check(self) -> None:
        """Returns if the bucket is there and may be listed; raises what is wrong."""

    @abstractmethod
    def put(self, key: str, content: bytes | Path, *, replace: bool = True) -> bool:
        """Writes an object from bytes or a file. Not `replace`: leaves one of that key and size as it is. Whether it
        was written."""

    @abstractmethod
    def read(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """An object's bytes from `start` on, up to `length` of them. It may raise between two pieces. `NotFound`."""

    @abstractmethod
    def get(self, key: str, target: Path) -> int:
        """Writes an object to a file, from the file's end on if it is there; the object's size. `InvalidRequest` where
        the file is longer. If it raises, what came is in the file. `NotFound`."""

    @abstractmethod
    def head(self, key: str) -> ObjectInfo | None:
        """The object; None where there is none."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The objects whose keys begin so, in any order, a page at a time."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Removes objects. Idempotent."""

    @abstractmethod
    def close(self) -> None:
        """Closes connections. Idempotent."""


class ObjectAccess(ABC):
    """How to reach the storage. Goes from process to process, with credentials: never into a log."""

    @abstractmethod
    def connect(self) -> ObjectStore:
        """A store. Nothing is asked of the service yet; `PermissionDenied` or `InvalidRequest` for settings of this
        machine that make no sense."""


class ObjectKeeper(ABC):
    """The head's side of the storage. Its methods block."""

    @abstractmethod
    def access(self) -> ObjectAccess:
        """The access; a server of the cluster's own is running then. `Unavailable` if it does not start,
        `FailedPrecondition` with the remedy where its program is missing."""

    @abstractmethod
    def tend(self) -> None:
        """Starts a server of the cluster's own anew if it was running and has died. Called every few seconds."""
