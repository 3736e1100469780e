"""The API is started through Serve, whose own parts may be replaced meanwhile."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, RayActorError

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray Serve, when it is imported


class Serve:
    """Of `serve.start` the first `deaths` calls wait for a HAProxy that is replaced."""

    def __init__(self, deaths: int, monkeypatch: pytest.MonkeyPatch) -> None:
        from ray import serve

        from shoal.cluster.serving import control

        self.deaths = deaths
        self.run_api = control.start
        self.done: list[str] = []
        monkeypatch.setattr(serve, "start", self.start)
        monkeypatch.setattr(serve, "run", lambda *_, **__: self.done.append("run"))
        monkeypatch.setattr(control, "application", lambda settings: settings)

    def start(self, *_: object) -> None:
        self.done.append("start")
        if self.done.count("start") <= self.deaths:
            raise ActorDiedError()


def test_a_haproxy_that_serve_replaces_while_it_starts_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Serve(1, monkeypatch)
    made.run_api({}, "127.0.0.1", 1)
    assert made.done == ["start", "start", "run"]


def test_one_that_never_comes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Serve(2, monkeypatch)
    with pytest.raises(RayActorError):
        made.run_api({}, "127.0.0.1", 1)
    assert made.done == ["start", "start"]
