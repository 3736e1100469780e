"""The agent's protocol on the client's side: the one Python implementation, used by the face, the API and the actors.

    frames.py      the frame codec, sans I/O: bytes in, frames out, every length bounded
    connection.py  one admitted connection: streams, credits, asyncio
    agent.py       the calls: run, exec, output, stdin, wait, files …

`shoal/images/agent/PROTOCOL.md` is the manual. Nothing here imports Ray or Docker.
"""
