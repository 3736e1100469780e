"""The direct engine: containers from layers of its own, without a daemon on the way.

engine.py      the engine itself: the contract's methods, each a blocking body in a bounded thread
containers.py  the containers by key: what a start does step by step, and how each step is undone
bundle.py      pure: turns a `ContainerSpec` into the runtime's `config.json`
runtimes.py    the programs that start containers
writable.py    what a container writes, and its root filesystem
groups.py      control groups: reading, freezing, killing
memory.py      the memory of images, from which containers in gVisor go on
watch.py       sees ends and kills for memory as they happen
events.py      passes them on
records.py     what is known of containers, on disk
processes.py   looks at processes by pid and start time
image_store.py the image store contract over the layer store
layers         the layer store: unpacked layers, each once per machine
"""

from shoal.actors.engines.oci.engine import OciEngine

__all__ = ["OciEngine"]
