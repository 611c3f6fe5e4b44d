"""A site with a real agent, and further keys, deployments and messages for and against it."""

from __future__ import annotations

import asyncio
import getpass
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from contract.agent_site import SITE, RealAgent, agent_site
from contract.bus_site import BusSite, wait_until
from slurmbus.client import SiteClient
from slurmbus.connection import Connection
from slurmbus.settings import ConnectionSettings
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.bus import Bus
from slurmbus_protocol.messages import CommandPlan, Control, Heartbeat, JobSpec, Record, Submit
from slurmbus_protocol.pinned import PinnedKey
from slurmbus_protocol.signing import Signer
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import new_ulid

QUICK = JobSpec(name="quick", plan=CommandPlan(argv=("true",)))


@dataclass
class Guarded:
    """A running site, seen by the tests of authority."""

    site: BusSite
    agent: RealAgent
    folder: Path

    @property
    def client(self) -> SiteClient:
        return self.site.client

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    def beside_bundle(self, name: str) -> Path:
        """A file of the agent's: its configuration lies where the home keeps the bundle."""
        return self.site.home.bundle_path(SITE).with_name(f"{SITE}.{name}")

    def heartbeat(self) -> Heartbeat:
        return self.client.heartbeats()[0].heartbeat

    def audit(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.spool / "audit.log").read_text().splitlines()]

    def record(self, key: str, task: int = 0) -> Record:
        wait_until(lambda: self.client.record(key, task), f"a record of {key}")
        record = self.client.record(key, task)
        assert record is not None
        return record

    def wait_for_state(self, key: str, *states: JobState) -> Record:
        wait_until(lambda: self.record(key).state in states, f"{key} to become {states}")
        return self.record(key)

    def run(self, job: JobSpec = QUICK, client: SiteClient | None = None) -> Record:
        """Run a job to its end, whatever that is."""
        client = client or self.client
        key = client.submit(job)
        wait_until(lambda: self.record(key).state.is_final, f"the end of {key}")
        return self.record(key)

    @contextmanager
    def policy(self, text: str) -> Iterator[Path]:
        """Let a policy count while the block runs."""
        path = self.beside_bundle("policy.toml")
        path.write_text(text)
        try:
            yield path
        finally:
            path.unlink()

    @contextmanager
    def deployment(self, name: str) -> Iterator[SiteClient]:
        """Another deployment that uses the same site, with a signing key of its own that a login has pinned."""
        path = self.folder / f"{name}.key"
        signer = Signer.generate()
        signer.save(path)
        self.pin(PinnedKey(name=name, key=signer.public))
        settings = ConnectionSettings.of_site(self.site.home, SITE)
        with self.connected(replace(settings, signing_key=path)) as client:
            yield client

    @contextmanager
    def connected(self, settings: ConnectionSettings) -> Iterator[SiteClient]:
        connection = Connection.get(settings)
        try:
            yield SiteClient(connection, SITE)
        finally:
            connection.close()

    def pin(self, *keys: PinnedKey) -> None:
        """Let a login pin keys; the agent begins anew with the changed bundle."""
        before = self.heartbeat().agent_id
        trusted = self.site.home.site(SITE).trusted
        self.site.home.change_site(SITE, trusted=(*trusted, *keys))

        def has_begun_anew() -> bool:
            beat = self.heartbeat()
            return beat.leader and not beat.released and beat.agent_id != before

        wait_until(has_begun_anew, "the agent to take the new bundle")

    def publish(self, subject: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Put anything on the bus, as a broker that was taken over or a client that was could."""

        async def put() -> None:
            async with Bus(self.client.connection.settings.bus_settings()) as bus:
                await bus.publish(subject, body, headers=headers or {})

        asyncio.run(put())

    @property
    def signer(self) -> Signer:
        return Signer.load(self.site.home.signing_key)


def submission(job: JobSpec = QUICK, *, key: str | None = None, valid_for: float = 600.0, site: str = SITE) -> Submit:
    who = f"{getpass.getuser()}@test"
    return Submit(key=key or new_ulid(), site=site, expires_at=time.time() + valid_for, submitter=who, job=job)


def signed(message: Submit | Control, signer: Signer, subject: str | None = None) -> tuple[str, bytes, dict[str, str]]:
    """Give what a client publishes."""
    if subject is None:
        if isinstance(message, Submit):
            subject = subjects.request(message.site, message.key)
        else:
            subject = subjects.control(message.site, message.key, message.id)
    body = codec.encode(message)
    return subject, body, signer.headers(subject, body)


@contextmanager
def guarded_site(folder: Path) -> Iterator[Guarded]:
    with agent_site(folder) as (site, agent):
        yield Guarded(site, agent, folder)


def holders(folder: Path, value: str) -> list[Path]:
    """Give every file under a folder that holds a value, in whatever it is embedded."""
    needle = value.encode()
    return [path for path in folder.rglob("*") if path.is_file() and needle in path.read_bytes()]
