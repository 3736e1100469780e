"""The pure parts of the sandbox network."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from shoal.actors.network import commands, forwarding
from shoal.actors.network.addresses import AddressPool
from shoal.actors.network.destinations import CLOSED, METADATA, Destination, parse_destination, parse_subnet
from shoal.actors.network.guarded import group_id
from shoal.actors.network.links import port_name
from shoal.actors.network.pins import PINNED, group, pin, pinning
from shoal.actors.network.resolvers import choose_servers, parse_servers, resolv_conf
from shoal.actors.network.rules import COUNTED, NODES, elements, ruleset, without_elements
from shoal.model.errors import FailedPrecondition, InvalidRequest, Unavailable

SUBNET = IPv4Network("10.213.0.0/16")


@pytest.mark.parametrize(
    ("entry", "meant"),
    [
        ("10.1.2.3", Destination(IPv4Network("10.1.2.3/32"))),
        ("10.0.0.0/8", Destination(IPv4Network("10.0.0.0/8"))),
        ("10.1.2.3:8080", Destination(IPv4Network("10.1.2.3/32"), 8080)),
        (" 10.0.0.0/8:65535 ", Destination(IPv4Network("10.0.0.0/8"), 65535)),
    ],
)
def test_destinations(entry: str, meant: Destination) -> None:
    assert parse_destination(entry) == meant


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "example.org",
        "10.1.2.3:",
        "10.1.2.3:0",
        "10.1.2.3:65536",
        "10.1.2.3/8",
        "::1",
        "1.2.3.4:٣",
        "1.2.3.4;accept",
    ],
)
def test_what_is_no_destination_is_refused(entry: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_destination(entry)
    assert caught.value.field == "network.allow"


@pytest.mark.parametrize("subnet", ["10.0.0.0/30", "10.0.0.1/16", "fd00::/64", "nonsense", ""])
def test_what_is_no_subnet_is_refused(subnet: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_subnet(subnet)
    assert caught.value.field == "network.subnet"


def test_addresses_are_given_round_and_come_back_late() -> None:
    pool = AddressPool(IPv4Network("10.0.0.0/29"))
    assert [pool.take(key) for key in "abcde"] == [f"10.0.0.{n}" for n in range(2, 7)]
    assert pool.take("a") == "10.0.0.2"
    with pytest.raises(Unavailable):
        pool.take("f")
    pool.free("b")
    pool.free("d")
    pool.free("d")
    assert [pool.take("x"), pool.take("y")] == ["10.0.0.3", "10.0.0.5"]
    pool.free("x")
    pool.free("a")
    assert pool.take("z") == "10.0.0.2"


def test_addresses_that_are_known_already() -> None:
    pool = AddressPool(IPv4Network("10.0.0.0/29"))
    pool.claim("a", "10.0.0.4")
    pool.claim("a", "10.0.0.4")
    assert pool.holders() == {"a": "10.0.0.4"}
    assert [pool.take(key) for key in "bcd"] == ["10.0.0.2", "10.0.0.3", "10.0.0.5"]
    for wrong in ("10.0.0.1", "10.0.0.7", "10.0.0.0", "192.168.0.1"):
        with pytest.raises(FailedPrecondition):
            pool.claim("e", wrong)
    with pytest.raises(FailedPrecondition) as caught:
        pool.claim("a", "10.0.0.2")
    assert caught.value.state == "taken"
    assert pool.holders()["a"] == "10.0.0.4"


def test_name_servers() -> None:
    text = (
        "# nameserver 1.1.1.1\nnameserver 10.0.0.53\nnameserver ::1\nsearch x\nnameserver\nnameserver 9.9.9.9 extra\n"
    )
    assert parse_servers(text) == ["10.0.0.53", "9.9.9.9"]
    stub, real = "nameserver 127.0.0.53\n", "nameserver 10.0.0.53\nnameserver 10.0.0.1\n"
    assert choose_servers((), [stub, real], {"10.0.0.1"}) == ("10.0.0.53",)
    assert choose_servers(("8.8.8.8",), [real], set()) == ("8.8.8.8",)
    assert choose_servers(("10.0.0.1",), [real], {"10.0.0.1"}) == ()
    assert choose_servers((), [stub, "", stub], set()) == ()
    assert choose_servers((), ["".join(f"nameserver 9.9.9.{n}\n" for n in range(9))], set()) == (
        "9.9.9.0",
        "9.9.9.1",
        "9.9.9.2",
    )
    assert resolv_conf(("9.9.9.9", "8.8.8.8")) == "nameserver 9.9.9.9\nnameserver 8.8.8.8\n"
    with pytest.raises(InvalidRequest) as caught:
        choose_servers(("dns.example",), [], set())
    assert caught.value.field == "network.dns"


def judged(text: str, chain: str) -> list[str]:
    body = text.split(f"chain {chain} {{")[1].split("}\n\tchain")[0]
    return [line.strip() for line in body.splitlines()]


@pytest.mark.parametrize("chain", ["before", "out"])
def test_what_the_settings_open_comes_behind_what_is_never_open(chain: str) -> None:
    lines = judged(
        ruleset("b0", SUBNET, ["10.0.0.53"], [Destination(IPv4Network("0.0.0.0/0"))], ["198.51.100.1"]), chain
    )

    def place(part: str) -> int:
        return next(number for number, line in enumerate(lines) if part in line)

    opened = place("0.0.0.0/0 accept")
    nodes = place("@nodes drop")
    assert place(f"ip daddr {SUBNET} drop") < nodes < place("53 accept")
    assert place("53 accept") < place(METADATA[0]) < opened < place(CLOSED[0])
    assert all(address in lines[place(METADATA[0])] for address in METADATA)


def test_only_an_exact_entry_opens_a_node_to_the_guarded_group() -> None:
    allow = [parse_destination(entry) for entry in ("10.0.0.0/8", "10.0.0.1:9000")]
    rules = ruleset("b0", SUBNET, [], allow, ["10.0.0.1"])
    others = judged(rules, "output")
    assert f"meta skgid {group_id('b0')} jump guarded" in others
    assert not any("drop" in line for line in others)
    lines = judged(rules, "guarded")
    order = [
        f"ip daddr {{ {METADATA[0]}",
        "ip daddr 10.0.0.1/32 tcp dport 9000 accept",
        "fib daddr type != unicast drop",
        "ip daddr @nodes drop",
        "ip daddr 10.0.0.0/8 accept",
        f"ip daddr {{ {CLOSED[0]}",
    ]
    places = [next(number for number, line in enumerate(lines) if line.startswith(part)) for part in order]
    assert places == sorted(places)
    assert group_id("b0") != group_id("b1")


def test_rules_hold_the_nodes_and_tell_them_again() -> None:
    text = ruleset("b0", SUBNET, [], [], ["198.51.100.1", "198.51.100.2", "fd00::1"])
    assert elements(text, NODES) == ["198.51.100.1", "198.51.100.2"]
    assert elements(text, f"{NODES}6") == ["fd00::1"]
    assert elements(text, COUNTED) == []


def test_what_the_kernel_adds_to_a_set_is_no_difference() -> None:
    text = ruleset("b0", SUBNET, [], [], ["198.51.100.1"])
    counting = text.replace("flags dynamic\n", "flags dynamic\n\t\telements = { 10.213.0.2 ct count over 4096 }\n")
    assert elements(counting, COUNTED) == ["10.213.0.2 ct count over 4096"]
    assert without_elements(counting, COUNTED) == text
    assert without_elements(counting, NODES) != counting
    assert elements(without_elements(counting, COUNTED), NODES) == ["198.51.100.1"]


def test_pins_name_port_mac_and_address() -> None:
    text = pinning("bridge shoal_b0", "b0", [pin("sha", "10.213.0.2"), pin("shb", "10.213.1.255")])
    assert elements(text, PINNED) == [
        '"sha" . 02:53:0a:d5:00:02 . 10.213.0.2',
        '"shb" . 02:53:0a:d5:01:ff . 10.213.1.255',
    ]
    assert group("b0") != group("b1")
    assert all(0 < group(f"b{n}") < 1 << 31 for n in range(100))


def test_rules_without_name_servers_have_no_empty_set() -> None:
    assert "{  }" not in ruleset("b0", SUBNET, [], [])


def test_ports_are_named_within_the_kernels_limit() -> None:
    names = {port_name(f"c-{n}") for n in range(1000)}
    assert len(names) == 1000
    assert all(len(name) <= 15 and name.isalnum() for name in names)


LISTING = """\
-P FORWARD DROP
-A FORWARD -i b0 -m comment --comment "shoal:b0" -j ACCEPT
-A FORWARD -o b0 -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "shoal:b0" -j ACCEPT
-A FORWARD -i b01 -m comment --comment shoal:b01 -j ACCEPT
-A FORWARD -j DOCKER-USER
"""


def test_our_forwarding_rules_are_found_by_their_comment() -> None:
    found = forwarding.present(LISTING, "b0")
    assert [set(rule) for rule in found] == [set(rule) for rule in forwarding.rules_for("b0")]
    assert len(forwarding.present(LISTING, "b01")) == 1


def test_a_chain_that_drops_nothing_needs_no_rules() -> None:
    assert not forwarding.needs_rules("-P FORWARD ACCEPT\n")
    assert forwarding.needs_rules("-P FORWARD DROP\n")
    assert forwarding.needs_rules("-P FORWARD ACCEPT\n-A FORWARD -j REJECT\n")


@pytest.mark.anyio
async def test_a_path_without_the_systems_directories_hides_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `su` on Debian."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert (await commands.run("ldconfig", "--version")).status == 0
