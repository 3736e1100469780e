"""The sandbox actor: a slot that holds one sandbox after another.

    actor.py      the actor: what the controller calls
    lifecycle.py  one sandbox's life in it: start, watch, end
    prepared.py   a container that waits for the next sandbox
    node_calls.py what both ask of node and agent
    stopping.py   the end: grace for the command, its output saved, the container removed

An idle Ray worker is most of what an idle sandbox costs, so nothing here imports more than it must: no pydantic, no
settings.
"""
