"""TLS to a relay. The cluster tells which certificate a relay has, by its SHA-256: no authority is needed, and none is
asked."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ssl
from collections.abc import Callable
from functools import cache
from typing import cast

from shoal.model.errors import Unavailable
from shoal.wire.sockets import Endpoint

_CHUNK = 256 << 10


@cache
def client_context() -> ssl.SSLContext:
    """TLS 1.3, and no check of the certificate: that is `check_certificate`'s."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def check_certificate(certificate: bytes | None, relay: Endpoint) -> None:
    """`Unavailable`, with the field `fingerprint`, unless it is the relay's. Call it before anything is sent.

    `certificate`: in DER, as the other side has shown it.
    """
    shown = hashlib.sha256(certificate or b"").hexdigest()
    if not hmac.compare_digest(shown, relay.fingerprint):
        raise Unavailable(
            f"what answers at {relay.host}:{relay.port} is not the relay that the cluster told: it has another "
            "certificate; nothing was sent to it",
            fingerprint=shown,
        )


class TlsTransport(asyncio.Protocol, asyncio.Transport):
    """TLS over a socket, each direction of which ends separately, by TLS's own alert. asyncio's TLS ends both at once.

    To the event loop it is the socket's protocol, to `protocol` the transport. A socket that ends without the alert is
    broken: `protocol` gets `ConnectionResetError`.
    """

    def __init__(self, protocol: asyncio.Protocol, relay: Endpoint, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.Transport.__init__(self)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = client_context().wrap_bio(self._incoming, self._outgoing)
        self._protocol = protocol
        self._relay = relay
        self._socket: asyncio.Transport | None = None
        self._error: Exception | None = None
        self._read_ended = self._write_ended = False
        self.ready: asyncio.Future[None] = loop.create_future()
        """Done once the relay has shown its certificate, and `protocol` has its transport."""

    # The socket's protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.Transport, transport)  # uvloop's is none, but has all that one has
        self._step()

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        self._step()

    def eof_received(self) -> None:
        if not self._read_ended:
            self._fail(ConnectionResetError("closed by the other side"))

    def connection_lost(self, exc: Exception | None) -> None:
        error = self._error or exc
        if self.ready.done():
            self._protocol.connection_lost(error)
        else:
            self.ready.set_exception(error or ConnectionResetError("closed by the other side"))

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    # The protocol's transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        rest = memoryview(data)
        while rest and not self._write_ended and self._error is None:
            rest = rest[self._tls.write(rest) :]
        self._flush()

    def write_eof(self) -> None:
        """Ends this direction. All that has come is read by then, which OpenSSL demands."""
        if not self._write_ended and self._error is None:
            self._write_ended = True
            self._try(self._tls.unwrap)
            self._flush()

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self.write_eof()
        if self._socket is not None:
            self._socket.close()

    def abort(self) -> None:
        if self._socket is not None:
            self._socket.abort()

    def is_closing(self) -> bool:
        return self._socket is None or self._socket.is_closing()

    def pause_reading(self) -> None:
        if self._socket is not None:
            self._socket.pause_reading()

    def resume_reading(self) -> None:
        if self._socket is not None:
            self._socket.resume_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if self._socket is not None:
            self._socket.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return 0 if self._socket is None else self._socket.get_write_buffer_size()

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default if self._socket is None else self._socket.get_extra_info(name, default)

    # Inside

    def _step(self) -> None:
        """Goes on as far as what has come allows."""
        if not self.ready.done() and self._try(self._tls.do_handshake):
            try:
                check_certificate(self._tls.getpeercert(binary_form=True), self._relay)
            except Unavailable as error:
                self._fail(error)
                return
            self._protocol.connection_made(self)
            self.ready.set_result(None)
        self._flush()
        while self.ready.done() and not self._read_ended and self._error is None and self._try(self._read):
            pass

    def _read(self) -> None:
        try:
            data = self._tls.read(_CHUNK)
        except ssl.SSLZeroReturnError:  # where we have ended our direction already
            data = b""
        if data:
            self._protocol.data_received(data)
        else:
            self._read_ended = True
            self._protocol.eof_received()

    def _try(self, step: Callable[[], object]) -> bool:
        """Whether a step is done; one for which more has to come is not."""
        try:
            step()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            self._fail(error)
            return False
        return True

    def _flush(self) -> None:
        if self._socket is not None and self._outgoing.pending:
            self._socket.write(self._outgoing.read())

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        if self._socket is not None:
            self._socket.abort()
