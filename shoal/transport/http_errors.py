"""What can go wrong on the way to the API, as Shoal's errors."""

from __future__ import annotations

import errno
import ssl

import aiohttp

from shoal.model.errors import FailedPrecondition, InvalidRequest, ShoalError, Unavailable
from shoal.transport.http_pools import CONNECT_S
from shoal.transport.http_server import Server


class Broken(Exception):
    """No answer came, or only part of one.

    `unsent`: the request did not go out. `silence`: nothing came within the time allowed. `hopeless`: the error to
    raise, if trying again is of no use.
    """

    def __init__(
        self, message: str, *, unsent: bool = False, silence: bool = False, hopeless: ShoalError | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.unsent = unsent
        self.silence = silence
        self.hopeless = hopeless

    def to_shoal(self) -> ShoalError:
        """The error for the caller."""
        if self.hopeless is not None:
            return self.hopeless
        if self.unsent:
            return Unavailable(self.message)
        return Unavailable(f"{self.message}; it may have happened", sent=True)


def translate(error: Exception, server: Server, what: str) -> Broken:
    """What a failure of the connection to the API means. `what` was being done."""
    url = server.url
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        # Other parts of this process may close theirs, so it is tried again.
        return Broken("there are no file descriptors left for a connection; raise `ulimit -n`", unsent=True)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        why, remedy = _distrust(error.certificate_error)
        return _hopeless(FailedPrecondition(f"the certificate of {url} is not trusted ({why}); {remedy}", state="tls"))
    if isinstance(error, ssl.SSLError | aiohttp.ClientSSLError):
        told = getattr(error, "strerror", None) or error
        return _hopeless(FailedPrecondition(f"{url} does not speak TLS ({told}); is it http://?", state="tls"))
    if isinstance(error, aiohttp.InvalidURL):
        return _hopeless(InvalidRequest(f"address: {url!r}, or the proxy on the way, is no URL", field="address"))
    if isinstance(error, aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError):
        # Not the error's own text: it holds the proxy's URL, which may hold a password.
        said = error.strerror if isinstance(error, aiohttp.ClientProxyConnectionError) else f"HTTP {error.status}"
        remedy = "NO_PROXY names what to reach without it"
        return Broken(f"the proxy on the way to {url} does not let through ({said}); {remedy}", unsent=True)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        # The proxy's, if there is one.
        return Broken(f"{url}: there is no host {error.host}, or no name server tells of it", unsent=True)
    if isinstance(error, aiohttp.ClientConnectorError):
        return Broken(f"no API answers at {url} ({error.strerror}); is it up, and the port right?", unsent=True)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        scheme = url.partition(":")[0]
        return Broken(
            f"no API answers at {url} within {CONNECT_S:g} s; are {scheme}, host and port right?", unsent=True
        )
    if isinstance(error, TimeoutError):
        return Broken(f"{url} did not answer {what} in time", silence=True)
    return Broken(f"the connection to {url} broke ({str(error) or type(error).__name__})")


def _distrust(error: Exception) -> tuple[str, str]:
    """Why a certificate is not trusted, and what helps."""
    why = getattr(error, "verify_message", "").rstrip(".") or str(error)
    match getattr(error, "verify_code", None):  # OpenSSL's numbers
        case 62 | 64:  # another host name, another address
            return why, "use a host name that it has"
        case 9 | 10:  # not yet valid, expired
            return why, "it must be renewed there, if this machine's clock is right"
        case _:
            return why, "name its CA's file as `ca=`, by --ca or in SHOAL_CA"


def _hopeless(error: ShoalError) -> Broken:
    return Broken(error.message, unsent=True, hopeless=error)


def not_shoal(message: str) -> FailedPrecondition:
    """The error for an answer that did not come from an API of Shoal's."""
    return FailedPrecondition(message, state="not_shoal")
