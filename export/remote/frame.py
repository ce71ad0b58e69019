"""The frames that the two sides exchange: a header, a JSON object and raw bytes, little-endian.

    offset  size
         0     4   magic 93 52 5A 0A
         4     1   version of this protocol, 1
         5     1   kind
         6     4   bytes of JSON, at most 1 MiB
        10     8   bytes of payload, at most 1 GiB
        18     4   CRC-32 of JSON and payload
        22     4   CRC-32 of the 22 bytes before

    asked   JSON                                    payload          answered
    OPEN    threads, files {name: sha256}                            NEED or HELLO
    FILE    sha256                                  the file         NEED or HELLO
    INFER   id, shape [N, C, H, W]                  float32 images   LOGITS: id, shape [N, K], float32 payload
    TIME    shape, warmup, repeats                                   TIMES: ns [repeats], one a call
    BYE                                                              nothing, the runner ends

NEED lists the ``missing`` SHA-256: files that the device's cache lacks, or has damaged. HELLO says that the artifact
is loaded: ``files`` {name: sha256} of the very bytes that the runtime was given, and ``facts`` of the device. ERROR,
with ``kind`` and ``message``, may answer anything.
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any, BinaryIO

MAGIC, VERSION = b"\x93RZ\n", 1
HEADER, CHECK = struct.Struct("<4sBBIQI"), struct.Struct("<I")
MAX_HEAD, MAX_PAYLOAD = 1 << 20, 1 << 30
OPEN, FILE, INFER, TIME, BYE, NEED, HELLO, LOGITS, TIMES, ERROR = range(1, 11)

Frame = tuple[int, dict[str, Any], bytes]  # kind, JSON, payload


class BadFrame(ValueError):
    """Bytes that are no frame of this protocol."""


def encode(kind: int, head: dict[str, Any], payload: bytes = b"") -> bytes:
    """A frame's bytes; BadFrame if it would be too large."""
    text = json.dumps(head).encode()
    if len(text) > MAX_HEAD or len(payload) > MAX_PAYLOAD:
        raise BadFrame(f"a frame takes {MAX_HEAD} bytes of JSON and {MAX_PAYLOAD} of payload at most")
    check = zlib.crc32(payload, zlib.crc32(text))
    header = HEADER.pack(MAGIC, VERSION, kind, len(text), len(payload), check)
    return b"".join((header, CHECK.pack(zlib.crc32(header)), text, payload))


def read_frame(stream: BinaryIO, noise: bytearray | None = None) -> Frame:
    """The next frame.

    Args:
        noise: receives the bytes before the frame, up to 1 MiB: login scripts may print something first.

    Raises:
        EOFError: the stream ends before the frame is complete.
        BadFrame: the bytes are not a frame, or are damaged.
    """
    if noise is None:
        start = _exactly(stream, len(MAGIC))
    else:
        while not noise.endswith(MAGIC) and len(noise) < MAX_HEAD:
            noise += _exactly(stream, 1)
        start = bytes(noise[-len(MAGIC) :])
        del noise[-len(MAGIC) :]
    header = start + _exactly(stream, HEADER.size - len(MAGIC))
    (check,) = CHECK.unpack(_exactly(stream, CHECK.size))
    magic, version, kind, head_size, payload_size, content_check = HEADER.unpack(header)
    if magic != MAGIC:
        raise BadFrame(f"no frame starts with {bytes(noise or start)[:200]!r}")
    if check != zlib.crc32(header):
        raise BadFrame("a frame's header is damaged")
    if version != VERSION:
        raise BadFrame(f"the frame is of version {version} of the protocol, this side knows {VERSION}")
    if head_size > MAX_HEAD or payload_size > MAX_PAYLOAD:
        raise BadFrame(f"a frame of {head_size} bytes of JSON and {payload_size} of payload is too large")
    text, payload = _exactly(stream, head_size), _exactly(stream, payload_size)
    if content_check != zlib.crc32(payload, zlib.crc32(text)):
        raise BadFrame("a frame's content is damaged")
    try:
        head = json.loads(text)
    except ValueError as error:
        raise BadFrame(f"a frame's JSON is malformed: {error}") from None
    if not isinstance(head, dict):
        raise BadFrame(f"a frame's JSON is an object, not {type(head).__name__}")
    return kind, head, payload


def _exactly(stream: BinaryIO, n: int) -> bytes:
    data = stream.read(n)
    if len(data) < n:
        raise EOFError("the stream ended within a frame" if data else "the stream ended")
    return data
