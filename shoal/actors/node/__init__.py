"""The node actor: one per machine, owner of its engine, network, relay and containers.

actor.py       the actor: what controller and slots call, and the loops
containers.py  start and remove, bounded, with the intent on disk before the effect
records.py     that intent: one small file per container
warm.py        which containers to keep ready (pure), and those that are
relay.py       the relay process: started, watched, adopted
logs.py        output of commands, kept after their sandbox's end
"""
