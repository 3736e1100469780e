"""Keeps others' rules for forwarded packets from dropping those of sandboxes.

Docker, ufw and others set the policy of iptables' FORWARD chain to DROP. Every table must let a packet pass, so ours
alone cannot. Two rules at the head of that chain accept what `rules.py` has already judged; a comment marks them as
ours.
"""

from __future__ import annotations

import shlex
import shutil

from shoal.actors.network.commands import must, run

_WAIT = ("-w", "5")


def rules_for(bridge: str) -> list[list[str]]:
    """Our rules, as arguments of iptables."""
    mark = ["-m", "comment", "--comment", f"shoal:{bridge}", "-j", "ACCEPT"]
    return [
        ["-i", bridge, *mark],
        ["-o", bridge, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", *mark],
    ]


def needs_rules(listing: str) -> bool:
    """Whether the FORWARD chain, as `iptables -S FORWARD` lists it, can drop anything."""
    return any(line.strip() not in ("", "-P FORWARD ACCEPT") for line in listing.splitlines())


def present(listing: str, bridge: str) -> list[list[str]]:
    """Our rules in the listing, found by their comment, as arguments of iptables."""
    mark = f"shoal:{bridge}"
    split = (shlex.split(line) for line in listing.splitlines() if mark in line)
    return [words[2:] for words in split if words[:2] == ["-A", "FORWARD"] and mark in words]


async def let_pass(bridge: str) -> bool:
    """Adds our missing rules; returns whether any was missing."""
    listing = await _listing()
    if listing is None or not needs_rules(listing):
        return False
    have = [_normal(rule) for rule in present(listing, bridge)]
    missing = [rule for rule in rules_for(bridge) if _normal(rule) not in have]
    for rule in missing:
        await must("iptables", *_WAIT, "-I", "FORWARD", "1", *rule)
    return bool(missing)


async def take_back(bridge: str) -> None:
    """Removes our rules."""
    listing = await _listing()
    for rule in present(listing or "", bridge):
        # Somebody else may have removed it first: ignore the status.
        await run("iptables", *_WAIT, "-D", "FORWARD", *rule)


async def _listing() -> str | None:
    """The FORWARD chain; None without iptables or without its tables in this kernel: then nothing drops packets
    there."""
    if shutil.which("iptables") is None:
        return None
    done = await run("iptables", *_WAIT, "-S", "FORWARD")
    return done.output if done.status == 0 else None


def _normal(rule: list[str]) -> frozenset[str]:
    """A rule's parts in one order: versions of iptables list them in different orders."""
    return frozenset(rule)
