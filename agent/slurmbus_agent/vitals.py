"""The heartbeat: lease renewal, connection probe and self-measurement in one message."""

from __future__ import annotations

import getpass
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path

from slurmbus_agent import __version__, budgets
from slurmbus_agent.lease import Role
from slurmbus_protocol.capabilities import ADDITIONS
from slurmbus_protocol.codec import PROTOCOL_RANGE
from slurmbus_protocol.messages import Heartbeat, SchedulerHealth, Vitals

CAPABILITIES = ("submit", "cancel", "outputs", "read-range", *ADDITIONS)


class Pulse:
    """Makes an agent's heartbeats.

    Args:
        site: the agent's site.
        agent_id: who it is.
        health: how the scheduler is; must not block.
        unfinished: the unfinished jobs by state.
        backlog: bytes that wait to be relayed.
        alarms: what a person should know.
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
    ) -> None:
        self._site = site
        self._agent_id = agent_id
        self._health = health
        self._unfinished = unfinished
        self._backlog = backlog
        self._alarms = alarms
        self._started_at = time.time()
        self._user = getpass.getuser()  # a directory service may have to be asked
        self.bad_messages = 0
        self.arriving = True
        """Whether there may be unfinished jobs that aren't known yet: before an agent has taken over."""
        self.bus_latency: float | None = None

    @property
    def interval(self) -> float:
        """Seconds until the next heartbeat: short while there are jobs."""
        return budgets.HEARTBEAT_BUSY if self.arriving or self._unfinished() else budgets.HEARTBEAT_IDLE

    def message(self, epoch: int, role: Role) -> Heartbeat:
        """Give the heartbeat of this moment."""
        interval = self.interval
        return Heartbeat(
            site=self._site,
            agent_id=self._agent_id,
            epoch=epoch,
            leader=role is Role.LEADER,
            interval=interval,
            lease_seconds=budgets.LEASE_FACTOR * interval,
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
        )

    def _measure(self) -> Vitals:
        own = resource.getrusage(resource.RUSAGE_SELF)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return Vitals(
            cpu_seconds=own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
            rss=_resident(),
            open_files=len(os.listdir("/proc/self/fd")),
            jobs=self._unfinished(),
            backlog=self._backlog(),
            bad_messages=self.bad_messages,
            bus_latency=self.bus_latency,
        )


def _resident() -> int:
    """Resident bytes of this process. Source: proc_pid_statm(5)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
