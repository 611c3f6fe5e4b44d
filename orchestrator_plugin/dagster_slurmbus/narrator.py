"""What a run's event log says while a job is under way."""

from __future__ import annotations

import time
from collections.abc import Callable

from dagster_slurmbus.reasons import Reason, explain, explain_state
from dagster_slurmbus.units import size
from slurmbus.events import AgentStatus, Gap, Waiting
from slurmbus_protocol.messages import Live, Record
from slurmbus_protocol.states import JobState

Say = Callable[[str], None]

_NO_REASON = frozenset({None, "", "None"})
_DAY = 86400.0


class Narrator:
    """Tells each state once, a pending job's reason when it changes, and why nothing happens.

    Args:
        site: where the job goes.
        key: the job's.
        info: for what goes as it should, e.g. ``context.log.info``.
        warning: for what somebody may have to do something about.
    """

    def __init__(self, site: str, key: str, *, info: Say, warning: Say) -> None:
        self._site = site
        self._key = key
        self._info = info
        self._warning = warning
        self._told: tuple[object, ...] = ()
        self._explained: set[str] = set()
        self._alarms: frozenset[str] = frozenset()
        self._facts: dict[str, str] = {}
        self._live: Live | None = None
        self._known_until = 0.0
        self._twins = 0
        self._over_limit: set[tuple[int, str]] = set()

    def found(self, record: Record, *, what: str) -> None:
        """Tell that a job of an earlier attempt is followed; what happened to it before isn't told again."""
        self._known_until = record.updated_at
        where = f" on {record.node_list}" if record.node_list else ""
        self._info(f"going on with {self._name(record)}{where}, {what}: it is {record.state}")

    def state(self, record: Record) -> None:
        """Tell what the record says, if it is news."""
        if record.updated_at <= self._known_until:
            return
        self._twin(record)
        pending = record.state in {JobState.PENDING, JobState.STAGING}
        shown = record.slurm_state if record.slurm_state not in {None, record.state.value} else None
        reason = record.reason if pending and record.reason not in _NO_REASON else None
        starts = len(record.starts) if not record.state.is_final else None
        expected = record.estimated_start if pending else None
        # What follows a comma while it is staged is progress.
        said = reason.partition(",")[0] if reason and record.state is JobState.STAGING else reason
        news = (record.state, record.job_id, starts, shown, said, expected)
        if news != self._told:
            self._told = news
            self._tell(record, shown if not record.state.is_final else None, reason, expected)
        self._news_of_start(record)

    def _tell(self, record: Record, shown: str | None, reason: str | None, expected: float | None) -> None:
        pending = record.state is JobState.PENDING
        text = f"{self._name(record)} is {record.state}"
        if shown:
            text += f" (Slurm says {shown})"
        if reason:
            text += f" ({reason})"
        if record.node_list and not pending:
            text += f" on {record.node_list}"
        if record.state is JobState.RUNNING and len(record.starts) > 1:
            text += f", start {len(record.starts)}"
        if record.state is JobState.ACCEPTED:
            text += f" by the agent of site {self._site}"
        words = [(told, known) for told, known in ((reason, explain), (shown, explain_state)) if told]
        reasons = [(told, found) for told, known in words if (found := known(told)) is not None]
        for told, found in reasons[:1]:
            text += self._because(record, told, found)
        if expected is not None:
            text += f"; Slurm expects it to start at {clock(expected)}"
        (self._warning if any(found.stuck for _, found in reasons) else self._info)(text)

    def _because(self, record: Record, told: str, found: Reason) -> str:
        """Say why in a sentence, and the first time what can be done."""
        advice = found.advice if told not in self._explained else ""
        self._explained.add(told)
        return f": {found.why}" + (f"; {advice.format(job=record.job_id)}" if advice else "")

    def _news_of_start(self, record: Record) -> None:
        """Tell what the launcher has found out and what the job uses."""
        if not record.starts:
            return
        last = record.starts[-1]
        for name, value in last.facts.items():
            if self._facts.get(name) != value:
                self._info(f"{self._name(record)}: {name}: {value}")
        self._facts = dict(last.facts)
        if last.live is not None and last.live != self._live and last.ended_at is None:
            self._info(f"{self._name(record)} {use(last.live, record.nodes)}")
        self._live = last.live

    def _twin(self, record: Record) -> None:
        """Tell that Slurm had a second job for this request; it ended, or was ended, without running anything."""
        for job_id in record.twins[self._twins :]:
            self._warning(f"Slurm job {job_id} is a twin of {self._name(record)}: it ends without running anything")
        self._twins = len(record.twins)

    def waiting(self, event: Waiting) -> None:
        """Tell why nothing has happened for a while, if that isn't the job's own business."""
        why = self._why(event)
        if why is not None:
            self._warning(f"waiting: {why}")
        alarms = frozenset(event.agent.heartbeat.alarms if event.agent is not None and event.agent.alive else ())
        for alarm in sorted(alarms - self._alarms):
            self._warning(f"the agent of site {self._site} has a problem: {alarm}")
        self._alarms = alarms

    def _why(self, event: Waiting) -> str | None:
        silence = f"nothing was heard since {clock(event.since)}"
        agent = event.agent
        if not event.bus_reachable:
            problem = f" ({event.problem})" if event.problem else ""
            return f"the bus doesn't answer{problem}, {silence}; the job isn't affected"
        if event.problem:
            return f"the bus doesn't take the request: {event.problem}"
        if agent is None or not agent.alive:
            return self._no_agent(agent, silence)
        if agent.heartbeat.scheduler.silent:
            down = clock(agent.heartbeat.scheduler.since)
            return f"Slurm's controller doesn't answer the agent of site {self._site} since {down}"
        if event.bus_is_new:
            return f"the bus started anew, and the agent of site {self._site} hasn't given it the job's record yet"
        if event.record is None:
            return f"the agent of site {self._site} hasn't taken the job yet, {silence}"
        return None

    def _no_agent(self, agent: AgentStatus | None, silence: str) -> str:
        since = silence if agent is None else f"the last one was heard at {clock(time.time() - agent.age)}"
        return (
            f"no agent answers for site {self._site}, {since}; "
            f"log in to the cluster and start it with 'slurmbus-agent run --site {self._site}'"
        )

    def gap(self, gap: Gap) -> None:
        """Tell that some output doesn't come: each loss, and once that the rest of a stream lies in the spool."""
        if not gap.over_limit:
            why = gap.reason or "nobody has them"
            self._warning(f"{gap.length:,} bytes of {gap.stream} are missing after byte {gap.offset:,}: {why}")
        elif (gap.start, gap.stream) not in self._over_limit:
            self._over_limit.add((gap.start, gap.stream))
            where = f"in {gap.path} on the site" if gap.path else "in the job's spool"
            self._warning(
                f"{gap.stream} is over its limit after byte {gap.offset:,}: from here on only the newest lines are "
                f"shown; all of it lies {where}"
            )

    def _name(self, record: Record) -> str:
        if record.job_id is None:
            return f"job {self._key}"
        return f"Slurm job {record.job_id}" if record.scheduler != "local" else f"local job {record.job_id}"


def use(live: Live, nodes: int | None) -> str:
    """Say what a job uses now; its runner sees one node only."""
    cpus = "1 CPU" if live.cpus == 1 else f"{live.cpus} CPUs"
    limit = f" of {size(live.memory_limit)}" if live.memory_limit else ""
    peak = f" (at most {size(live.peak_rss)} so far)" if live.peak_rss > live.rss else ""
    processes = "1 process" if live.processes == 1 else f"{live.processes} processes"
    where = f" on {live.node}" + (f", one of its {nodes} nodes" if (nodes or 1) > 1 else "")
    return f"uses {live.cpu_percent:.0f} % of {cpus} and {size(live.rss)}{limit} of memory{peak}, {processes}{where}"


def clock(at: float) -> str:
    """Write a time for people, by this machine's clock; with the date when it is further away than a day."""
    form = "%H:%M:%S" if abs(at - time.time()) < _DAY else "%Y-%m-%d %H:%M:%S"
    return time.strftime(form, time.localtime(at))
