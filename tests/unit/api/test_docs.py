"""The page for people: from this machine only, and forgetful."""

from __future__ import annotations

import re

import pytest

from tests.api import Api

ADDRESS = re.compile(r"""(?:src|href)\s*=\s*["']([^"']*)["']""")


def test_what_it_is_made_of_is_here(api: Api) -> None:
    page = api.ask("GET", "/docs", token=None)
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    parts = [address for address in ADDRESS.findall(page.body.decode()) if address != "data:,"]
    assert "docs/swagger-ui-bundle.js" in parts
    kinds = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
    for part in parts:
        got = api.ask("GET", f"/{part}", token=None)
        assert (got.status, got.headers["content-type"]) == (200, kinds[part.rpartition(".")[2]]), part
        assert got.body
    assert b"SwaggerUIBundle" in api.ask("GET", "/docs/swagger-ui-bundle.js", token=None).body
    assert b'"openapi.json"' in api.ask("GET", "/docs/begin.js", token=None).body


def test_no_other_host_is_asked(api: Api) -> None:
    page = api.ask("GET", "/docs", token=None)
    begin = api.ask("GET", "/docs/begin.js", token=None)
    assert b"//" not in page.body + begin.body.replace(b"// ", b"")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert (policy["script-src"], policy["connect-src"]) == ("'self'", "'self'")
    assert not any("http" in sources or "*" in sources for sources in policy.values())


def test_it_remembers_no_token(api: Api) -> None:
    for path in ("/docs", "/docs/begin.js"):
        assert b"persist" not in api.ask("GET", path, token=None).body


@pytest.mark.parametrize(
    "name", ["redoc.standalone.js", "..%2fcore.py", "%2e%2e%2fcore.py", "%00", "x", "swagger-ui.css/"]
)
def test_nothing_else_is(api: Api, name: str) -> None:
    got = api.ask("GET", f"/docs/{name}", token=None)
    assert (got.status, got.json["code"]) == (404, "not_found")
