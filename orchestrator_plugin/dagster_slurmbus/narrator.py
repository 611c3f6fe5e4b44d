"""What a run's event log says while a job is under way."""

from __future__ import annotations

import time
from collections.abc import Callable

from slurmbus.events import Gap, Waiting
from slurmbus_protocol.messages import Record
from slurmbus_protocol.states import JobState

Say = Callable[[str], None]

_NO_REASON = frozenset({None, "", "None"})


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
        said = (
            reason.partition(",")[0] if reason and record.state is JobState.STAGING else reason
        )  # the rest is progress
        news = (record.state, record.job_id, len(record.starts) if not record.state.is_final else None, shown, said)
        if news == self._told:
            return
        self._told = news
        text = f"{self._name(record)} is {record.state}"
        if shown and not record.state.is_final:
            text += f" (Slurm says {shown})"
        if reason:
            text += f" ({reason})"
        if record.node_list and not pending:
            text += f" on {record.node_list}"
        if record.state is JobState.RUNNING and len(record.starts) > 1:
            text += f", start {len(record.starts)}"
        if record.state is JobState.ACCEPTED:
            text += f" by the agent of site {self._site}"
        self._info(text)

    def _twin(self, record: Record) -> None:
        """Tell that Slurm had a second job for this request; it ended, or was ended, without running anything."""
        for job_id in record.twins[self._twins :]:
            self._warning(f"Slurm job {job_id} is a twin of {self._name(record)}: it ends without running anything")
        self._twins = len(record.twins)

    def waiting(self, event: Waiting) -> None:
        """Tell why nothing has happened for a while, if that isn't the job's own business."""
        silence = f"nothing was heard since {clock(event.since)}"
        agent = event.agent
        if not event.bus_reachable:
            self._warning(f"waiting: the bus doesn't answer, {silence}; the job isn't affected")
        elif agent is None or not agent.alive:
            since = silence if agent is None else f"the last one was heard at {clock(time.time() - agent.age)}"
            self._warning(
                f"waiting: no agent answers for site {self._site}, {since}; "
                f"log in to the cluster and start it with 'slurmbus-agent run --site {self._site}'"
            )
        elif not agent.heartbeat.scheduler.responding:
            down = clock(agent.heartbeat.scheduler.since)
            self._warning(f"waiting: Slurm's controller doesn't answer the agent of site {self._site} since {down}")
        elif event.record is None:
            self._warning(f"waiting: the agent of site {self._site} hasn't taken the job yet, {silence}")

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


def clock(at: float) -> str:
    """Write a time for people, by this machine's clock."""
    return time.strftime("%H:%M:%S", time.localtime(at))
