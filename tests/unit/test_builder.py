"""The builder, over a cluster in memory: which steps it runs, what it saves, who shares what."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import pytest

from shoal.client.cluster import Client
from shoal.client.image.image import Image
from shoal.cluster.builds import files as file_store
from shoal.cluster.builds.builder import Builder
from shoal.cluster.builds.files import FileStore
from shoal.cluster.builds.log import Log
from shoal.cluster.builds.steps import explain
from shoal.model.access import INSIDE, Caller, Scope
from shoal.model.builds import BaseImage, BuildInfo, BuildOptions, BuildState
from shoal.model.errors import (
    BuildNotFound,
    DeadlineExceeded,
    ImageBuildError,
    InvalidRequest,
    QuotaExceeded,
)
from shoal.model.images import ImageKind, ImageRecord
from shoal.model.info import Listing
from shoal.model.recipe import Recipe, Run, SetEnv, keys_of
from shoal.model.verbs import Verb
from tests.fakes.cluster import FakeTransport

pytestmark = pytest.mark.anyio

P = ParamSpec("P")
R = TypeVar("R")
BASE = BaseImage("base", "sha256:" + "0" * 64, env={"PATH": "/bin"})


class Cluster(FakeTransport):
    """A cluster that keeps what was built, and a builder of its own."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.client = Client(self)
        self.root = root
        self.builder = Builder(self.client, FileStore(root))
        self.saved: dict[str, ImageRecord] = {}
        self.lost_after: int | None = None

    async def ask(self, verb: Verb[P, R], /, *args: P.args, **options: P.kwargs) -> R:
        own = getattr(self, f"_{verb.name}", None)
        if own is None:
            return await super().ask(verb, *args, **options)
        named = verb.named(args, options)
        self.note(verb.name, next(iter(named.values())))
        return cast(R, await own(**named))

    async def _base_image(self, reference: str, environment: str, pull: bool) -> BaseImage:
        return BASE

    async def _find_image(self, environment: str, cache_key: str) -> ImageRecord | None:
        return self.saved.get(cache_key)

    async def _save_build(self, sandbox_id: str, cache_key: str, config: Any, replace: bool, **_: Any) -> ImageRecord:
        if cache_key in self.saved and not replace:
            return self.saved[cache_key]
        digest = "sha256:" + hashlib.sha256(f"{sandbox_id}{cache_key}".encode()).hexdigest()
        made = ImageRecord(f"im-{cache_key[:8]}", "main", ImageKind.BUILD, 0.0, digest=digest, config=config)
        self.saved[cache_key] = made
        return made

    async def _build_image(self, recipe: Recipe, environment: str, options: BuildOptions) -> BuildInfo:
        return await self.builder.build(recipe, environment, options, INSIDE)

    async def _build_log(self, build_id: str, offset: int, wait: float) -> Any:
        if self.lost_after is not None and offset >= self.lost_after:
            self.lost_after = None
            self.builder = Builder(self.client, FileStore(self.root))
        return await self.builder.log(build_id, offset, wait, INSIDE)

    async def _put_build_files(self, digest: str, size: int, offset: int, data: bytes) -> None:
        await self.builder.put_files(digest, size, offset, data)

    @property
    def ran(self) -> list[tuple[str, ...]]:
        """The commands that steps ran."""
        return [tuple(start.argv) for start in self.named("exec")]


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(tmp_path / "files")
    yield made
    async with asyncio.timeout(5):
        while await made.client.transport.list(Listing()):  # noqa: ASYNC110  # they tell nobody
            await asyncio.sleep(0.01)  # those of builds that were ended, or lost, end a moment later


def run(*argv: str) -> Run:
    return Run(argv)


def image(*steps: Any) -> Image:
    return Image("base", steps)


async def test_each_step_is_run_once_and_saved_under_its_key(cluster: Cluster) -> None:
    log: list[str] = []
    steps = (
        run("echo", "one"),
        SetEnv({"PATH": "/x:${PATH}"}, expand=True),
        run("echo", "two"),
        SetEnv({"LAST": "1"}),
    )
    built = await image(*steps).build.aio(client=cluster.client, log=log.append)
    keys = keys_of(BASE.digest, steps)
    assert [*cluster.saved] == [keys[0], keys[2], keys[3]]
    envs = [dict(record.config["env"]) for record in cluster.saved.values()]
    assert envs == [
        {"PATH": "/bin"},
        {"PATH": "/x:/bin"},
        {"PATH": "/x:/bin", "LAST": "1"},
    ]
    assert built.id == cluster.saved[keys[3]].id
    images = [spec.image for spec in cluster.named("create")]
    assert images == ["base", cluster.saved[keys[0]].digest], "a sandbox for each layer; none for defaults after it"
    assert "one\n" in "".join(log)

    before = len(cluster.ran)
    more = image(*steps, run("echo", "three"))
    await more.build.aio(client=cluster.client)
    assert cluster.ran[before:] == [("echo", "three")]
    await image(*steps[:1], SetEnv({"OTHER": "1"})).build.aio(client=cluster.client)
    assert len(cluster.ran) == before + 1
    await image(*steps[:1]).build.aio(client=cluster.client, force=True)
    assert len(cluster.ran) == before + 2


async def test_all_who_ask_share_a_build_and_builds_share_steps(cluster: Cluster) -> None:
    common = run("sleep", "0.2")
    wanted = [image(common), image(common), image(common, run("echo", "x")), image(common, run("echo", "y"))]
    built = await asyncio.gather(*(each.build.aio(client=cluster.client) for each in wanted))
    assert built[0] == built[1]
    assert sorted(cluster.ran) == [("echo", "x"), ("echo", "y"), ("sleep", "0.2")]


async def test_a_failed_step_is_told_to_all_and_tried_again(cluster: Cluster) -> None:
    wanted = image(run("sleep", "0.05"), SetEnv({"A": "1"}), run("false"))
    outcomes = await asyncio.gather(
        *(wanted.build.aio(client=cluster.client) for _ in range(2)), return_exceptions=True
    )
    for error in outcomes:
        assert isinstance(error, ImageBuildError)
        assert (error.step, error.text, error.exit_code) == (3, "false", 1)
    assert cluster.ran == [("sleep", "0.05"), ("false",)]
    with pytest.raises(ImageBuildError):
        await wanted.build.aio(client=cluster.client)
    assert cluster.ran[2:] == [("false",)]
    with pytest.raises(ImageBuildError) as caught:
        await image(run("fly")).build.aio(client=cluster.client)
    assert (caught.value.step, caught.value.exit_code) == (1, 127)


async def test_a_build_has_a_timeout_of_its_own(cluster: Cluster) -> None:
    slow = image(run("sleep", "5"), run("echo", "after"))
    quick, patient = slow.build.aio(client=cluster.client, timeout=0.3), image(run("sleep", "5")).build
    with pytest.raises(DeadlineExceeded):
        await quick
    with pytest.raises(DeadlineExceeded):
        await patient.aio(client=cluster.client, timeout=0.3)
    assert cluster.saved == {}


async def test_a_build_that_waits_for_another_takes_over_when_that_fails(cluster: Cluster) -> None:
    step = run("sleep", "0.4")
    short = asyncio.ensure_future(image(step).build.aio(client=cluster.client, timeout=0.2))
    await asyncio.sleep(0.05)
    await image(step, SetEnv({"A": "1"})).build.aio(client=cluster.client)
    with pytest.raises(DeadlineExceeded):
        await short
    assert cluster.ran == [("sleep", "0.4")] * 2


async def test_what_is_not_the_steps_fault_is_raised_as_it_is(cluster: Cluster) -> None:
    cluster.fail_next("create", QuotaExceeded("no room"))
    with pytest.raises(QuotaExceeded):
        await image(run("true")).build.aio(client=cluster.client)


async def test_files_are_sent_where_they_are_missing(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "big").write_bytes(bytes(5 << 20))
    wanted = image(run("true")).add_local_dir(tmp_path / "src", "/srv")
    await wanted.build.aio(client=cluster.client)
    assert len(cluster.named("put_build_files")) == 2
    await wanted.build.aio(client=cluster.client)
    again = image(run("echo")).add_local_dir(tmp_path / "src", "/srv")
    await again.build.aio(client=cluster.client)
    assert len(cluster.named("put_build_files")) == 2, "the cluster has them"


async def test_a_builder_that_is_lost_is_asked_again(cluster: Cluster) -> None:
    cluster.lost_after = len("Step 1 of 2: echo one\none\nStep 2")
    log: list[str] = []
    wanted = image(run("echo", "one"), run("sleep", "0.2"))
    await wanted.build.aio(client=cluster.client, log=log.append)
    assert cluster.ran.count(("echo", "one")) == 1
    assert "Steps 1 to 1 of 2 are there already" in "".join(log)


async def test_a_build_is_seen_in_its_environment_only(cluster: Cluster) -> None:
    info = await cluster.builder.build(Recipe("base", (run("true"),)), "main", BuildOptions(), INSIDE)
    other = Caller("tk-1", "dev", Scope.RUN)
    with pytest.raises(BuildNotFound):
        cluster.builder.info(info.id, other)
    with pytest.raises(BuildNotFound):
        await cluster.builder.log("bd-none", 0, 0, INSIDE)
    offset = 0
    while not (part := await cluster.builder.log(info.id, offset, 5.0, INSIDE)).build.ended:
        offset = part.offset
    assert part.build.state is BuildState.DONE


def test_files_are_checked_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, data = FileStore(tmp_path / "x"), b"abcdef"
    digest = hashlib.sha256(data).hexdigest()
    store.put(digest, 6, 0, data[:3])
    assert store.path(digest) is None
    store.put(digest, 6, 0, data[:3])
    store.put(digest, 6, 3, data[3:])
    found = store.path(digest)
    assert found is not None
    assert found.read_bytes() == data
    wrong = "0" * 64
    for arguments in ((wrong, 6, 0, data), ("../etc", 6, 0, data), (wrong, 6, 4, data), (wrong, 1 << 40, 0, data)):
        with pytest.raises(InvalidRequest):
            store.put(*arguments)
    assert store.path(wrong) is None
    monkeypatch.setattr(file_store, "MOST_BYTES", 7)
    other = hashlib.sha256(b"xyz").hexdigest()
    store.put(other, 3, 0, b"xyz")
    assert store.path(digest) is None, "the oldest went"
    assert store.path(other) is not None


async def test_a_log_is_read_by_offset_and_keeps_the_newest() -> None:
    log = Log(most=10)
    log.write("0123456")
    assert log.read(5) == ("56", 7)
    waiting = asyncio.ensure_future(log.wait(7, 5.0))
    await asyncio.sleep(0)
    log.write("789abcdefg")
    await waiting
    text, offset = log.read(0)
    assert (text.splitlines()[-1], offset) == ("789abcdefg", 17)
    assert log.tail(3) == "efg"
    assert log.tail(9, since=15) == "fg"
    assert log.tail(9, since=log.offset) == ""
    log.end()
    await log.wait(17, 5.0)
    assert log.read(17) == ("", 17)


def test_the_end_of_the_output_explains_a_failure() -> None:
    assert explain("") == ""
    assert explain("one\n\n  two \n\n") == "two"
    assert explain("E: bad\nshoal: no index\nshoal: answers\n") == "no index answers"
    full = explain("dd: writing: No space left on device\n100+0 records out\n1 MB copied\n")
    assert full.startswith("dd: ")
    assert "disk=" in full
    assert len(explain("x" * 5000)) == 200
