"""Images of two machines whose object storage fails: what is built stays usable where it was built, is stored once the
storage is back, and starts on the other machine as it was; what could not be had is said, and leaves nothing."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from shoal import Client, Image, Sandbox
from shoal.cluster.objects.server import ObjectServer
from shoal.model.errors import DeadlineExceeded, ImageNotFound, ShoalError, Unavailable
from tests.cluster import cluster_engine
from tests.cluster import test_cache as cache_of_tests
from tests.integration.faulty_proxy import Fault, FaultyProxy, faulty_proxy
from tests.integration.machines import Machine, lan
from tests.integration.test_machines import SHOAL, Head

pytestmark = [
    pytest.mark.engine,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(cluster_engine() != "oci", reason="images of other engines stay on their machine"),
]

_BIG = "head -c 48M /dev/urandom > /big && sha256sum < /big > /sum && echo {}"
_CHECK = "sha256sum < /big | cmp - /sum"


@dataclass
class Site:
    """Two machines, in the regions `here` and `there`, and what their object storage is behind."""

    client: Client
    machine: Machine
    storage: FaultyProxy

    @contextmanager
    def fails(self, fault: Fault, seconds: float | None = None) -> Iterator[None]:
        """Within it, or from now on for some seconds."""
        self.storage.fault = fault
        timer = None if seconds is None else threading.Timer(seconds, self.works)
        if timer is not None:
            timer.start()
        try:
            yield
        finally:
            if timer is None:
                self.works()
            else:
                timer.join()

    def works(self) -> None:
        self.storage.fault = "none"

    def built(self, what: str) -> Image:
        return Image.base().run_commands(_BIG.format(what)).build(client=self.client)

    def is_stored(self, image: Image) -> None:
        assert image.id is not None
        end = time.monotonic() + 90
        while not self.client.image(image.id).stored:
            assert time.monotonic() < end, f"{image.id} is never stored"
            time.sleep(0.3)

    def starts_there(self, image: Image) -> None:
        with Sandbox.create(image=image, region="there", client=self.client) as sandbox:
            assert sandbox.run(_CHECK).returncode == 0
        left = list((Path(self.machine.environ["SHOAL_STATE_DIR"]) / "node" / "transfer").glob("*"))
        assert left == []

    def delete(self, image: Image) -> None:
        assert image.id is not None
        self.client.delete_image(image.id, when_unused=True)


@pytest.fixture(scope="module")
def site(clusters_engine: str) -> Iterator[Site]:
    with ExitStack() as stack:
        net = stack.enter_context(lan("198.51.100"))  # tests of machines may run at the same time
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shoal-i", dir="/tmp")))
        server = ObjectServer(directory / "s3")
        access = server.ensure("127.0.0.1")
        stack.callback(server.stop)
        assert access.endpoint is not None
        storage = stack.enter_context(faulty_proxy(net.address, access.endpoint.removeprefix("http://")))
        head = Head(net, directory, clusters_engine)
        (directory / "cache").symlink_to(cache_of_tests())
        head.environ |= {
            "SHOAL_OBJECTS__BUCKET": "shoal",
            "SHOAL_OBJECTS__ENDPOINT": f"http://{storage.address}",
            "SHOAL_OBJECTS__REGION": "us-east-1",
            "SHOAL_OBJECTS__CREDENTIALS": str(server.directory / "credentials"),
        }
        stack.callback(head.shoal, "down", check=False)
        head.shoal("up", "--address-ip", net.address, "--region", "here")
        machine = stack.enter_context(net.machine(11))
        token = head.shoal("node", "token")
        address = json.loads(head.shoal("status", "--json"))["ray_address"]
        machine.run(SHOAL, "join", address, "--token-file", "-", "--region", "there", stdin=token)
        client = head.client()
        stack.callback(client.close)
        yield Site(client, machine, storage)
        machine.run(SHOAL, "leave")


@pytest.mark.parametrize("fault", ["slow", "errors", "away"])
def test_a_build_does_not_wait_for_the_storage_and_is_stored_later(site: Site, fault: Fault) -> None:
    with site.fails(fault):
        image = site.built(f"built-{fault}")
        with Sandbox.create(image=image, region="here", client=site.client) as sandbox:
            assert sandbox.run(_CHECK).returncode == 0
        time.sleep(2)  # the storing has begun, and failed
        if fault != "slow":
            assert image.id is not None
            assert not site.client.image(image.id).stored
    site.is_stored(image)
    site.starts_there(image)
    site.delete(image)


@pytest.mark.parametrize("fault", ["slow", "errors", "away"])
def test_another_machine_gets_an_image_as_it_was_or_is_told(site: Site, fault: Fault) -> None:
    image = site.built(f"fetched-{fault}")
    site.is_stored(image)
    with site.fails(fault):
        if fault == "slow":
            site.starts_there(image)
        else:
            with pytest.raises(ShoalError) as refused:
                Sandbox.create(image=image, region="there", deadline=15, client=site.client)
            assert isinstance(refused.value, Unavailable | DeadlineExceeded | ImageNotFound), refused.value
            assert list(Sandbox.list(client=site.client)) == []
    site.starts_there(image)
    site.delete(image)


def test_a_storage_that_goes_away_amid_a_transfer(site: Site) -> None:
    image = site.built("amid")
    with site.fails("away", 3):  # it is being stored by now
        pass
    site.is_stored(image)
    failing = threading.Timer(0.3, setattr, (site.storage, "fault", "away"))
    working = threading.Timer(3, site.works)
    failing.start()
    working.start()
    with suppress(Unavailable, ImageNotFound):
        Sandbox.create(image=image, region="there", client=site.client).terminate()
    failing.join()
    working.join()
    site.starts_there(image)
    site.delete(image)


def test_a_directory_is_mounted_on_another_machine_once_the_storage_is_there(site: Site) -> None:
    with (
        Sandbox.create(region="here", client=site.client) as one,
        Sandbox.create(region="there", client=site.client) as other,
    ):
        one.run("mkdir /srv/d && echo 1 > /srv/d/rows", check=True)
        with site.fails("away"):
            data = one.snapshot_directory("/srv/d")
            with pytest.raises(ShoalError) as refused:
                other.mount_image("/mnt/d", data)
            assert isinstance(refused.value, Unavailable), refused.value
            assert other.info().mounted_images == {}
        site.is_stored(data)
        other.mount_image("/mnt/d", data)
        assert other.run("cat /mnt/d/rows").stdout == "1\n"
        site.delete(data)
