"""Every interval, limit and budget of the agent, each with its reason."""

from __future__ import annotations

# ---- what the agent may use of its host; the user or the site may set less
CPU_MINUTES = 20.0
"""At least one centre ends processes on login nodes above 20 CPU-minutes."""
MEMORY_MIB = 512.0
"""An idle agent takes less than a tenth of it; a thousand jobs and eight floods of logs fit."""
CALLS_WINDOW = 300.0
"""Seconds over which calls to the controller are counted."""
HAND_OVER_CPU = 0.8
"""Share of the CPU time at which a fresh process goes on: the rest pays for standing by until that one is ready, and
for taking leave."""
HAND_OVER_MEMORY = 0.9
HAND_OVER_LEAST = 5.0
"""Seconds for which a process serves in any case: a limit below what a start costs shall not keep it from doing so."""
HAND_OVER_PAUSE = 600.0
"""Seconds for which a fresh process doesn't hand over because of its memory: it needs what its jobs need."""
HAND_OVER_PATIENCE = 60.0
"""Seconds until a successor has to stand by, and until it has to have the lease; Python starts in half a second, from
a cold network file system in many."""
HAND_OVER_AGAIN = 60.0
"""Seconds until a hand-over that failed is tried again."""
HAND_OVER_LOOK = 0.2
"""Seconds between a successor's looks at the lease: it knows that it will be given up in a moment."""
SLOW_CPU = 0.85
"""Share of the CPU time from which on everything that can wait takes longer: no fresh process could take over."""
SLOW_CALLS = 0.8
STRETCH_MOST = 8.0
"""Jobs are then looked at every four minutes; starts and ends are pushed all the same."""

MEASURE_IDLE = 60.0
"""Seconds between two measurements of an agent without jobs: looking at itself is a third of what a heartbeat costs."""
MEASURE_MEMORY = 10.0
"""Seconds between two looks at memory and open files while there are jobs."""

PARENT_LOOK = 60.0
"""Seconds between two looks of a later agent whether the first process is still there, when the bus is away and there
are no heartbeats."""

# ---- the lease, heartbeat and connection probe (one message does all three)
HEARTBEAT_IDLE = 18.0
"""Each heartbeat costs 0.5 ms of CPU time on a quiet host, and three times as much on one whose caches are full of
others' data."""
LEASE_IDLE = 25.0
"""With it a standby, which looks every 4.5 s, has taken over within 30 s. A renewal that fails has 6 s to be tried
again; should it fail for longer, a standby takes over from an agent that has nothing to do."""
HEARTBEAT_BUSY = 2.0
"""While there are jobs a dead agent shall be noticed within seconds."""
LEASE_FACTOR = 3.0
"""A standby takes over after three missed heartbeats: one may be lost, two are bad luck."""
LEASE_MARGIN = 1.0
"""A leader stops acting this many seconds before a standby may start to."""
RENEW_AGAIN = 0.5
"""Seconds until a renewal that failed is tried again: two more fit into the lease."""
STANDBY_LOOKS = 4
"""Looks of a standby at the lease in each interval of the leader's heartbeat."""
GUARD_AGAIN = 0.1
"""Seconds until something that may only be done with the lease is tried again."""
ADOPT_INTERVAL = 60.0
"""Seconds between two looks for jobs in the spool that nobody follows: one that an agent without the lease took."""
ADOPT_AT_ONCE = 16
"""Jobs that are read at the same time on taking over: each is one or two round trips to the bus."""

# ---- the connections to the bus
BUS_PING = 240
"""Seconds between two pings of a connection: renewing the lease shows sooner whether it lives, and a NAT that forgets
quiet connections does so after five minutes or more."""
INTAKE_HEARTBEAT = 60.0
"""Seconds between two signs of life of the server to the question for requests. A connection that is lost is noticed by
the lease; these only show that the server still knows of the question, and each costs 0.3 ms of CPU time."""

# ---- asking Slurm
WATCH_INTERVAL = 30.0
"""One question for all of this user's jobs; some sites ask for at most one squeue in 120 s, and may set it higher."""
WATCH_SOON = 1.0
"""A job that doesn't start at once has a reason to show; the scheduler gives it within about a second."""
WATCH_URGENT = (0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""After a runner reported its end the controller needs 30 to 100 ms to notice; each further look waits longer."""
WATCH_TOGETHER = 2
"""From this many due looks on, one question for all jobs is cheaper for the controller."""
WATCH_MISSING = 2
"""Up to so many jobs that a list doesn't show are asked for one by one; more would hold everything up for minutes."""
ACCOUNTING_SOON = 0.1
"""Where accounting alone knows the figures (several tasks, steps, GPUs), or was asked for, somebody waits for them."""
ACCOUNTING_FIRST = 3.0
"""slurmctld hands a finished job to slurmdbd within a second; asked for later, many jobs share one question."""
ACCOUNTING_TOGETHER = 5.0
"""Seconds between two questions for figures that nobody waits for: all jobs that ended meanwhile share one."""
READ_BURST = 20
"""Sites that limit calls (rl_enable) allow 30 at once, shared with the user's own commands."""
READ_WAIT = 30.0
"""Looks wait for their turn when the budget is spent: a late answer is better than none."""
CONTROL_WAIT_LIMITED = 600.0
"""Seconds for which a submit waits for its turn where the site has set a limit; where nobody has, it hardly does."""
READS_PER_SECOND = 1.0
"""rl_enable's default is 2 a second, shared with the user's own commands."""

# ---- what jobs use while they run
LIVE_PER_SECOND = 1.0
"""For all jobs together: a record is 1.2 kB and a fsync on the bus, and costs the agent about a millisecond. Runners
tell less and less often; when a thousand begin at once, they have to wait for their turn."""

# ---- the spool
SPOOL_POLL = (0.5, 1.0, 2.0, 4.0, 8.0, 10.0)
"""Without the link the spool is looked at with back-off; it is somebody's NFS server."""
SPOOL_TICK = 0.25
"""Seconds between two looks whose turn it is, while there are jobs without a link."""
SPOOL_TICK_LINKED = 1.0
"""The same while all jobs have one; without jobs there are none."""
SPOOL_READS_PER_SECOND = 20.0
"""For all jobs together; a metadata server notices more."""
SPOOL_READ = 256 * 1024
"""Bytes a read, the size of one chunk on the bus."""

# ---- job arrays
ARRAY_SIZE = 1000
"""Tasks that Slurm gets as one array: its MaxArraySize is 1001 by default, and the largest index is one less."""
ARRAY_LOOK = 0.25
"""Seconds between two looks whether an array is ready, when nothing tells."""
ARRAY_SETTLED = 0.02
"""Seconds without another task after which an array is complete that has no task left to be staged."""
ARRAY_PATIENCE = 5.0
"""Seconds without news after which an array is submitted without the tasks that aren't staged yet: they follow."""
ARRAY_CANCEL_TOGETHER = 0.05
"""Seconds in which cancels of an array's tasks are collected, as long as more come: Slurm is asked once for all."""
ARRAY_RECORDS_AT_ONCE = 64
"""Records of an array that are made at the same time: a thousand take a quarter of a second."""

# ---- forgetting
FORGET_FIRST = 60.0
"""Seconds from the start to the first look for jobs to be forgotten: taking over comes first; a laptop's agent seldom
lives for longer than its users."""
FORGET_CALLS_PER_SECOND = 20.0
"""Operations on the shared file system while forgetting; nobody waits for it."""
FORGET_CALLS_BY_HAND = 500.0
"""The same for ``slurmbus-agent clean``: somebody waits, and ``rm -r`` makes several thousand."""
FORGET_TOGETHER = 100
"""Jobs that the bus is asked to forget at a time."""
FORGET_PATIENCE = 5.0
"""Seconds for which the bus is asked whether it has forgotten them; afterwards the next look finds out."""
FORGET_PATIENCE_BY_HAND = 10.0
FORGET_OVERDUE = 2 * 86400.0
"""Seconds after which somebody should know that the bus isn't forgetting what it was asked to."""
BUS_AT_ONCE = 16
"""Questions about jobs to be forgotten that are under way at the same time."""

# ---- output without end
SAMPLE_BYTES = 4 * 1024
"""The newest lines of a stream over its limit, each time: about a screenful."""
SAMPLE_EVERY = 2.0
"""Seconds between two of them: somebody who looks sees that it lives, and a stream that goes on for a day adds less
than three times its limit (170 MiB)."""
LAST_BYTES = 64 * 1024
"""The end of a stream over its limit: where a program says why it failed, with room for a long traceback."""

# ---- memory and fairness
LINK_BYTES = 8 * 1024 * 1024
"""Bytes that runners may have under way to the bus, all together. On their way through the agent they are copied up to
three times: with it goes what a slow bus can make the agent grow by, 20 MiB at most."""
BULK_ABOVE = 16 * 1024
"""Bytes from which on a piece of a log waits for its turn; smaller ones, and messages, wait for nobody's flood."""
BULK_AT_ONCE = 4
"""Larger pieces of logs that are under way on the one connection to the bus: with 1 MiB before it a record is out
within a second at 10 Mbit/s."""
SPOOL_READS_AT_ONCE = 4
"""Pieces of logs, and as many of messages, that are read from the spool and not on the bus yet, for all jobs."""
INTAKE_AT_ONCE = 16
"""Requests that are made durable at the same time."""
STAGING_AT_ONCE = 8
"""Jobs whose files are fetched and written at the same time."""
STAGING_TOLD_EVERY = 2.0
"""Seconds between two records that only say how far an environment's installation is."""

# ---- retrying
BLOB_PATIENCE = 30.0
"""Seconds for which a file of a request may be missing: a client notices within seconds that a bus started anew."""
OUTPUTS_AGAIN = 3600.0
"""A bus that started anew gets the outputs of jobs that ended this recently once more; somebody may wait for them."""
BUS_RETRY = (0.1, 0.2, 0.5, 1.0, 2.0)
FULL_RETRY = 5.0
"""A full stream is somebody's work to empty; until then the bytes wait in the spool."""

# ---- authority
AUTHORITY_LOOK = 5.0
"""Between two looks at bundle, settings, grant, policies, keys and stop files, and never more often than the heartbeat:
nine stat calls, which an NFS client answers from its cache."""

AUTHORITY_FRESH = 1.0
"""A request is judged by files that were looked at within this: a flood of requests shares one look."""

QUESTIONS_REMEMBERED = 4096
"""Signed questions that are recognised when they come again: what a thousand clients ask in a day, in a megabyte."""

# ---- the audit log
AUDIT_BYTES = 8 * 1024 * 1024
"""Of one file: about 40,000 requests; small enough to be looked through with a pager."""
AUDIT_FILES = 16
"""Full files that are kept besides: 128 MiB, or more than half a million requests."""
