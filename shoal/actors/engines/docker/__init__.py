"""The Docker engine: containers through the API of a Docker daemon.

engine.py      the engine itself: the contract's methods, each a blocking body in a bounded thread
request.py     pure: from a `ContainerSpec` to what the daemon is asked for
images.py      image references, what they give, pulling
failures.py    the one map from Docker's errors to Shoal's
events.py      the event stream
quota.py       pure: can the daemon's storage driver enforce a disk limit?
"""

from shoal.actors.engines.docker.engine import DockerEngine

__all__ = ["DockerEngine"]
