"""A start from the moment its payload runs, or couldn't be started, to the runner's end."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress

from slurmbus_agent.runner import claims
from slurmbus_agent.runner.facts import Facts
from slurmbus_agent.runner.live import Live
from slurmbus_agent.runner.notify import Notifier
from slurmbus_agent.runner.protocol import ERROR_SPOOL_FULL, ERROR_SUPERSEDED, STREAMS, VERSION
from slurmbus_agent.runner.report import SOONEST, Report
from slurmbus_agent.runner.streams import Stream
from slurmbus_agent.runner.uplink import Uplink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from slurmbus_agent.runner.payload import Payload
    from slurmbus_agent.runner.plan import Plan
    from slurmbus_agent.runner.signals import Signals

SUCCESSOR_CHECK = 10.0
"""Seconds between two looks for a later start. A look costs the file server one call."""
LOOK_ANYWAY = 5.0
"""Seconds between two looks at files that don't seem to change: inotify doesn't see what other nodes write."""
PROGRESS_WITHIN = 5.0
"""After the payload's end: seconds without progress on the link until the agent is left to read the spool."""
NEW_LINK_WITHIN = 1.0
"""The same when the link hasn't worked so far."""
LEAVE_AFTER = 30.0
"""After the payload's end: seconds until we leave in any case. The nodes are paid for."""
END_CHECK = 0.1
"""Seconds between two looks at the clock after the payload's end."""
FULL_BELOW = 64 * 1024
"""Free bytes under which a failed payload is told that the disk is full."""


class Following:
    """Follows one claimed start; ``writers`` are the descriptors of the streams' files."""

    def __init__(self, plan: Plan, identity: dict[str, Any], writers: dict[str, int], signals: Signals) -> None:
        self._plan = plan
        self._start: int = identity["start"]
        self._signals = signals
        self._notifier = Notifier()
        self._streams = [
            Stream(name, f"{plan.folder}/{self._start}.{name}", writers[name]) for name in STREAMS if name in writers
        ]
        now = time.monotonic()
        hello = {**identity, "python": sys.version.split()[0], "version": VERSION}
        self._report = Report(plan.folder, identity, self._streams)
        self._uplink = Uplink(plan, hello, list(self._streams), self._notifier, now)
        self._look_at = self._check_at = now + LOOK_ANYWAY
        self._was_up = False
        self._folder = plan.folder
        self._facts = Facts(f"{plan.folder}/{self._start}.facts")
        self._live = Live(plan.key, plan.task, os.environ, now)
        self._facts_are_watched = False
        self.superseded = False

    def follow(self, payload: Payload) -> dict[str, Any]:
        """Follow a payload to its end, and give what became of it."""
        self._report.started_at = payload.started_at
        self._report.begin(time.monotonic(), SOONEST)
        self._uplink.tell("started", started_at=payload.started_at)
        self._look_at_facts()
        while not payload.ended():
            self._turn()
            for number in self._signals.take():
                payload.send(number)
            now = time.monotonic()
            self._check_link(now)
            self._tell_of_use(now)
            self._report.work(now)
            if now >= self._check_at or self._uplink.refused:
                self._uplink.refused = False
                self._check_at = now + SUCCESSOR_CHECK
                self._uplink.look_for_another(now)
                self._look_for_successor()
                if not self._facts_are_watched:
                    self._look_at_facts()
            if self.superseded:
                payload.send(signal.SIGKILL)
        return self._end_of(payload)

    def finish(self, end: dict[str, Any]) -> None:
        """Report the end in the spool, then on the link."""
        self._notifier.stop()
        end["ended_at"] = time.time()
        self._live.stop()
        self._facts.look()
        end.update(live=self._live.latest, facts=self._facts.known)
        self._uplink.withdraw("live", "facts")
        with suppress(OSError):  # then what is known must do
            for stream in self._streams:
                stream.reopen()
        end["sizes"].update({stream.name: stream.size() for stream in self._streams})
        self._report.finish(end)
        self._uplink.tell("ended", end=end)
        self._see_off()

    def _turn(self) -> None:
        """Wait for the next thing to do, and do what belongs to the link."""
        now = time.monotonic()
        until = min(self._check_at, self._look_at, self._live.due, self._uplink.due())
        if self._report.due is not None:
            until = min(until, self._report.due)
        poll = select.poll()
        poll.register(self._signals.descriptor, select.POLLIN)
        if self._notifier.descriptor is not None:
            poll.register(self._notifier.descriptor, select.POLLIN)
        interest = self._uplink.interest()
        if interest is not None:
            poll.register(*interest)
        ready = dict(poll.poll(max(0.0, (until - now) * 1000 + 0.5)))
        now = time.monotonic()
        for path in self._notifier.changed() if self._notifier.descriptor in ready else ():
            if path == self._folder:
                self._look_at_facts()
            for stream in self._streams:
                if stream.path == path:
                    stream.idle = False
        if now >= self._look_at:
            self._look_at = now + LOOK_ANYWAY
            for stream in self._streams:
                stream.look_anyway()
        self._uplink.work(now, ready.get(interest[0], 0) if interest is not None else 0)

    def _tell_of_use(self, now: float) -> None:
        if self._live.work(now):
            self._report.live = self._live.told
            self._uplink.tell("live", live=self._live.told)

    def _look_at_facts(self) -> None:
        self._facts_are_watched = self._notifier.arm_folder(self._folder)
        if self._facts.look():
            self._report.facts = self._facts.known
            self._uplink.tell("facts", facts=self._facts.known)

    def _check_link(self, now: float) -> None:
        """Report in the spool while there is no link."""
        if self._uplink.up == self._was_up:
            return
        self._was_up = self._uplink.up
        if self._was_up:
            self._report.stop()
            self._check_at = now
        else:
            self._report.begin(now)

    def _look_for_successor(self) -> None:
        with suppress(OSError):  # the file server is away; nothing is known
            if claims.latest(self._plan.folder + "/starts") > self._start:
                self.superseded = True

    def _end_of(self, payload: Payload) -> dict[str, Any]:
        exit_code, number, usage = payload.bury()
        self._live.finish(time.monotonic())
        end: dict[str, Any] = {
            "exit_code": None if number else exit_code,
            "signal": number or None,
            "started_at": payload.started_at,
            "usage": usage,
        }
        if self.superseded:
            end.update(error="a later start of this job took over; this one was killed", error_code=ERROR_SUPERSEDED)
        elif (number or exit_code) and self._no_room():
            end.update(error="the spool's disk is full", error_code=ERROR_SPOOL_FULL)
        return end

    def _no_room(self) -> bool:
        try:
            room = os.statvfs(self._plan.folder)
        except OSError:
            return False
        return bool(room.f_blocks) and room.f_bavail * room.f_frsize < FULL_BELOW

    def _see_off(self) -> None:
        """Give the agent the rest while it takes it; what it doesn't take it will read from the spool."""
        uplink = self._uplink
        begun = time.monotonic()
        failures = uplink.failures
        patience = NEW_LINK_WITHIN if failures and not self._was_up else PROGRESS_WITHIN
        self._report.stop()
        for stream in self._streams:
            stream.finish()
        uplink.hurry()
        while self._plan.link and not (uplink.finished() and self._was_up):
            now = time.monotonic()
            if now > begun + LEAVE_AFTER or now > max(begun, uplink.moved_at) + patience or uplink.failures > failures:
                return
            self._look_at = self._check_at = now + END_CHECK
            self._turn()
            self._signals.take()  # the payload that they were meant for is gone
            self._was_up = self._was_up or uplink.up
