"""Encoding and decoding; a bad message becomes one typed error.

On the wire a message is the msgpack array ``[type, version, body]``. The envelope can always be decoded; the body is
decoded by its known type. Fields that this side doesn't know are ignored, so that N can talk with N-1.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from slurmbus_protocol.errors import (
    InvalidBody,
    NotDecodable,
    TooLarge,
    UnknownType,
    UnsupportedVersion,
)
from slurmbus_protocol.messages import MESSAGE_TYPES, Chunk, Message

PROTOCOL_RANGE = (1, 1)
"""The oldest and the newest protocol that this side speaks."""

MAX_MESSAGE = 900 * 1024
"""Bytes of an encoded message. Source: nats-server's default max_payload is 1 MiB, headers included."""
MAX_CHUNK = 256 * 1024
"""Bytes of a stream in one Chunk."""
BLOB_CHUNK = 900 * 1024 - 64
"""Bytes of a blob in one message."""

_TYPES = {message.TYPE: message for message in MESSAGE_TYPES}
_encoder = msgspec.msgpack.Encoder()

M = TypeVar("M", bound=Message)


class _Envelope(msgspec.Struct, array_like=True, frozen=True):
    type: str
    version: int
    body: msgspec.Raw


_envelope_decoder = msgspec.msgpack.Decoder(_Envelope)


_decoders = {message: msgspec.msgpack.Decoder(message) for message in MESSAGE_TYPES}
"""Made here, once: two threads that make the first decoder of a type at the same moment crash msgspec 0.22."""


def encode(message: Message) -> bytes:
    """Give the bytes of a message; TooLarge when they are more than MAX_MESSAGE."""
    body = msgspec.Raw(_encoder.encode(message))
    data = _encoder.encode(_Envelope(message.TYPE, message.VERSION, body))
    _check_size(len(data), type(message))
    return data


def decode(data: bytes) -> Message:
    """Read a message of any known type.

    Raises:
        TooLarge: before anything else is looked at.
        NotDecodable: not msgpack, or not ``[type, version, body]``.
        UnknownType: the type isn't one of ours.
        UnsupportedVersion: we know the type, but not this version of it.
        InvalidBody: a field is missing or has the wrong type; the message names it.
    """
    _check_size(len(data), None)
    try:
        envelope = _envelope_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotDecodable(f"not a Slurmbus message: {error}") from error
    message_type = _TYPES.get(envelope.type)
    if message_type is None:
        raise UnknownType(f"message type {envelope.type[:64]!r} is unknown here")
    if envelope.version != message_type.VERSION:
        raise UnsupportedVersion(
            f"{envelope.type} version {envelope.version} can't be read here, only {message_type.VERSION}"
        )
    try:
        return _decoders[message_type].decode(envelope.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidBody(f"{envelope.type}: {error}") from error


def decode_as(data: bytes, message_type: type[M]) -> M:
    """Read a message of one type; UnknownType when it is another."""
    message = decode(data)
    if not isinstance(message, message_type):
        raise UnknownType(f"expected {message_type.TYPE}, got {message.TYPE}", hint="")
    return message


def _check_size(size: int, message_type: type[Message] | None) -> None:
    if size > MAX_MESSAGE:
        what = message_type.TYPE if message_type else "message"
        raise TooLarge(f"{what} of {size:,} bytes is larger than the limit of {MAX_MESSAGE:,}")


def chunk(offset: int, data: bytes, skipped: int = 0) -> bytes:
    """Encode a byte range of a stream."""
    return encode(Chunk(offset=offset, data=data, skipped=skipped))
