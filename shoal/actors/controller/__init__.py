"""The controller: the cluster's registry, one named, restartable actor.

    actor.py      the actor: what clients call
    lifecycles.py brings sandboxes up, watches them, recovers them
    registry.py   all sandboxes in memory: by id, name, tag, idempotency key (pure)
    record.py     one sandbox as the registry holds it, and its form on disk
    journal.py    what must outlive the controller, written before it acts
    slots.py      the sandbox actors: idle ones reused, new ones made, surplus ones let go
    nodes.py      the machines and their node actors
    placement.py  whether a request fits any machine at all (pure)

It is not on the path of exec, files or streams.
"""
