"""The store's URL may hold a password: only the controller gets it."""

from __future__ import annotations

from typing import Any

import pytest
import ray
from ray import cloudpickle

from shoal.actors.controller.nodes import Nodes
from shoal.model.settings import Settings

pytestmark = pytest.mark.anyio

PASSWORD = "hunter2"


@pytest.fixture
def settings() -> Settings:
    return Settings.model_validate({"store": {"url": f"postgresql://shoal:{PASSWORD}@db/shoal", "retention": 77.0}})


def test_others_get_all_but_the_url(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_STORE__URL", f"postgresql://shoal:{PASSWORD}@other/shoal")
    theirs = Settings.from_dict(settings.to_dict_for_others())
    assert theirs.store.url is None, "nor do they take it from where they run"
    assert theirs.store.retention == 77.0
    assert theirs.model_copy(update={"store": settings.store}) == settings


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")  # Ray Serve's own
def test_replicas_of_the_api_do_not_get_it(settings: Settings) -> None:
    from shoal.cluster.serving.deployment import application

    assert PASSWORD.encode() in cloudpickle.dumps(settings.to_dict())
    assert PASSWORD.encode() not in cloudpickle.dumps(application(settings.to_dict(), "0123abcd"))


class NodeClass:
    """Ray's side of the node actor's class: remembers what one is made with."""

    def __init__(self) -> None:
        self.made_with: tuple[Any, ...] = ()

    def options(self, **_: Any) -> NodeClass:
        return self

    def remote(self, *arguments: Any) -> None:
        self.made_with = arguments


async def test_node_actors_do_not_get_it(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = {"NodeID": "ab" * 28, "Alive": True, "Resources": {"CPU": 2.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [machine])
    made = NodeClass()
    nodes = Nodes(settings, "cluster", b"s" * 32, _class=made)
    await nodes.refresh(wait_s=9.0)
    assert nodes.failure() is not None, "there is no actor to be asked how it is"
    assert Settings.from_dict(made.made_with[0]).store.retention == 77.0
    assert PASSWORD not in repr(made.made_with)
