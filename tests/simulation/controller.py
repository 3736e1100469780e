"""The real controller over a fleet: its parts as they are, with pretend machines in Ray's place."""

from __future__ import annotations

from typing import Any

from shoal.actors.controller.nodes import Nodes
from shoal.actors.controller.object_storage import ObjectStorage
from shoal.actors.controller.parts import Parts, open_parts
from shoal.actors.controller.store import Store
from shoal.model.errors import Unavailable
from shoal.model.settings import Settings
from tests.fakes.objects import MemoryKeeper
from tests.simulation.fleet import Fleet

SECRET = b"s" * 32


class FleetNodes(Nodes):
    """The machines of a fleet. Its node actors are the machines themselves."""

    fleet: Fleet

    def _make_actor(self, node_id: str) -> Any:
        machine = self.fleet.machines.get(node_id)
        if machine is None:
            raise Unavailable(f"machine {node_id} is gone")
        machine.actor = True
        return machine


async def open_controller(fleet: Fleet, settings: Settings, store: Store) -> Parts:
    """A new controller, which takes up what the last one left."""
    nodes = FleetNodes(
        settings, "simulation", SECRET, fleet.call, list_machines=fleet.list_machines, kill=fleet.kill_node_actor
    )
    nodes.fleet = fleet
    return await open_parts(
        settings,
        SECRET,
        store,
        nodes,
        fleet,
        _overtaken,
        call=fleet.call,
        objects=ObjectStorage(MemoryKeeper(), "cluster"),
    )


def _overtaken() -> None:
    """The run's next controller has opened the store."""
