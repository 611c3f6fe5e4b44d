"""Attacks on a site over the bus: by a stranger, by a client that lies, by a broker that was taken over.

What else was taken over, and which test shows what comes of it, stands in docs/security.md.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from contract.agent_site import SITE, shell
from contract.authority_site import QUICK, Guarded, guarded_site, signed, submission
from contract.bus_site import wait_until
from environment_lab import make_lock, make_package
from slurmbus.environments import Requirements, Shipper
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.bus import Bus
from slurmbus_protocol.messages import (
    AskKeys,
    Cancel,
    FileRef,
    InstallEnvironment,
    JobSpec,
    Problem,
    RemoveEnvironment,
    RevokeKey,
    SiteKeys,
    TrustKey,
)
from slurmbus_protocol.signing import KEY_HEADER, SIGNATURE_HEADER, Signer
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import new_ulid


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarded_site(tmp_path_factory.mktemp("guarded")) as site:
        yield site


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A file that gets a line for each time that a payload runs."""
    return tmp_path / "ran"


def rejected(guarded: Guarded, key: str, code: str, ran: Path) -> None:
    record = guarded.wait_for_state(key, JobState.REJECTED)
    assert record.error_code == code
    wait_until(
        lambda: any(key in str(line.get("subject")) and line.get("error") == code for line in guarded.audit()),
        "the refusal in the audit log",
    )
    assert not ran.exists()


def running(ran: Path) -> JobSpec:
    return shell(f"echo ran >> {ran}")


def test_a_stranger_s_signature_runs_nothing(guarded: Guarded, ran: Path) -> None:
    message = submission(running(ran))
    guarded.publish(*signed(message, Signer.generate()))
    rejected(guarded, message.key, "bad-signature", ran)


def test_a_forged_signature_runs_nothing(guarded: Guarded, ran: Path) -> None:
    """Another's signature under the trusted key's name; the trusted key's signature under another body; none at all."""
    ours, stranger = guarded.signer, Signer.generate()
    first, second, third = submission(running(ran)), submission(running(ran)), submission(running(ran))
    subject, body, headers = signed(first, stranger)
    guarded.publish(subject, body, {**headers, KEY_HEADER: ours.public})
    subject, body, _ = signed(second, ours)
    genuine = signed(submission(), ours)[2][SIGNATURE_HEADER]
    guarded.publish(subject, body, {KEY_HEADER: ours.public, SIGNATURE_HEADER: genuine})
    guarded.publish(*signed(third, ours)[:2])
    for message in (first, second, third):
        rejected(guarded, message.key, "bad-signature", ran)


def test_a_genuine_request_on_another_subject_runs_nothing(guarded: Guarded, ran: Path) -> None:
    """Of another key; and one that was signed for another site."""
    message, key = submission(running(ran)), new_ulid()
    _, body, headers = signed(message, guarded.signer)
    guarded.publish(subjects.request(SITE, key), body, headers)
    rejected(guarded, key, "bad-signature", ran)
    elsewhere = submission(running(ran), site="elsewhere")
    guarded.publish(*signed(elsewhere, guarded.signer, subjects.request(SITE, elsewhere.key)))
    rejected(guarded, elsewhere.key, "wrong-address", ran)


def test_an_expired_request_runs_nothing(guarded: Guarded, ran: Path) -> None:
    message = submission(running(ran), valid_for=-1.0)
    guarded.publish(*signed(message, guarded.signer))
    rejected(guarded, message.key, "request-expired", ran)


def test_a_replayed_request_runs_its_payload_once(guarded: Guarded, ran: Path) -> None:
    """Repeated as it is; and by a broker that has made the job's record disappear before."""
    message = submission(running(ran))
    request = signed(message, guarded.signer)
    guarded.publish(*request)
    guarded.wait_for_state(message.key, JobState.COMPLETED)
    guarded.publish(*request)
    subject = subjects.state(SITE, message.key, 0)

    async def erase() -> None:
        async with Bus(guarded.client.connection.settings.bus_settings()) as bus:
            await bus.api(f"STREAM.PURGE.{subjects.STATES}", {"filter": subject})

    asyncio.run(erase())
    assert guarded.client.record(message.key) is None
    guarded.publish(*request)
    wait_until(lambda: guarded.client.record(message.key) is not None, "a record to come back")
    assert guarded.run().state is JobState.COMPLETED
    wait_until(lambda: guarded.record(message.key).state.is_final, "the end")
    assert ran.read_text() == "ran\n"


def test_a_job_s_key_is_taken_by_its_first_request(guarded: Guarded, ran: Path, tmp_path: Path) -> None:
    """A broker lets two genuine requests of the same key through; only one of them counts."""
    message = submission(shell(f"for _ in $(seq 600); do test -e {tmp_path}/go && exit 0; sleep 0.05; done"))
    guarded.publish(*signed(message, guarded.signer))
    guarded.wait_for_state(message.key, JobState.RUNNING)
    guarded.publish(*signed(submission(running(ran), key=message.key), guarded.signer))
    wait_until(lambda: any(line.get("error") == "other-request" for line in guarded.audit()), "the refusal")
    (tmp_path / "go").touch()
    guarded.wait_for_state(message.key, JobState.COMPLETED)
    assert not ran.exists()


def test_a_forged_cancel_ends_nothing_and_is_shown(guarded: Guarded, tmp_path: Path) -> None:
    message = submission(shell(f"for _ in $(seq 600); do test -e {tmp_path}/go && exit 0; sleep 0.05; done"))
    guarded.publish(*signed(message, guarded.signer))
    guarded.wait_for_state(message.key, JobState.RUNNING)
    cancel = Cancel(id=new_ulid(), key=message.key, site=SITE, expires_at=time.time() + 60, submitter="mallory")
    guarded.publish(*signed(cancel, Signer.generate()))
    wait_until(lambda: guarded.record(message.key).refused, "the refusal")
    refused = guarded.record(message.key).refused
    assert refused is not None
    assert (refused.id, refused.code) == (cancel.id, "bad-signature")
    (tmp_path / "go").touch()
    guarded.wait_for_state(message.key, JobState.COMPLETED)


def test_a_cancel_ahead_of_somebody_else_s_job_is_overruled(guarded: Guarded, ran: Path) -> None:
    """Whoever sees a key before its agent does can't keep the job from running."""
    with guarded.deployment("rival") as rival:
        message = submission(running(ran))
        rival.cancel(message.key)
        guarded.wait_for_state(message.key, JobState.CANCELLED)
        guarded.publish(*signed(message, guarded.signer))
        guarded.wait_for_state(message.key, JobState.COMPLETED)
    assert ran.read_text() == "ran\n"


@pytest.mark.parametrize("wish", ["trust", "revoke"])
def test_a_forged_change_of_keys_changes_nothing(guarded: Guarded, wish: str) -> None:
    stranger = Signer.generate()
    about = {"site": SITE, "expires_at": time.time() + 60, "submitter": "mallory"}
    message = (
        TrustKey(key=stranger.public, name="mine", **about)
        if wish == "trust"
        else RevokeKey(key=guarded.signer.public, **about)
    )
    subject, body = subjects.rpc(SITE, f"{wish}-key"), codec.encode(message)

    async def ask(headers: dict[str, str]) -> str:
        async with Bus(guarded.client.connection.settings.bus_settings()) as bus:
            reply = codec.decode((await bus.request(subject, body, headers=headers)).data)
            return reply.TYPE

    for headers in ({}, stranger.headers(subject, body), guarded.signer.headers("another.subject", body)):
        assert asyncio.run(ask(headers)) == "problem"
    keys = guarded.client.ask("keys", AskKeys(), SiteKeys).keys
    assert not any(key.key == stranger.public or key.revoked for key in keys)


def test_a_replayed_request_about_an_environment_changes_nothing(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one that was carried out nor one that has expired; who asked, and what was refused, is in the audit."""
    monkeypatch.setenv("SLURMBUS_CACHE", str(tmp_path / "cache"))

    def sign(wish: InstallEnvironment | RemoveEnvironment, signer: Signer) -> Callable[[], str]:
        subject, body = subjects.rpc(SITE, wish.TYPE), codec.encode(wish)
        headers = signer.headers(subject, body)

        async def ask() -> str:
            async with Bus(guarded.client.connection.settings.bus_settings()) as bus:
                reply = codec.decode((await bus.request(subject, body, headers=headers, timeout=60)).data)
                return reply.code if isinstance(reply, Problem) else reply.TYPE

        return lambda: asyncio.run(ask())

    def noted(what: str) -> list[tuple[object, object]]:
        about = [line for line in guarded.audit() if line["what"] == what and line.get("digest") == pack.ref.digest]
        return [(line["signer"], line["expires_at"]) for line in about]

    with guarded.deployment("colleague") as colleague:
        shipper, ours, theirs = Shipper(guarded.client), guarded.signer, colleague.connection.session.signer
        pack = shipper.pack(Requirements(str(make_lock(tmp_path, make_package(tmp_path, "demo", "def main(): ...")))))
        shipper.upload(pack)
        about = {"site": SITE, "expires_at": time.time() + 600, "submitter": "me"}
        removal = RemoveEnvironment(digest=pack.ref.digest, **about)
        remove, remove_again = sign(removal, ours), sign(removal, theirs)
        install = sign(InstallEnvironment(environment=pack.ref, name="mine", **about), ours)
        expired = sign(msgspec.structs.replace(removal, expires_at=time.time() - 1), ours)

        shipper.install(pack, "mine")
        assert expired() == "request-expired"
        assert install() == "environment-status"
        assert remove() == "environment-status"
        assert install() == "request-expired"  # what was carried out isn't begun anew
        shipper.install(pack)
        assert remove() == "request-expired"
        assert [one.digest for one in shipper.installed().environments] == [pack.ref.digest]
        assert shipper.installed().environments[0].names == ()
        assert install() == "environment-status"
        assert shipper.installed().environments[0].names == ()
        assert remove_again() == "environment-status"
    assert noted("remove-environment") == [(ours.public, about["expires_at"]), (theirs.public, about["expires_at"])]
    assert (ours.public, about["expires_at"]) in noted("install-environment")
    refusals = [
        (line["claimed"], line["error"]) for line in guarded.audit() if "remove-env" in str(line.get("subject", ""))
    ]
    assert refusals == [(ours.public, "request-expired")] * 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1" * 100,
        b"\x91" * 800_000,
        msgspec.msgpack.encode(["submit", 1, {"key": "x"}]),
        msgspec.msgpack.encode(["submit", 99, {}]),
        msgspec.msgpack.encode(["cancel", 1, {"a" * 60_000: 1}]),
        b"cos\nsystem\n(S'touch /tmp/pwned'\ntR.",
    ],
)
def test_garbage_under_a_genuine_signature_is_refused_and_forgotten(guarded: Guarded, body: bytes) -> None:
    """A client that is broken or taken over doesn't end the agent."""
    key = new_ulid()
    subject = subjects.request(SITE, key)
    guarded.publish(subject, body, guarded.signer.headers(subject, body))
    assert guarded.wait_for_state(key, JobState.REJECTED).error_code is not None
    assert guarded.run().state is JobState.COMPLETED


def test_a_request_that_no_record_has_room_for_is_refused(guarded: Guarded, tmp_path: Path) -> None:
    """Its labels, its submitter, a cancel's reason: each nearly as large as a message may be."""
    much = "x" * 880_000
    for message in (
        submission(msgspec.structs.replace(QUICK, labels={"label": much})),
        msgspec.structs.replace(submission(), submitter=much),
    ):
        guarded.publish(*signed(message, guarded.signer))
        assert guarded.wait_for_state(message.key, JobState.REJECTED).error_code == "too-large"
    job = submission(shell(f"for _ in $(seq 600); do test -e {tmp_path}/go && exit 0; sleep 0.05; done"))
    guarded.publish(*signed(job, guarded.signer))
    guarded.wait_for_state(job.key, JobState.RUNNING)
    cancel = Cancel(id=new_ulid(), key=job.key, site=SITE, expires_at=time.time() + 60, submitter="me", reason=much)
    guarded.publish(*signed(cancel, guarded.signer))
    wait_until(lambda: guarded.record(job.key).refused, "the refusal")
    (tmp_path / "go").touch()
    guarded.wait_for_state(job.key, JobState.COMPLETED)


@pytest.mark.parametrize("path", ["../escaped", "/tmp/escaped", "a/../../escaped", "a\0b", ".", ""])
def test_files_and_outputs_stay_in_the_working_directory(guarded: Guarded, path: str) -> None:
    ref = FileRef(path=path, sha256="ab" * 32, size=1)
    for job in (
        msgspec.structs.replace(QUICK, files=(ref,)),
        msgspec.structs.replace(QUICK, outputs=(path,)),
    ):
        message = submission(job)
        guarded.publish(*signed(message, guarded.signer))
        record = guarded.wait_for_state(message.key, JobState.REJECTED)
        assert record.error_code == "invalid-setting"
    assert not list(guarded.folder.rglob("escaped"))


def test_a_record_that_a_broker_has_forged_changes_no_job(guarded: Guarded, tmp_path: Path) -> None:
    """Readers may be lied to by their broker; the job, its spool and its true end are not the broker's."""
    message = submission(shell(f"for _ in $(seq 600); do test -e {tmp_path}/go && exit 0; sleep 0.05; done"))
    guarded.publish(*signed(message, guarded.signer))
    there = guarded.wait_for_state(message.key, JobState.RUNNING)
    forged = msgspec.structs.replace(there, state=JobState.FAILED, exit_code=1)
    guarded.publish(subjects.state(SITE, message.key, 0), codec.encode(forged))
    (tmp_path / "go").touch()
    wait_until(lambda: guarded.record(message.key).state is JobState.COMPLETED, "the agent's own word", 60)
