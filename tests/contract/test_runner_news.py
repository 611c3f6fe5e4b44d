"""Live use and facts on their way from the runner: by the link, by the spool without one, and with the end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner_lab import Lab, Sink, lab, serving, until
from slurmbus_agent.runner import live
from slurmbus_agent.spool import JobDir
from slurmbus_protocol.subjects import Stream

MIB = 1024**2
FACTS = """
write() { printf '%s' "$1" >"$SLURMBUS_SPOOL/facts.new"; mv "$SLURMBUS_SPOOL/facts.new" "$SLURMBUS_SPOOL/0.facts"; }
"""
HOLD = "import sys, time; held = bytearray(80 * 1024**2); print('holding', flush=True); sys.stdin.readline()"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Lab]:
    """A laboratory whose runners measure twenty times as often as others."""
    with lab(tmp_path) as one:
        text = one.runner.read_text()
        for name in ("EVERY", "FIRST", "TELL_FIRST", "TELL_AGAIN"):
            seconds = getattr(live, name)
            line = f"\\n{name} = {seconds}\\n"  # the modules are literals in the runner's one file
            assert text.count(line) == 1
            text = text.replace(line, f"\\n{name} = {seconds / 20}\\n")
        one.runner.chmod(0o600)
        one.runner.write_text(text)
        yield one


def holding(place: Lab, *, link: bool = True) -> JobDir:
    """Make a job that holds 80 MiB until the file 'go' is there, and writes facts before and afterwards."""
    script = f"""{FACTS}
    write '{{"dashboard": "http://c1:8265"}}'
    mkfifo {place.home}/go; exec 3<>{place.home}/go
    python3 -c "{HOLD}" <&3
    write '{{"dashboard": "http://c1:8265", "workers": "2 of 2"}}'
    """
    return place.job("bash", "-c", script, link=link)


def let_go(place: Lab) -> None:
    (place.home / "go").write_text("go\n")


def test_by_the_link(place: Lab) -> None:
    async def scenario() -> None:
        sink = Sink()
        async with serving(sink, place.spool) as server:
            job = holding(place)
            process = place.start(job, env={"SLURM_CPUS_ON_NODE": "2", "SLURM_MEM_PER_NODE": "500"})
            await until(lambda: sink.found == [{"dashboard": "http://c1:8265"}], "the first facts")
            await until(lambda: any(one.rss > 80 * MIB for one in sink.live_use), "the live use")
            [seen, *_] = [one for one in sink.live_use if one.rss > 80 * MIB]
            assert (seen.node, seen.cpus, seen.memory_limit, seen.processes) == ("c1", 2, 500 * MIB, 2)
            assert seen.cpu_seconds > 0
            await asyncio.to_thread(let_go, place)
            assert await place.ended(process) == 0
            await until(lambda: 0 in sink.ends, "the end")
            end = sink.ends[0]
            assert end.facts == {"dashboard": "http://c1:8265", "workers": "2 of 2"}
            assert end.live is not None
            assert end.live.peak_rss >= 80 * MIB
            assert not server.dropped

    asyncio.run(scenario())


def test_by_the_spool_when_there_is_no_link(place: Lab) -> None:
    async def scenario() -> None:
        job = holding(place, link=False)
        process = place.start(job)

        def reported() -> bool:
            report = job.report(0)
            return report is not None and bool(report.facts) and report.live is not None and report.live.rss > 80 * MIB

        await until(reported, "the report")
        await asyncio.to_thread(let_go, place)
        assert await place.ended(process) == 0
        report = job.report(0)
        assert report is not None
        assert report.end is not None
        assert report.end.facts["workers"] == "2 of 2"
        assert report.end.live is not None
        assert report.end.live.peak_rss >= 80 * MIB

    asyncio.run(scenario())


def test_an_agent_that_doesnt_know_these_frames_gets_none(place: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slurmbus_agent.link.OPTIONAL", frozenset())

    async def scenario() -> None:
        sink = Sink()
        async with serving(sink, place.spool) as server:
            job = holding(place)
            process = place.start(job)
            await until(lambda: bytes(sink.of(0, Stream.STDOUT)) == b"holding\n", "the payload")
            await asyncio.to_thread(let_go, place)
            assert await place.ended(process) == 0
            await until(lambda: 0 in sink.ends, "the end")
            await until(lambda: sink.connected == 0, "its connection to end")
            assert (sink.found, sink.live_use) == ([], [])
            assert sink.ends[0].facts["workers"] == "2 of 2"
            assert not server.dropped

    asyncio.run(scenario())
