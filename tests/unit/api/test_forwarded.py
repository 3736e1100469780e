"""Whom a replica believes about who called, and how."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from shoal.cluster.serving.servers import server_options
from tests.api import PromptServer

SAID = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope)
    assert request.client is not None
    await JSONResponse([request.client.host, request.url.scheme])(scope, receive, send)


def ask(source: str, host: str, port: int) -> list[str]:
    connection = http.client.HTTPConnection(host, port, timeout=10, source_address=(source, 0))
    connection.request("GET", "/", headers=SAID)
    told: list[str] = json.loads(connection.getresponse().read())
    connection.close()
    return told


@pytest.mark.anyio
async def test_haproxy_is_believed_from_the_nodes_own_address_too() -> None:
    node = "127.0.0.2"
    with socket.create_server((node, 0)) as listening:
        server = PromptServer(uvicorn.Config(app, lifespan="off", log_config=None, **server_options(node)))
        serving = asyncio.create_task(server.serve([listening]))
        at = listening.getsockname()
        assert await asyncio.to_thread(ask, node, *at) == ["203.0.113.7", "https"]
        assert await asyncio.to_thread(ask, "127.0.0.1", *at) == ["203.0.113.7", "https"]
        assert await asyncio.to_thread(ask, "127.0.0.3", *at) == ["127.0.0.3", "http"]
        server.end.set()
        await serving
