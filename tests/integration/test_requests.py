"""Every kind of bad request gets a typed answer, and nothing of it ever runs."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import pytest

from slurmbus.client import SiteClient
from slurmbus.connection import Connection, ConnectionSettings
from slurmbus.home import Home
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.messages import CommandPlan, JobSpec, Message, Pong, Problem, Record, Submit
from slurmbus_protocol.signing import Signer
from slurmbus_protocol.states import JobState

from .conftest import SITES

SITE = SITES["alice"]


def submit(key: str, **changes: object) -> Submit:
    base = {
        "key": key,
        "site": SITE,
        "expires_at": time.time() + 60,
        "submitter": "test",
        "job": JobSpec(name="bad", plan=CommandPlan(argv=("true",))),
    }
    return Submit(**{**base, **changes})  # type: ignore[arg-type]


def body(message: Message) -> dict[str, object]:
    fields = msgspec.to_builtins(message)
    assert isinstance(fields, dict)
    return fields


def envelope(message_type: str, version: int, content: object) -> bytes:
    return msgspec.msgpack.encode([message_type, version, content])


def missing(key: str) -> bytes:
    content = body(submit(key))
    del content["job"]
    return envelope("submit", 1, content)


BAD: dict[str, tuple[Callable[[str], bytes], str]] = {
    "not msgpack": (lambda _: b"\xc1 rubbish", "not-decodable"),
    "unknown type": (lambda _: envelope("teapot", 1, {}), "unknown-type"),
    "unknown version": (lambda key: envelope("submit", 99, body(submit(key))), "unsupported-version"),
    "missing field": (missing, "invalid-body"),
    "oversized": (lambda _: b"x" * (codec.MAX_MESSAGE + 1), "too-large"),
    "wrong site": (lambda key: codec.encode(submit(key, site="another")), "wrong-address"),
    "wrong key": (lambda _: codec.encode(submit(subjects.new_ulid())), "wrong-address"),
    "expired": (lambda key: codec.encode(submit(key, expires_at=time.time() - 1)), "request-expired"),
    "not a request": (lambda _: codec.encode(Pong(sent_at=1.0, agent_id="x", epoch=1)), "wrong-address"),
}


def publish(client: SiteClient, home: Home, key: str, data: bytes, signer: Signer | None) -> Record:
    """Publish raw bytes as a request and wait for what the agent makes of them."""
    connection = Connection.get(ConnectionSettings.of_site(home, SITE))
    subject = subjects.request(SITE, key)
    headers = signer.headers(subject, data) if signer else None

    async def send() -> None:
        bus = await connection.session.bus()
        await bus.publish(subject, data, headers=headers)

    connection.run(send())
    deadline = time.monotonic() + 20
    while (record := client.record(key)) is None:
        assert time.monotonic() < deadline, "the agent gave no answer"
        time.sleep(0.02)
    return record


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_request_is_answered_with_what_is_wrong_with_it(alice: SiteClient, home: Home, name: str) -> None:
    make, code = BAD[name]
    key = subjects.new_ulid()
    record = publish(alice, home, key, make(key), Signer.load(home.signing_key))
    assert (record.state, record.error_code) == (JobState.REJECTED, code)
    assert record.reason
    assert record.job_id is None


@pytest.mark.parametrize("signer", [None, Signer.generate()])
def test_what_isnt_signed_by_a_trusted_key_never_runs(alice: SiteClient, home: Home, signer: Signer | None) -> None:
    key = subjects.new_ulid()
    record = publish(alice, home, key, codec.encode(submit(key)), signer)
    assert (record.state, record.error_code) == (JobState.REJECTED, "bad-signature")


def test_a_signature_for_another_job_isnt_taken(alice: SiteClient, home: Home) -> None:
    key, other = subjects.new_ulid(), subjects.new_ulid()
    data = codec.encode(submit(key))
    headers = Signer.load(home.signing_key).headers(subjects.request(SITE, other), data)
    connection = Connection.get(ConnectionSettings.of_site(home, SITE))

    async def send() -> None:
        bus = await connection.session.bus()
        await bus.publish(subjects.request(SITE, key), data, headers=headers)

    connection.run(send())
    deadline = time.monotonic() + 20
    while (record := alice.record(key)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert record.error_code == "bad-signature"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xc1", "not-decodable"),
        (envelope("teapot", 1, {}), "unknown-type"),
        (envelope("ping", 9, {}), "unsupported-version"),
        (envelope("ping", 1, {}), "invalid-body"),
    ],
)
def test_a_bad_question_is_answered_too(alice: SiteClient, home: Home, data: bytes, code: str) -> None:
    connection = Connection.get(ConnectionSettings.of_site(home, SITE))

    async def ask() -> bytes:
        bus = await connection.session.bus()
        return (await bus.request(subjects.rpc(SITE, "ping"), data)).data

    answer = codec.decode_as(connection.run(ask()), Problem)
    assert answer.code == code


def test_after_all_that_the_agent_still_serves(alice: SiteClient, home: Home) -> None:
    from .jobs import run

    assert run(alice, "echo", "fine").stdout == "fine\n"
