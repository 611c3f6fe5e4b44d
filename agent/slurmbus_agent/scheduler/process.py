"""Runs a scheduler in a child process, with a deadline for every call.

pyslurm blocks its whole process while the controller doesn't answer. Here the event loop only waits for pipes: a call
that isn't answered by its deadline costs the child its life, and the next call gets a new one. What that means for the
call depends on whether it may have reached Slurm; the four ways in which a call ends stand in
:mod:`slurmbus_agent.scheduler.base`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from slurmbus_agent.guest import processes
from slurmbus_agent.scheduler.base import (
    CONTROLS,
    AccountingRow,
    BatchJob,
    BudgetSpent,
    Footprint,
    NoAccounting,
    Observation,
    OutcomeUnknown,
    Refused,
    SchedulerError,
    Unavailable,
)
from slurmbus_agent.scheduler.calls import Answer, Call, raw, result_of
from slurmbus_agent.scheduler.channel import Channel, ChildGone
from slurmbus_agent.scheduler.limits import CallBudget, CallLimits, TokenBucket
from slurmbus_protocol.messages import Partition, SchedulerHealth

_NEVER = -float("inf")
_NOT_ASKED = "not asked yet"


class _Waiting:
    """A call that waits for its turn or for its answer."""

    def __init__(self, kind: str, arguments: tuple[object, ...]) -> None:
        self.kind = kind
        self.arguments = arguments
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def end(self, result: object) -> None:
        if not self.answer.done():
            self.answer.set_result(result)

    def fail(self, error: SchedulerError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class ChildScheduler:
    """A scheduler whose blocking calls run in a child process, one after the other.

    The child starts with the first call, ends when it was idle for a while, and is replaced when it hangs or dies.
    Calls wait for each other in order; one that doesn't get its turn within its own deadline was never sent. Only pings
    decide whether the controller counts as responding: while it doesn't, it is probed and all calls fail at once.

    ``lease_deadline`` gives the CLOCK_BOOTTIME up to which this agent may act, None when it may not. The child looks at
    the clock right before each submit and cancel, so an agent that was frozen can't act on a lease that is over.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        kind: str = "native",
        limits: CallLimits | None = None,
        budget: CallBudget | None = None,
        env: Mapping[str, str] | None = None,
        cpu_limit: float | None = None,
    ) -> None:
        """Run ``argv`` as the child when it is needed; nothing is started yet.

        A child that has used ``cpu_limit`` seconds of CPU time is replaced between two calls: a site that ends it at a
        moment of its own choosing may do so in the middle of a submit.
        """
        self.kind = kind
        self.lease_deadline: Callable[[], float | None] | None = None
        self._argv = tuple(argv)
        self._env = env
        self._limits = limits or CallLimits()
        self._budget = budget or CallBudget()
        self._tokens = TokenBucket(self._budget, time.monotonic())
        self._has_turn = False
        self._queue: deque[_Waiting] = deque()
        self._news = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._channel: Channel | None = None
        self._started_at = _NEVER
        self._number = 0
        self._answered_at = _NEVER
        self._late_ping: asyncio.Future[Answer] | None = None
        self._late_ping_sent = 0.0
        self._down = False
        self._probe_delay = self._limits.probe_first
        self._accounting_from = _NEVER
        self._accounting_delay = self._limits.probe_first
        self._since = time.time()
        self._latency: float | None = None
        self._version = ""
        self._error: str | None = _NOT_ASKED
        self._calls: Counter[str] = Counter()
        self._records: Counter[str] = Counter()
        self._cpu_limit = cpu_limit
        self._restarts = 0

    # ---- what the agent asks

    async def ping(self) -> float:
        """Ask the controller whether it is there; give the seconds that took."""
        result: float = await self._ask("ping")
        return result

    async def turn(self) -> None:
        """Come back when the budget allows a question, or has held it back for long enough; then it may be asked."""
        await asyncio.sleep(min(self._tokens.wait(time.monotonic()), self._budget.turn_wait))
        self._has_turn = True

    async def submit(self, job: BatchJob) -> int:
        """Submit a job and give its id."""
        result: int = await self._ask("submit", job)
        return result

    async def jobs(self) -> list[Observation]:
        """Give all jobs of this user that the controller still knows."""
        result: list[Observation] = await self._ask("jobs")
        return result

    async def job(self, job_id: int, task: int | None = None) -> Observation | None:
        """Give one job or one task of an array; None is the controller's answer that it doesn't know it."""
        result: Observation | None = await self._ask("job", job_id, task)
        return result

    async def accounting(self, jobs: list[tuple[int, str]], since: float) -> list[AccountingRow]:
        """Give what accounting knows of these jobs."""
        result: list[AccountingRow] = await self._ask("accounting", jobs, since)
        return result

    async def accounting_backlog(self) -> int:
        """Give how many messages the controller still holds for the accounting daemon."""
        result: int = await self._ask("accounting_backlog")
        return result

    async def cancel(self, job_id: int, name: str) -> bool:
        """Cancel the job if it has this name."""
        result: bool = await self._ask("cancel", job_id, name)
        return result

    async def requeue(self, job_id: int, name: str) -> bool:
        """Send the running job back to the queue if it has this name."""
        result: bool = await self._ask("requeue", job_id, name)
        return result

    async def partitions(self) -> list[Partition]:
        """Give the partitions that this user can see."""
        result: list[Partition] = await self._ask("partitions")
        return result

    @property
    def health(self) -> SchedulerHealth:
        """What is known without asking."""
        return SchedulerHealth(
            kind=self.kind,
            responding=self._error is None,
            since=self._since,
            latency=self._latency,
            error=self._error,
            calls=dict(self._calls),
            restarts=self._restarts,
            version=self._version,
            asked=self._error is not _NOT_ASKED,
        )

    @property
    def footprint(self) -> Footprint:
        """What the child costs, as long as it is there."""
        pid = self._channel.pid if self._channel is not None and not self._channel.is_gone else 0
        return Footprint(
            pid=pid,
            rss=processes.resident(pid) if pid else 0,
            cpu_seconds=processes.cpu_seconds(pid) if pid else 0.0,
            records=dict(self._records),
        )

    async def aclose(self) -> None:
        """End the child and fail whatever still waits; jobs go on."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait({self._worker})
            self._worker = None
        self._fail_all(Unavailable("the scheduler is closed; Slurm wasn't asked"))
        if self._channel is not None:
            await self._channel.kill("the scheduler is closed")
            self._channel = None

    # ---- the caller's side

    async def _ask(self, kind: str, *arguments: object) -> Any:
        self._check(kind)
        patience = self._patience(kind)
        await self._pay(kind)
        self._check(kind)  # paying may have taken a while
        call = _Waiting(kind, arguments)
        self._queue.append(call)
        self._news.set()
        if self._worker is None:
            self._worker = asyncio.create_task(self._work(), name="scheduler-calls")
        worker = self._worker
        try:
            await asyncio.wait({call.answer, worker}, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if call in self._queue and not worker.done():
                raise Unavailable(f"{kind} didn't get its turn within {patience:g} s; Slurm wasn't asked")
            # It has been sent: now the worker keeps the deadline.
            await asyncio.wait({call.answer, worker}, return_when=asyncio.FIRST_COMPLETED)
            if call.answer.done():
                return call.answer.result()
            raise AssertionError("the worker ended before its calls") from worker.exception()
        finally:
            call.answer.cancel()
            if call in self._queue:
                self._queue.remove(call)

    def _check(self, kind: str) -> None:
        """Fail at once what would fail anyway, so that nothing piles up."""
        if self._down:
            raise Unavailable(f"Slurm doesn't respond: {self._error}")
        if kind == "accounting" and time.monotonic() < self._accounting_from:
            raise Unavailable("accounting couldn't be asked a moment ago")

    def _patience(self, kind: str) -> float:
        return self._limits.control if kind in CONTROLS else self._limits.read

    async def _pay(self, kind: str) -> None:
        """Take a token, and wait until it is there."""
        now = time.monotonic()
        wait = self._tokens.wait(now)
        if kind in CONTROLS:
            wait = min(wait, self._budget.control_wait)
        elif kind == "ping":
            wait = 0.0
        elif self._has_turn:
            self._has_turn, wait = False, 0.0
        elif wait > self._budget.read_wait:
            raise BudgetSpent(f"the budget of calls is spent: the next {kind} may be made in {wait:.0f} s")
        self._tokens.take(now)
        await asyncio.sleep(wait)

    # ---- the worker's side: it alone talks to the child

    async def _work(self) -> None:
        while True:
            if self._down:
                await self._recover()
            elif self._queue:
                await self._serve(self._queue.popleft())
            else:
                await self._idle()

    async def _idle(self) -> None:
        """Wait for a call; let the child go when none comes."""
        self._news.clear()
        try:
            async with asyncio.timeout(None if self._channel is None else self._limits.idle):
                await self._news.wait()
        except TimeoutError:
            await self._let_go()

    async def _serve(self, call: _Waiting) -> None:
        if call.answer.done():
            return
        about_controller = call.kind != "accounting"
        try:
            if call.kind == "ping":
                call.end(await self._ping())
                return
            if about_controller and time.monotonic() - self._answered_at > self._limits.fresh:
                self._tokens.take(time.monotonic())
                await self._ping()
            channel = await self._ready()
        except SchedulerError as error:
            call.fail(Unavailable(f"Slurm wasn't asked: {error.message}", hint=error.hint))
            return
        try:
            result = result_of(call.kind, await self._exchange(channel, call))
            self._records[call.kind] += len(result) if isinstance(result, list) else 1
            call.end(result)
        except (Refused, NoAccounting) as error:  # an answer
            call.fail(error)
        except SchedulerError as error:
            call.fail(error)
            if about_controller:
                # Is it the controller? Whoever asks next shall know.
                await self._ping_quietly()
            else:
                self._accounting_from = time.monotonic() + self._accounting_delay
                self._accounting_delay = min(2 * self._accounting_delay, self._limits.accounting_last)
            return
        if about_controller:
            self._answered_at = time.monotonic()
        else:
            self._accounting_delay = self._limits.probe_first

    async def _exchange(self, channel: Channel, call: _Waiting) -> Answer:
        """Send a call and give its answer; without one, say how far it may have come."""
        patience = self._patience(call.kind)
        future = self._send(channel, call.kind, call.arguments, self._not_after(call.kind))
        try:
            done, _ = await asyncio.wait({future}, timeout=patience)
        except asyncio.CancelledError:
            call.fail(_without_answer(call.kind)("the scheduler was closed before an answer came"))
            raise
        if not done:
            await self._drop(f"it didn't answer {call.kind} within {patience:g} s")
        try:
            return future.result()
        except ChildGone as error:
            raise _without_answer(call.kind)(error.message) from error

    def _not_after(self, kind: str) -> float | None:
        """Give the end of the lease for a call that changes something."""
        if kind not in CONTROLS or self.lease_deadline is None:
            return None
        deadline = self.lease_deadline()
        if deadline is None:
            raise Unavailable("this agent holds no lease; Slurm wasn't asked")
        return deadline

    async def _ping(self) -> float:
        """Ping the controller and give the seconds that took; when it fails, the controller is down."""
        begun = time.monotonic()
        try:
            channel = await self._ready()
            begun = time.monotonic()
            future = self._send(channel, "ping", (), None)
            done, _ = await asyncio.wait({future}, timeout=self._limits.ping)
            if not done:
                self._late_ping, self._late_ping_sent = future, begun
                raise Unavailable(f"no answer to a ping within {self._limits.ping:g} s")
            result_of("ping", future.result())
        except SchedulerError as error:
            self._went_down(error.message)
            raise
        latency = time.monotonic() - begun
        self._came_up(latency)
        return latency

    async def _ping_quietly(self) -> None:
        with contextlib.suppress(SchedulerError):  # noted where the ping failed
            await self._ping()

    def _send(
        self, channel: Channel, kind: str, arguments: tuple[object, ...], lease: float | None
    ) -> asyncio.Future[Answer]:
        self._number += 1
        self._calls[kind] += 1
        return channel.send(Call(self._number, kind, raw(arguments), lease))

    async def _ready(self) -> Channel:
        """Give a child that can be asked, a new one if need be."""
        if self._channel is not None and self._channel.is_gone:
            await self._drop("it had ended")
        if self._channel is not None and self._cpu_limit and processes.cpu_seconds(self._channel.pid) > self._cpu_limit:
            await self._let_go()
        if self._channel is None:
            try:
                self._channel = await Channel.start(self._argv, self._env, self._limits.start)
                self._started_at = time.monotonic()
                self._version = self._channel.version
            except SchedulerError as error:
                self._went_down(error.message)
                raise
        return self._channel

    async def _let_go(self) -> None:
        """Let the child end by itself."""
        if self._channel is not None:
            await self._channel.stop()
            self._channel = None

    async def _drop(self, why: str) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            self._restarts += 1
            await channel.kill(why)

    # ---- a controller that doesn't respond

    def _went_down(self, error: str) -> None:
        if self._error is None or not self._down:
            self._since = time.time()
            self._probe_delay = self._limits.probe_first
        self._error = error
        self._down = True
        self._latency = None
        self._fail_all(Unavailable(f"Slurm doesn't respond: {error}"))

    def _came_up(self, latency: float) -> None:
        if self._error is not None:
            self._since = time.time()
        self._error = None
        self._down = False
        self._latency = latency
        self._answered_at = time.monotonic()

    def _fail_all(self, error: SchedulerError) -> None:
        while self._queue:
            self._queue.popleft().fail(error)

    async def _recover(self) -> None:
        """Probe the controller once more: by the ping that it still owes an answer, or after a while by a new one."""
        if self._late_ping is not None:
            await self._await_late_ping(self._late_ping)
            return
        await asyncio.sleep(self._probe_delay)
        if time.monotonic() - self._started_at > self._limits.renew:
            await self._drop("it can't reach the controller")
        last = self._limits.restart_last if self._channel is None else self._limits.probe_last
        self._probe_delay = min(2 * self._probe_delay, last)
        await self._ping_quietly()

    async def _await_late_ping(self, ping: asyncio.Future[Answer]) -> None:
        patience = self._late_ping_sent + self._limits.hung_ping - time.monotonic()
        done, _ = await asyncio.wait({ping}, timeout=max(0.0, patience))
        self._late_ping = None
        if not done:
            await self._drop(f"it didn't answer a ping within {self._limits.hung_ping:g} s")
            return
        try:
            result_of("ping", ping.result())
        except SchedulerError as error:
            self._went_down(error.message)
        else:
            self._came_up(time.monotonic() - self._late_ping_sent)


def _without_answer(kind: str) -> type[SchedulerError]:
    """What it means that a call was sent and no answer came."""
    return OutcomeUnknown if kind in CONTROLS else Unavailable
