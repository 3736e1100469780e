"""The embedded store: what is its file's alone. The contract's own suite is in `tests/contract/store`."""

from __future__ import annotations

import json
import pickle
import sqlite3
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from shoal.actors.controller.store import Change, Store
from shoal.cluster.store import database, open_store
from shoal.cluster.store.sql import SqlStore
from shoal.model.errors import FailedPrecondition, Internal, InvalidRequest, Unavailable
from tests.contract.store.samples import living

pytestmark = pytest.mark.anyio


def settings(state_dir: Path, url: str | None = None) -> dict[str, Any]:
    return {"state_dir": str(state_dir), "store": {"url": url, "retention": 60.0}}


def file_of(state_dir: Path) -> Path:
    return state_dir / "controller" / "c1.sqlite"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(settings(tmp_path))


def test_many_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    for number in range(40):
        together = threading.Barrier(8)

        def opened(number: int = number, together: threading.Barrier = together) -> str:
            made = database.sqlite_database(file_of(tmp_path / str(number)))
            together.wait(60)  # a machine may stand still for seconds
            try:
                with made.reads.connect() as connection:
                    return str(connection.exec_driver_sql("PRAGMA journal_mode").scalar())
            finally:
                made.close()

        with ThreadPoolExecutor(8) as pool:
            assert [found.result() for found in [pool.submit(opened) for _ in range(8)]] == ["wal"] * 8


async def test_only_its_owner_may_read_it(store: Store, tmp_path: Path) -> None:
    await store.open("c1", 10)
    await store.write(Change(sandboxes=[living("sb-1")]))
    files = sorted(file_of(tmp_path).parent.iterdir())
    modes = {path.suffix: stat.S_IMODE(path.stat().st_mode) for path in files}
    assert modes == {".sqlite": 0o600, ".sqlite-wal": 0o600, ".sqlite-shm": 0o600}
    assert stat.S_IMODE(files[0].parent.stat().st_mode) == 0o700
    await store.close()
    assert [path.name for path in file_of(tmp_path).parent.iterdir()] == ["c1.sqlite"]


def test_its_connections_are_set_up_for_power_cuts_and_secrets(tmp_path: Path) -> None:
    made = database.sqlite_database(file_of(tmp_path))
    try:
        with made.writes.connect() as connection:
            told = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                for name in ("journal_mode", "synchronous", "secure_delete", "journal_size_limit")
            }
    finally:
        made.close()
    assert told == {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "journal_size_limit": 16 << 20}


async def test_a_file_that_is_no_database_is_refused(store: Store, tmp_path: Path) -> None:
    file_of(tmp_path).parent.mkdir()
    file_of(tmp_path).write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(FailedPrecondition, match="backup"):
        await store.open("c1", 10)
    await store.close()


async def test_a_place_that_cannot_be_written_is_told(store: Store, tmp_path: Path) -> None:
    (tmp_path / "controller").write_text("a file where the directory should be")
    with pytest.raises(FailedPrecondition, match="cannot be written"):
        await store.open("c1", 10)
    await store.close()


async def test_while_somebody_holds_the_file_nothing_is_written(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.05)
    await store.open("c1", 10)
    holder = sqlite3.connect(file_of(tmp_path), isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable) as caught:
        await store.write(Change(sandboxes=[living("sb-1")]))
    assert "outcome" not in caught.value.fields, "it is known: nothing was done"
    assert await store.sandbox("sb-1") is None
    holder.execute("ROLLBACK")
    holder.close()
    await store.write(Change(sandboxes=[living("sb-2")]))
    assert (await store.sandbox("sb-2") or {})["id"] == "sb-2"
    await store.close()


async def test_a_look_for_the_last_of_a_key_or_a_name_reads_no_other_rows(tmp_path: Path) -> None:
    store = SqlStore(None, tmp_path)
    await store.open("c1", 10)
    assert store._database is not None
    asked: list[tuple[str, Any]] = []
    event.listen(store._database.reads, "before_cursor_execute", lambda *told: asked.append(told[2:4]))
    await store.sandbox_keyed("k", "main")
    await store.sandbox_named("n", "main")
    await store.close()
    connection = sqlite3.connect(tmp_path / "c1.sqlite")
    looks = [look for look in asked if "FROM sandboxes" in look[0]]
    plans = [connection.execute(f"EXPLAIN QUERY PLAN {query}", values).fetchall() for query, values in looks]
    connection.close()
    assert [[step[-1].partition(" INDEX ix_sandboxes_")[2] for step in plan] for plan in plans] == [
        ["environment_idempotency_key_created_at_id (environment=? AND idempotency_key=?)"],
        ["environment_name_created_at_id (environment=? AND name=?)"],
    ]


async def test_on_a_full_disk_nothing_is_half_written(store: Store, tmp_path: Path) -> None:
    await store.open("c1", 10)
    await store.write(Change(sandboxes=[living("sb-1")]))
    big = [living(f"sb-big-{n}", env={"A": "x" * 90_000}) for n in range(30)]
    code = (
        "import asyncio, json, resource, signal, sys\n"
        "from shoal.actors.controller.store import Change\n"
        "from shoal.cluster.store import open_store\n"
        "from shoal.model.errors import Unavailable\n"
        "async def main():\n"
        "    store = open_store(json.loads(sys.argv[1]))\n"
        "    await store.open('c1', 10)\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))\n"
        "    rows = json.loads(sys.stdin.read())\n"
        "    try:\n"
        "        await store.write(Change(sandboxes=rows))\n"
        "    except Unavailable as error:\n"
        "        print(error)\n"
        "    await store.write(Change(sandboxes=rows[:1]))\n"
        "    await store.close()\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", code, json.dumps(settings(tmp_path))]
    done = subprocess.run(command, input=json.dumps(big), capture_output=True, text=True, timeout=60)  # noqa: ASYNC221
    assert "does not answer" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stderr
    assert [row["id"] for row in (await store.open("c1", 10)).sandboxes] == ["sb-1", "sb-big-0"]
    await store.close()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:hunter2@h/d",
        "postgresql://u:hunter2@h:hunter2/d",
        "hunter2",
        "",
        "sqlite:///tmp/hunter2",
        "postgresql:///",
        "postgresql://u:hunter2@127.0.0.1:1/d?sslmod=require",
        "postgresql://u:hunter2@127.0.0.1:1/d?sslmode=nonsense",
        "postgresql://u:hunter2@127.0.0.1:1/d?connect_timeout=soon",
        "postgresql://u:hunter2@127.0.0.1:99999/d",
    ],
)
async def test_a_url_that_is_none_is_refused_without_its_password(tmp_path: Path, url: str) -> None:
    store = open_store(settings(tmp_path, url))
    with pytest.raises(InvalidRequest) as caught:
        await store.open("c1", 10)
    await store.close()
    assert "hunter2" not in str(caught.value)
    assert caught.value.field == "store.url"
    assert caught.value.__cause__ is None


async def test_what_no_database_can_look_for_is_an_error_of_the_tree(store: Store) -> None:
    await store.open("c1", 10)
    with pytest.raises(Internal):
        await store.audit(1 << 70, 5)
    with pytest.raises(Internal):
        await store.events(-(1 << 70), 5)
    await store.close()


def test_it_goes_to_the_actor_by_name_and_loads_nothing_before_it_is_called() -> None:
    assert pickle.loads(pickle.dumps(open_store)) is open_store
    loaded = loaded_by("import shoal.cluster.store")
    assert not loaded & {"sqlalchemy", "alembic", "psycopg", "asyncio"}


def test_a_sqlite_store_loads_neither_alembic_nor_the_driver_of_postgresql(tmp_path: Path) -> None:
    given = json.dumps(settings(tmp_path))
    loaded = loaded_by(
        "import asyncio, json\nfrom shoal.cluster.store import open_store\n"
        "async def main(store):\n    await store.open('c1', 10)\n    await store.close()\n"
        f"asyncio.run(main(open_store(json.loads({given!r}))))"
    )
    assert "sqlalchemy" in loaded
    assert not loaded & {"alembic", "psycopg", "mako"}


def loaded_by(code: str) -> set[str]:
    full = f"import sys\n{code}\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", full], capture_output=True, text=True, check=True, timeout=60)
    return {name.partition(".")[0] for name in done.stdout.split()}
