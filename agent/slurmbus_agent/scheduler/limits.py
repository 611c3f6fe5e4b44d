"""How long calls may take and how many there may be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CallLimits:
    """Deadlines in seconds, with the reason for each default.

    Attributes:
        start: until the child is ready. Importing pyslurm takes 0.1 s, from a cold network file system many times that.
        ping: a controller answers in a millisecond; one that takes 3 s is frozen or overloaded.
        read: all jobs of a user with thousands take a second; libslurm itself would wait for 10 to 100 s.
        control: a submit or cancel that is given up leaves its outcome unknown, so it gets more patience than a read.
        hung_ping: a ping that wasn't answered in time is left to itself this long, since its late answer is the first
            sign of a thawed controller, and a new child would cost CPU time. libslurm gives up after MessageTimeout,
            10 s by default; a child that is still busy then is replaced.
        fresh: a controller that answered this recently is believed to be there still, and isn't pinged before a call.
        idle: the child holds 32 MiB on a shared login node, and starts in 0.1 s when it is needed again.
        probe_first, probe_last: seconds between pings of a controller that doesn't respond, doubled each time. A
            refused ping costs a few milliseconds; states shall be right again within 15 s after an outage.
        renew: seconds after which a child that can't reach the controller is replaced: it knows slurm.conf as it was
            when it started, and the controller may have moved.
        restart_last: like ``probe_last``, for a child that doesn't start or doesn't stay: a start costs 0.1 to 0.3 s of
            CPU time, and login nodes count CPU minutes.
        accounting_last: seconds for which accounting is left alone at most after it didn't answer: each question to it
            may hold up the calls to the controller for ``read`` seconds.
    """

    start: float = 30.0
    ping: float = 3.0
    read: float = 10.0
    control: float = 20.0
    hung_ping: float = 30.0
    fresh: float = 3.0
    idle: float = 60.0
    probe_first: float = 1.0
    probe_last: float = 10.0
    renew: float = 300.0
    restart_last: float = 120.0
    accounting_last: float = 60.0


@dataclass(frozen=True, kw_only=True)
class CallBudget:
    """How many calls the scheduler may be asked, with the reason for each default.

    Attributes:
        burst: calls at once. Slurm's own limit (rl_enable in slurm.conf(5)) allows 30 and then makes libslurm sleep; it
            is counted per user, so the user's own squeue needs a share.
        per_second: calls per second sustained. rl_enable refills 2 a second, shared as well.
        read_wait: seconds for which a read may wait for its turn; one that would wait longer is told so at once.
        turn_wait: seconds for which a question that many wait for is held back when the budget is spent. Without a
            bound a stream of submits, which aren't held back, would keep all from hearing how their jobs ended.
        control_wait: seconds for which a submit or cancel is held back when the budget is spent. Then it goes all the
            same, and the reads after it pay: people wait for it, and it comes once a job, not again and again. A site
            that sets a limit gets more patience of them.
    """

    burst: int = 20
    per_second: float = 1.0
    read_wait: float = 5.0
    turn_wait: float = 3.0
    control_wait: float = 0.05


class TokenBucket:
    """Counts calls against a budget. Times are seconds of one monotonic clock, given by the caller."""

    def __init__(self, budget: CallBudget, now: float) -> None:
        """Start with a full bucket."""
        self._budget = budget
        self._tokens = float(budget.burst)
        self._at = now

    def wait(self, now: float) -> float:
        """Give the seconds until there is a token."""
        self._refill(now)
        return max(0.0, (1 - self._tokens) / self._budget.per_second)

    def take(self, now: float) -> None:
        """Take a token, if need be in debt; the debt is at most what somebody would wait for."""
        self._refill(now)
        most = max(float(self._budget.burst), self._budget.control_wait * self._budget.per_second)
        self._tokens = max(self._tokens - 1, -most)

    def _refill(self, now: float) -> None:
        self._tokens = min(self._tokens + (now - self._at) * self._budget.per_second, float(self._budget.burst))
        self._at = now
