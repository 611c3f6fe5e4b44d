"""Checking the whole way: a question to the agent over the bus, and a small job on a compute node."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import msgspec

from slurmbus import job_options
from slurmbus.client import SiteClient
from slurmbus.events import Finished, Output, StateChanged, Waiting
from slurmbus_protocol.errors import BusUnreachable, SiteUnreachable
from slurmbus_protocol.messages import CommandPlan, Heartbeat, JobSpec, Ping, Record
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream

JOB_PATIENCE = 180.0
"""Seconds that the trial job may wait in the queue and run; a busy cluster isn't broken."""
ASK_AGAIN = 0.3
BUS_PATIENCE = 15.0
_MARK = "slurmbus-trial "
_TRIAL = """\
import json, os, platform, socket
folder = os.getcwd()
while folder != "/" and not os.path.exists(os.path.join(folder, "link")):
    folder = os.path.dirname(folder)
found = {"node": platform.node(), "link": "", "why": ""}
try:
    with open(os.path.join(folder, "link")) as file:
        address = json.load(file)
    for host in address["hosts"]:
        try:
            socket.create_connection((host, address["port"]), 5).close()
            found["link"] = "%s:%d" % (host, address["port"])
            break
        except OSError as error:
            found["why"] += "%s:%d: %s; " % (host, address["port"], error)
except OSError as error:
    found["why"] = str(error)
print("slurmbus-trial " + json.dumps(found))
"""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the trial job."""

    key: str
    record: Record | None = None
    node: str = ""
    link: str = ""
    """Where the compute node reached the agent; empty when it didn't, and the spool is read instead."""
    why: str = ""
    """Why it didn't."""
    seconds: float = 0.0
    waiting: str = ""
    """It still waits in the queue, for this reason, and was cancelled."""

    @property
    def works(self) -> bool:
        """Whether it ran to its end, and what it wrote came back."""
        return self.record is not None and self.record.state is JobState.COMPLETED and bool(self.node)


class _Answer(msgspec.Struct, frozen=True):
    node: str
    link: str
    why: str


def await_agent(client: SiteClient, patience: float) -> Heartbeat:
    """Wait until the site's agent answers a question over the bus.

    Args:
        client: of the site.
        patience: seconds.

    Raises:
        SiteUnreachable: none does, in all that time.
        BusUnreachable: the bus itself is away.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return client.ask("info", Ping(sent_at=time.time()), Heartbeat, timeout=2.0)
        except SiteUnreachable:
            if time.monotonic() > deadline:
                raise
        time.sleep(ASK_AGAIN)


def round_trip(client: SiteClient) -> float:
    """Ask the agent once more, and give the seconds that it took there and back."""
    began = time.monotonic()
    client.ask("info", Ping(sent_at=time.time()), Heartbeat)
    return time.monotonic() - began


def run_trial(client: SiteClient, options: dict[str, str], tell: Callable[[str], None]) -> Trial:
    """Run a job of a minute at most, which looks from its node for the agent's link.

    Args:
        client: of the site.
        options: partition, account and the like, as in ``SlurmQueueConfig``.
        tell: hears of its states.

    Raises:
        SlurmbusError: it can't be submitted.
    """
    merged = job_options.merge(job_options.read({"time_limit": "1", **options}, "the trial job"))
    job = JobSpec(name="slurmbus-up", plan=CommandPlan(argv=("python3", "-c", _TRIAL)), options=merged)
    key = client.submit(job)
    began, output, record = time.monotonic(), b"", None
    with client.follow(key, patience=2.0) as events:
        for event in events:
            if isinstance(event, Output):
                output += event.data if event.stream is Stream.STDOUT else b""
            elif isinstance(event, StateChanged | Finished):
                if record is None or record.state is not event.record.state:
                    tell(f"job {event.record.job_id or key}: {event.record.state}")
                record = event.record
            if isinstance(event, Waiting) and time.monotonic() - began > JOB_PATIENCE:
                client.cancel(key, "the trial waited too long")
                return Trial(key=key, record=record, waiting=(record.reason if record else None) or "no reason known")
    answer = _read(output)
    return Trial(
        key=key, record=record, node=answer.node, link=answer.link, why=answer.why, seconds=time.monotonic() - began
    )


def _read(output: bytes) -> _Answer:
    for line in output.decode(errors="replace").splitlines():
        if line.startswith(_MARK):
            return msgspec.convert(json.loads(line[len(_MARK) :]), _Answer)
    return _Answer("", "", "")


def trial_words(trial: Trial) -> str:
    """Say what came of the trial job."""
    if trial.waiting:
        return f"it still waits in the queue ({trial.waiting}), and was cancelled; everything else works"
    if not trial.works:
        record = trial.record
        return f"it ended {record.state if record else 'nowhere'}: {(record.reason or record.hint) if record else ''}"
    link = (
        f"reaches the agent's link at {trial.link}" if trial.link else f"has no link ({trial.why}): the spool is read"
    )
    return f"ran on {trial.node} and came back within {trial.seconds:.1f} s; the node {link}"


def is_reachable(client: SiteClient) -> bool:
    """Tell whether the bus answers."""
    try:
        client.heartbeats()
    except BusUnreachable:
        return False
    return True


def becomes_reachable(client: SiteClient, patience: float = BUS_PATIENCE) -> bool:
    """Wait a little for a bus that was just started, or is busy."""
    deadline = time.monotonic() + patience
    while not is_reachable(client):
        if time.monotonic() > deadline:
            return False
        time.sleep(ASK_AGAIN)
    return True
