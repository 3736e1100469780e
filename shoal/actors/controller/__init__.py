"""The controller: the cluster's registry, one named, restartable actor.

    actor.py          the actor: one method that answers all verbs, and its start and end
    handlers.py       which part answers which verb
    parts.py          its parts put together, and the loops that keep them in order
    sandboxes.py      what clients ask of sandboxes
    admission.py      from a spec to an accepted sandbox
    supervisor.py     watches sandboxes, ends them, resumes those of an earlier controller
    phase.py          the phases of a sandbox's life
    phase_table.py    which event leads from which to which (pure)
    launcher.py       brings sandboxes up
    starting.py       stops persistent sandboxes and starts them again
    persistence.py    how a stopped one comes up on its machine
    moving.py         how its files get to another machine
    pausing.py        freezes sandboxes and lets them go on
    restarts.py       when one starts again by itself (pure)
    adoption.py       replaces the lost actor of a running sandbox
    endings.py        how an end is described
    slot_ends.py      how it is heard from a slot
    recovery.py       what an earlier controller left
    registry.py       the sandboxes in memory: by id, name, tag, idempotency key (pure)
    record.py         one sandbox as the registry holds it, and its row
    history.py        sandboxes wherever they are known, memory or store
    store.py          the contract for what must outlive the controller
    record_writer.py  writes each change together with its events and audit entries
    events.py         the log of events in memory, and who waits for the next
    event_feed.py     events and audit log for those who may see them
    accounts.py       environments and API tokens
    quotas.py         what an environment uses and may use (pure)
    images.py         the cluster's images in memory: by id, name, digest, cache key (pure)
    image_use.py      which image a spec means, where that is, and what needs it
    image_changes.py  puts each change of an image on record
    image_verbs.py    what clients ask of images
    image_removal.py  removes those that nothing needs from their machines
    snapshots.py      takes images of sandboxes' files
    forks.py          sandboxes that begin with the files of another one
    tunnels.py        tunnels to ports of sandboxes
    metrics.py        counters and gauges
    activity.py       creates, ends and latencies of the last hour (pure)
    latencies.py      many durations in little memory (pure)
    overview.py       the cluster at a glance, for dashboards
    profile.py        where the time of a create went (pure)
    usage_accounts.py what sandboxes used, by hour, environment and tag
    image_storage.py  has nodes put images into the object storage
    stored_image_sweep.py  removes from there what no image needs
    secrets.py        stored secrets, and what of them a sandbox gets
    registry_pulls.py images of registries that need credentials
    secret_keys.py    what they are encrypted with
    volumes.py        volumes: made, found, deleted, removed
    volume_versions.py  their versions: made, gone back to, removed
    volume_files.py   the sandboxes through which their files are reached from outside
    object_storage.py where images are kept for all nodes: who may reach it, and its server
    slots.py          the sandbox actors: who gets which
    slot_demand.py    those that are being made for callers that wait
    slot_stock.py     those that there are, and what of the nodes is free
    slot_queue.py     the callers that wait for a slot
    idle_slots.py     the slots that hold no sandbox
    holders.py        the slots that hold one, and for which environment (pure)
    fair_share.py     who is next when there is not room for all (pure)
    changing_slots.py  where sandboxes come and go, and so no slot is started (pure)
    ledger.py         what of each node is taken, and by whom (pure)
    reclaim.py        which idle slots end so that others fit (pure)
    slot_maker.py     the contract for what creates and ends slots
    pools.py          how many a pool keeps ready: which to make, which to end (pure)
    declared_pools.py the pools that somebody asked for
    ready_slots.py    carries that out: slots with a prepared container, which creates take
    ready_maker.py    makes and ends them
    kept_pool.py      what there is of one pool
    rayslots.py       the same as Ray actors
    nodes.py          the machines and their node actors
    machines.py       what operators ask of machines: admit, cordon, drain
    placement.py      where a slot is made, or what it waits for (pure)
    machine.py        what a machine holds, and whether any holds a request (pure)
    node_health.py    the nodes on which starts fail again and again (pure)
    capacity.py       the nodes that could be launched (pure)
    demand.py         what scaling is told

It is not on the path of exec, files or streams.
"""
