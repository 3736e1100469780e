"""The controller: the cluster's registry, one named, restartable actor.

    actor.py      the actor: what clients call
    parts.py      its parts put together, and the loops that keep them in order
    sandboxes.py  what clients ask of sandboxes
    admission.py  from a spec to an accepted sandbox
    lifecycles.py watches sandboxes, ends them, goes on with those of an earlier controller
    starts.py     brings sandboxes up
    takeover.py   when an actor of a sandbox's is lost
    endings.py    what is said of an end
    recovery.py   what an earlier controller left
    registry.py   the sandboxes in memory: by id, name, tag, idempotency key (pure)
    record.py     one sandbox as the registry holds it, and its row
    history.py    sandboxes wherever they are known, memory or store
    store.py      the contract for what must outlive the controller
    ledger.py     what changes, written with what tells of it
    events.py     what happens, as it is told to those who follow
    following.py  events and audit log for those who may see them
    accounts.py   environments and API tokens
    quotas.py     what an environment uses and may use (pure)
    tunnels.py    ways in from outside
    figures.py    what is counted
    slots.py      the sandbox actors: idle ones reused, new ones made, surplus ones let go
    rayslots.py   the same as Ray actors
    nodes.py      the machines and their node actors
    placement.py  whether a request fits any machine at all (pure)

It is not on the path of exec, files or streams.
"""
