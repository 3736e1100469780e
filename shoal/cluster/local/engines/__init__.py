"""The engines of a machine, behind one contract: outside this package nothing of `shoal up` and its like names one.

contract.py         `LocalEngine` and `EngineKind`
choice.py           which engine a machine uses, and the one at an address
docker.py           a Docker engine: the one that runs, or one of Shoal's own
docker_daemon.py    … and how that is started and stopped
oci.py              the direct engine, which has no daemon
"""

from shoal.cluster.local.engines.choice import Choice, at, check, choose, leftover, provide, reach, there
from shoal.cluster.local.engines.contract import EngineKind, LocalEngine

__all__ = ["Choice", "EngineKind", "LocalEngine", "at", "check", "choose", "leftover", "provide", "reach", "there"]
