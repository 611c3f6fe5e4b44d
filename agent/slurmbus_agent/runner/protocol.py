"""What the runner and the agent have agreed on: files, frames, exit codes. Both import this.

Files of a job, ``jobs/<key>.<task>/`` in the spool (JSON unless it says otherwise)::

    request       the signed request as it came from the bus (msgpack; the runner doesn't read it); an array's tasks
                  share the one in arrays/<key>/ of the spool
    plan.json     key, task, argv, cwd, work (the job's own working directory), secret (base64), preamble, env,
                  secrets (whether there are any), requeue, pipes, pipes_path, launch, link,
                  array_index (of an array's task: its index in Slurm)
    <n>.secrets   env {name: value} or error, for start n; emptied, not removed, when the payload has it
    context       Dagster Pipes' context, there when the plan says pipes
    starts/<n>    a symlink to nothing: its target is the claim of start n, see claims.py
    <n>.stdout    <n>.stderr  <n>.messages: the streams of start n, bytes
    <n>.trouble   error: why a launch failed; the runner puts it into the report
    <n>.report    start, job_id, node, nonce, reported_at, sizes {stream: bytes}, started_at, live, facts, end (or null)
                  end: exit_code, signal, ended_at, sizes, started_at, error, error_code, usage, live, facts
                  usage: cpu_seconds, max_rss (bytes), elapsed
    <n>.facts     {name: text}, written by the launcher, if by anybody; replaced whole, by a rename
    work/         the job's own working directory, unless the plan's work is elsewhere

``sizes`` are durable: whoever opens a stream afterwards, on any host, can read that far.

The file ``link`` of the spool's root: hosts, port, server, epoch, fingerprint (of the agent's certificate: SHA-256 in
hex).

The link is TLS 1.3; a runner hangs up on anybody with another certificate before it says a word. Frames on it, see
frames.py for their bytes. The runner sends (>) hello first; every frame but chunk has a header only::

    > hello      key, task, start, job_id, node, nonce, claimed_at, python, version, challenge,
                 task_job_id (of an array's task: its own id; job_id is the array's)
    < challenge  challenge, proof                 the agent proves that it knows the job's secret
    > proof      proof                            the runner does
    < welcome    offsets {stream: offset}         go on from there
                 limits {stream: bytes}, sample {bytes, every}, takes [kinds of frames], since version 3
    < refused    reason                           this start has been superseded; instead of welcome
    > started    started_at
    > live       live                             when the welcome takes it: what the job uses now
    > facts      facts {name: text}               when the welcome takes it: what the launcher found out
    > chunk      stream, offset, round            and the bytes
    < ack        stream, end, next, round         the bytes up to end are durable, go on at next
    > ended      end                              as in the report
    < noted      what                             started, ended, live or facts has been taken note of
    < alive      (nothing)                        every few seconds while the agent owes an answer

A connection's chunks belong to round 0. An ack whose ``next`` isn't its ``end`` asks for other bytes than those under
way: it begins a new round, the runner goes on at ``next``, and chunks of older rounds are dropped without an ack.

A welcome may name limits (since version 2). Beyond its limit a stream isn't sent in full: ``bytes`` of its newest
lines at most, as one chunk in ``every`` seconds, whose offset may leave bytes out. When the payload has ended, nothing
is sent beyond the limit; the agent reads the end from the spool. To a runner that doesn't know limits (version 1) the
agent acknowledges a chunk beyond the limit only every ``every`` seconds and, once it has heard ``ended``, with the
stream's size as ``next``.
"""

from __future__ import annotations

VERSION = 3
SAMPLES_SINCE = 2
"""The version from which on runners keep to limits by themselves."""
NEWS_SINCE = 3
"""The version from which on a welcome says which of OPTIONAL the agent takes."""

OPTIONAL = frozenset({"live", "facts"})
"""Frames that are sent only to an agent whose welcome takes them: older ones would hang up."""

MESSAGES = "messages"
STREAMS = (MESSAGES, "stderr", "stdout")
"""The most important first."""
MAX_DATA = 256 * 1024
"""Bytes in a chunk; the bus takes as much in one message."""

EXIT_TWIN = 113
"""The runner ended before its payload, or killed it, because another start has the claim."""
EXIT_SETUP = 125
"""The runner couldn't do its work: no plan, no spool, no fitting Python."""
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
"""As a shell says it when a command can't be executed or isn't there. Source: bash(1), "EXIT STATUS"."""

ERROR_NOT_STARTED = "not-started"
"""The command isn't there or can't be executed, or its working directory is missing."""
ERROR_LAUNCH = "launch-failed"
"""What the payload needs beside itself (a Ray cluster, …) couldn't be started."""
ERROR_SPOOL_FULL = "spool-full"
"""The spool's disk or quota is full."""
ERROR_SPOOL = "spool-unusable"
"""The spool can't be written for another reason."""
ERROR_SUPERSEDED = "superseded"
"""The payload was killed because a later start has the claim."""
