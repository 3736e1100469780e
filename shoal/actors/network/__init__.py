"""How sandboxes reach the internet, and nothing else: one bridge, one interface per sandbox, packet rules. For any engine; no Ray in here.

network.py     `SandboxNetwork`: open, attach, detach, verify, close
rules.py       pure: the packet rules, as text for nft
destinations.py  pure: which destinations a settings entry names
addresses.py   pure: which sandbox has which address
resolvers.py   pure: which name servers sandboxes ask
forwarding.py  living beside others' iptables rules
links.py       bridge and interfaces, through `ip`
commands.py    running `ip`, `nft` and their like
"""

from shoal.actors.network.network import SandboxNetwork

__all__ = ["SandboxNetwork"]
