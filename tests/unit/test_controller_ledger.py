"""The controller's way to its store: what is refused, what comes late, what order it has."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from shoal.actors.controller.events import EventLog
from shoal.actors.controller.ledger import Ledger
from shoal.actors.controller.store import Change
from shoal.cluster.store import open_store
from shoal.model.errors import FailedPrecondition, Unavailable
from tests.contract.store.things import entry, event, living

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]


def settings(state_dir: Path) -> dict[str, Any]:
    return {"state_dir": str(state_dir), "store": {"url": None, "retention": 60.0}}


class TestWhoseStoreItIs:
    """With the real store."""

    async def test_one_that_is_damaged_is_no_other_controller_s(self, tmp_path: Path) -> None:
        file = tmp_path / "controller" / "c1.sqlite"
        first = open_store(settings(tmp_path))
        await first.open("c1", 10)
        await first.write(Change(sandboxes=[living("sb-1")], audit=[entry()]))
        await first.close()
        with sqlite3.connect(file) as connection:
            ((page, size),) = connection.execute(
                "SELECT rootpage, page_size FROM sqlite_master, pragma_page_size WHERE name = 'audit'"
            )
        connection.close()
        with file.open("r+b") as damaged:
            damaged.seek((page - 1) * size)
            damaged.write(b"\xff" * size)

        overtaken: list[bool] = []
        ledger = Ledger(open_store(settings(tmp_path)), EventLog(0), lambda: overtaken.append(True))
        await ledger.store.open("c1", 10)
        with pytest.raises(FailedPrecondition, match="damaged"):
            await ledger.write(Change(audit=[entry()], events=[event(1)]))
        assert not overtaken
        await ledger.close()

    async def test_a_controller_learns_from_forgetting_too_that_it_was_overtaken(self, tmp_path: Path) -> None:
        overtaken: list[bool] = []
        ledger = Ledger(open_store(settings(tmp_path)), EventLog(0), lambda: overtaken.append(True))
        await ledger.store.open("c1", 10)
        await ledger.expire(1.0)
        assert not overtaken
        other = open_store(settings(tmp_path))
        await other.open("c1", 10)
        with pytest.raises(Unavailable, match="not the cluster's any more"):
            await ledger.expire(1.0)
        assert overtaken
        await other.close()
        await ledger.close()
