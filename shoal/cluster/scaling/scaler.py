"""The scaler: an actor on the head that observes, decides and carries out, each second.

Ray restarts it if it is killed; what it has to remember is in files. It holds nothing that runs: without it sandboxes
start and end as before, and Ray goes on within the limits that were written last.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import ray

from shoal.actors.handles import find_actor
from shoal.cluster.scaling import planning
from shoal.cluster.scaling.deciding import IDLE, Decision, decide
from shoal.cluster.scaling.files import ScalingFiles
from shoal.cluster.scaling.monitor import Monitor
from shoal.cluster.scaling.observing import capacity_of, limits_of, observe, pending_actors
from shoal.cluster.scaling.ray_config import monitor_environment, ray_config
from shoal.model import verbs
from shoal.model.cluster_file import write_private
from shoal.model.errors import FailedPrecondition, ShoalError, Unavailable
from shoal.model.ids import CONTROLLER, NAMESPACE, SCALER
from shoal.model.logs import write_logs
from shoal.model.ray_errors import translate

log = logging.getLogger("shoal.scaling")

_EACH_S = 1.0
_ANSWER_S = 5.0
_TOLD_EACH_S = 5.0
"""A plan that stays the same is written so often, for `status` to see that it is one of now."""


def scaler_options() -> dict[str, Any]:
    """Restarted without limit, on the head node."""
    return {
        "name": SCALER,
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "num_cpus": 0,
        "resources": {"node:__internal_head__": 0.001},
        "max_restarts": -1,
        "max_concurrency": 4,
        "get_if_exists": True,
    }


def deploy_scaler(state_dir: str, logs: str, cpu_overcommit: float, log_format: str, timeout_s: float) -> int:
    """Makes sure that it runs; the pid of its process. Blocks; connected to Ray."""
    head_cpus = max(1, round((os.cpu_count() or 1) * cpu_overcommit))
    actor: Any = ray.remote(ScalerActor).options(**scaler_options())
    made = actor.remote(state_dir, logs, head_cpus, cpu_overcommit, log_format)
    try:
        pid: int = ray.get(made.ready.remote(), timeout=timeout_s)
    except ray.exceptions.RayError as error:
        raise translate(error, "the scaler") from None
    return pid


class ScalerActor:
    """Made by `deploy_scaler`. `logs`: Ray's directory of logs; `log_format`: as the setting."""

    def __init__(self, state_dir: str, logs: str, head_cpus: int, cpu_overcommit: float, log_format: str) -> None:
        write_logs(log_format, "scaler")
        gcs_address = ray.get_runtime_context().gcs_address
        self._scaler = Scaler(Path(state_dir), Path(logs), gcs_address, head_cpus, cpu_overcommit, log_format)
        threading.Thread(target=self._run, daemon=True, name="scaler").start()

    def ready(self) -> int:
        """The pid of the process that it runs in."""
        return os.getpid()

    def _run(self) -> None:
        try:
            while True:
                began = time.monotonic()
                self._scaler.turn()
                time.sleep(max(0.0, began + _EACH_S - time.monotonic()))
        finally:
            # A bug, which is in the log. Ray starts the actor anew.
            logging.shutdown()
            os._exit(1)


class Scaler:
    """One turn after the other, each from what is there at that moment."""

    def __init__(
        self,
        state_dir: Path,
        logs: Path,
        gcs_address: str,
        head_cpus: int,
        cpu_overcommit: float,
        log_format: str = "text",
    ) -> None:
        self._state_dir = state_dir
        self._log_format = log_format
        self._files = ScalingFiles.below(state_dir)
        self._gcs_address = gcs_address
        self._head_cpus = head_cpus
        self._cpu_overcommit = cpu_overcommit
        self._monitor = Monitor(self._files.ray, gcs_address, logs)
        self._memory = self._files.read_memory()
        self._troubles: dict[str, str] = {}
        self._written = ""
        self._plan: dict[str, Any] = {"at": 0.0}
        self._leaving: dict[str, Any] = {}

    def turn(self) -> None:
        """Observes, decides, carries out. What does not answer is left for the next turn."""
        self._troubles = {}
        try:
            cluster = self._files.read_cluster()
        except FailedPrecondition as error:
            log.warning("%s", error)
            return
        if cluster is None:
            self._monitor.stop()  # `shoal down` is under way
            return
        limits = limits_of(cluster, self._cpu_overcommit)
        fleet = self._files.read_fleet()
        nodes, pending = self._look_at_ray()
        demand = self._ask("the controller", verbs.demand.name) if nodes is not None else None
        seen = observe(time.monotonic(), fleet, nodes or (), pending, demand, cluster.drain_timeout)
        if nodes is not None:
            before = self._memory
            decision, self._memory = decide(limits, before, seen)
            if self._memory != before:
                self._files.write_memory(self._memory)
            text = ray_config(
                cluster,
                str(self._state_dir),
                self._head_cpus,
                self._cpu_overcommit,
                decision.most,
                decision.least,
                self._log_format,
            )
            if text != self._written or not self._files.ray.exists():
                write_private(self._files.ray, text.encode())
                self._written = text
        else:
            # Not even who has joined is known: whatever was allowed stays so.
            decision = Decision({}, {})
        self._monitor.keep(monitor_environment(cluster), cluster.model_dump_json())
        if demand is not None:
            self._carry_out(decision)
            capacity = capacity_of(limits, self._memory, seen, time.time())
            self._ask("the controller", verbs.report_capacity.name, capacity)
        plan = planning.plan_of(
            limits,
            self._memory,
            seen,
            decision,
            fleet,
            wall=time.time(),
            monitor=self._monitor.pid,
            troubles=self._troubles,
        )
        if {**plan, "at": 0} != {**self._plan, "at": 0} or plan["at"] - self._plan["at"] > _TOLD_EACH_S:
            self._files.write_plan(plan)
            self._plan = plan

    def _look_at_ray(self) -> tuple[list[Any] | None, dict[tuple[float, float, float], int]]:
        """(nodes that live, actors without room); None for the nodes where Ray does not answer."""
        from ray.autoscaler.v2.sdk import get_cluster_status

        try:
            status = get_cluster_status(self._gcs_address)
        except (RuntimeError, ConnectionError, TimeoutError, ray.exceptions.RayError) as error:
            self._troubles["Ray"] = f"does not answer: {str(error)[:200]}"
            return None, {}
        demands = status.resource_demands.ray_task_actor_demand
        return [*status.active_nodes, *status.idle_nodes], pending_actors(demands)

    def _carry_out(self, decision: Decision) -> None:
        for node_id in decision.uncordon:
            self._ask("uncordon", verbs.uncordon.name, node_id)
        for node_id in decision.cordon:
            self._ask("cordon", verbs.cordon.name, node_id, IDLE)
        for node_id in decision.leave:
            # Only where it is empty, without waiting: else it stays as it is, and is decided about anew.
            self._start("leave", verbs.drain_node.name, node_id, IDLE, False, 0.0)
        for each in decision.drain:
            log.warning("node %s is drained within %.0f s: %s", each.node_id, each.seconds, each.why)
            self._ask("cordon", verbs.cordon.name, each.node_id, each.why)
            self._drain_in_ray(each.node_id, each.seconds, each.why)

    def _drain_in_ray(self, node_id: str, seconds: float, why: str) -> None:
        """Tells Ray, which then places nothing there; what runs goes on until the cloud ends it."""
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "ray.scripts.scripts",
                "drain-node",
                f"--address={self._gcs_address}",
                f"--node-id={node_id}",
                "--reason=DRAIN_NODE_REASON_PREEMPTION",
                f"--reason-message={why}",
                f"--deadline-remaining-seconds={round(seconds)}",
            ],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _start(self, what: str, verb: str, *arguments: Any) -> None:
        """Asks the controller for something that takes a while, without waiting for the answer."""
        controller: Any = find_actor(CONTROLLER)
        if controller is not None:
            self._leaving[arguments[0]] = controller.call.remote(verb, arguments)
        done, _ = ray.wait([*self._leaving.values()], num_returns=len(self._leaving), timeout=0)
        for node_id, ref in [*self._leaving.items()]:
            if ref in done:
                del self._leaving[node_id]
                self._taken(what, ref, 0.0)

    def _ask(self, what: str, verb: str, *arguments: Any) -> Any:
        """The controller's answer; None, and a trouble on record, where it gives none."""
        controller: Any = find_actor(CONTROLLER)
        if controller is None:
            self._troubles[what] = "there is no controller"
            return None
        return self._taken(what, controller.call.remote(verb, arguments), _ANSWER_S)

    def _taken(self, what: str, ref: Any, within_s: float) -> Any:
        try:
            return ray.get(ref, timeout=within_s)
        except ray.exceptions.RayError as error:
            failed: ShoalError = translate(error, "the controller")
        except ShoalError as error:
            failed = error
        if not isinstance(failed, Unavailable):
            log.warning("%s: %s", what, failed)
        self._troubles[what] = failed.message[:200]
        return None
