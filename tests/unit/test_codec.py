"""The wire format: golden bytes for every message, and a typed error for every kind of bad one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slurmbus_protocol import codec
from slurmbus_protocol.errors import (
    BadMessage,
    InvalidBody,
    NotDecodable,
    TooLarge,
    UnknownType,
    UnsupportedVersion,
)
from slurmbus_protocol.messages import MESSAGE_TYPES, Cancel, Chunk, Message, Ping

GOLDEN = Path(__file__).parent / "golden_messages.json"
KEY = "01JD0000000000000000000000"


def _golden() -> dict[str, dict[str, str]]:
    content: dict[str, dict[str, str]] = json.loads(GOLDEN.read_text())
    return content


@pytest.mark.parametrize("name", sorted(_golden()))
def test_golden_bytes_still_mean_what_they_meant(name: str) -> None:
    entry = _golden()[name]
    data = bytes.fromhex(entry["hex"])
    message = codec.decode(data)
    assert msgspec.json.decode(msgspec.json.encode(message)) == entry["fields"]
    # Same content, same order: how wide msgspec makes a map's length depends on how many fields a struct has by now.
    again = msgspec.msgpack.decode(codec.encode(message))
    assert json.dumps(again, default=bytes.hex) == json.dumps(msgspec.msgpack.decode(data), default=bytes.hex)


def test_every_message_has_golden_bytes() -> None:
    frozen = {name.partition(" ")[0] for name in _golden()}
    assert frozen == {message.TYPE for message in MESSAGE_TYPES}


def _envelope(message_type: object, version: object, body: object) -> bytes:
    return msgspec.msgpack.encode([message_type, version, body])


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", NotDecodable),
        (b"\xc1", NotDecodable),
        (b"hello", NotDecodable),
        (msgspec.msgpack.encode({"type": "ping"}), NotDecodable),
        (_envelope(7, 1, {}), NotDecodable),
        (_envelope("ping", 1, {})[:-1], NotDecodable),
        (_envelope("teapot", 1, {}), UnknownType),
        (_envelope("ping", 99, {"sent_at": 1.0}), UnsupportedVersion),
        (_envelope("ping", 1, {}), InvalidBody),
        (_envelope("ping", 1, {"sent_at": "soon"}), InvalidBody),
        (
            _envelope("cancel", 1, {"id": "x", "key": KEY, "site": "a", "expires_at": 1.0, "submitter": "b"}),
            InvalidBody,
        ),
        (b"\x91" * 100_000, NotDecodable),
        (b"x" * (codec.MAX_MESSAGE + 1), TooLarge),
    ],
)
def test_each_kind_of_bad_message_has_its_own_error(data: bytes, error: type[BadMessage]) -> None:
    with pytest.raises(error):
        codec.decode(data)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InvalidBody, match="sent_at"):
        codec.decode(_envelope("ping", 1, {}))


def test_fields_from_the_future_are_ignored_and_not_produced() -> None:
    message = codec.decode(_envelope("ping", 1, {"sent_at": 1.0, "mood": "good"}))
    assert message == Ping(sent_at=1.0)
    assert b"mood" not in codec.encode(message)


def test_a_message_that_is_too_large_isnt_sent() -> None:
    with pytest.raises(TooLarge):
        codec.encode(Chunk(offset=0, data=b"x" * codec.MAX_MESSAGE))


@given(st.binary(max_size=300))
def test_no_bytes_ever_raise_anything_else(data: bytes) -> None:
    try:
        message = codec.decode(data)
    except BadMessage:
        return
    assert isinstance(message, Message)


@given(st.binary(max_size=1000), st.integers(min_value=0, max_value=2**40))
def test_chunks_come_back_as_they_were(data: bytes, offset: int) -> None:
    assert codec.decode_as(codec.chunk(offset, data), Chunk) == Chunk(offset=offset, data=data)


def test_decoding_as_another_type_is_refused() -> None:
    cancel = Cancel(id=KEY, key=KEY, site="a", expires_at=1.0, submitter="me")
    with pytest.raises(UnknownType):
        codec.decode_as(codec.encode(cancel), Ping)


_FIRST_IN_THREADS = """
import sys, threading
from slurmbus_protocol import codec
from slurmbus_protocol.messages import Ping
data = codec.encode(Ping(sent_at=1.0))
sys.setswitchinterval(1e-6)
barrier = threading.Barrier(8)
def decode():
    barrier.wait()
    for name in codec.MESSAGE_TYPES:
        try:
            codec._decoders[name].decode(b"\\x80")
        except Exception:
            pass
    assert codec.decode(data) == Ping(sent_at=1.0)
threads = [threading.Thread(target=decode) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_the_first_messages_may_be_read_in_several_threads_at_once() -> None:
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", _FIRST_IN_THREADS], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
