"""The Docker engine: containers through the API of a Docker daemon.

engine.py      the engine itself: the contract's methods, each a blocking body in a bounded thread
request.py     pure: turns a `ContainerSpec` into the daemon's request
images.py      looks images up and pulls them
failures.py    maps Docker's errors to Shoal's
events.py      the event stream
disk.py        puts a container's layer on a disk of its own
removal.py     removes containers, whatever trees code inside has made
"""

from shoal.actors.engines.docker.engine import DockerEngine

__all__ = ["DockerEngine"]
