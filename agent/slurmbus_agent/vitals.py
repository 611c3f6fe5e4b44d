"""The heartbeat: lease renewal, connection probe and self-measurement in one message."""

from __future__ import annotations

import getpass
import os
import platform
import time
from collections.abc import Callable
from typing import NamedTuple

from slurmbus_agent import __version__, budgets
from slurmbus_agent.guest.beats import Beats
from slurmbus_agent.guest.measuring import Measuring
from slurmbus_agent.lease import Role
from slurmbus_protocol.capabilities import ADDITIONS, REQUEUE
from slurmbus_protocol.codec import PROTOCOL_RANGE
from slurmbus_protocol.messages import Heartbeat, SchedulerHealth, Vitals

CAPABILITIES = ("submit", "cancel", "outputs", "read-range", REQUEUE, *ADDITIONS)


class BytesMoved(NamedTuple):
    """What went over bus and link, and how many runners are there."""

    bus_in: int = 0
    bus_out: int = 0
    link_in: int = 0
    link_out: int = 0
    link_connections: int = 0


class Pulse:
    """Makes an agent's heartbeats.

    Args:
        site: the agent's site.
        agent_id: who it is.
        health: how the scheduler is; must not block.
        unfinished: the unfinished jobs by state.
        backlog: bytes that wait to be relayed.
        alarms: what a person should know.
        measuring: measures the agent.
        bytes_moved: what went over bus and link.
        beats: is told of each.
        handovers: how many processes led this agent before.
        authority_expires_at: until when new jobs are taken; None without an end.
    """

    def __init__(
        self,
        site: str,
        agent_id: str,
        *,
        health: Callable[[], SchedulerHealth],
        unfinished: Callable[[], dict[str, int]],
        backlog: Callable[[], int],
        alarms: Callable[[], tuple[str, ...]],
        authority_expires_at: Callable[[], float | None],
        measuring: Measuring,
        bytes_moved: Callable[[], BytesMoved],
        beats: Beats,
        handovers: int = 0,
    ) -> None:
        self._site = site
        self._agent_id = agent_id
        self._health = health
        self._unfinished = unfinished
        self._backlog = backlog
        self._alarms = alarms
        self._measuring = measuring
        self._bytes_moved = bytes_moved
        self._beats = beats
        self._handovers = handovers
        self._authority_expires_at = authority_expires_at
        self._started_at = time.time()
        self._user = getpass.getuser()  # a directory service may have to be asked
        self.bad_messages = 0
        self.arriving = True
        """Whether there may be unfinished jobs that aren't known yet: before an agent has taken over."""
        self.bus_latency: float | None = None

    @property
    def interval(self) -> float:
        """Seconds until the next heartbeat: short while there are jobs."""
        if self._idle:
            return budgets.HEARTBEAT_IDLE
        return min(budgets.HEARTBEAT_BUSY * self._measuring.judgement.stretch, budgets.HEARTBEAT_IDLE)

    @property
    def _idle(self) -> bool:
        return not self.arriving and not self._unfinished()

    def message(self, epoch: int, role: Role) -> Heartbeat:
        """Give the heartbeat of this moment."""
        # A standby speaks as rarely as an idle leader, whatever it will have to do once it leads.
        interval = budgets.HEARTBEAT_IDLE if role is Role.STANDBY else self.interval
        self._beats.happened()
        return Heartbeat(
            site=self._site,
            agent_id=self._agent_id,
            epoch=epoch,
            leader=role is Role.LEADER,
            interval=interval,
            lease_seconds=min(budgets.LEASE_FACTOR * interval, budgets.LEASE_IDLE),
            host=platform.node(),
            user=self._user,
            pid=os.getpid(),
            version=__version__,
            protocol=PROTOCOL_RANGE,
            capabilities=CAPABILITIES,
            started_at=self._started_at,
            sent_at=time.time(),
            scheduler=self._health(),
            vitals=self._measure(),
            alarms=self._alarms(),
            released=role is Role.RELEASED,
            authority_expires_at=self._authority_expires_at(),
        )

    def _measure(self) -> Vitals:
        judgement = self._measuring.look(idle=self._idle)
        scheduler = self._measuring.scheduler
        moved = self._bytes_moved()
        return Vitals(
            cpu_seconds=self._measuring.cpu_seconds,
            rss=self._measuring.rss,
            open_files=self._measuring.open_files,
            jobs=self._unfinished(),
            backlog=self._backlog(),
            bad_messages=self.bad_messages,
            bus_latency=self.bus_latency,
            scheduler_rss=scheduler.rss,
            scheduler_pid=scheduler.pid,
            records_returned=scheduler.records,
            stat_calls=self._measuring.stat_calls(),
            bus_bytes_in=moved.bus_in,
            bus_bytes_out=moved.bus_out,
            link_connections=moved.link_connections,
            budgets=judgement.budgets,
            slowed=judgement.slowed,
            handovers=self._handovers,
            link_bytes_in=moved.link_in,
            link_bytes_out=moved.link_out,
        )
