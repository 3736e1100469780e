"""The client side of the agent's protocol, used by the client, the API and the actors.

    frames.py      the frame codec, without I/O
    messages.py    the JSON in frames: outgoing requests, incoming replies
    exchanges.py   the client's end of a stream: credit, one reply, collected output
    streams.py     … or items read one by one
    connection.py  one admitted connection, on asyncio
    dial.py        a raw connection to a port in the sandbox
    sockets.py     addresses and socket options
    checks.py      checks of requests before they are sent
    records.py     starts, results, entries, events as checked values
    flows.py       long-lived streams: output, standard input, chunks, changes
    agent.py       the calls: run, exec, output, stdin, wait (processes.py); read, write, list … (files.py)

`shoal/images/agent/PROTOCOL.md` is the manual. Nothing here imports Ray or Docker.
"""
