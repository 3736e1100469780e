"""The configuration that Ray Serve writes for HAProxy, made fit for strangers: a pure function from text to text.

Serve's own binds its figures to every address, speaks no TLS, waits for headers as long as for anything else, believes what clients say about
whom they speak for, and answers with plain text where no replica does. Whatever is expected there and is not found raises `Unfamiliar`: a Ray
that writes something else must not be let out half changed.

Standard library only: it runs again for every start of HAProxy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from shoal.model.http import PROBLEM, REQUEST_ID

CLIENT_TIMEOUT_S = 120
"""How long a client may neither take nor send a byte while that is its turn."""

TUNNEL_TIMEOUT_S = 120
"""How long a WebSocket may be silent; the replica pings more often than that."""

DEAD_PEER_S = 60
"""After how long a client whose machine no longer answers is given up, where nothing is on its way to it. Else it is `CLIENT_TIMEOUT_S`: the
kernel counts against a client that merely does not read, too."""

_SERVE_HEADERS = (
    "x-request-timeout-seconds",
    "serve_multiplexed_model_id",
    "serve-multiplexed-model-id",
    "x-session-id",
    "x_session_id",
)
"""By these a client could direct Serve itself."""

_TAKES_REQUESTS = ("success", "DRAINING")
"""What replicas say of their health, by Serve, while they answer requests."""

_SECTION = re.compile(r"(global|defaults|frontend|backend|listen)\b")

# Of the whole header, and of the only one: `hdr` would be the last element of a list.
_REQUEST_ID = f"{{ req.fhdr(x-request-id) -m reg ^{REQUEST_ID}$ }} {{ req.fhdr_cnt(x-request-id) eq 1 }}"


class Unfamiliar(Exception):
    """Serve's configuration is not as this release of Shoal knows it."""


@dataclass(frozen=True, slots=True)
class Edge:
    """Where HAProxy listens and how. `certificate`: one PEM file of chain and key; `replica_host`: where replicas on this machine listen;
    `handshake_timeout`: seconds in which a replica must have answered a WebSocket's handshake."""

    host: str
    port: int
    header_timeout: float
    replica_host: str = "127.0.0.1"
    certificate: str | None = None
    handshake_timeout: float = 60.0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Edge:
        return cls(**json.loads(text))


@dataclass(slots=True)
class _Section:
    head: str
    lines: list[str]

    def change(self, pattern: str, to: str | Callable[[re.Match[str]], str], times: int = 1) -> None:
        """Replaces the one line that is all of `pattern` (or `times` of them) by `to`; an empty text removes it."""
        found = 0
        for number, line in enumerate(self.lines):
            match = re.fullmatch(pattern, line.strip())
            if match is not None:
                found += 1
                text = to if isinstance(to, str) else to(match)
                self.lines[number] = f"    {text}" if text else ""
        if found != times:
            raise Unfamiliar(f"in `{self.head}`: `{pattern}` {found} times instead of {times}")

    def add(self, lines: Iterable[str], *, first: bool = False) -> None:
        indented = [f"    {line}" for line in lines]
        self.lines = indented + self.lines if first else self.lines + indented


def rewrite(text: str, edge: Edge) -> str:
    """`text`, as Serve wrote it, for `edge`. Raises `Unfamiliar`."""
    sections = _parse(text)
    for head in ("frontend prometheus", "listen stats"):
        if sections.pop(head, None) is None:
            raise Unfamiliar(f"no section `{head}`")
    _global(_only(sections, "global"))
    _defaults(_only(sections, "defaults"), edge)
    _frontend(_only(sections, "frontend http_frontend"), edge)
    _nothing_deployed(_only(sections, "backend default_backend"))
    for head, section in sections.items():
        if head.startswith("backend http-"):
            _backend(section, edge)
        elif head not in ("global", "defaults", "frontend http_frontend", "backend default_backend"):
            raise Unfamiliar(f"a section `{head}`")
    rewritten = "\n".join(line for section in sections.values() for line in (section.head, *section.lines) if line)
    _check(rewritten)
    return rewritten + "\n"


def address(host: str, port: int) -> str:
    """As in a URL, and as HAProxy reads it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parse(text: str) -> dict[str, _Section]:
    sections: dict[str, _Section] = {}
    current: _Section | None = None
    for line in text.splitlines():
        if _SECTION.match(line):
            current = _Section(line.strip(), [])
            if current.head in sections:
                raise Unfamiliar(f"section `{current.head}` twice")
            sections[current.head] = current
        elif current is not None:
            # Its comments speak of what it was; nobody reads them.
            current.lines.append("" if line.strip().startswith("#") else line)
        elif line.strip():
            raise Unfamiliar(f"`{line.strip()}` before any section")
    return sections


def _only(sections: dict[str, _Section], head: str) -> _Section:
    try:
        return sections[head]
    except KeyError:
        raise Unfamiliar(f"no section `{head}`") from None


def _global(section: _Section) -> None:
    # Serve's own goes to whoever listens on port 514, with every URL in it. Ours: servers that come and go, into the file that Serve keeps.
    section.change(r"log \S+ local0 info", "log stderr format raw local0 notice")
    section.change(
        r"(stats socket \S+) mode 666 (level admin expose-fd listeners)",
        lambda found: f"{found[1]} mode 600 {found[2]}",
    )
    # What its parser refuses gets HAProxy's own page, whatever is configured: it takes more than is let through, so that we may answer.
    section.add(("tune.http.maxhdr 1000",))


def _defaults(section: _Section, edge: Edge) -> None:
    section.change(r"timeout client \d+s", f"timeout client {CLIENT_TIMEOUT_S}s")
    # What a replica took to its grave another one gets, where that does no harm (`_frontend`).
    section.change(r"retry-on conn-failure", "retry-on conn-failure empty-response")
    # Else a process that another one has taken over from keeps idle connections, and has no replicas for what comes on them later.
    section.change(r"option idle-close-on-response", "")
    # Else all of HAProxy's own errors would be a plain-text 500.
    section.change(r"errorfile 50[234] \S+", "", times=3)
    section.add(
        (
            f"timeout http-request {round(edge.header_timeout * 1000)}ms",
            f"timeout tunnel {TUNNEL_TIMEOUT_S}s",
            "timeout client-fin 30s",
            # One connection of HTTP/2 carries a hundred requests, of which no count of connections knows.
            "option disable-h2-upgrade",
            "option clitcpka",
            f"clitcpka-idle {DEAD_PEER_S // 2}s",
            f"clitcpka-intvl {DEAD_PEER_S // 6}s",
            "clitcpka-cnt 3",
            *(_error(*error) for error in _ERRORS),
        )
    )


def _frontend(section: _Section, edge: Edge) -> None:
    tls = f" ssl crt {edge.certificate} alpn http/1.1 ssl-min-ver TLSv1.2" if edge.certificate else ""
    section.change(r"bind \S+", f"bind {address(edge.host, edge.port)} tcp-ut {CLIENT_TIMEOUT_S}s{tls}")
    section.add(
        (
            "unique-id-format %[uuid]",
            "http-request set-var(txn.request_id) unique-id",
            f"http-request set-var(txn.request_id) req.fhdr(x-request-id) if {_REQUEST_ID}",
            *(f"http-request return {_reply(*reply)} if {condition}" for condition, reply in _TOO_LONG),
            "http-request set-header x-request-id %[var(txn.request_id)]",
            *(f"http-request del-header {name}" for name in _SERVE_HEADERS),
            "http-request del-header x-forwarded- -m beg",
            "http-request del-header forwarded",
            "http-request set-header x-forwarded-for %[src]",
            f"http-request set-header x-forwarded-proto {'https' if edge.certificate else 'http'}",
            # Only what HAProxy has in full can be sent again.
            f"http-request wait-for-body time {round(edge.header_timeout * 1000)}ms if {{ req.hdr(idempotency-key) -m found }}",
            "http-request disable-l7-retry unless METH_GET or METH_HEAD or { req.hdr(idempotency-key) -m found }",
            # Serve and the application both say it.
            "http-response set-header x-request-id %[var(txn.request_id)]",
            # Else a replica reads all of a body at once, however slowly it is used, and keeps it in memory until then.
            "http-request set-header x-request-disconnect-disabled ?1",
        ),
        first=True,
    )


def _nothing_deployed(section: _Section) -> None:
    """While Serve starts, or has lost the application."""
    section.change(r"http-request return status 404 .*", f"http-request return {_reply(503, *_UNAVAILABLE)}")


def _backend(section: _Section, edge: Edge) -> None:
    # Serve's own proxy stands in where no replica is left, and lets requests wait for one without an end.
    section.lines = [line for line in section.lines if not re.fullmatch(r"\s*server .* backup", line)]
    # One that is to go takes requests until it closes its door, and is the last that there is until the next configuration has come.
    section.change(r"http-check expect status 200", f"http-check expect rstring ^({'|'.join(_TAKES_REQUESTS)})$")
    # Requests may take long, handshakes may not: one that nobody answers would hold a connection of all that there are.
    limit = f"{round(edge.handshake_timeout * 1000)}ms"
    section.add((f"http-request set-timeout server {limit} if {{ req.hdr(upgrade) -i websocket }}",), first=True)
    if edge.replica_host != "127.0.0.1":
        host = edge.replica_host
        section.lines = [re.sub(r"^(\s*server \S+) 127\.0\.0\.1:", rf"\1 {host}:", line) for line in section.lines]


def _check(text: str) -> None:
    binds = re.findall(r"^\s*bind\b.*$", text, re.MULTILINE)
    if len(binds) != 1:
        raise Unfamiliar(f"it listens on {len(binds)} addresses instead of 1: {binds}")


_UNAVAILABLE = (
    "unavailable",
    True,
    "Not available at the moment",
    "no replica of the API takes requests right now, and nothing was done; try again",
)
_ERRORS: tuple[tuple[int, str, bool, str, str], ...] = (
    (
        400,
        "invalid_request",
        False,
        "The request is wrong",
        "this is no request of HTTP/1.1, or its body stopped",
    ),
    (408, "deadline_exceeded", False, "It took too long", "the request did not arrive in time; send it faster"),
    (500, "internal", False, "A defect of Shoal's", "the proxy before the API failed"),
    (
        502,
        "internal",
        False,
        "A defect of Shoal's",
        "the replica that had this request ended before it answered, and nobody knows whether it was carried out: look first",
    ),
    (503, *_UNAVAILABLE),
    (504, "internal", False, "A defect of Shoal's", "the replica that had this request did not answer in time"),
)
_TOO_LONG: tuple[tuple[str, tuple[int, str, bool, str, str]], ...] = (
    (
        "{ url,length gt 8192 }",
        (
            414,
            "invalid_request",
            False,
            "The request is wrong",
            "its URL has more than 8 KiB; send less, or send it in a body",
        ),
    ),
    (
        "{ req.hdrs,length gt 16384 } or { req.fhdr_cnt gt 100 }",
        (
            431,
            "invalid_request",
            False,
            "The request is wrong",
            "its headers have more than 16 KiB, or are more than 100; send fewer",
        ),
    ),
)


def _error(status: int, code: str, retryable: bool, title: str, detail: str) -> str:
    return f"http-error {_reply(status, code, retryable, title, detail)}"


def _reply(status: int, code: str, retryable: bool, title: str, detail: str) -> str:
    """A problem document. Its text stands between single quotes, in which HAProxy reads but its own `%`."""
    problem = {
        "type": f"urn:shoal:error:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "retryable": retryable,
    }
    # Before the headers are read there is no id but HAProxy's own.
    request_id = "%[unique-id]" if status in (400, 408) else "%[var(txn.request_id)]"
    body = json.dumps({**problem, "request_id": request_id}).replace("'", r"\u0027")
    later = ' hdr Retry-After "1"' if retryable else ""
    return f"status {status} content-type {PROBLEM} lf-string '{body}'{later} hdr X-Request-Id '{request_id}'"
