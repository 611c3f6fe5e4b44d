"""Output without end on a real Slurm cluster: the first bytes, a marked gap, the newest lines, and the end."""

from __future__ import annotations

import re
from dataclasses import dataclass

from integration.jobs import spec
from slurmbus.client import SiteClient
from slurmbus.connection import Connection, ConnectionSettings
from slurmbus.events import Finished, Gap, Output
from slurmbus.home import Home
from slurmbus_agent import budgets
from slurmbus_cluster import Cluster
from slurmbus_cluster.agents import AgentProcess
from slurmbus_protocol.messages import Record
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream

LINE = 100
LIMIT = 2_000_050
FLOOD = """
import os, sys, time
line = b"%099d\\n"
begun = time.monotonic()
for block in range({blocks}):
    os.write(1, b"".join(map(line.__mod__, range(block * 10_000, (block + 1) * 10_000))))
print(time.monotonic() - begun, file=sys.stderr)
time.sleep({pause})
print("the end")
"""


@dataclass
class Shown:
    """What a reader was given of stdout."""

    pieces: list[Output | Gap]
    record: Record

    @property
    def gaps(self) -> list[Gap]:
        return [piece for piece in self.pieces if isinstance(piece, Gap)]


def flood(client: SiteClient, megabytes: int, pause: float) -> Shown:
    script = FLOOD.format(blocks=megabytes, pause=pause)
    pieces: list[Output | Gap] = []
    with client.follow(client.submit(spec("python3", "-c", script, stream_limit=LIMIT))) as events:
        for event in events:
            if isinstance(event, Output | Gap) and event.stream is Stream.STDOUT:
                pieces.append(event)
            elif isinstance(event, Finished):
                return Shown(pieces, event.record)
    raise AssertionError


def content(offset: int, length: int, size: int) -> bytes:
    """Compute what the payload wrote there."""
    first = offset // LINE
    lines = b"".join(b"%099d\n" % number for number in range(first, (offset + length) // LINE + 1))
    lines = lines[: max(0, size - len(b"the end\n") - first * LINE)] + b"the end\n"
    return lines[offset - first * LINE :][:length]


def check(shown: Shown, cluster: Cluster, megabytes: int) -> None:
    size = megabytes * 1_000_000 + len(b"the end\n")
    record = shown.record
    assert record.state is JobState.COMPLETED
    assert record.starts[-1].sizes is not None
    assert record.starts[-1].sizes[Stream.STDOUT] == size
    head = 0
    for piece in shown.pieces:
        assert piece.offset == head
        if isinstance(piece, Gap):
            head += piece.length
        else:
            assert piece.data == content(piece.offset, len(piece.data), size)
            head += len(piece.data)
    assert head == size
    first, *_ = shown.gaps
    in_full = sum(len(piece.data) for piece in shown.pieces if isinstance(piece, Output) and piece.offset < LIMIT)
    assert in_full == LIMIT
    assert first.offset >= LIMIT
    path = f"{record.spool}/0.stdout"
    assert {(gap.over_limit, gap.path) for gap in shown.gaps} == {(True, path)}
    last = shown.pieces[-1]
    assert isinstance(last, Output)
    assert last.data.endswith(b"the end\n")
    assert cluster.exec("login", ["stat", "-c", "%s", path], user="alice").stdout.strip() == str(size)
    beyond = sum(len(piece.data) for piece in shown.pieces if isinstance(piece, Output)) - LIMIT
    seconds = (record.end_time or 0) - (record.start_time or 0)
    assert beyond <= budgets.LAST_BYTES + budgets.SAMPLE_BYTES * (2 + seconds / (budgets.SAMPLE_EVERY / 2))


def test_the_first_bytes_a_marked_gap_the_newest_lines_and_the_end(alice: SiteClient, cluster: Cluster) -> None:
    shown = flood(alice, 300, pause=5.0)
    check(shown, cluster, 300)
    newest = [piece for piece in shown.pieces if isinstance(piece, Output) and piece.offset > LIMIT]
    assert len(newest) > 1, "lines were shown while it ran, and the end afterwards"
    assert all(re.fullmatch(rb"(\d{99}\n)+(the end\n)?|the end\n", piece.data) for piece in newest), "whole lines"


def test_the_same_by_the_spool_alone(cluster: Cluster, home: Home) -> None:
    """The link's address can't be reached, so the agent follows the spool."""
    site = "cluster-spooled"
    home.add_site(site, scheduler="native", slurm_conf="/etc/slurm/slurm.conf", link_host="192.0.2.1")
    with AgentProcess(cluster, site, home.bundle_path(site)):
        connection = Connection.get(ConnectionSettings.of_site(home, site))
        try:
            check(flood(SiteClient(connection, site), 50, pause=6.0), cluster, 50)
        finally:
            connection.close()
