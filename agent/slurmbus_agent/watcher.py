"""Learns what Slurm thinks, within the budget.

Starts and ends are pushed by the runners, so the controller is asked rarely: one question for all of this user's jobs
every half minute, and one for a single job when something was pushed. No answer is never read as "the job is gone".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from slurmbus_agent import budgets
from slurmbus_agent.events import Accounted, Denied, Event, Looked, Observed, TwinSeen
from slurmbus_agent.guest.pace import Pace
from slurmbus_agent.scheduler.array import split_name
from slurmbus_agent.scheduler.base import ANY_ID, AccountingRow, NoAccounting, Observation, Scheduler, SchedulerError
from slurmbus_protocol.states import FINAL

log = logging.getLogger(__name__)

AGAIN_WHEN_SILENT = 5.0
ACCOUNTING_WINDOW = 3600.0  # clocks of different hosts, and jobs that were held


@dataclass
class _Watched:
    """One job that Slurm is asked about."""

    name: str
    post: Callable[[Event], None]
    job_id: int
    due: float | None = None
    urgency: int = 0


@dataclass
class _Asked:
    """One job that accounting is asked about."""

    name: str
    job_id: int
    since: float
    post: Callable[[Event], None]
    again: tuple[float, ...]
    figures: bool
    soon: bool
    due: float


@dataclass
class _Lookup:
    """One job that is looked for by its name."""

    name: str
    since: float
    answer: asyncio.Future[Looked | None]


class Watcher:
    """Asks the scheduler on behalf of all jobs of a site.

    Args:
        scheduler: whom to ask.
        interval: seconds between two questions for all of this user's jobs.
        stray: is told (id, name) of unfinished jobs of this user that nobody watches.
        pace: how much longer everything takes than usual.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        interval: float = budgets.WATCH_INTERVAL,
        stray: Callable[[int, str], None] = lambda _job_id, _name: None,
        pace: Pace | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._usual_interval = interval
        self._pace = pace or Pace()
        self._stray = stray
        self._watched: dict[str, _Watched] = {}
        self._asked: dict[str, _Asked] = {}
        self._changed = asyncio.Event()
        self._lookups: dict[str, _Lookup] = {}
        self._next_round = 0.0
        self._accounting_from = 0.0

    @property
    def _interval(self) -> float:
        return self._usual_interval * self._pace.stretch

    def watch(self, name: str, job_id: int, post: Callable[[Event], None], *, urgent: bool) -> None:
        """Ask about a job soon, and from then on regularly until it is forgotten."""
        now = _now()
        watched = self._watched.get(name)
        if watched is None or watched.job_id != job_id:
            if not self._watched:
                self._next_round = now + self._interval
            watched = self._watched[name] = _Watched(name, post, job_id)
        if urgent:
            delay = budgets.WATCH_URGENT[min(watched.urgency, len(budgets.WATCH_URGENT) - 1)]
            watched.urgency += 1
        else:
            delay = budgets.WATCH_SOON
            watched.urgency = 0
        watched.due = min(watched.due or float("inf"), now + delay * self._pace.stretch)
        self._changed.set()

    def ask_accounting(
        self,
        name: str,
        job_id: int,
        since: float,
        post: Callable[[Event], None],
        *,
        again: tuple[float, ...],
        figures: bool,
        soon: bool,
    ) -> None:
        """Ask accounting about a job until it has a final row, or as often as ``again`` has pauses.

        Args:
            name: the job's.
            job_id: the job's.
            since: when it was submitted, at the earliest.
            post: gets the answer.
            again: seconds between the questions.
            figures: the answer decides nothing, so that it needn't be settled.
            soon: somebody waits for the figures.
        """
        if name in self._asked:
            return
        if figures and soon:
            again = tuple(min(pause, float(number)) for number, pause in enumerate(again, 1))
        delay = 0.0 if not figures else budgets.ACCOUNTING_SOON if soon else budgets.ACCOUNTING_FIRST
        self._asked[name] = _Asked(name, job_id, since, post, again, figures, soon, _now() + delay)
        self._changed.set()

    def calm(self, name: str) -> None:
        """Leave out the next look at a job: its runner has just said what there is to know."""
        watched = self._watched.get(name)
        if watched is not None:
            watched.due = None

    def forget(self, name: str) -> None:
        """Stop asking about a job."""
        self._watched.pop(name, None)
        self._asked.pop(name, None)

    async def look_up(self, name: str, since: float) -> Looked | None:
        """Ask for a job by its name: the controller, then accounting; None when one of them doesn't answer."""
        lookup = self._lookups.get(name)
        if lookup is None:
            answer: asyncio.Future[Looked | None] = asyncio.get_running_loop().create_future()
            lookup = self._lookups[name] = _Lookup(name, since, answer)
            self._changed.set()
        return await asyncio.shield(lookup.answer)

    def look_for_twins(self) -> None:
        """Ask for all jobs soon: that shows each job of a name that has several."""
        self._next_round = min(self._next_round, _now())
        self._changed.set()

    async def _rows(self, jobs: list[tuple[int, str]], since: float) -> list[AccountingRow]:
        """Ask accounting; a site without any has no rows."""
        await self._scheduler.turn()
        try:
            return await self._scheduler.accounting(jobs, since)
        except NoAccounting:
            return []

    async def run(self) -> None:
        """Ask when something is due, for ever."""
        while True:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(self._due()):
                    await self._changed.wait()
                    continue
            except TimeoutError:
                pass
            # Whatever becomes due while the budget is spent shares the next question.
            for ask in (self._ask_lookups, self._ask_controller, self._ask_accounting):
                try:
                    await ask()
                except SchedulerError as error:
                    log.info("Slurm doesn't answer: %s", error)
                    self._postpone()

    def _due(self) -> float | None:
        due = [job.due for job in self._watched.values() if job.due]
        due += [self._accounting_due(item) for item in self._asked.values()]
        due += [0.0 for _ in self._lookups]
        if self._watched:
            due.append(self._next_round)
        return min(due, default=None)

    def _accounting_due_now(self) -> list[_Asked]:
        now = _now()
        return [item for item in self._asked.values() if self._accounting_due(item) <= now]

    def _accounting_due(self, item: _Asked) -> float:
        """Give when to ask; where nobody waits for the answer, not right after the last question."""
        return max(item.due, self._accounting_from) if item.figures and not item.soon else item.due

    async def _ask_lookups(self) -> None:
        """Answer all who look for a job by its name, with one question to the controller and one to accounting."""
        if not self._lookups:
            return
        await self._scheduler.turn()
        lookups, self._lookups = self._lookups, {}
        try:
            await self._scheduler.ping()
            found = {seen.name: seen for seen in sorted(await self._scheduler.jobs(), key=lambda seen: seen.job_id)}
            unknown = [lookup for lookup in lookups.values() if lookup.name not in found]
            since = min((lookup.since for lookup in unknown), default=0.0) - ACCOUNTING_WINDOW
            rows = await self._rows([(ANY_ID, lookup.name) for lookup in unknown], since) if unknown else []
        except SchedulerError as error:
            log.info("looking for %d jobs by their names: %s", len(lookups), error)
            for lookup in lookups.values():
                lookup.answer.set_result(None)
            return
        latest = {row.name: row for row in sorted(rows, key=lambda row: row.submit_time or 0.0)}
        for name, lookup in lookups.items():
            lookup.answer.set_result(Looked(observation=found.get(name), row=latest.get(name)))

    def _postpone(self) -> None:
        later = _now() + AGAIN_WHEN_SILENT
        for job in self._watched.values():
            if job.due is not None:
                job.due = max(job.due, later)
        for item in self._asked.values():
            item.due = max(item.due, later)
        self._next_round = max(self._next_round, later)

    async def _ask_controller(self) -> None:
        if not self._due_now() and not self._round_is_due():
            return
        await self._scheduler.turn()
        due = self._due_now()
        of_arrays = any(split_name(job.name)[1] for job in due)  # of which a single one costs as much to ask for
        if self._round_is_due() or of_arrays or len(due) >= budgets.WATCH_TOGETHER:
            await self._ask_for_all(due)
        else:
            for job in due:
                await self._ask_for_one(job)

    def _due_now(self) -> list[_Watched]:
        now = _now()
        return [job for job in self._watched.values() if job.due is not None and job.due <= now]

    def _round_is_due(self) -> bool:
        return bool(self._watched) and _now() >= self._next_round

    async def _ask_for_all(self, due: list[_Watched]) -> None:
        asked = list(self._watched.values())  # who comes during the question can't be in its answer
        seen = {(found.job_id, found.name): found for found in await self._scheduler.jobs()}
        self._next_round = _now() + self._interval
        for job in due:
            job.due = None
        for other in seen.values():
            self._sort_out(other)
        arrays = {(other.job_id, split_name(other.name)[0]) for other in seen.values()}
        missing = []
        for job in asked:
            if self._watched.get(job.name) is not job:
                continue
            found = seen.get((job.job_id, job.name))
            array, indexes = split_name(job.name)
            if found is not None:
                job.post(Observed(observation=found))
            elif indexes:
                job.post(Denied(removed=(job.job_id, array) in arrays))
            else:
                missing.append(job)
        if len(missing) > budgets.WATCH_MISSING:  # many have ended and were forgotten while nobody looked
            for job in missing:
                job.post(Denied())
            return
        for job in missing:
            await self._scheduler.turn()
            await self._ask_for_one(job)

    def _sort_out(self, seen: Observation) -> None:
        """Tell whose twin a job is, or that it has our name and nobody follows it."""
        watched = self._watched.get(seen.name)
        if watched is None:
            if seen.state not in FINAL:
                self._stray(seen.job_id, seen.name)
        elif watched.job_id != seen.job_id:
            watched.post(_twin(seen))

    async def _ask_for_one(self, job: _Watched) -> None:
        found: Observation | None = await self._scheduler.job(job.job_id)
        job.due = None
        if found is not None and found.name == job.name:
            job.post(Observed(observation=found))
        else:  # unknown, or the id was given to another job
            job.post(Denied())

    async def _ask_accounting(self) -> None:
        if not self._accounting_due_now():
            return
        await self._scheduler.turn()
        due = self._accounting_due_now()
        if not due:
            return
        self._accounting_from = _now() + budgets.ACCOUNTING_TOGETHER * self._pace.stretch
        since = min(item.since for item in due) - ACCOUNTING_WINDOW
        # Before the question: what was still on its way then may be missing from the answer.
        settled = all(item.figures for item in due) or await self._scheduler.accounting_backlog() == 0
        rows = await self._rows([(item.job_id, item.name) for item in due], since)
        by_name = {row.name: row for row in rows}
        for item in due:
            row = by_name.get(item.name)
            done = row is not None and row.final and (settled or item.figures)
            if not done and item.again:
                item.due, item.again = _now() + item.again[0], item.again[1:]
                continue
            self._asked.pop(item.name, None)
            item.post(Accounted(row=row if done else None))


def _twin(seen: Observation) -> TwinSeen:
    return TwinSeen(job_id=seen.job_id, over=seen.state in FINAL)


def _now() -> float:
    return asyncio.get_running_loop().time()
