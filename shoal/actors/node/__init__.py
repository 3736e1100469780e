"""The node actor: one per machine, owner of its engine, network, relay and containers.

actor.py           the actor: what controller and slots call, and the loops
containers.py      starts and removes containers, a few at once; writes the intent to disk first
container_spec.py  what the engine is told of one
losses.py          how containers were lost, and who waits to hear it
records.py         that intent: one small file per container
prepared.py        containers that slots keep ready for the next sandbox
relay.py           the relay process: started, watched, adopted after a restart
ports.py           exposed ports
disk_watch.py      disk limits where the file system has no quotas
unknown.py         what is here and the controller does not know
wiring.py          opens the parts and puts them together
logs.py            output of commands, kept after the end of their sandbox
"""
