"""The frame codec, without I/O: bytes in, frames out, every length bounded.

u32 length (big-endian, of all that follows) | u8 kind | u32 stream | payload
"""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from enum import IntEnum
from typing import NamedTuple, NoReturn

from shoal.model import errors

MAX_PAYLOAD = 1 << 20
"""The largest payload of a frame, in bytes, but for a request."""

MAX_REQUEST = 16 << 20
"""The largest payload of an OPEN: arguments and variables up to the kernel's limit, 2 MiB, even if JSON needs six bytes
for each of theirs."""

MAX_STREAM = (1 << 32) - 1

_HEADER = struct.Struct(">IBI")
_CREDIT = struct.Struct(">I")
_HEADER_SIZE = _HEADER.size
_BUFFER_SIZE = 32 << 10
"""The receive buffer of a connection. A frame that does not fit gets memory of its own."""


class Kind(IntEnum):
    """The kinds of frames; `PROTOCOL.md` says who may send which."""

    HELLO = 0
    OPEN = 1
    REPLY = 2
    EVENT = 3
    DATA = 4
    END = 5
    ERRDATA = 6
    CREDIT = 7
    CANCEL = 8


_KINDS = tuple(Kind)


class Frame(NamedTuple):
    """A frame: its kind, its stream's id (0 for the connection itself), its payload."""

    kind: Kind
    stream: int
    payload: bytes


def encode(kind: Kind, stream: int, payload: bytes | memoryview = b"") -> bytes:
    """The frame as bytes; `ValueError` if `payload` is too long."""
    return encode_header(kind, stream, len(payload)) + payload


def encode_header(kind: Kind, stream: int, size: int) -> bytes:
    """The header of a frame with `size` bytes of payload, for senders that do not want to copy the payload."""
    if size > MAX_PAYLOAD and (kind is not Kind.OPEN or size > MAX_REQUEST):
        raise ValueError(f"a frame carries at most {MAX_PAYLOAD} bytes, and a request {MAX_REQUEST}, not {size}")
    return _HEADER.pack(size + 5, kind, stream)


def encode_credit(stream: int, count: int) -> bytes:
    """A CREDIT frame: `count` more bytes may be sent on `stream`."""
    return encode(Kind.CREDIT, stream, _CREDIT.pack(count))


def decode_credit(payload: bytes) -> int:
    """The count in a CREDIT frame's payload; `Internal` if malformed."""
    if len(payload) != _CREDIT.size:
        raise errors.Internal(f"malformed frame from the sandbox: a credit of {len(payload)} bytes, not {_CREDIT.size}")
    count: int = _CREDIT.unpack(payload)[0]
    return count


class Decoder:
    """Cuts a byte stream into frames.

    Receive into `get_buffer()` and pass the count to `advance`, or pass bytes to `feed`. A payload too long for the
    buffer is received straight into the memory that becomes the frame's payload, without a copy. A malformed frame
    raises `Internal`, and so does every later call: the next frame cannot be found.
    """

    __slots__ = ("_broken", "_buffer", "_end", "_large", "_lent", "_view")

    def __init__(self) -> None:
        self._buffer = bytearray(_BUFFER_SIZE)
        self._view = memoryview(self._buffer)
        self._end = 0  # _buffer[:_end] is received and undecoded, and starts with a header
        self._large: _LargeFrame | None = None
        self._lent: memoryview | None = None
        self._broken = False

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """The frames that `data` completes, in order."""
        frames: list[Frame] = []
        view = memoryview(data)
        while view:
            room = self.get_buffer()
            count = min(len(room), len(view))
            room[:count] = view[:count]
            frames += self.advance(count)
            view = view[count:]
        return frames

    def get_buffer(self) -> memoryview:
        """The memory to receive into: never empty, and invalid after the next `advance`."""
        if self._large is not None:
            self._lent = self._large.room()
        else:
            self._lent = self._view[self._end :]
        return self._lent

    def advance(self, count: int) -> list[Frame]:
        """Handles `count` bytes received into `get_buffer()`; returns the frames they complete, in order."""
        if self._broken:
            self._malformed("nothing is read after a malformed frame")
        if self._lent is not None:
            # While the transport holds the view, its memory cannot become a payload without a copy.
            try:
                self._lent.release()
            except BufferError:
                pass  # uvloop (in Ray's workers) holds it until we return; a large payload is then copied
            self._lent = None
        if self._large is not None:
            return self._advance_large(count)
        return self._advance_buffer(self._end + count)

    def _advance_buffer(self, end: int) -> list[Frame]:
        frames: list[Frame] = []
        start = 0
        view = self._view
        while end - start >= _HEADER_SIZE:
            length, kind, stream = _HEADER.unpack_from(view, start)
            if not 5 <= length <= MAX_PAYLOAD + 5:
                self._malformed(f"its length is {length}, not 5 to {MAX_PAYLOAD + 5}")
            if kind >= len(_KINDS):
                self._malformed(f"its kind is {kind}, not 0 to {len(_KINDS) - 1}")
            stop = start + 4 + length
            if stop > end:
                if stop - start > _BUFFER_SIZE:
                    self._large = _LargeFrame(_KINDS[kind], stream, length - 5, view[start + _HEADER_SIZE : end])
                    start = end
                break
            frames.append(Frame(_KINDS[kind], stream, bytes(view[start + _HEADER_SIZE : stop])))
            start = stop
        if start and start < end:
            view[: end - start] = view[start:end]
        self._end = end - start
        return frames

    def _advance_large(self, count: int) -> list[Frame]:
        large = self._large
        assert large is not None
        if not large.advance(count):
            return []
        self._large = None
        return [large.frame()]

    def _malformed(self, why: str) -> NoReturn:
        self._broken = True
        raise errors.Internal(f"malformed frame from the sandbox: {why}")


class _LargeFrame:
    """A frame whose payload is received into memory of its own.

    `BytesIO` lets us fill the memory of a `bytes` object before it exists: `getvalue` returns that memory without a
    copy if nobody else holds it.
    """

    __slots__ = ("_filled", "_kind", "_memory", "_size", "_store", "_stream")

    def __init__(self, kind: Kind, stream: int, size: int, begun: memoryview) -> None:
        self._kind = kind
        self._stream = stream
        self._size = size
        self._store = io.BytesIO(bytes(size))
        self._memory = self._store.getbuffer()
        self._filled = len(begun)
        self._memory[: self._filled] = begun

    def room(self) -> memoryview:
        return self._memory[self._filled :]

    def advance(self, count: int) -> bool:
        self._filled += count
        return self._filled == self._size

    def frame(self) -> Frame:
        _let_go(self._memory)
        return Frame(self._kind, self._stream, self._store.getvalue())


def _let_go(view: memoryview) -> None:
    """Releases a view. uvloop keeps the one it receives into until the protocol returns, but writes to it no more."""
    with suppress(BufferError):
        view.release()
