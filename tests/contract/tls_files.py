"""A certificate authority of a test's own, and a server that it vouches for."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path

from shoal.cluster.local import packages
from tests.cluster import printing

_CA_CONF = """\
[ca]
default_ca = own
[own]
database = index.txt
new_certs_dir = .
certificate = ca.pem
private_key = ca.key
default_md = sha256
rand_serial = yes
policy = any
x509_extensions = server
[any]
commonName = supplied
[server]
subjectAltName = {names}
basicConstraints = critical,CA:false
"""


class Authority:
    """A CA (`certificate`, for clients to trust) and the certificate and key of a server: 127.0.0.1 and `names`."""

    def __init__(self, directory: Path, names: Sequence[str] = ()) -> None:
        packages.ensure({"openssl": "openssl"}, printing)
        self._directory = directory
        self._names = ["IP:127.0.0.1", *(f"DNS:{name}" for name in names)]
        self.certificate = directory / "ca.pem"
        self.server_certificate = directory / "server.pem"
        self.server_key = directory / "server.key"
        self._openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
            *("-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=Test CA"),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        )
        self.renew()

    def renew(self) -> None:
        """Another key and certificate for the same server, in the same files."""
        self._openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
            *("-keyout", "server.key", "-out", "server.pem", "-subj", "/CN=server"),
            *("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", f"subjectAltName={','.join(self._names)}"),
            *("-addext", "basicConstraints=critical,CA:false"),
        )

    def expire(self) -> None:
        """The server's certificate is one that was good for a day in 2020."""
        (self._directory / "index.txt").touch()
        (self._directory / "ca.conf").write_text(_CA_CONF.format(names=",".join(self._names)))
        self._openssl("req", "-new", "-key", "server.key", "-out", "server.csr", "-subj", "/CN=server")
        self._openssl(
            *("ca", "-batch", "-config", "ca.conf", "-in", "server.csr", "-out", "server.pem", "-notext"),
            *("-startdate", "20200101000000Z", "-enddate", "20200102000000Z"),
        )

    def server(self) -> ssl.SSLContext:
        """What a server speaks TLS with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server_certificate, self.server_key)
        return context

    def client(self) -> ssl.SSLContext:
        """What a client that trusts nobody else speaks TLS with."""
        return ssl.create_default_context(cafile=str(self.certificate))

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._directory, check=True, capture_output=True, timeout=30)
