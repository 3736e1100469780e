"""The frame codec: round trips however the bytes are cut, and every malformed frame refused."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc

import pytest

from shoal.model import errors
from shoal.wire.frames import MAX_PAYLOAD, Decoder, Frame, Kind, decode_credit, encode, encode_credit, encode_header


def _frames(rng: random.Random, count: int) -> list[Frame]:
    sizes = [0, 1, 2, 100, 4096, 32 << 10, (32 << 10) - 9, (32 << 10) - 8, 100_000, MAX_PAYLOAD]
    return [
        Frame(rng.choice(list(Kind)), rng.randrange(1 << 32), rng.randbytes(rng.choice(sizes))) for _ in range(count)
    ]


def _cut(rng: random.Random, data: bytes) -> list[bytes]:
    pieces = []
    while data:
        size = rng.choice([1, 2, 5, 9, 10, 1000, 32 << 10, 1 << 20])
        pieces.append(data[:size])
        data = data[size:]
    return pieces


@pytest.mark.parametrize("seed", range(20))
def test_frames_survive_any_cut(seed: int) -> None:
    rng = random.Random(seed)
    sent = _frames(rng, 12)
    decoder = Decoder()
    received: list[Frame] = []
    for piece in _cut(rng, b"".join(encode(*frame) for frame in sent)):
        received += decoder.feed(piece)
    assert received == sent


def test_frames_survive_byte_by_byte() -> None:
    sent = [Frame(Kind.REPLY, 7, b'{"ok":{}}'), Frame(Kind.END, 1, b""), Frame(Kind.DATA, 2, b"x" * 300)]
    decoder = Decoder()
    received: list[Frame] = []
    for byte in b"".join(encode(*frame) for frame in sent):
        received += decoder.feed(bytes([byte]))
    assert received == sent


@pytest.mark.parametrize("seed", range(5))
def test_frames_received_into_the_decoders_buffer(seed: int) -> None:
    """As a transport does it: receive into `get_buffer`, while still holding it during `advance`."""
    rng = random.Random(seed)
    sent = _frames(rng, 10)
    data = memoryview(b"".join(encode(*frame) for frame in sent))
    decoder = Decoder()
    received: list[Frame] = []
    while data:
        room = decoder.get_buffer()
        count = min(len(room), len(data), rng.choice([1, 7, 5000, 1 << 20]))
        room[:count] = data[:count]
        received += decoder.advance(count)
        data = data[count:]
    assert received == sent
    assert all(type(frame.payload) is bytes for frame in received)


def test_large_payload_is_not_copied() -> None:
    data = encode(Kind.DATA, 1, b"x" * MAX_PAYLOAD)
    decoder = Decoder()
    tracemalloc.start()
    try:
        frames = decoder.feed(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert frames[0].payload == data[9:]
    assert peak < 1.2 * MAX_PAYLOAD


@pytest.mark.parametrize(
    ("header", "word"),
    [
        (struct.pack(">IBI", 4, 4, 1), "length"),
        (struct.pack(">IBI", 0, 4, 1), "length"),
        (struct.pack(">IBI", MAX_PAYLOAD + 6, 4, 1), "length"),
        (struct.pack(">IBI", 0xFFFFFFFF, 4, 1), "length"),
        (struct.pack(">IBI", 5, 9, 1), "kind"),
        (struct.pack(">IBI", 5, 255, 1), "kind"),
    ],
)
def test_malformed_header_is_refused_for_good(header: bytes, word: str) -> None:
    decoder = Decoder()
    with pytest.raises(errors.Internal, match=word):
        decoder.feed(encode(Kind.DATA, 1, b"fine") + header)
    with pytest.raises(errors.Internal):
        decoder.feed(encode(Kind.DATA, 1, b"fine"))


def test_a_header_alone_takes_no_memory() -> None:
    decoders = [Decoder() for _ in range(20)]
    tracemalloc.start()
    try:
        for decoder in decoders:
            decoder.feed(struct.pack(">IBI", 30_000, 4, 1))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_oversized_payload_is_never_encoded() -> None:
    with pytest.raises(ValueError, match="at most"):
        encode(Kind.DATA, 1, bytes(MAX_PAYLOAD + 1))
    with pytest.raises(ValueError, match="at most"):
        encode_header(Kind.DATA, 1, MAX_PAYLOAD + 1)


def test_credit_round_trip() -> None:
    (frame,) = Decoder().feed(encode_credit(9, 123_456))
    assert (frame.kind, frame.stream, decode_credit(frame.payload)) == (Kind.CREDIT, 9, 123_456)
    for payload in (b"", b"123", b"12345"):
        with pytest.raises(errors.Internal):
            decode_credit(payload)


def test_fuzz_ends_in_frames_or_internal() -> None:
    """Whatever comes, the decoder gives bounded frames or one typed error, and goes through all of its input."""
    until = time.monotonic() + 2.0
    outcomes = set()
    seed = 0
    while time.monotonic() < until or len(outcomes) < 2:
        rng = random.Random(seed)
        seed += 1
        data = bytearray(b"".join(encode(*frame) for frame in _frames(rng, 3) if len(frame.payload) < 50_000))
        for _ in range(rng.randrange(4)):
            if data:
                data[rng.randrange(min(len(data), 64))] = rng.randrange(256)
        if rng.random() < 0.2:
            data = bytearray(rng.randbytes(rng.randrange(200)))
        decoder = Decoder()
        try:
            for piece in _cut(rng, bytes(data)):
                for frame in decoder.feed(piece):
                    assert frame.kind in Kind
                    assert 0 <= frame.stream < 1 << 32
                    assert len(frame.payload) <= MAX_PAYLOAD
            outcomes.add("frames")
        except errors.Internal:
            outcomes.add("refused")
    assert outcomes == {"frames", "refused"}
