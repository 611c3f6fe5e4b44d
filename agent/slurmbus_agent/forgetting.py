"""Forgets finished jobs: their request, then their record, then their spool.

An agent may remove nothing from the bus (a permission to purge holds for the messages of all sites), so it asks:

1. The job's folder goes from ``jobs/`` to ``forgotten/``, in one step: from now on no agent takes it up, or gives its
   record back to a bus that lost it.
2. A message on the job's ``forget`` subject asks the owner of the bus, who removes the request, the record, and the
   output, in this order (``slurmbus.forgetting``).
3. When the request and the record are gone, the folder goes to ``trash/`` and is removed.

Each step may be repeated by anybody at any time: the folders say how far a job has come.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from slurmbus_agent import budgets
from slurmbus_agent.audit import Audit
from slurmbus_agent.requests import Requests
from slurmbus_agent.retention import DAY, Finding, RetentionSettings, Verdict, Wish, judge
from slurmbus_agent.spool import Spool, SpoolError
from slurmbus_agent.spool_removal import Obstacle, Steps, Stopped
from slurmbus_protocol import codec, subjects
from slurmbus_protocol.bus import Bus, parse_time
from slurmbus_protocol.errors import BadMessage, SlurmbusError
from slurmbus_protocol.messages import Record

log = logging.getLogger(__name__)

T = TypeVar("T")
JobName = tuple[str, int]

_HOUR = 3600.0
_UNKNOWN_EXPIRY = 30 * DAY
"""Seconds after its creation at which a request counts as expired that nobody can read any more."""


@dataclass(frozen=True)
class Candidate:
    """A job of the spool, and whether it may be forgotten."""

    name: JobName
    record: Record | None
    verdict: Verdict

    @property
    def left(self) -> str | None:
        """The working directory that the user placed outside the spool; it is theirs, and stays."""
        record = self.record
        if record is None or record.work_dir is None or record.spool is None:
            return None
        return None if Path(record.work_dir).is_relative_to(record.spool) else record.work_dir


@dataclass
class Forgotten:
    """What one pass came to."""

    asked: list[Candidate] = field(default_factory=list)
    """Jobs that were taken out of sight in this pass."""
    removed: list[JobName] = field(default_factory=list)
    waiting: list[JobName] = field(default_factory=list)
    """Jobs that the bus still remembers."""
    obstacles: list[Obstacle] = field(default_factory=list)
    """What couldn't be removed."""
    stuck: set[JobName] = field(default_factory=set)
    """Jobs that the bus has forgotten, and whose folders can't even be moved."""


async def bus_clock(bus: Bus, site: str) -> float:
    """Give the bus's time; an agent may ask for no more than its own consumer."""
    info = await bus.api(f"CONSUMER.INFO.{subjects.REQUESTS}.{subjects.consumer(site)}")
    return parse_time(str(info["ts"]))


class Forgetting:
    """Forgets the finished jobs of one site.

    Args:
        bus: the connection, with an agent's permissions.
        site: whose jobs.
        spool: where they lie.
        settings: how long they are kept.
        in_use: whether a job is being followed; it is never touched then.
        guard: whether this agent holds the lease; nothing is done without.
        audit: where it is noted.
        steps: operations on the file system a second.
        patience: seconds to wait for the bus.
    """

    def __init__(
        self,
        bus: Bus,
        site: str,
        spool: Spool,
        settings: RetentionSettings,
        *,
        in_use: Callable[[JobName], bool],
        guard: Callable[[], bool],
        audit: Audit,
        steps: float = budgets.FORGET_CALLS_PER_SECOND,
        patience: float = budgets.FORGET_PATIENCE,
    ) -> None:
        self._bus = bus
        self._site = site
        self._spool = spool
        self._settings = settings
        self._requests = Requests(spool)
        self._in_use = in_use
        self._guard = guard
        self._audit = audit
        self._patience = patience
        self.pace = Steps(steps, guard)
        self._thread = ThreadPoolExecutor(1, "forgetting")
        self._due: dict[JobName, float] = {}
        self._asked_since: float | None = None

    @property
    def alarms(self) -> tuple[str, ...]:
        """What a person should know."""
        since = self._asked_since
        if since is None or time.monotonic() - since < budgets.FORGET_OVERDUE:
            return ()
        return ("the bus doesn't forget finished jobs: run 'slurmbus clean' where the bus is",)

    async def run(self) -> None:
        """Look now and then, for ever."""
        every = self._settings.every_minutes * 60
        pause = min(budgets.FORGET_FIRST, every)
        try:
            while True:
                await asyncio.sleep(pause)
                pause = every
                try:
                    done = await self.forget(await self.look())
                except Stopped:
                    continue  # without the lease; whoever has it goes on
                except SlurmbusError as error:
                    log.info("forgetting finished jobs: %s; going on later", error)
                    continue
                self._tell(done)
        finally:
            self.close()

    def close(self) -> None:
        """Stop what still goes on in the thread."""
        self.pace.stop()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _tell(self, done: Forgotten) -> None:
        if done.removed:
            log.info("%d finished jobs were forgotten", len(done.removed))
        for obstacle in done.obstacles:
            log.warning("%s can't be removed: %s", obstacle.path, obstacle.reason)

    # ------------------------------------------------------------------ looking

    async def look(self, wish: Wish | None = None) -> list[Candidate]:
        """Judge the jobs of the spool; those that were judged before, only once their time has come."""
        # A bus that lies about the time shall not make us forget what could then be replayed to us.
        now = min(await bus_clock(self._bus, self._site), time.time())
        names, _ = await self._do(self._spool.folders)
        self._due = {name: due for name, due in self._due.items() if name in set(names)}
        due = [name for name in names if wish is not None or self._due.get(name, 0.0) <= now]
        arrays = set(await self._do(self._spool.arrays)) & {key for key, _ in due}
        wanted = [*(name for name in names if name[0] in arrays), *(name for name in due if name[0] not in arrays)]
        return _whole_arrays(await _each(wanted, lambda name: self._judge(name, now, wish)), arrays)

    async def _judge(self, name: JobName, now: float, wish: Wish | None) -> Candidate:
        try:
            found = await self._find(name, now)
        except (SpoolError, BadMessage) as error:
            return Candidate(name, None, Verdict(forget=False, why=error.message))
        verdict = judge(found, now, self._settings, wish)
        if verdict.due_at is not None:
            self._due[name] = verdict.due_at
        return Candidate(name, found.record, verdict)

    async def _find(self, name: JobName, now: float) -> Finding:
        if self._in_use(name):
            return Finding(None, ended_at=now, expires_at=now, followed=True)
        stored = await self._bus.last(subjects.STATES, subjects.state(self._site, *name))
        if stored is not None:
            record = codec.decode_as(stored.data, Record)
            ended_at = stored.time
        else:
            kept = await self._read(self._spool.job(*name).read_record)
            if kept is None:
                return Finding(None, ended_at=now, expires_at=now)
            record, ended_at = kept, kept.updated_at
        if not record.state.is_final:
            return Finding(record, ended_at=now, expires_at=now)
        request = await self._read(lambda: self._requests.read(*name))
        if request is None:
            return Finding(record, ended_at, record.created_at + _UNKNOWN_EXPIRY)
        return Finding(record, ended_at, request.submit.expires_at)

    async def _do(self, work: Callable[..., T], *arguments: object) -> T:
        """Do something that takes long in this object's own thread: others shall not have to wait for it."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _read(self, read: Callable[[], T]) -> T:
        def paced() -> T:
            self.pace()
            return read()

        return await self._do(paced)

    # ------------------------------------------------------------------ forgetting

    async def forget(self, candidates: Iterable[Candidate]) -> Forgotten:
        """Forget the jobs that may be, and go on with what was begun before.

        Raises:
            Stopped: the guard has closed; what was begun is gone on with another time.
        """
        done = Forgotten()
        _, done.obstacles = await self._do(self._spool.empty_trash, self.pace)
        due = deque(candidate for candidate in candidates if candidate.verdict.forget)
        while True:
            begun = [name for name in await self._do(self._spool.forgotten) if name not in done.stuck]
            while due and len(begun) < budgets.FORGET_TOGETHER:
                candidate = due.popleft()
                if not self._in_use(candidate.name) and await self._take_out_of_sight(candidate, done):
                    begun.append(candidate.name)
            if not begun:
                self._asked_since = None
                done.obstacles += await self._do(self._remove_empty_arrays)
                return done
            batch = begun[: budgets.FORGET_TOGETHER]
            await _each(batch, self._ask)
            done.waiting = await self._remove_when_gone(batch, done)
            if done.waiting:
                self._asked_since = self._asked_since or time.monotonic()
                return done

    async def _take_out_of_sight(self, candidate: Candidate, done: Forgotten) -> bool:
        key, task = candidate.name
        try:
            gone = await self._read(lambda: self._spool.forget(key, task))
        except SpoolError as error:
            done.obstacles.append(Obstacle(str(self._spool.job(key, task).path), error.message))
            return False
        record = candidate.record
        if gone and record is not None:
            done.asked.append(candidate)
            left = {"left": candidate.left} if candidate.left else {}
            self._audit.write(
                "forgotten", key=key, task=task, state=record.state, name=record.name, why=candidate.verdict.why, **left
            )
        return gone

    async def _ask(self, name: JobName) -> None:
        self._check()
        await self._bus.publish(subjects.forget(self._site, *name), b"")

    async def _remove_when_gone(self, names: list[JobName], done: Forgotten) -> list[JobName]:
        """Remove the folders of jobs that the bus has forgotten, and give those that it hasn't."""
        deadline = time.monotonic() + self._patience
        delay = 0.05
        while True:
            gone = await _each(names, self._is_gone)
            for name in (name for name, is_gone in zip(names, gone, strict=True) if is_gone):
                await self._remove(name, done)
            names = [name for name, is_gone in zip(names, gone, strict=True) if not is_gone]
            if not names or time.monotonic() + delay > deadline:
                return names
            await asyncio.sleep(delay)
            delay *= 2

    def _remove_empty_arrays(self) -> list[Obstacle]:
        """Remove what the tasks of an array shared, once all have gone and no request can come again."""
        left = {key for key, _ in (*self._spool.folders()[0], *self._spool.forgotten())}
        obstacles: list[Obstacle] = []
        for key in self._spool.arrays():
            if key in left or time.time() < self._array_expiry(key):
                continue
            self.pace()
            obstacles += self._spool.remove_array(key, self.pace)
        return obstacles

    def _array_expiry(self, key: str) -> float:
        self.pace()
        try:
            request = self._requests.read(key, 0)
        except BadMessage:
            request = None
        expires_at = request.submit.expires_at if request else subjects.ulid_time(key) + _UNKNOWN_EXPIRY
        return expires_at + self._settings.after_expiry_hours * _HOUR

    async def _remove(self, name: JobName, done: Forgotten) -> None:
        try:
            done.obstacles += await self._do(self._spool.remove_forgotten, *name, self.pace)
        except SpoolError as error:
            done.obstacles.append(Obstacle(str(self._spool.job(*name).path.name), error.message))
            done.stuck.add(name)
        else:
            done.removed.append(name)

    async def _is_gone(self, name: JobName) -> bool:
        key, task = name
        if await self._bus.last(subjects.REQUESTS, subjects.request(self._site, key)) is not None:
            return False
        return await self._bus.last(subjects.STATES, subjects.state(self._site, key, task)) is None

    def _check(self) -> None:
        if not self._guard():
            raise Stopped


def _whole_arrays(candidates: list[Candidate], arrays: set[str]) -> list[Candidate]:
    """Keep an array as long as one of its tasks is kept: they share their request."""
    kept = {one.name[0] for one in candidates if not one.verdict.forget} & arrays
    stays = Verdict(forget=False, why="another task of its array is kept")
    return [replace(one, verdict=stays) if one.name[0] in kept and one.verdict.forget else one for one in candidates]


N = TypeVar("N")


async def _each(items: list[N], do: Callable[[N], Awaitable[T]]) -> list[T]:
    """Do something with each, a few at a time, and give what came of it in their order."""
    gate = asyncio.Semaphore(budgets.BUS_AT_ONCE)

    async def one(item: N) -> T:
        async with gate:
            return await do(item)

    return await asyncio.gather(*(one(item) for item in items))
