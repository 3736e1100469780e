"""Lets sandboxes reach the internet, and nothing else: one bridge, one interface per sandbox, packet rules. For any
engine, without Ray.

network.py     `SandboxNetwork`: open, attach, detach, verify, close
rules.py       pure: the packet rules, as text for nft
pins.py        pure: the rules that keep a sandbox to its own addresses, as text for nft
tables.py      both in the kernel: loaded, verified, read back
guarded.py     pure: the rules for programs of the node's own that speak to an address which a user chose
destinations.py  pure: the destinations that are closed, and that a settings entry opens
addresses.py   pure: which sandbox has which address
resolvers.py   pure: which name servers sandboxes ask
forwarding.py  keeps others' iptables rules from dropping our packets
links.py       bridge and interfaces
netlink.py     what is asked of the kernel for each sandbox
commands.py    runs `ip`, `nft` and other commands
"""

from shoal.actors.network.network import SandboxNetwork

__all__ = ["SandboxNetwork"]
