"""What sandboxes write reaches a sink that fails, stalls and returns: all of it up to a bound, and the rest is told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.actors.node.logs import LogFiles
from shoal.actors.node.shipping.lines import LONGEST, Entry, Names, Splitter
from shoal.actors.node.shipping.shipper import Shipper
from shoal.actors.node.shipping.shipping import LogShipping, _open_spool
from shoal.actors.node.shipping.sinks import FileSink, Sink, sink
from shoal.actors.node.shipping.spool import Spool
from shoal.model import tasks
from shoal.model.access import SandboxEvent
from shoal.model.errors import NotFound
from tests.otlp import Receiver, receiver

pytestmark = pytest.mark.anyio

BOX, OTHER = "sb-a", "sb-b"
NAMES = Names("cluster", "host")


@given(st.lists(st.binary(max_size=12).map(lambda data: data.replace(b"x", b"\n")), max_size=30))
def test_lines_are_what_was_written(chunks: list[bytes]) -> None:
    splitter, found = Splitter(), []
    for chunk in chunks:
        found += splitter.add(chunk)
    found += splitter.flush()
    whole = b"".join(chunks)
    assert [line for _, line in found] == _lines(whole)
    assert all(whole[offset : offset + len(line)] == line for offset, line in found)
    assert splitter.offset == splitter.end == len(whole)


def _lines(whole: bytes) -> list[bytes]:
    lines = whole.split(b"\n")
    return lines if lines[-1] else lines[:-1]


def test_a_line_without_end_is_cut() -> None:
    splitter = Splitter()
    found = splitter.add(b"y" * (2 * LONGEST + 5))
    assert [(offset, len(line)) for offset, line in found] == [(0, LONGEST), (LONGEST, LONGEST)]
    assert (splitter.offset, splitter.end) == (2 * LONGEST, 2 * LONGEST + 5)


def test_hostile_bytes_are_text() -> None:
    told = json.loads(NAMES.line(0.0, BOX, 2, 7, b'\xff\x1b[31m"\xe2\x80\xae\r').body)
    assert told["text"] == '\ufffd\x1b[31m"\u202e'
    assert (told["stream"], told["offset"], told["sandbox_id"], told["kind"]) == ("stderr", 7, BOX, "output")


class TestSpool:
    def test_what_was_kept_is_there_after_a_kill(self, tmp_path: Path) -> None:
        first = Spool(tmp_path / "s.db", 1000)
        first.add(BOX, 1, 5, [Entry(b"one"), Entry(b"two")])
        again = Spool(tmp_path / "s.db", 1000)  # beside the first, which was not closed
        assert (again.position(BOX, 1), again.position(BOX, 2), again.size) == (5, None, 6)
        batch = again.first(10, 10)
        assert [body for _, body in batch] == [b"one", b"two"]
        again.remove(batch)
        assert (again.first(10, 10), again.size, again.sources()) == ([], 0, {BOX})
        again.forget([BOX])
        assert again.sources() == set()
        for spool in (first, again):
            spool.close()

    def test_a_damaged_one_is_put_aside(self, tmp_path: Path) -> None:
        (tmp_path / "s.db").write_bytes(b"no database" * 100)
        spool = _open_spool(tmp_path / "s.db", 10)
        spool.add(BOX, 1, 1, [Entry(b"1")])
        spool.close()
        assert (tmp_path / "s.damaged").exists()

    def test_beyond_its_bound_it_drops_and_goes_on(self, tmp_path: Path) -> None:
        spool = Spool(tmp_path / "s.db", 10)
        assert spool.add(BOX, 1, 20, [Entry(b"12345678"), Entry(b"9012"), Entry(b"34")]) == 1
        assert (spool.position(BOX, 1), spool.size, spool.full) == (20, 10, True)
        spool.remove(spool.first(1, 1))
        assert spool.add(BOX, 1, 21, [Entry(b"5")]) == 0
        spool.close()

    def test_a_batch_is_bounded_and_never_empty(self, tmp_path: Path) -> None:
        spool = Spool(tmp_path / "s.db", 1000)
        spool.add(BOX, 1, 1, [Entry(b"x" * 50)] * 4)
        assert [len(spool.first(most, size)) for most, size in ((10, 1), (10, 100), (3, 1000))] == [1, 2, 3]
        spool.close()


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110  # threads tell nobody
            await asyncio.sleep(0.005)


def shipper(tmp_path: Path, to: Sink, most: int = 1 << 20) -> Shipper:
    return Shipper(Spool(tmp_path / "s.db", most), to, NAMES, pauses_s=(0.005, 0.02))


def texts(seen: Receiver) -> list[str]:
    return [json.loads(line)["text"] for body in seen.bodies for line in body.splitlines()]


def lines(count: int, first: int = 0) -> list[tuple[int, bytes]]:
    return [(number, b"%d" % number) for number in range(first, first + count)]


async def test_a_sink_that_fails_stalls_and_returns_gets_each_line_in_order(tmp_path: Path) -> None:
    with receiver() as seen:
        answers = iter([500, 302, 429])
        stalled = threading.Event()

        def answer() -> int:
            status = next(answers, 200)
            if status == 429:
                stalled.wait(10)
            return status

        seen.answer = answer
        made = shipper(tmp_path, sink(f"{seen.url}/logs?x=1", None))
        delivering = tasks.supervise(made.deliver, "deliver")
        await made.take(BOX, 1, 50, lines(50), None)
        await until(lambda: made.failures >= 2)
        await made.take(BOX, 1, 100, lines(50, 50), None)
        stalled.set()
        await until(lambda: len(texts(seen)) >= 100)
        assert texts(seen) == [str(number) for number in range(100)]
        assert (made.dropped, made.lost_bytes) == ({}, 0)
        assert seen.headers[0]["content-type"] == "application/x-ndjson"
        await until(lambda: made.spool.size == 0)
        await tasks.stop(delivering)
        made.spool.close()


async def test_a_sink_that_was_away_gets_all_after_a_kill(tmp_path: Path) -> None:
    with receiver() as gone:
        port = int(gone.url.rsplit(":", 1)[1])
    first = shipper(tmp_path, sink(gone.url, None))
    delivering = tasks.supervise(first.deliver, "deliver")
    await first.take(BOX, 1, 9, lines(9), None)
    await until(lambda: first.failures >= 3)
    await tasks.stop(delivering)  # killed: nothing is closed
    with receiver(port) as seen:
        second = shipper(tmp_path, sink(seen.url, None))
        delivering = tasks.supervise(second.deliver, "deliver")
        await second.finish(BOX, 1, 5, b"5678\n9\n")  # up to 9 it is taken already
        await until(lambda: len(texts(seen)) >= 11)
        assert texts(seen) == [*map(str, range(9)), "", "9"]
        await tasks.stop(delivering)
    for each in (first, second):
        each.spool.close()


async def test_what_a_sink_never_takes_is_dropped_and_counted(tmp_path: Path) -> None:
    with receiver() as seen:
        answers = iter([400])
        seen.answer = lambda: next(answers, 200)
        made = shipper(tmp_path, sink(seen.url, None))
        delivering = tasks.supervise(made.deliver, "deliver")
        await made.take(BOX, 1, 2, lines(2), None)
        await until(lambda: made.dropped["refused"] == 2)
        await made.take(BOX, 1, 3, lines(1, 2), (1, 2))
        await until(lambda: made.sent == 2)
        gap, line = (json.loads(line) for body in seen.bodies for line in body.splitlines())
        assert (gap["kind"], gap["offset"], gap["bytes"], line["text"]) == ("gap", 1, 1, "2")
        assert made.lost_bytes == 1
        await tasks.stop(delivering)
        made.spool.close()


async def test_more_than_may_wait_is_dropped_and_counted(tmp_path: Path) -> None:
    made = shipper(tmp_path, FileSink(tmp_path / "none"), most=500)
    await made.take(BOX, 1, 100, lines(100), None)
    assert 0 < made.dropped["buffer"] < 100
    told = {series.name: value for series, value in made.series().items()}
    assert told["shoal_shipping_spool_bytes"] <= 500
    made.spool.close()


async def test_a_collector_gets_log_records(tmp_path: Path) -> None:
    headers = tmp_path / "headers"
    headers.write_text("Authorization: Bearer hush\n\n")
    with receiver() as seen:
        to = sink(f"otlp+{seen.url}", headers)
        event = SandboxEvent(4, 1.5, "dev", BOX, "running", {"node_id": "n"})
        to.send([NAMES.line(2.0, BOX, 1, 3, b"hello").body, NAMES.event(event.at, event.to_dict()).body])
        line, told = seen.logs
        assert (line["body"], line["time"], line["shoal.offset"], line["shoal.stream"]) == (
            "hello",
            2 * 10**9,
            3,
            "stdout",
        )
        assert (told["body"], told["shoal.id"], told["shoal.environment"]) == ("running", 4, "dev")
        assert seen.headers[0]["authorization"] == "Bearer hush"


def test_a_file_gets_lines_and_may_be_renamed(tmp_path: Path) -> None:
    file = tmp_path / "made" / "log.ndjson"
    to = sink(file.as_uri(), None)
    to.send([b"{}", b"[]"])
    file.rename(tmp_path / "old")
    to.send([b"1"])
    assert ((tmp_path / "old").read_bytes(), file.read_bytes()) == (b"{}\n[]\n", b"1\n")


async def test_events_are_taken_from_the_first_start_on_and_wait_while_the_spool_is_full(tmp_path: Path) -> None:
    stored = [SandboxEvent(number, 1.0, "dev", BOX, "running") for number in range(1, 9)]
    asked: list[int | None] = []

    async def ask(after: int | None) -> Sequence[SandboxEvent] | int:
        asked.append(after)
        if after is None:
            return 5
        await asyncio.sleep(0.001)
        return [event for event in stored if event.id > after][:1]

    made = shipper(tmp_path, FileSink(tmp_path / "out"), most=1)
    made.spool.add(OTHER, 1, 1, [Entry(b"x")])
    following = tasks.supervise(lambda: made.follow_events(ask), "events")
    await until(lambda: asked == [None])
    delivering = tasks.supervise(made.deliver, "deliver")  # there is room
    made.spool._most = 1 << 20
    await until(lambda: made.sent == 4)
    found = [json.loads(line) for line in (tmp_path / "out").read_bytes().splitlines() if line != b"x"]
    assert [(each["id"], each["event"]) for each in found] == [(6, "running"), (7, "running"), (8, "running")]
    await tasks.stop(following, delivering)
    made.spool.close()


async def test_what_ended_while_the_node_was_away_is_sent_from_its_file(tmp_path: Path) -> None:
    logs = LogFiles(tmp_path / "logs")
    logs.save(BOX, 1, 3, b"lo\nrest")
    made = shipper(tmp_path, FileSink(tmp_path / "out"))
    made.spool.add(BOX, 1, 0, [])

    async def gone(sandbox_id: str) -> Any:
        raise NotFound(sandbox_id)

    shipping = LogShipping(made, gone, None, logs)
    await shipping.start(set())
    await until(lambda: made.sent == 3)
    found = [json.loads(line) for line in (tmp_path / "out").read_bytes().splitlines()]
    assert [each.get("text", each.get("bytes")) for each in found] == [3, "lo", "rest"]
    await shipping.sweep(set())
    assert made.spool.sources() == {BOX}
    logs.sweep(0.0, now=1e12)
    await shipping.sweep(set())
    assert made.spool.sources() == set()
    await shipping.close()
