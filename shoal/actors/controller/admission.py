"""Decides whether a create is accepted, in one step without a wait, so that no two creates both get the last room."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from shoal.actors.controller.accounts import Accounts
from shoal.actors.controller.capacity import LaunchableNodes
from shoal.actors.controller.image_use import ImageUse
from shoal.actors.controller.machine import Machine, check_fits
from shoal.actors.controller.nodes import Nodes
from shoal.actors.controller.quotas import check_quota, check_weight
from shoal.actors.controller.record import HeldImage, SandboxRecord, spec_weight
from shoal.actors.controller.registry import Registry
from shoal.model.access import Caller
from shoal.model.clock import steady_time
from shoal.model.errors import FailedPrecondition, InvalidRequest, Unavailable
from shoal.model.ids import new_sandbox_id
from shoal.model.settings import Limits
from shoal.model.spec import SandboxSpec
from shoal.model.spec_model import check_spec
from shoal.model.validate import check_number
from shoal.model.visibility import check_sees_environment


@dataclass(slots=True)
class Admission:
    """The checks of a create. `check_room`: raises `NoCapacity` if it would have to wait; `volumes_of`: the
    ids of what it mounts; `nodes_mounting`: the nodes that can mount that, None: any; `closed`: the cluster is being
    shut down."""

    limits: Limits
    registry: Registry
    accounts: Accounts
    nodes: Nodes
    images: ImageUse
    launchable: LaunchableNodes
    check_room: Callable[[SandboxSpec], None]
    volumes_of: Callable[[SandboxSpec], tuple[str, ...]] = lambda spec: ()
    nodes_mounting: Callable[[SandboxSpec], tuple[str, ...] | None] = lambda spec: None
    clock: Callable[[], float] = time.time
    closed: bool = False

    def check_call(self, spec: SandboxSpec, deadline_s: float, caller: Caller) -> None:
        """Checks the call itself, before `admit`: `InvalidRequest`, `EnvironmentNotFound`."""
        check_number("deadline", deadline_s, 0, self.limits.create_deadline, "seconds")
        check_sees_environment(caller, spec.environment)

    def check_possible(self, spec: SandboxSpec) -> HeldImage | None:
        """Checks whether there can be such a sandbox at all, and returns its image if that is one of the cluster's:
        `InvalidRequest`, `EnvironmentNotFound`, `ImageNotFound`, `FailedPrecondition`, `Unavailable`."""
        check_spec(spec, self.limits)
        self.accounts.quota(spec.environment)
        if self.closed:
            raise Unavailable("the cluster is being shut down; nothing was created")
        image = self.images.held(spec)
        try:
            check_fits(spec, self._machines(image))
        except InvalidRequest:
            if self.launchable.awaited:
                raise Unavailable(
                    "the controller has just started, and does not know yet which nodes could be launched; try again"
                ) from None
            raise
        if (mounting := self.nodes_mounting(spec)) is not None:
            self._check_mounted(spec, [each for node, each in self.nodes.capacities().items() if node in mounting])
        return image

    def _check_mounted(self, spec: SandboxSpec, machines: Sequence[Machine]) -> None:
        """Raises `FailedPrecondition` where none of the machines that can mount its volumes can hold it."""
        try:
            check_fits(spec, machines)
        except InvalidRequest as error:
            raise FailedPrecondition(
                "volumes: their metadata is in files of the head, so only the head mounts them, and it cannot run this "
                f"sandbox ({error.message}); set store.url to a PostgreSQL database, which all nodes reach, or ask for "
                "what the head has",
                state="head_only",
                field="volumes",
            ) from None

    def _machines(self, image: HeldImage | None) -> list[Machine]:
        """What machines there are, or could be, that may run the image."""
        nodes = None if image is None else self.images.nodes_with(image.digest)
        if nodes is None:
            return [*self.nodes.machines(), *self.launchable.machines()]
        return [machine for node_id, machine in self.nodes.capacities().items() if node_id in nodes]

    def admit(
        self,
        spec: SandboxSpec,
        left_s: float,
        caller: Caller,
        forgotten: SandboxRecord | None = None,
        *,
        hidden: bool = False,
    ) -> tuple[SandboxRecord, bool]:
        """The sandbox for a create, and whether it is new rather than that of an earlier call with the same key
        (`forgotten`: the one that only the store knows). `left_s`: seconds left of its deadline. `hidden`: as in
        `SandboxRecord`.

        Raises `InvalidRequest`, `EnvironmentNotFound`, `ImageNotFound`, `AlreadyExists`, `QuotaExceeded`, `NoCapacity`,
        `FailedPrecondition`, `Unavailable`; then nothing was created.
        """
        # First, as it is cheap: the same request has passed all other checks.
        record = self.registry.same_request(spec, forgotten)
        if record is not None:
            record.asked += 1
            return record, False
        image = self.check_possible(spec)
        volumes = self.volumes_of(spec)
        quota = self.accounts.quota(spec.environment)
        if not spec.wait_for_capacity:
            self.check_room(spec if image is None else replace(spec, image=image.digest))
        steady = steady_time()
        usage = self.registry.usage(spec.environment)
        if not hidden:
            check_quota(quota, usage, spec, steady)
            check_weight(usage, spec, spec_weight(spec))
        record = SandboxRecord(
            new_sandbox_id(),
            spec,
            self.clock(),
            dict(spec.tags),
            deadline=steady + left_s,
            created_by=caller.token,
            asked=1,
            image=image,
            volumes=volumes,
            hidden=hidden,
        )
        self.registry.add(record)
        if not hidden:
            usage.accept(steady)
        return record, True
