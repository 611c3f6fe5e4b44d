"""Every interval, limit and budget of the agent, each with its reason."""

from __future__ import annotations

# ---- the lease, heartbeat and connection probe (one message does all three)
HEARTBEAT_IDLE = 10.0
"""An idle client with a 10 s heartbeat costs 2 CPU-minutes in 30 days; with 1 s heartbeats it costs 18."""
HEARTBEAT_BUSY = 2.0
"""While there are jobs a dead agent shall be noticed within seconds."""
LEASE_FACTOR = 3.0
"""A standby takes over after three missed heartbeats: one may be lost, two are bad luck."""
LEASE_MARGIN = 1.0
"""A leader stops acting this many seconds before a standby may start to."""

# ---- asking Slurm
WATCH_INTERVAL = 30.0
"""One question for all of this user's jobs; some sites ask for at most one squeue in 120 s, and may set it higher."""
WATCH_SOON = 1.0
"""A job that doesn't start at once has a reason to show; the scheduler gives it within about a second."""
WATCH_URGENT = (0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""After a runner reported its end the controller needs 30 to 100 ms to notice; each further look waits longer."""
WATCH_TOGETHER = 2
"""From this many due looks on, one question for all jobs is cheaper for the controller."""
ACCOUNTING_SOON = 0.1
"""For a job of several tasks somebody waits for accounting's figures."""
ACCOUNTING_DELAYS = (3.0, 4.0, 10.0, 30.0, 120.0)
"""slurmctld hands a finished job to slurmdbd within a second; asked for later, many jobs share one question."""
READ_BURST = 20
"""Sites that limit calls (rl_enable) allow 30 at once, shared with the user's own commands."""
READ_WAIT = 30.0
"""Looks wait for their turn when the budget is spent: a late answer is better than none."""
READS_PER_SECOND = 1.0
"""rl_enable's default is 2 a second, shared with the user's own commands."""

# ---- the spool
SPOOL_POLL = (0.5, 1.0, 2.0, 4.0, 8.0, 10.0)
"""Without the link the spool is looked at with back-off; it is somebody's NFS server."""
SPOOL_READS_PER_SECOND = 20.0
"""For all jobs together; a metadata server notices more."""
SPOOL_READ = 256 * 1024
"""Bytes a read, the size of one chunk on the bus."""

# ---- memory
LINK_BYTES = 16 * 1024 * 1024
"""Bytes that runners may have under way to the bus, all together: what a slow bus can make the agent grow by."""
INTAKE_AT_ONCE = 16
"""Requests that are made durable at the same time."""
STAGING_AT_ONCE = 8
"""Jobs whose files are fetched and written at the same time."""

# ---- retrying
BUS_RETRY = (0.1, 0.2, 0.5, 1.0, 2.0)
FULL_RETRY = 5.0
"""A full stream is somebody's work to empty; until then the bytes wait in the spool."""
