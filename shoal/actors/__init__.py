"""The Ray actors: `controller` (one per cluster), `node` (one per machine), `sandbox` (one per sandbox: a slot).

    names.py       what they are called, and how each is found
    handles.py     the thin wrapper around calls to them: Ray's errors become Shoal's
    garbage.py     what Python's collector looks through, and how often
    deploy.py      creates and drains them: the one place that wires the real parts together

Control goes through them. Exec, files and streams go through the relay.
"""
