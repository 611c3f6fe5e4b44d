"""Subject, stream, bucket and key names, and the validation of their tokens.

Every subject is ``slurmbus.v1.<site>.<kind>.…`` (blobs: ``blob.<sha256>.<n>``). Names are checked when they are
built and when they are parsed, so that a dot or a wildcard in a name can never widen a subject.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from enum import StrEnum

from slurmbus_protocol.errors import InvalidName

PREFIX = "slurmbus.v1"

REQUESTS = "REQUESTS"
STATES = "STATES"
FORGET = "FORGET"
MESSAGES = "MESSAGES"
LOGS = "LOGS"
BLOBS = "BLOBS"
AGENTS_BUCKET = "agents"

_TOKEN = re.compile(r"[a-z0-9_-]{1,64}")
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class Stream(StrEnum):
    """The three byte streams of a job."""

    STDOUT = "stdout"
    STDERR = "stderr"
    MESSAGES = "messages"


def new_ulid() -> str:
    """Make a ULID: 48 bits of milliseconds, 80 random bits, in Crockford's base 32 (github.com/ulid/spec)."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    return "".join(_CROCKFORD[(value >> shift) & 31] for shift in range(125, -5, -5))


def ulid_time(key: str) -> float:
    """Give the time at which a ULID was made, by the clock of who made it."""
    milliseconds = 0
    for letter in check_key(key)[:10]:
        milliseconds = milliseconds << 5 | _CROCKFORD.index(letter)
    return milliseconds / 1000


def check_token(token: str, what: str = "name") -> str:
    """Return the token, or raise InvalidName when it can't stand in a subject."""
    if not _TOKEN.fullmatch(token):
        raise InvalidName(f"{what} {token!r} can't be used", hint="use 1 to 64 of a-z, 0-9, '-' and '_'")
    return token


def check_key(key: str) -> str:
    """Return the job key, or raise InvalidName when it isn't a ULID."""
    if not _ULID.fullmatch(key):
        raise InvalidName(f"job key {key!r} isn't a ULID", hint="keys are made by the client, e.g. 01JD…")
    return key


def check_sha256(digest: str) -> str:
    """Return the digest, or raise InvalidName when it isn't 64 lower-case hex digits."""
    if not _SHA256.fullmatch(digest):
        raise InvalidName(f"{digest!r} isn't a SHA-256", hint="64 lower-case hex digits")
    return digest


def _index(number: int, what: str) -> int:
    if number < 0:
        raise InvalidName(f"{what} {number} is negative", hint="count from 0")
    return number


def request(site: str, key: str) -> str:
    """Where the submission of one job is published."""
    return f"{PREFIX}.{check_token(site, 'site')}.req.{check_key(key)}"


def control(site: str, key: str, control_id: str) -> str:
    """Where one control (a cancel, a requeue) of one job is published."""
    return f"{PREFIX}.{check_token(site, 'site')}.ctl.{check_key(key)}.{check_key(control_id)}"


def state(site: str, key: str, task: int) -> str:
    """The subject whose last message is the job's record."""
    return f"{PREFIX}.{check_token(site, 'site')}.job.{check_key(key)}.{_index(task, 'task')}.state"


def forget(site: str, key: str, task: int) -> str:
    """Where an agent asks for a finished job to be forgotten; an empty message."""
    return f"{PREFIX}.{check_token(site, 'site')}.job.{check_key(key)}.{_index(task, 'task')}.forget"


def stream(site: str, key: str, task: int, start: int, name: Stream) -> str:
    """Where the chunks of one stream of one start are published."""
    check_token(site, "site")
    check_key(key)
    _index(task, "task")
    _index(start, "start")
    if name is Stream.MESSAGES:
        return f"{PREFIX}.{site}.msg.{key}.{task}.{start}"
    return f"{PREFIX}.{site}.log.{key}.{task}.{start}.{name}"


def rpc(site: str, verb: str) -> str:
    """Where a question to the site's leader is asked."""
    return f"{PREFIX}.{check_token(site, 'site')}.rpc.{check_token(verb, 'verb')}"


def blob(digest: str, index: int) -> str:
    """Where one chunk of a blob is kept."""
    return f"blob.{check_sha256(digest)}.{_index(index, 'chunk')}"


def lease(site: str) -> str:
    """The key of the site's lease and heartbeat in the bucket of agents."""
    return f"$KV.{AGENTS_BUCKET}.{check_token(site, 'site')}"


def standby(site: str, agent_id: str) -> str:
    """The key of one standby's heartbeat in the bucket of agents."""
    return f"$KV.{AGENTS_BUCKET}.{check_token(site, 'site')}.{check_token(agent_id, 'agent id')}"


def consumer(site: str) -> str:
    """The name of the durable consumer from which a site's agent pulls its requests."""
    return f"agent_{check_token(site, 'site')}"


@dataclass(frozen=True, slots=True)
class RequestAddress:
    """What the subject of a request or control says."""

    site: str
    key: str
    control_id: str | None


def parse_request(subject: str) -> RequestAddress:
    """Take a request's or control's subject apart; InvalidName when it is neither."""
    parts = subject.split(".")
    match parts:
        case ["slurmbus", "v1", site, "req", key]:
            return RequestAddress(check_token(site, "site"), check_key(key), None)
        case ["slurmbus", "v1", site, "ctl", key, control_id]:
            return RequestAddress(check_token(site, "site"), check_key(key), check_key(control_id))
        case _:
            raise InvalidName(f"{subject!r} is no subject of a request")


@dataclass(frozen=True, slots=True)
class StreamAddress:
    """What the subject of a chunk says."""

    site: str
    key: str
    task: int
    start: int
    stream: Stream


def parse_stream(subject: str) -> StreamAddress:
    """Take the subject of a chunk apart; InvalidName when it is none."""
    parts = subject.split(".")
    match parts:
        case ["slurmbus", "v1", site, "msg", key, task, start] if task.isdecimal() and start.isdecimal():
            name = Stream.MESSAGES
        case ["slurmbus", "v1", site, "log", key, task, start, "stdout" | "stderr" as log] if (
            task.isdecimal() and start.isdecimal()
        ):
            name = Stream(log)
        case _:
            raise InvalidName(f"{subject!r} is no subject of a stream")
    return StreamAddress(check_token(site, "site"), check_key(key), int(task), int(start), name)


@dataclass(frozen=True, slots=True)
class StateAddress:
    """What the subject of a record says."""

    site: str
    key: str
    task: int


def parse_state(subject: str) -> StateAddress:
    """Take the subject of a record apart; InvalidName when it is none."""
    return _parse_job(subject, "state")


def parse_forget(subject: str) -> StateAddress:
    """Take the subject of a wish to forget apart; InvalidName when it is none."""
    return _parse_job(subject, "forget")


def _parse_job(subject: str, last: str) -> StateAddress:
    match subject.split("."):
        case ["slurmbus", "v1", site, "job", key, task, kind] if task.isdecimal() and kind == last:
            return StateAddress(check_token(site, "site"), check_key(key), int(task))
        case _:
            raise InvalidName(f"{subject!r} is no subject of this kind: {last}")
