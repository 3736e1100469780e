"""Requests byte by byte, as no well-meant client sends them."""

from __future__ import annotations

import json
import socket
from typing import Any

PATIENCE_S = 10.0


def exchange(port: int, *pieces: bytes, half_close: bool = False) -> bytes:
    """All that the server says to these bytes until it closes the connection.

    `half_close`: no more comes, and the server is told so.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has heard enough; what it said is there to be read
        return everything(connection)


def everything(connection: socket.socket) -> bytes:
    """All that comes until the end."""
    said = b""
    try:
        while data := connection.recv(1 << 16):
            said += data
    except ConnectionResetError:
        pass  # it did not wait for the rest of what we said
    return said


def statuses(said: bytes) -> list[int]:
    """The statuses of all the responses in it, in their order; interim ones left out."""
    found = []
    while said:
        head, _, rest = said.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert lines[0].startswith(b"HTTP/1.1 "), said[:200]
        status = int(lines[0].split()[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
        if status >= 200:
            found.append(status)
        length = headers.get(b"content-length", b"0" if status < 200 else None)
        said = b"" if length is None else rest[int(length) :]
    return found


def problem(said: bytes) -> dict[str, Any]:
    """The problem document of a lone response."""
    head, _, body = said.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head.lower(), said[:300]
    found: dict[str, Any] = json.loads(body)
    return found


def request(method: str, path: str, *headers: str, body: bytes = b"", token: str | None = None) -> bytes:
    """A request, its `Content-Length` only where `headers` say one; closes the connection afterwards unless they say
    otherwise.
    """
    lines = [f"{method} {path} HTTP/1.1", "Host: shoal.test", *headers]
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if not any(line.lower().startswith("connection:") for line in headers):
        lines.append("Connection: close")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
