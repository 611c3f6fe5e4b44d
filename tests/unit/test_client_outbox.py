"""What is kept for a bus that starts anew, and until when."""

from __future__ import annotations

import time

import msgspec
import pytest

from slurmbus import outbox
from slurmbus.outbox import Outbox, SignedRequest
from slurmbus_protocol.messages import (
    Cancel,
    CommandPlan,
    ControlRefused,
    JobSpec,
    Record,
    Requeue,
    RequeueAsked,
    Submit,
)
from slurmbus_protocol.signing import Signer
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import new_ulid

SIGNER = Signer.generate()


def submit(key: str, *, valid_for: float = 60.0, padding: int = 0) -> SignedRequest:
    job = JobSpec(name="n", plan=CommandPlan(argv=("true",)), env={"PADDING": "x" * padding})
    message = Submit(key=key, site="a", expires_at=time.time() + valid_for, submitter="s", job=job)
    return SignedRequest.of(message, SIGNER)


def cancel(key: str) -> SignedRequest:
    message = Cancel(id=new_ulid(), key=key, site="a", expires_at=time.time() + 60.0, submitter="s")
    return SignedRequest.of(message, SIGNER)


def record(key: str, state: JobState) -> Record:
    return Record(key=key, site="a", epoch=1, state=state, name="n", submitter="s", created_at=0, updated_at=0)


def test_a_submission_is_kept_while_the_agent_needs_its_files_and_a_cancel_until_the_end() -> None:
    box, key, other = Outbox(), new_ulid(), new_ulid()
    first, end, foreign = submit(key), cancel(key), submit(other)
    for request in (first, end, foreign):
        assert box.keep(request) is None
    for state, left in [
        (JobState.ACCEPTED, [first, end, foreign]),
        (JobState.STAGING, [first, end, foreign]),
        (JobState.SUBMITTING, [end, foreign]),
        (JobState.RUNNING, [end, foreign]),
        (JobState.CANCELLED, [foreign]),
    ]:
        box.seen(record(key, state))
        assert box.all() == left
    assert box.of_job("a", other) == [foreign]
    assert box.of_job("b", other) == []


def test_a_requeue_is_kept_until_the_record_shows_it_or_its_refusal() -> None:
    box, key = Outbox(), new_ulid()
    noted, refused = (
        Requeue(id=new_ulid(), key=key, site="a", expires_at=time.time() + 60.0, submitter="s") for _ in range(2)
    )
    first, second = SignedRequest.of(noted, SIGNER), SignedRequest.of(refused, SIGNER)
    box.keep(first)
    box.keep(second)
    shown = record(key, JobState.RUNNING)
    box.seen(shown)
    assert box.all() == [first, second]
    shown = msgspec.structs.replace(shown, requeues=(RequeueAsked(id=noted.id, at=1.0, submitter="s"),))
    box.seen(shown)
    assert box.all() == [second]
    no = ControlRefused(id=refused.id, at=1.0, submitter="s", code="c", message="m")
    box.seen(msgspec.structs.replace(shown, refused=no))
    assert box.all() == []


def test_expired_requests_are_dropped() -> None:
    box = Outbox()
    box.keep(submit(new_ulid(), valid_for=-1.0))
    assert box.all() == []


def test_the_same_key_again_replaces_and_gives_back_the_first() -> None:
    box, key = Outbox(), new_ulid()
    first, second = submit(key), submit(key, padding=1)
    box.keep(first)
    assert box.keep(second) is first
    assert box.all() == [second]


def test_files_go_before_requests_and_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    box, requests = Outbox(), [submit(new_ulid(), padding=1000) for _ in range(3)]
    size = len(requests[0].body)
    monkeypatch.setattr(outbox, "LIMIT", 3 * size)
    box.keep(requests[0])
    box.keep_file("first", b"x" * size)
    box.keep_file("second", b"x" * size)
    box.keep(requests[1])
    assert list(box._files) == ["second"]
    box.keep(requests[2])
    assert list(box._files) == []
    last = submit(new_ulid(), padding=1000)
    box.keep(last)
    assert box.all() == [requests[1], requests[2], last]
