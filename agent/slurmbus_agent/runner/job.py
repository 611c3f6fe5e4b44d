"""The runner's work from its claim to its exit code."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from contextlib import suppress

from slurmbus_agent.runner import claims, payload
from slurmbus_agent.runner.notify import Notifier
from slurmbus_agent.runner.plan import BadPlan, Plan
from slurmbus_agent.runner.protocol import (
    ERROR_NOT_STARTED,
    ERROR_SPOOL_FULL,
    ERROR_SUPERSEDED,
    EXIT_SETUP,
    EXIT_TWIN,
    STREAMS,
    VERSION,
)
from slurmbus_agent.runner.report import SOONEST, Report, spool_error
from slurmbus_agent.runner.streams import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from slurmbus_agent.runner.uplink import Uplink

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
FULL_BELOW = 64 * 1024
"""Free bytes under which a failed payload is told that the disk is full."""
LONGEST_ERROR = 1000
"""Characters; a command that isn't there may have a very long name."""
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""What Slurm or a user sends to the batch script is meant for the payload. Source: sbatch(1), --signal=B:."""


class Taken(Exception):
    """Another start has the claim."""


class Signals:
    """Signals as something that can be polled: ``descriptor`` becomes readable when one comes."""

    def __init__(self) -> None:
        self.pending: list[int] = []
        self.descriptor, writer = os.pipe()
        os.set_blocking(self.descriptor, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        for number in FORWARDED:
            signal.signal(number, lambda number, _frame: self.pending.append(number))

    def take(self) -> list[int]:
        """Give the signals that came and are meant for the payload."""
        with suppress(BlockingIOError):
            os.read(self.descriptor, 4096)
        taken, self.pending = self.pending, []
        return taken


def main(argv: list[str]) -> int:
    """Run the job in the folder that is the only argument, and give the exit code."""
    signals = Signals()
    try:
        plan = Plan(argv[1])
        identity = claim(plan)
    except IndexError:
        return say(EXIT_SETUP, "the folder of the job is missing on the command line")
    except BadPlan as error:
        return say(EXIT_SETUP, str(error))
    except Taken as error:
        return say(EXIT_TWIN, f"{error}; this one ends without running the job's command")
    except OSError as error:
        return say(EXIT_SETUP, f"this start can't be claimed: {spool_error(error)[0]}: {argv[1]}")
    return Job(plan, identity, signals).run()


def say(exit_code: int, text: str) -> int:
    """Write to the batch script's own output."""
    sys.stderr.write(f"slurmbus: {text}\n")
    return exit_code


def claim(plan: Plan) -> dict[str, Any]:
    """Take the first free start, and give what identifies it.

    Raises:
        Taken: the job may not start again.
        OSError: the spool doesn't work.
    """
    try:
        job_id = int(os.environ["SLURM_JOB_ID"])
    except (KeyError, ValueError):
        raise BadPlan("this isn't a Slurm job: SLURM_JOB_ID isn't set") from None
    node = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
    nonce = os.urandom(8).hex()
    now = time.time()
    mine = claims.target(job_id, node, nonce, now)
    start = 0
    while True:
        found = claims.take(plan.folder + "/starts", start, mine)
        if found == mine:
            break
        try:
            other_id, other_node, _, _ = claims.parse(found)
        except ValueError:
            raise Taken(f"start {start} of this job has been taken by somebody unknown: {found[:80]!r}") from None
        if other_node == claims.AGENT_NODE:
            raise Taken("the agent has closed this job")
        if not plan.requeue:
            raise Taken(f"start {start} of this job was taken by Slurm job {other_id} on {other_node}")
        start += 1
    return {
        "key": plan.key,
        "task": plan.task,
        "start": start,
        "job_id": job_id,
        "node": claims.parse(mine)[1],
        "nonce": nonce,
        "claimed_at": claims.parse(mine)[3],
    }


class Job:
    """One claimed start."""

    def __init__(self, plan: Plan, identity: dict[str, Any], signals: Signals) -> None:
        self._plan = plan
        self._identity = identity
        self._signals = signals
        self._start: int = identity["start"]
        self._notifier = Notifier()
        self._streams: dict[str, Stream] = {}
        self._look_at = self._check_at = time.monotonic() + LOOK_ANYWAY
        self._was_up = False
        self._superseded = False

    def run(self) -> int:
        """Run the payload to its end, and give the exit code for Slurm."""
        end: dict[str, Any] = {
            "exit_code": None,
            "signal": None,
            "ended_at": 0.0,
            "sizes": dict.fromkeys(STREAMS, 0),
            "started_at": None,
            "error": None,
            "error_code": None,
            "usage": None,
        }
        started: payload.Payload | None = None
        try:
            self._open_streams()
            started = payload.start(
                self._plan.command(),
                self._plan.environment(self._start),
                self._plan.cwd,
                self._streams["stdout"].writer,
                self._streams["stderr"].writer,
            )
        except payload.NotStarted as error:
            end.update(exit_code=error.exit_code, error=str(error)[:LONGEST_ERROR], error_code=ERROR_NOT_STARTED)
        except OSError as error:
            words, code = spool_error(error)
            end.update(exit_code=EXIT_SETUP, error=words, error_code=code)
        now = time.monotonic()
        report = Report(self._plan.folder, self._identity, list(self._streams.values()))
        uplink = self._make_uplink(now)
        if started is not None:
            report.started_at = end["started_at"] = started.started_at
            uplink.tell("started", started_at=started.started_at)
            report.begin(now, SOONEST)
            self._follow(started, report, uplink)
            self._end_of(started, end)
        end["ended_at"] = time.time()
        end["sizes"].update(report.sizes())
        report.finish(end)
        uplink.tell("ended", end=end)
        self._see_off(uplink)
        if end["error"]:
            say(0, end["error"])
        if self._superseded:
            return EXIT_TWIN
        return 128 + end["signal"] if end["signal"] else int(end["exit_code"])

    def _open_streams(self) -> None:
        for name in STREAMS:
            self._streams[name] = Stream(name, f"{self._plan.folder}/{self._start}.{name}")

    def _make_uplink(self, now: float) -> Uplink:
        from slurmbus_agent.runner.uplink import Uplink  # noqa: PLC0415 - the payload needn't wait for this import

        hello = {**self._identity, "python": sys.version.split()[0], "version": VERSION}
        return Uplink(self._plan, hello, list(self._streams.values()), self._notifier, now)

    # ------------------------------------------------------------------ while the payload runs

    def _follow(self, started: payload.Payload, report: Report, uplink: Uplink) -> None:
        while not started.ended():
            self._turn(uplink, report)
            for number in self._signals.take():
                started.send(number)
            now = time.monotonic()
            self._check_link(uplink, report, now)
            report.work(now)
            if now >= self._check_at or uplink.refused:
                uplink.refused = False
                self._check_at = now + SUCCESSOR_CHECK
                uplink.look_for_another(now)
                self._look_for_successor()
            if self._superseded:
                started.send(signal.SIGKILL)

    def _turn(self, uplink: Uplink, report: Report | None) -> None:
        """Wait for the next thing to do, and do what belongs to the link."""
        now = time.monotonic()
        until = min(self._check_at, self._look_at, uplink.due())
        if report is not None and report.due is not None:
            until = min(until, report.due)
        poll = select.poll()
        poll.register(self._signals.descriptor, select.POLLIN)
        if self._notifier.descriptor is not None:
            poll.register(self._notifier.descriptor, select.POLLIN)
        interest = uplink.interest()
        if interest is not None:
            poll.register(*interest)
        ready = dict(poll.poll(max(0.0, (until - now) * 1000 + 0.5)))
        now = time.monotonic()
        for path in self._notifier.changed() if self._notifier.descriptor in ready else ():
            for stream in self._streams.values():
                if stream.path == path:
                    stream.idle = False
        if now >= self._look_at:
            self._look_at = now + LOOK_ANYWAY
            for stream in self._streams.values():
                stream.idle = False
        uplink.work(now, ready.get(interest[0], 0) if interest is not None else 0)

    def _check_link(self, uplink: Uplink, report: Report, now: float) -> None:
        """Report in the spool while there is no link."""
        if uplink.up == self._was_up:
            return
        self._was_up = uplink.up
        if uplink.up:
            report.stop()
            self._check_at = now
        else:
            report.begin(now)

    def _look_for_successor(self) -> None:
        with suppress(OSError):  # the file server is away; nothing is known
            self._superseded = claims.latest(self._plan.folder + "/starts") > self._start

    # ------------------------------------------------------------------ afterwards

    def _end_of(self, started: payload.Payload, end: dict[str, Any]) -> None:
        exit_code, number, usage = started.bury()
        end["usage"] = usage
        if number:
            end["signal"] = number
        else:
            end["exit_code"] = exit_code
        if self._superseded:
            end.update(error="a later start of this job took over; this one was killed", error_code=ERROR_SUPERSEDED)
        elif (number or exit_code) and self._no_room():
            end.update(error="the spool's disk is full", error_code=ERROR_SPOOL_FULL)

    def _no_room(self) -> bool:
        try:
            room = os.statvfs(self._plan.folder)
        except OSError:
            return False
        return bool(room.f_blocks) and room.f_bavail * room.f_frsize < FULL_BELOW

    def _see_off(self, uplink: Uplink) -> None:
        """Give the agent the rest while it takes it; what it doesn't take it will read from the spool."""
        begun = time.monotonic()
        failures = uplink.failures
        patience = NEW_LINK_WITHIN if failures and not self._was_up else PROGRESS_WITHIN
        for stream in self._streams.values():
            stream.finish()
        uplink.hurry()
        while self._plan.link and not (uplink.finished() and self._was_up):
            now = time.monotonic()
            if now > begun + LEAVE_AFTER or now > max(begun, uplink.moved_at) + patience or uplink.failures > failures:
                return
            self._look_at = self._check_at = now + 0.1
            self._turn(uplink, None)
            self._signals.take()  # the payload that they were meant for is gone
            self._was_up = self._was_up or uplink.up
