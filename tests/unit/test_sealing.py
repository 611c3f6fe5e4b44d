"""Sealed values: only for the agent that they are for, for one job, by one signer."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from slurmbus_protocol.errors import InvalidSetting
from slurmbus_protocol.sealing import MAX_BYTES, SecretUnreadable, new_seal_key, seal, seal_public, unseal
from slurmbus_protocol.subjects import new_ulid

KEY = new_ulid()
ABOUT = {"site": "a", "key": KEY, "signer": "ab" * 32}
ENV = {"TOKEN": "hunter2-äöü", "EMPTY": ""}


def test_what_was_sealed_can_be_read_by_its_agent_and_is_not_in_the_message() -> None:
    private = new_seal_key()
    sealed = seal(ENV, seal_public(private), **ABOUT)
    assert unseal(sealed, private, **ABOUT) == ENV
    assert b"hunter2" not in msgspec.msgpack.encode(sealed)
    assert sealed.names == ("EMPTY", "TOKEN")


@pytest.mark.parametrize("other", [{"site": "b"}, {"key": new_ulid()}, {"signer": "cd" * 32}])
def test_nobody_can_put_it_into_another_request(other: dict[str, Any]) -> None:
    private = new_seal_key()
    sealed = seal(ENV, seal_public(private), **ABOUT)
    with pytest.raises(SecretUnreadable, match="another job or by somebody else"):
        unseal(sealed, private, **{**ABOUT, **other})


def test_a_replaced_a_missing_or_a_wrong_key_is_named() -> None:
    private = new_seal_key()
    sealed = seal(ENV, seal_public(private), **ABOUT)
    with pytest.raises(SecretUnreadable, match="replaced"):
        unseal(sealed, new_seal_key(), **ABOUT)
    with pytest.raises(SecretUnreadable, match="no key"):
        unseal(sealed, None, **ABOUT)
    with pytest.raises(InvalidSetting):
        unseal(sealed, "rubbish", **ABOUT)
    with pytest.raises(InvalidSetting):
        seal(ENV, "rubbish", **ABOUT)


@pytest.mark.parametrize("data", [b"", b"x" * 100])
def test_damaged_values_are_refused(data: bytes) -> None:
    private = new_seal_key()
    sealed = msgspec.structs.replace(seal(ENV, seal_public(private), **ABOUT), data=data)
    with pytest.raises(SecretUnreadable, match="damaged"):
        unseal(sealed, private, **ABOUT)


def test_too_many_bytes_are_refused_before_they_are_sent() -> None:
    with pytest.raises(InvalidSetting, match="bytes"):
        seal({"BIG": "x" * (MAX_BYTES + 1)}, seal_public(new_seal_key()), **ABOUT)
