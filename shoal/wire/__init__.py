"""The agent's protocol on the client's side: the one Python implementation, used by the client, the API and the actors.

    frames.py      the frame codec, sans I/O: bytes in, frames out, every length bounded
    messages.py    JSON in frames: requests out, hostile replies in
    exchanges.py   the client's end of a stream: credits, one reply, output gathered
    streams.py     … or items taken one by one
    connection.py  one admitted connection, on asyncio
    dial.py        a raw connection to a port in the sandbox
    sockets.py     addresses and socket options
    checks.py      what is refused before a byte goes out
    records.py     starts, results, entries, events as values, checked as they come
    flows.py       output, standard input, chunks, changes
    agent.py       the calls: run, exec, output, stdin, wait (processes.py); read, write, list … (files.py)

`shoal/images/agent/PROTOCOL.md` is the manual. Nothing here imports Ray or Docker.
"""
