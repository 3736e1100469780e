"""Images in code in a real cluster: built by steps, each once, for whoever asks; used over Ray and HTTP."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import shoal
from shoal.client.image.local_files import MTIME
from shoal.model.ids import IMAGE
from tests.cluster import Cluster
from tests.integration.private_images import check_private_image
from tests.processes import actor_pid, kill

pytestmark = [pytest.mark.engine, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def salt() -> str:
    """What makes this run's recipes new."""
    return uuid.uuid4().hex[:8]


@pytest.fixture(scope="module", autouse=True)
def images(cluster: Cluster) -> Iterator[None]:
    """What the module has built goes at its end."""
    yield
    from shoal.model import verbs

    async def collect() -> None:
        await cluster.client.transport.ask(verbs.collect_images, "main", 0.0, False)

    asyncio.run(collect())


def test_a_build_goes_on_after_its_builder_was_killed(cluster: Cluster, salt: str) -> None:
    # First: the sandbox of the lost builder ends by its lease while the other tests run.
    first = f"echo first-{salt}"
    image = shoal.Image.base().run_commands(first, f"sleep 2; echo second-{salt}")
    log: list[str] = []

    def follow(text: str) -> None:
        log.append(text)
        if "Step 2" in text and not killed:
            killed.append(True)
            kill(actor_pid("builder"))

    killed: list[bool] = []
    assert image.build(log=follow).id
    text = "".join(log)
    assert killed
    assert text.count(f"first-{salt}\n") == 2  # the step as text, and its output: it ran once
    assert "Steps 1 to 1 of 2 are there already" in text


def test_steps_are_built_once_and_shared(cluster: Cluster, salt: str, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "main.py").write_text("print('main')")
    (tmp_path / "src" / "main.pyc").write_text("not this")
    common = shoal.Image.base().run_commands(f"echo {salt} >/one; id -un >>/one")
    image = (
        common.env({"GREETING": "hello $USER"})
        .workdir("/srv/app")
        .add_local_dir(tmp_path / "src", "/srv/app", ignore=["**/*.pyc"])
        .run_commands("echo $GREETING $PWD >/two; pip --version >/three; exit 0")
        .user("nobody")
        .cmd(["sleep", "99"])
    )
    log: list[str] = []
    built = image.build(log=log.append)
    assert built.id is not None
    assert IMAGE.fullmatch(built.id)
    text = "".join(log)
    assert "Step 1 of 7" in text
    assert f"Built {built.id}" in text
    started = time.monotonic()
    assert image.build(log=log.append) == built
    assert time.monotonic() - started < 0.5  # alone: 10 ms
    assert "".join(log) == text

    other: list[str] = []
    common.run_commands("true").build(log=other.append)
    assert "Steps 1 to 1 of 2 are there already" in "".join(other)

    with shoal.Sandbox.create(image=image) as sandbox:
        assert sandbox.info().spec.command == ("sleep", "99")
        found = sandbox.run("cat /one /two; id -un; pwd; echo $GREETING; ls; stat -c %Y main.py").stdout
        assert found.splitlines() == [
            salt,
            "root",
            "hello $USER /srv/app",
            "nobody",
            "/srv/app",
            "hello $USER",
            "main.py",
            str(MTIME),
        ]


def test_a_step_that_fails_is_told(cluster: Cluster, salt: str, both_ways: shoal.Client) -> None:
    image = shoal.Image.base().env({"A": "1"}).run_commands(f"echo {salt}; echo why >&2; exit 3", "true")
    with pytest.raises(shoal.ImageBuildError) as caught:
        image.build()
    error = caught.value
    assert (error.step, error.exit_code) == (2, 3)
    assert error.text.startswith("echo")
    assert error.log.endswith(f"{salt}\nwhy\n")
    with pytest.raises(shoal.ImageBuildError) as caught:
        shoal.Image.base().run_commands(f"true {salt}", user="nobody-at-all").build()
    assert (caught.value.step, caught.value.exit_code) == (1, None)


def test_a_step_that_fills_its_disk_says_so_and_leaves_nothing(cluster: Cluster, salt: str, tmp_path: Path) -> None:
    before = {image.id for image in cluster.client.images()}
    (tmp_path / "big").write_bytes(os.urandom(80 << 20))
    fills = shoal.Image.base().run_commands(f"head -c 80M /dev/zero > /{salt}")
    for image in (fills, shoal.Image.base().add_local_file(tmp_path / "big", f"/{salt}")):
        with pytest.raises(shoal.ImageBuildError) as full:
            image.build(disk=48)
        assert "no space left on device; allow more with disk=" in full.value.message.lower()
        assert full.value.step == 1
    assert {image.id for image in cluster.client.images()} == before
    assert fills.build(disk=160).id is not None


def test_all_who_ask_at_the_same_time_get_one_build(
    cluster: Cluster, salt: str, http_client: shoal.Client, tmp_path: Path
) -> None:
    (tmp_path / "data").write_bytes(bytes(5 << 20))
    image = (
        shoal.Image.base().add_local_file(tmp_path / "data", "/data").run_commands(f"date +%N{salt} >/when; sleep 1")
    )
    more = image.run_commands(f"true {salt}")

    async def build() -> list[str | None]:
        clients = (cluster.client, http_client, cluster.client)
        built = [each.build.aio(client=client) for each, client in zip((image, image, more), clients, strict=True)]
        return [each.id for each in await asyncio.gather(*built)]

    one, same, longer = asyncio.run(build())
    assert one == same != longer
    assert one is not None
    with (
        shoal.Sandbox.create(image=more, client=http_client) as ours,
        shoal.Sandbox.create(image=one) as theirs,
    ):
        assert ours.run("cat /when; stat -c %s /data").stdout == theirs.run("cat /when; stat -c %s /data").stdout


def test_a_dockerfile_and_nothing_below(cluster: Cluster, salt: str, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(
        "ARG BASE\nFROM $BASE AS tools\nARG SALT\nRUN --mount=type=secret,id=key "
        "mkdir -p /o/d && cp /run/secrets/key /o/$SALT && echo x >/o/d/x && ln -s d /o/link\n"
        "FROM $BASE\nENV PATH=/opt/x:$PATH\nARG SALT\nRUN echo $SALT >/salt && chown nobody /salt\n"
        "COPY --chown=nobody Dockerfile /etc/\nLABEL a=b\n"
        "COPY --from=tools --chmod=700 /o /o\nCOPY --from=tools /o/[a-z0-9]*[a-z0-9] /flat/\n"
        "COPY --from=tools /o/d/x /y\n"
    )
    made = shoal.Image.from_dockerfile(
        tmp_path,
        args={"BASE": "shoal/base", "SALT": salt},
        secrets={"key": shoal.Secret.from_dict({"key": "1"})},
    )
    with shoal.Sandbox.create(image=made) as sandbox:
        found = sandbox.run("cat /salt; stat -c %U /etc/Dockerfile; echo $PATH").stdout.splitlines()
        assert found[:2] == [salt, "nobody"]
        assert found[2].startswith("/opt/x:/usr/local/sbin:")
        tools = f"cat /o/{salt} /o/d/x /y; readlink /o/link; stat -c %a /o/d; ls /flat; ls /run/secrets"
        assert sandbox.run(tools).stdout.split() == ["1x", "x", "d", "700", salt, "x"]
    empty = shoal.Image.from_scratch().add_local_file(tmp_path / "Dockerfile", "/a/")
    with shoal.Sandbox.create(image=empty) as sandbox:
        assert [entry.name for entry in sandbox.files.list("/a")] == ["Dockerfile"]


def test_an_image_has_a_name(cluster: Cluster, salt: str, both_ways: shoal.Client) -> None:
    built = shoal.Image.base().pip_install("six").publish(f"tests-{salt}:1")
    with shoal.Sandbox.create(image=shoal.Image.from_name(f"tests-{salt}:1")) as sandbox:
        assert sandbox.run("python3", "-c", "import six; print(six.__name__)").stdout == "six\n"
    assert shoal.Image.base().pip_install("six").build() == built


def test_a_private_image_of_a_registry(cluster: Cluster, both_ways: shoal.Client) -> None:
    check_private_image(both_ways)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_base_for_agents_has_what_they_call(cluster: Cluster) -> None:
    tools = "gcc g++ make jq unzip rg ssh nano tmux node npm git curl less python3 pip file patch rsync wget zip xz vi"
    with shoal.Sandbox.create(image="shoal/dev", deadline=120) as sandbox:
        missing = sandbox.run(f"for tool in {tools}; do command -v $tool >/dev/null || echo $tool; done").stdout
        assert missing == ""
        compiled = "echo 'int main(void) { return 7; }' >/tmp/a.c && gcc -o /tmp/a /tmp/a.c && /tmp/a"
        assert sandbox.run(compiled).returncode == 7
        assert sandbox.run("node -e 'console.log(6 * 7)'").stdout == "42\n"
        assert sandbox.run("npm --version").returncode == 0
        assert sandbox.run("tmux new -d -s t 'sleep 60' && tmux ls").stdout.startswith("t:")
