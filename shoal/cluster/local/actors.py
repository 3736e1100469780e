"""Deploying and draining the actors and the API, in a process of its own: a driver's connection to Ray marks a process
for good.

`python -m shoal.cluster.local.actors` reads one JSON request from its input and prints one JSON answer as the last line
of its output.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from shoal.actors.names import CLUSTER_LABEL
from shoal.cluster.local import processes
from shoal.cluster.local.joined_file import JoinedFile
from shoal.model import verbs
from shoal.model.cluster_file import READ_ON_IMPORT, ClusterFile, driver_environment
from shoal.model.errors import Internal, ShoalError, Unavailable, error_from_dict
from shoal.model.settings import Settings

_MARGIN_S = 30.0
"""For starting Python, importing Ray and connecting."""


def deploy(cluster: ClusterFile, secret: bytes, *, timeout_s: float = 90.0) -> int:
    """Makes sure that the actors are there and answer; returns the number of nodes. Idempotent."""
    request = {"settings": cluster.settings, "cluster": cluster.cluster, "secret": secret.hex()}
    return int(_ask(cluster, {"call": "deploy", **request}, timeout_s))


def drain(cluster: ClusterFile, *, timeout_s: float = 90.0) -> list[Unavailable]:
    """Ends all sandboxes and actors. Returns an error for each other machine that was not put back as it was."""
    here = socket.gethostname()
    return [
        Unavailable(
            f"node {failed['node_id'][:8]} on {failed['hostname']} was not closed: {failed['error']['message']}; "
            f"remove its containers with the label {CLUSTER_LABEL}={cluster.cluster}, or restart that machine",
            node_id=failed["node_id"],
        )
        for failed in _ask(cluster, {"call": "drain"}, timeout_s)
        if failed["hostname"] != here
    ]


def relays(cluster: ClusterFile, *, timeout_s: float = 20.0) -> list[str]:
    """`host:port` of each node's relay."""
    return [str(address) for address in _ask(cluster, {"call": "relays"}, timeout_s)]


def serve(cluster: ClusterFile, token: str | None, *, roll: bool = False, timeout_s: float = 120.0) -> str:
    """Deploys the API, or rolls its replicas, and with `roll` its gateway, too.

    Returns `token` where that is good, else a new one that may do everything.
    """
    request = {"settings": cluster.settings, "cluster": cluster.cluster, "roll": roll, "token": token}
    return str(_ask(cluster, {"call": "serve", **request}, timeout_s))


def scale(cluster: ClusterFile, state_dir: Path, *, timeout_s: float = 60.0) -> None:
    """Makes sure that the scaler runs. Idempotent."""
    _ask(cluster, {"call": "scale", "state_dir": str(state_dir), "temp_dir": cluster.temp_dir,
                   "settings": cluster.settings}, timeout_s)  # fmt: skip


def unserve(cluster: ClusterFile, *, timeout_s: float = 90.0) -> None:
    """Ends the API and all of Serve."""
    _ask(cluster, {"call": "unserve"}, timeout_s)


def admit(joined: JoinedFile, *, timeout_s: float = 90.0) -> None:
    """Returns once the machine that has joined takes part; raises what keeps it from that."""
    _ask(joined, {"call": "admit", "machine": joined.name}, timeout_s)


def let_go(joined: JoinedFile, *, force: bool, wait_s: float, timeout_s: float = 90.0) -> int:
    """Has the cluster empty the node of this machine and undo what it did here. Returns how many sandboxes still run
    there after `wait_s`; 0: the machine may go. `force`: they are ended."""
    request = {"call": "let_go", "machine": joined.name, "force": force, "wait_s": wait_s}
    return int(_ask(joined, request, timeout_s + wait_s))


def _ask(cluster: ClusterFile | JoinedFile, request: dict[str, Any], timeout_s: float) -> Any:
    address = cluster.head if isinstance(cluster, JoinedFile) else cluster.ray_address
    # Several nodes may be on one machine, each at an address of its own.
    own = cluster.address if isinstance(cluster, JoinedFile) else None
    dropped = ("RAY_AUTH_TOKEN", *READ_ON_IMPORT)
    environment = {name: value for name, value in processes.environment().items() if name not in dropped}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "shoal.cluster.local.actors"],
            env={**environment, **driver_environment(address, cluster.auth_token_path)},
            cwd="/",
            input=json.dumps({**request, "address": address, "own_address": own, "timeout_s": timeout_s}),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s + _MARGIN_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{request['call']}: Ray at {address} did not answer within {timeout_s:g} s") from None
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        error = answer.get("error")
    except (IndexError, ValueError, AttributeError):
        raise Internal(f"{request['call']} of the actors failed: {done.stderr.strip()[-1000:]}") from None
    if error is not None:
        raise error_from_dict(error)
    return answer["ok"]


def _main() -> None:
    request = json.loads(sys.stdin.read())
    try:
        answer: dict[str, Any] = {"ok": _carry_out(request)}
    except ShoalError as error:
        answer = {"error": error.to_dict()}
    sys.stdout.write(json.dumps(answer) + "\n")


def _carry_out(request: dict[str, Any]) -> Any:
    import ray

    from shoal.actors import deploy as actors
    from shoal.cluster.builds.actor import start_builder
    from shoal.cluster.objects import open_objects
    from shoal.cluster.store import open_store
    from shoal.cluster.volumes import open_volumes

    try:
        ray.init(
            address=request["address"],
            namespace="shoal",
            log_to_driver=False,
            configure_logging=False,
            _node_ip_address=request["own_address"],
        )
    except (ConnectionError, TimeoutError, ray.exceptions.RayError) as error:
        raise Unavailable(f"Ray does not answer at {request['address']}: {error}") from None
    try:
        if request["call"] == "drain":
            failed = actors.drain(timeout_s=request["timeout_s"]).failed
            return [{"node_id": f.node_id, "hostname": f.hostname, "error": f.error.to_dict()} for f in failed]
        if request["call"] == "relays":
            return [node.address for node in _ask_controller(verbs.nodes, (), request["timeout_s"])]
        if request["call"] == "admit":
            return _ask_controller(verbs.admit_node, (request["machine"], time.time()), request["timeout_s"]).id
        if request["call"] == "let_go":
            return _let_go(request)
        if request["call"] in ("serve", "unserve"):
            return _about_serve(request)
        if request["call"] == "scale":
            return _scale(request)
        secret = bytes.fromhex(request["secret"])
        return actors.deploy(
            request["settings"],
            request["cluster"],
            secret,
            store=open_store,
            objects=open_objects,
            builder=start_builder,
            volumes=open_volumes,
            timeout_s=request["timeout_s"],
        )
    finally:
        ray.shutdown()


def _scale(request: dict[str, Any]) -> int:
    from shoal.cluster.scaling.scaler import deploy_scaler

    settings, logs = Settings.from_dict(request["settings"]), f"{request['temp_dir']}/session_latest/logs"
    return deploy_scaler(
        request["state_dir"], logs, settings.node.cpu_overcommit, settings.telemetry.log_format, request["timeout_s"]
    )


def _about_serve(request: dict[str, Any]) -> Any:
    from shoal.cluster.serving import control
    from shoal.cluster.serving.first_token import first_token

    if request["call"] == "unserve":
        return control.stop()
    deploy = control.roll if request["roll"] else control.start
    deploy(request["settings"], request["cluster"])
    return first_token(request["token"])


def _let_go(request: dict[str, Any]) -> int:
    deadline = time.monotonic() + request["wait_s"]
    while True:
        wait_s = min(max(0.0, deadline - time.monotonic()), verbs.LONGEST_WAIT_S)
        arguments = (request["machine"], "it leaves the cluster", request["force"], wait_s)
        left = _ask_controller(verbs.drain_node, arguments, wait_s + request["timeout_s"]).sandboxes
        if not left or time.monotonic() >= deadline:
            return int(left)


def _ask_controller(verb: verbs.Verb[..., Any], arguments: tuple[Any, ...], timeout_s: float) -> Any:
    import ray

    from shoal.actors.handles import find_actor
    from shoal.model.ids import CONTROLLER
    from shoal.model.ray_errors import translate

    controller: Any = find_actor(CONTROLLER)
    if controller is None:
        raise Unavailable("Ray runs, but there is no controller")
    try:
        return ray.get(controller.call.remote(verb.name, arguments), timeout=timeout_s)
    except ray.exceptions.RayError as error:
        raise translate(error, f"the controller ({verb.name})") from None


if __name__ == "__main__":
    _main()
