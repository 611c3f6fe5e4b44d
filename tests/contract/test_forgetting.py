"""Forgetting finished jobs, with a real server, a real agent and real jobs: request, record, spool, in this order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from contract.bus_site import make_streams, wait_until
from slurmbus.cli import main
from slurmbus.client import SiteClient
from slurmbus.connection import Connection
from slurmbus.forgetting import BusCleaner, Outcome, Wish, granting_wishes
from slurmbus.home import Home
from slurmbus.local import stop_local
from slurmbus.owner import ServerOwner
from slurmbus.settings import ConnectionSettings
from slurmbus_agent.audit import Audit
from slurmbus_agent.config import load
from slurmbus_agent.forgetting import Forgetting
from slurmbus_agent.retention import RetentionSettings
from slurmbus_agent.spool import Spool
from slurmbus_agent.spool_removal import Stopped
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.bus import Bus
from slurmbus_protocol.errors import BusFull, BusUnreachable, SiteUnreachable
from slurmbus_protocol.messages import CommandPlan, Heartbeat, JobSpec, Ping, Record, TaskSpec
from slurmbus_protocol.states import JobState
from slurmbus_protocol.streams import BusLimits
from slurmbus_protocol.subjects import StateAddress, Stream, new_ulid

SITE = "forgetful"
AFTER_EXPIRY = 0.5
"""Seconds; nobody could wait for the day that it really is."""
VALID_FOR = 2.0
"""Seconds that a request for a single job is valid."""
MANY_VALID_FOR = 10.0
"""Seconds that each of many requests is valid: a busy machine needs some for the last of them."""
RETENTION = {
    "succeeded_days": 1e-6,
    "failed_days": 1000.0,
    "lost_days": 1000.0,
    "after_expiry_hours": AFTER_EXPIRY / 3600,
    "settle_minutes": 0.0,
    "every_minutes": 1000.0,
}


def shell(script: str, **fields: Any) -> JobSpec:
    return JobSpec(name="short", plan=CommandPlan(argv=("sh", "-c", script)), **fields)


@dataclass
class Lab:
    """A home, its server, and an agent with its own configuration."""

    home: Home
    owner: ServerOwner
    client: SiteClient
    folder: Path
    retention: dict[str, float] = field(default_factory=lambda: dict(RETENTION))

    @property
    def spool(self) -> Spool:
        return Spool(self.folder / "spool")

    @property
    def config(self) -> Path:
        path = self.folder / "agent.toml"
        table = "".join(f"{name} = {value!r}\n" for name, value in self.retention.items())
        path.write_text(f"{self.home.bundle_path(SITE).read_text()}\n[retention]\n{table}")
        path.chmod(0o600)
        return path

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "slurmbus_agent", *words, "--site", SITE, "--config", str(self.config)]

    @contextmanager
    def agent(self) -> Iterator[subprocess.Popen[bytes]]:
        with (self.folder / "agent.log").open("ab") as output:
            process = subprocess.Popen(self.command("run"), stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)

    def clean(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command("clean", *words), capture_output=True, text=True, check=False, timeout=120)

    def granting(self) -> contextlib.AbstractContextManager[None]:
        return granting_wishes(self.client.connection, AFTER_EXPIRY)

    def run(self, job: JobSpec, **options: Any) -> str:
        key = self.client.submit(job, valid_for=VALID_FOR, **options)
        with self.client.follow(key) as events:
            list(events)
        return key

    def wait_for_agent(self) -> None:
        def answers() -> bool:
            try:
                return self.client.ask("info", Ping(sent_at=time.time()), Heartbeat, timeout=1).leader
            except (SiteUnreachable, BusUnreachable):
                return False

        wait_until(answers, "an agent that leads", 60)

    def wait_until_forgettable(self, *keys: str, valid_for: float = VALID_FOR) -> None:
        """Wait until the requests have been expired for long enough, and the agent has done with the jobs."""
        for key in keys:
            self.client.wait_for_accounting(key, 30)
        expired = time.time() + valid_for + AFTER_EXPIRY
        wait_until(lambda: time.time() > expired, "the requests to expire")

    def on_bus(self, key: str) -> dict[str, int]:
        """Count what the bus holds of a job, by stream."""
        return self.client.connection.run(self.counts(key))

    async def counts(self, key: str) -> dict[str, int]:
        bus = await self.client.connection.session.bus()
        found = {}
        for stream in (subjects.REQUESTS, subjects.STATES, subjects.MESSAGES, subjects.LOGS, subjects.FORGET):
            names: dict[str, int] = {}
            for pattern in (f"slurmbus.v1.*.*.{key}", f"slurmbus.v1.*.*.{key}.>"):
                info = await bus.api(f"STREAM.INFO.{stream}", {"subjects_filter": pattern})
                names |= info["state"].get("subjects") or {}
            if names:
                found[stream] = sum(names.values())
        return found

    async def order(self, key: str) -> tuple[bool, bool, bool]:
        """Check that nothing went before its turn, and tell what is left: request, record, spool."""
        spool = any(not path.startswith("trash/") for path in self.in_spool(key))
        found = await self.counts(key)
        request, record = subjects.REQUESTS in found, subjects.STATES in found
        assert record or not request, "the record went before the request"
        assert spool or not record, "the spool went before the record"
        return request, record, spool

    def in_spool(self, key: str) -> list[str]:
        return [
            str(path.relative_to(self.spool.root))
            for name in ("jobs", "forgotten", "trash")
            for path in (self.spool.root / name).iterdir()
            if path.name.startswith(key)
        ]


@contextmanager
def make_lab(folder: Path, limits: BusLimits | None = None) -> Iterator[Lab]:
    home = Home(folder / "slurmbus")
    home.add_site(SITE, scheduler="local", spool=str(folder / "spool"), python=sys.executable)
    with ServerOwner(home) as owner:
        connection = Connection.get(ConnectionSettings.of_site(home, SITE))
        try:
            if limits is not None:
                asyncio.run(make_streams(connection.settings, limits))
            client = SiteClient(connection, SITE)
            client.records()  # sets the bus up
            yield Lab(home, owner, client, folder)
        finally:
            connection.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with make_lab(tmp_path) as lab:
        yield lab


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path)] = (status.st_mode, status.st_mtime_ns if not path.is_dir() else 0, content)
    return found


def test_by_hand_beside_a_running_agent(lab: Lab, tmp_path: Path) -> None:
    base = tmp_path / "scratch"
    base.mkdir()
    with lab.agent(), lab.granting():
        done = lab.run(shell("echo out; echo err >&2; echo x > result"))
        elsewhere = lab.run(shell("echo x > result", work_base=str(base)))
        failed = lab.run(shell("exit 3"))
        running = lab.client.submit(shell("until test -e done; do sleep 0.05; done"), valid_for=VALID_FOR)
        wait_until(lambda: (r := lab.client.record(running)) and r.state is JobState.RUNNING, "a running job")
        lab.wait_until_forgettable(done, elsewhere, failed)
        before, bus_before = snapshot(lab.spool.root / "jobs"), lab.on_bus(done)
        assert set(bus_before) == {subjects.REQUESTS, subjects.STATES, subjects.LOGS}

        dry = lab.clean("--dry-run")
        assert dry.returncode == 0, dry.stderr
        rows = [line.split("\t") for line in dry.stdout.splitlines()]
        assert rows[0] == ["JOB", "NAME", "STATE", "SIZE", "WHAT", "WHY"]
        assert {row[0] for row in rows[1:]} == {f"{done}.0", f"{elsewhere}.0"}
        assert {row[4] for row in rows[1:]} == {"would forget"}
        assert "kept: 1 jobs: unfinished: RUNNING" in dry.stderr
        assert "kept: 1 jobs: failed jobs are kept for 1000 days" in dry.stderr
        assert f"left: {base}/{elsewhere}.0" in dry.stderr
        assert snapshot(lab.spool.root / "jobs") == before
        assert lab.on_bus(done) == bus_before

        wet = lab.clean()
        assert wet.returncode == 0, wet.stderr
        assert {line.split("\t")[4] for line in wet.stdout.splitlines()[1:]} == {"forgotten"}
        for key in (done, elsewhere):
            assert lab.on_bus(key) == {}
            assert lab.in_spool(key) == []
        assert (base / f"{elsewhere}.0" / "result").exists()
        assert {record.key for record in lab.client.records()} == {failed, running}
        assert lab.in_spool(failed) == [f"jobs/{failed}.0"]

        assert lab.clean("--outcome", "succeeded", "--older-than", "0s").stdout.count("\n") == 1
        assert lab.clean("--outcome", "failed", "--older-than", "1000s").stdout.count("\n") == 1
        assert lab.clean("--outcome", "failed", "--older-than", "0s").returncode == 0
        assert lab.on_bus(failed) == {}
        assert lab.in_spool(failed) == []
        (lab.spool.job(running, 0).path / "work" / "done").touch()
        with lab.client.follow(running) as events:
            assert list(events)[-1].record.state is JobState.COMPLETED  # type: ignore[union-attr]
    noted = [json.loads(line) for line in (lab.spool.root / "audit.log").read_text().splitlines()]
    assert [note["key"] for note in noted if note["what"] == "forgotten"] == [done, elsewhere, failed]


def test_the_tasks_of_an_array_are_forgotten_together_and_what_they_shared_last(lab: Lab) -> None:
    with lab.agent(), lab.granting():
        shared = lab.client.upload_bytes(b"shared", "shared.txt")
        tasks = tuple(TaskSpec(index=index, args=(str(index),)) for index in (0, 1, 2))
        plan = CommandPlan(argv=("sh", "-c", "cat shared.txt; exit $1", "task"))
        job = JobSpec(name="array", plan=plan, tasks=tasks, files=(shared,))
        key = lab.client.submit(job, valid_for=VALID_FOR)
        with lab.client.follow_tasks({key: (0, 1, 2)}) as events:
            list(events)
        for task in (0, 1, 2):
            lab.client.wait_for_accounting(key, 30, task)
        lab.wait_until_forgettable(key)
        # Two have failed, and failed jobs are kept: so the one that succeeded, and the request, are kept with them.
        kept = lab.clean()
        assert "another task of its array is kept" in kept.stderr
        assert lab.on_bus(key)[subjects.REQUESTS] == 1
        assert len(lab.in_spool(key)) == 3
        assert lab.clean("--older-than", "0s").returncode == 0
        assert lab.on_bus(key) == {}
        assert lab.in_spool(key) == []
        assert lab.spool.arrays() == []


def test_a_forgotten_request_that_comes_again_is_refused_and_runs_nothing(lab: Lab, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    with lab.agent(), lab.granting():
        key = lab.client.submit(shell(f"echo x >> {ran}"), valid_for=VALID_FOR)

        async def stored() -> Any:
            bus = await lab.client.connection.session.bus()
            return await bus.last(subjects.REQUESTS, subjects.request(SITE, key))

        request = lab.client.connection.run(stored())
        with lab.client.follow(key) as events:
            list(events)
        lab.wait_until_forgettable(key)
        assert lab.clean().returncode == 0
        assert lab.on_bus(key) == {}

        async def publish_again() -> None:
            bus = await lab.client.connection.session.bus()
            headers = {name: value for name, value in request.headers.items() if not name.startswith("Nats-")}
            await bus.publish(request.subject, request.data, headers=headers, expected_last=0)

        lab.client.connection.run(publish_again())
        wait_until(lambda: lab.client.record(key), "an answer")
        record = lab.client.record(key)
        assert record is not None
        assert (record.state, record.error_code) == (JobState.REJECTED, "request-expired")
        assert lab.in_spool(key) == []
        assert ran.read_text() == "x\n"

        # No agent has anything of it: the owner of the bus forgets it.
        found = lab.client.connection.run(stray_wishes(lab))
        assert [wish.job.key for wish in found] == [key]
        assert lab.on_bus(key) == {}


async def stray_wishes(lab: Lab) -> list[Wish]:
    cleaner = BusCleaner(await lab.client.connection.session.bus(), AFTER_EXPIRY)
    kinds = dict.fromkeys(Outcome, 0.0)
    return [await cleaner.forget(wish) for wish in await cleaner.strays(SITE, kinds)]


def test_without_the_owner_of_the_bus_nothing_goes_before_its_time(lab: Lab) -> None:
    with lab.agent():
        key = lab.run(shell("true"))
        lab.wait_until_forgettable(key)
        done = lab.clean()
        assert done.returncode == 0, done.stderr
        assert "waits for the bus" in done.stdout
        assert "slurmbus clean" in done.stderr
        assert lab.in_spool(key) == [f"forgotten/{key}.0"]
        assert lab.on_bus(key)[subjects.FORGET] == 1
    # An agent that is started meanwhile doesn't take it up again.
    with lab.agent():
        lab.wait_for_agent()
        other = lab.run(shell("exit 1"))
        assert lab.in_spool(key) == [f"forgotten/{key}.0"]
        with lab.granting():
            assert lab.clean().returncode == 0
        assert lab.in_spool(key) == []
        assert lab.on_bus(key) == {}
        assert lab.in_spool(other) == [f"jobs/{other}.0"]


def test_a_bus_that_lost_everything_gets_no_forgotten_record_back(tmp_path: Path) -> None:
    with ExitStack() as stack:
        lab = stack.enter_context(make_lab(tmp_path))
        with lab.agent():
            forgotten, kept = lab.run(shell("true")), lab.run(shell("exit 1"))
            lab.wait_until_forgettable(forgotten, kept)
            assert lab.clean().returncode == 0
            assert lab.in_spool(forgotten) == [f"forgotten/{forgotten}.0"]
        lab.owner.server.stop()
        jetstream = lab.home.bus_folder / "jetstream"
        jetstream.rename(tmp_path / "lost")
        lab.owner.server.start()
        wait_until(lambda: lab.client.records() == [], "the new bus")
        with lab.agent(), lab.granting():
            lab.wait_for_agent()
            another = lab.run(shell("true"))
            assert forgotten not in {record.key for record in lab.client.records()}
            lab.wait_until_forgettable(another)
            assert lab.clean().returncode == 0
            assert lab.in_spool(forgotten) == []
            assert lab.in_spool(another) == []
            assert lab.in_spool(kept) == [f"jobs/{kept}.0"]
            assert {record.key for record in lab.client.records()} <= {kept}


# ---------------------------------------------------------------------- interruptions


class Crash(BaseException):
    """What a kill does at this very step."""


class CountedBus:
    """The real connection, which crashes before its n-th use."""

    def __init__(self, bus: Bus, crash: Callable[[], None]) -> None:
        self._bus = bus
        self._crash = crash

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._bus, name)

        def called(*arguments: Any, **options: Any) -> Any:
            self._crash()
            return real(*arguments, **options)

        return called


def crash_after(steps: float) -> Callable[[], None]:
    """Give what crashes when it is called once more often than this."""
    left = [steps]

    def crash() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Crash

    return crash


@asynccontextmanager
async def agent_bus(lab: Lab) -> AsyncIterator[Bus]:
    async with Bus(load(SITE, lab.config).bus_settings("test")) as bus:
        yield bus


async def agent_side(lab: Lab, bus: Bus, key: str, steps: float = float("inf")) -> bool:
    """Let an agent forget one job as far as it comes; False when it crashed."""
    crash = crash_after(steps)
    counted: Any = CountedBus(bus, crash)
    settings, audit = load(SITE, lab.config).retention, Audit(lab.spool.root / "audit.log")
    forgetting = Forgetting(
        counted, SITE, lab.spool, settings, in_use=lambda _: False, guard=lambda: True, audit=audit, patience=0.0
    )
    pace = forgetting.pace
    forgetting.pace = crash  # type: ignore[assignment]
    try:
        found = await forgetting.look()
        await forgetting.forget([candidate for candidate in found if candidate.name == (key, 0)])
    except Crash:
        return False
    else:
        return True
    finally:
        forgetting.pace = pace
        forgetting.close()


async def bus_side(lab: Lab, key: str, steps: float = float("inf")) -> bool:
    """Let the owner of the bus forget one job as far as it comes; False when it crashed."""
    bus: Any = CountedBus(await lab.client.connection.session.bus(), crash_after(steps))
    try:
        await BusCleaner(bus, AFTER_EXPIRY).forget(Wish(StateAddress(SITE, key, 0), "test"))
    except Crash:
        return False
    return True


def many_finished(lab: Lab, number: int) -> Iterator[str]:
    with lab.agent():
        keys = [lab.client.submit(shell("true"), valid_for=MANY_VALID_FOR) for _ in range(number)]
        for key in keys:
            with lab.client.follow(key) as events:
                list(events)
        lab.wait_until_forgettable(*keys, valid_for=MANY_VALID_FOR)
    return iter(keys)


@pytest.mark.parametrize("crashing", ["asking", "granting", "removing"])
def test_a_crash_before_each_step_keeps_the_order_and_is_made_good(lab: Lab, crashing: str) -> None:
    keys = many_finished(lab, 60)
    seen: set[tuple[bool, bool, bool]] = set()

    async def one(bus: Bus, key: str, steps: int) -> bool:
        """Crash before this step of the part that is crashing, then let others go on; True when there was no crash."""
        inf = float("inf")
        parts: dict[str, Callable[[float], Awaitable[bool]]] = {
            "asking": lambda limit: agent_side(lab, bus, key, limit),
            "granting": lambda limit: bus_side(lab, key, limit),
            "removing": lambda limit: agent_side(lab, bus, key, limit),
        }
        whole = True
        for part, carry_out in parts.items():
            if part == crashing:
                whole = await carry_out(steps)
                seen.add(await lab.order(key))
            await carry_out(inf)
            seen.add(await lab.order(key))
        assert (await lab.order(key)) == (False, False, False)
        return whole

    async def play() -> int:
        async with agent_bus(lab) as bus:
            for steps, key in enumerate(keys):
                if await one(bus, key, steps):
                    return steps
        pytest.fail("60 steps aren't enough")

    steps = lab.client.connection.run(play(), timeout=120)
    assert steps > 5
    expected = {(True, True, True), (False, False, True), (False, False, False)}
    assert seen == expected | ({(False, True, True)} if crashing == "granting" else set())


def test_killed_at_random_moments_it_is_finished_by_the_next(lab: Lab) -> None:
    chance = random.Random(11)
    with lab.agent(), lab.granting():
        keys = [lab.run(shell(f"echo {n}; mkdir -p a/b; touch a/b/{n}")) for n in range(12)]
        lab.wait_until_forgettable(*keys)
        kills = 0
        while kills < 12:
            process = subprocess.Popen(lab.command("clean"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0.3, 1.2))
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            for key in keys:
                lab.client.connection.run(lab.order(key))
        done = lab.clean()
        assert done.returncode == 0, done.stderr
        for key in keys:
            assert lab.on_bus(key) == {}
            assert lab.in_spool(key) == []


# ---------------------------------------------------------------------- the agent by itself


def test_a_guard_that_closes_stops_everything(lab: Lab) -> None:
    with lab.agent():
        key = lab.run(shell("true"))
        lab.wait_until_forgettable(key)
    before = snapshot(lab.spool.root / "jobs")

    async def play() -> None:
        async with agent_bus(lab) as bus:
            forgetting = Forgetting(
                bus,
                SITE,
                lab.spool,
                RetentionSettings(**RETENTION),
                in_use=lambda _: False,
                guard=lambda: False,
                audit=Audit(lab.spool.root / "audit.log"),
            )
            with pytest.raises(Stopped):
                await forgetting.forget(await forgetting.look())
            forgetting.close()

    asyncio.run(play())
    assert snapshot(lab.spool.root / "jobs") == before
    assert subjects.FORGET not in lab.on_bus(key)


def test_a_followed_job_is_not_touched(lab: Lab) -> None:
    with lab.agent():
        key = lab.run(shell("true"))
        lab.wait_until_forgettable(key)

    async def play() -> None:
        async with agent_bus(lab) as bus:
            forgetting = Forgetting(
                bus,
                SITE,
                lab.spool,
                RetentionSettings(**RETENTION),
                in_use={(key, 0): None}.__contains__,
                guard=lambda: True,
                audit=Audit(lab.spool.root / "audit.log"),
            )
            (candidate,) = await forgetting.look()
            assert not candidate.verdict.forget
            assert not (await forgetting.forget([candidate])).asked
            forgetting.close()

    asyncio.run(play())
    assert lab.in_spool(key) == [f"jobs/{key}.0"]


def test_the_agent_forgets_by_itself(lab: Lab) -> None:
    lab.retention["every_minutes"] = 0.01
    with lab.agent(), lab.granting():
        done, failed = lab.run(shell("true")), lab.run(shell("exit 1"))
        wait_until(lambda: not lab.in_spool(done) and not lab.on_bus(done), "the agent to forget a job", 60)
        assert lab.in_spool(failed) == [f"jobs/{failed}.0"]
        assert lab.client.record(failed) is not None


# ---------------------------------------------------------------------- the bus's side


def test_whatever_is_asked_nothing_unfinished_or_unexpired_is_removed(lab: Lab) -> None:
    """An agent, or whoever has its key, can't make the owner of the bus forget what must be remembered."""
    with lab.agent():
        running = lab.client.submit(shell("until test -e done; do sleep 0.05; done"), valid_for=VALID_FOR)
        finished = lab.client.submit(shell("true"), valid_for=3600)
        with lab.client.follow(finished) as events:
            list(events)
        wait_until(lambda: (r := lab.client.record(running)) and r.state is JobState.RUNNING, "a running job")

        async def ask() -> list[Wish]:
            await ask_to_forget(lab, running, finished)
            cleaner = BusCleaner(await lab.client.connection.session.bus(), AFTER_EXPIRY)
            return [await cleaner.forget(wish) for wish in await cleaner.wishes(SITE)]

        kept = {wish.job.key: wish.kept for wish in lab.client.connection.run(ask())}
        assert kept[running] == "unfinished: RUNNING"
        assert "expired" in kept[finished]
        for key in (running, finished):
            assert {subjects.REQUESTS, subjects.STATES} <= set(lab.on_bus(key))
        (lab.spool.job(running, 0).path / "work" / "done").touch()
        with lab.client.follow(running) as events:
            list(events)


def test_cancels_and_messages_go_with_the_job(lab: Lab) -> None:
    with lab.agent(), lab.granting():
        key = lab.client.submit(shell("echo x > $HOME/../dev/null; sleep 600"), valid_for=VALID_FOR)
        wait_until(lambda: (r := lab.client.record(key)) and r.state is JobState.RUNNING, "a running job")
        lab.client.cancel(key)
        lab.client.cancel(key)
        with lab.client.follow(key) as events:
            assert list(events)[-1].record.state is JobState.CANCELLED  # type: ignore[union-attr]

        async def message() -> None:
            async with agent_bus(lab) as bus:
                await bus.publish(subjects.stream(SITE, key, 0, 0, Stream.MESSAGES), b"not even a chunk")

        lab.client.connection.run(message())
        lab.wait_until_forgettable(key)
        assert set(lab.on_bus(key)) >= {subjects.REQUESTS, subjects.STATES, subjects.MESSAGES}
        assert lab.clean("--older-than", "0s").returncode == 0
        assert lab.on_bus(key) == {}


def test_a_full_bus_can_be_emptied(tmp_path: Path) -> None:
    with make_lab(tmp_path, BusLimits(messages=256 * 1024)) as lab, lab.agent(), lab.granting():
        key = lab.run(shell("true"))
        lab.wait_until_forgettable(key)

        async def fill() -> int:
            stored = 0
            async with agent_bus(lab) as bus:
                with contextlib.suppress(BusFull):
                    while True:
                        await bus.publish(subjects.stream(SITE, key, 0, 0, Stream.MESSAGES), os.urandom(1000))
                        stored += 1
            return stored

        assert lab.client.connection.run(fill())
        assert lab.clean().returncode == 0
        assert lab.on_bus(key) == {}
        assert lab.client.connection.run(fill())


def test_an_agent_can_ask_only_for_its_own_site(lab: Lab) -> None:
    async def ask() -> None:
        async with agent_bus(lab) as bus:
            with pytest.raises(BusUnreachable):
                await bus.publish(subjects.forget("another", new_ulid(), 0), b"", timeout=0.5)
            for verb in ("STREAM.PURGE.STATES", "STREAM.MSG.DELETE.STATES", "STREAM.DELETE.FORGET"):
                with pytest.raises(BusUnreachable):
                    await bus.request(f"$JS.API.{verb}", b"{}", timeout=0.5)
            with pytest.raises(BusUnreachable):
                await bus.last(subjects.REQUESTS, subjects.request("another", new_ulid()), timeout=0.5)

    asyncio.run(ask())


def test_a_late_twin_of_a_forgotten_job_starts_nothing(lab: Lab, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    with lab.agent(), lab.granting():
        key = lab.run(shell(f"echo x >> {ran}"))
        lab.wait_until_forgettable(key)
        folder = lab.spool.job(key, 0).path
        (runner,) = lab.spool.root.glob("runner-*.py")
        assert lab.clean().returncode == 0
    late = subprocess.run(
        [sys.executable, str(runner), str(folder)],
        env={**os.environ, "SLURM_JOB_ID": "4711"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert late.returncode != 0
    assert ran.read_text() == "x\n"
    assert not folder.exists()


# ---------------------------------------------------------------------- slurmbus clean, slurmbus bus run


async def publish_record(lab: Lab, key: str, state: JobState) -> None:
    """Publish a record as an agent does."""
    now = time.time()
    record = Record(
        key=key, site=SITE, epoch=1, state=state, name="stray", submitter="me", created_at=now, updated_at=now
    )
    async with agent_bus(lab) as bus:
        await bus.publish(subjects.state(SITE, key, 0), codec.encode(record))


async def ask_to_forget(lab: Lab, *keys: str) -> None:
    async with agent_bus(lab) as bus:
        for key in keys:
            await bus.publish(subjects.forget(SITE, key, 0), b"")


def test_slurmbus_bus_run_does_what_agents_ask_for(tmp_path: Path) -> None:
    home = Home(tmp_path / "slurmbus")
    home.add_site(SITE, scheduler="local", spool=str(tmp_path / "spool"), python=sys.executable)
    settings = ConnectionSettings.of_site(home, SITE)
    owner = subprocess.Popen(
        [sys.executable, "-c", "import slurmbus.cli as cli; raise SystemExit(cli.main())", "bus", "run"],
        env={**os.environ, "SLURMBUS_HOME": str(home.path)},
        stderr=subprocess.PIPE,
    )
    try:
        assert owner.stderr is not None
        assert b"listens on" in owner.stderr.readline()
        connection = Connection.get(settings)
        lab = Lab(home, None, SiteClient(connection, SITE), tmp_path)  # type: ignore[arg-type]
        assert lab.client.records() == []
        forgotten, unfinished, later = (new_ulid() for _ in range(3))
        for key, state in (
            (forgotten, JobState.REJECTED),
            (unfinished, JobState.PENDING),
            (later, JobState.COMPLETED),
        ):
            asyncio.run(publish_record(lab, key, state))
        asyncio.run(ask_to_forget(lab, unfinished, forgotten))
        wait_until(lambda: not lab.on_bus(forgotten), "the owner of the bus to forget it")
        asyncio.run(ask_to_forget(lab, later))
        wait_until(lambda: not lab.on_bus(later), "the owner of the bus to forget another one")
        assert lab.on_bus(unfinished) == {subjects.STATES: 1, subjects.FORGET: 1}
        connection.close()
    finally:
        owner.send_signal(signal.SIGINT)
        assert owner.wait(30) == 0
        assert owner.stderr is not None
        owner.stderr.close()


def test_of_a_site_whose_agent_is_gone_everything_finished_or_expired_goes(lab: Lab) -> None:
    with lab.agent():
        done = lab.run(shell("true"))
        lab.wait_until_forgettable(done)
    expired = lab.client.submit(shell("true"), valid_for=0.1)
    valid = lab.client.submit(shell("true"), valid_for=3600)

    async def clean(*, agent_gone: bool) -> dict[str, str]:
        cleaner = BusCleaner(await lab.client.connection.session.bus(), AFTER_EXPIRY)
        wishes = await cleaner.strays(SITE, dict.fromkeys(Outcome, 0.0), agent_gone=agent_gone)
        return {wish.job.key: (await cleaner.forget(wish)).kept for wish in wishes}

    assert lab.client.connection.run(clean(agent_gone=False)) == {}
    gone_at = time.time() + 0.1 + AFTER_EXPIRY
    wait_until(lambda: time.time() > gone_at, "the request to expire")
    kept = lab.client.connection.run(clean(agent_gone=True))
    assert (kept[done], kept[expired]) == ("", "")
    assert "expired" in kept[valid]
    assert lab.on_bus(done) == lab.on_bus(expired) == {}
    assert lab.on_bus(valid) == {subjects.REQUESTS: 1}
    # Should the agent come back after all, it takes nothing up that it has finished.
    with lab.agent():
        lab.wait_for_agent()
        assert lab.client.record(done) is None
        assert lab.clean().returncode == 0
        assert lab.on_bus(done)[subjects.FORGET] == 1
        with lab.granting():
            wait_until(lambda: not lab.on_bus(done), "the wish to be granted")
        assert lab.in_spool(done) == []


def test_slurmbus_clean_of_the_local_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    home = Home(tmp_path / "slurmbus")
    monkeypatch.setenv("SLURMBUS_HOME", str(home.path))
    try:
        assert main(["submit", "--local", "--", "true"]) == 0
        capfd.readouterr()
        assert main(["clean", "--local", "--dry-run", "--older-than", "0s"]) == 0
        assert "kept: 1 jobs: its request hasn't been expired for 24 hours" in capfd.readouterr().err
        assert main(["clean", "--local"]) == 0
        assert "kept: 1 jobs" in capfd.readouterr().err
    finally:
        stop_local(home)


def test_slurmbus_clean(lab: Lab, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SLURMBUS_HOME", str(lab.home.path))
    monkeypatch.delenv("SLURMBUS_SITE", raising=False)
    key = new_ulid()

    asyncio.run(publish_record(lab, key, JobState.REJECTED))
    assert main(["clean"]) == 0
    assert key not in capfd.readouterr().out
    assert main(["clean", "--dry-run", "--older-than", "0s"]) == 0
    assert f"{key}\tstray\tREJECTED\twould forget" in capfd.readouterr().out
    assert lab.client.record(key) is not None
    assert main(["clean", "--older-than", "0s", "--outcome", "succeeded"]) == 0
    assert lab.client.record(key) is not None
    assert main(["clean", "--older-than", "0s", "--json"]) == 0
    (row,) = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (row["key"], row["forgotten"]) == (key, True)
    assert lab.on_bus(key) == {}
    assert main(["clean", "--older-than", "soon"]) == 2
    assert "3d" in capfd.readouterr().err
    address = StateAddress(SITE, key, 0)
    assert lab.client.connection.run(again(lab, address)).kept == ""


def again(lab: Lab, address: StateAddress) -> Awaitable[Wish]:
    async def run() -> Wish:
        return await BusCleaner(await lab.client.connection.session.bus()).forget(Wish(address, "again"))

    return run()
