"""Sends what a node's sandboxes write, and on the head the cluster's events, to a sink of the operator's.

    lines.py     bytes of a stream become entries, one for each line
    spool.py     what is still to be sent, on disk, and how far each stream has been taken: survives a SIGKILL
    sinks.py     a file, a web server, a collector of OpenTelemetry's
    follower.py  takes the output of living sandboxes
    shipper.py   puts them together: what is taken goes into the spool, and from there to the sink

Each entry comes at least once. Its sandbox, stream and offset, or its event's id, tell a second one from the first.
"""
