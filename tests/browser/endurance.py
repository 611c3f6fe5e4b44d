"""How quickly changes reach the page, and whether its memory stays flat: ``python -m browser.endurance --minutes 30``.

50 agents beat every two seconds, 1,000 jobs change ten times a second, one job is open and writes. Every minute a line
tells how long changes took from the publish to the page's elements, and what page and server hold. It ends with 1 when
a bound is exceeded: the median and the 99th percentile of all changes, and what the page holds at the end against
what it held after the first minute. The times are those of a machine that has nothing else to do.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from playwright.async_api import CDPSession, Page, async_playwright, expect

from browser.scene import ARGUMENTS
from browser.served import served
from browser.stage import Stage
from contract.bus_site import SITE, bus_site
from slurmbus_protocol.messages import Record
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream

AGENTS = 50
JOBS = 1000
BEAT = 2.0
CHANGES_A_SECOND = 10
MEDIAN, P99 = 0.25, 0.5
"""Seconds from the publish of a change until it is on the page, at most."""
HEAP_GROWTH, NODE_GROWTH = 2**20, 500
"""Bytes of the page's scripts, and nodes, that may be there more than after the first part."""
KEPT_LINES, KEPT_BEATS = 2000, 120
"""What the page keeps at most; it begins with that, since filling up isn't a leak."""
PROBE_INTERVAL = 1.0
COLUMNS = "minute  changes p50   p95   max     page's heap   elements   server's memory   page's CPU"
OBSERVE = """() => {
  window.seen = new Map();
  new MutationObserver(() => {
    for (const row of document.querySelectorAll(".sizer .row .name")) {
      const name = row.textContent;
      if (name.startsWith("probe-") && !window.seen.has(name)) window.seen.set(name, Date.now());
    }
  }).observe(document.querySelector("#sizer"), {subtree: true, childList: true, characterData: true});
}"""
TAKE = "() => { const found = [...window.seen]; window.seen.clear(); return found; }"


@dataclass
class Probes:
    """Changes that are timed: when they were published, and how long they took."""

    sent: dict[str, float] = field(default_factory=dict)
    took: list[float] = field(default_factory=list)

    async def send(self, stage: Stage, probe: Record, number: int) -> None:
        now = time.time()
        name = f"probe-{number}"
        self.sent[name] = now
        await stage.record(msgspec.structs.replace(probe, name=name, created_at=now, updated_at=now))

    async def publish(self, stage: Stage) -> None:
        probe = stage.record_of(SITE, JobState.PENDING, 0.0)
        for number in itertools.count():
            await self.send(stage, probe, number)
            await asyncio.sleep(PROBE_INTERVAL)

    async def collect(self, page: Page) -> list[float]:
        found = await page.evaluate(TAKE)
        took = [at / 1000 - self.sent.pop(name) for name, at in found if name in self.sent]
        self.took.extend(took)
        return took

    @property
    def median(self) -> float:
        return statistics.median(self.took)

    @property
    def p99(self) -> float:
        return sorted(self.took)[int(0.99 * (len(self.took) - 1))]

    def told(self) -> str:
        return f"{len(self.took)} changes: p50 {self.median * 1000:.0f} ms, p99 {self.p99 * 1000:.0f} ms"


class Measures(NamedTuple):
    """What a page holds after a collection, and has used so far."""

    heap: int
    """Bytes of its scripts."""
    nodes: int
    listeners: int
    busy: float
    """Seconds of CPU."""


async def one_beat(stage: Stage, number: int) -> None:
    await stage.heartbeat(stage.heartbeat_of(f"site-{number:02}", interval=BEAT, lease_seconds=3 * BEAT))


async def beat(stage: Stage) -> None:
    while True:
        for number in range(AGENTS):
            await one_beat(stage, number)
            await asyncio.sleep(BEAT / AGENTS)


async def change(stage: Stage, jobs: list[Record]) -> None:
    states = (JobState.PENDING, JobState.RUNNING, JobState.COMPLETED)
    for number in itertools.count():
        old = jobs[number % JOBS]
        state = states[number // JOBS % len(states)]
        age = time.time() - old.created_at
        await stage.record(stage.record_of(old.site, state, age, name=old.name, key=old.key))
        await asyncio.sleep(1 / CHANGES_A_SECOND)


async def write(stage: Stage, job: Record, offset: int) -> None:
    for number in itertools.count():
        offset = await stage.output(job, Stream.STDOUT, offset, f"step {number}: {'.' * 60}\n" * 5)
        await asyncio.sleep(1.0)


async def measures(session: CDPSession) -> Measures:
    """Measure a page; its session has ``Performance`` enabled."""
    for _ in range(2):  # the first one lets go of what finalizers hold
        await session.send("HeapProfiler.collectGarbage")
    metrics: Any = await session.send("Performance.getMetrics")
    found = {entry["name"]: entry["value"] for entry in metrics["metrics"]}
    return Measures(
        int(found["JSHeapUsedSize"]), int(found["Nodes"]), int(found["JSEventListeners"]), float(found["TaskDuration"])
    )


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


async def watch(page: Page, probes: Probes, pid: int, minutes: int) -> list[Measures]:
    """Tell every minute what there is, and give what was measured."""
    session = await page.context.new_cdp_session(page)
    await session.send("Performance.enable")
    print(COLUMNS, flush=True)
    found = []
    busy = (await measures(session)).busy
    for minute in range(1, minutes + 1):
        await asyncio.sleep(60)
        took = sorted(await probes.collect(page)) or [float("nan")]
        now = await measures(session)
        found.append(now)
        p50, p95 = statistics.median(took), took[int(0.95 * (len(took) - 1))]
        print(
            f"{minute:6}  {p50 * 1000:8.0f} ms {p95 * 1000:5.0f} {took[-1] * 1000:5.0f}  {now.heap / 2**20:8.1f} MiB"
            f"   {now.nodes:8}   {resident(pid) / 2**20:8.1f} MiB   {(now.busy - busy) / 60:8.0%}",
            flush=True,
        )
        busy = now.busy
    return found


def exceeded(probes: Probes, found: list[Measures]) -> list[str]:
    """Give the bounds that don't hold (pure)."""
    heap, nodes = found[-1].heap - found[0].heap, found[-1].nodes - found[0].nodes
    checks = {
        f"the median is more than {MEDIAN * 1000:.0f} ms": probes.median > MEDIAN,
        f"the 99th percentile is more than {P99 * 1000:.0f} ms": probes.p99 > P99,
        f"the page's scripts hold {heap / 2**20:.1f} MiB more than after a minute": heap > HEAP_GROWTH,
        f"there are {nodes} nodes more than after a minute": nodes > NODE_GROWTH,
    }
    return [words for words, wrong in checks.items() if wrong]


async def play(folder: Path, chromium: str, minutes: int) -> list[str]:
    with bus_site(folder) as there, served(there.home) as server:
        async with async_playwright() as playwright, Stage(there.home) as stage:
            browser = await playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
            jobs = [
                stage.record_of(f"site-{number % AGENTS:02}", JobState.PENDING, 60 + number) for number in range(JOBS)
            ]
            await asyncio.gather(*map(stage.record, jobs))
            page = await browser.new_page(viewport={"width": 1400, "height": 1000})
            shown = stage.record_of(SITE, JobState.RUNNING, 5000, name="writer")
            await stage.record(shown)
            lines = "".join(
                f"line {number}\n" for number in range(KEPT_LINES)
            )  # all of it fits into what a page is given
            offset = await stage.output(shown, Stream.STDOUT, 0, lines)
            for number in range(AGENTS * KEPT_BEATS):
                await one_beat(stage, number % AGENTS)
            await page.goto(server.link())
            await expect(page.get_by_role("button", name="Sign out")).to_be_visible()
            await page.evaluate(f"location.hash = 'job/{SITE}/{shown.key}/0'")
            await page.evaluate(OBSERVE)
            probes = Probes()
            tasks = [
                asyncio.create_task(work)
                for work in (beat(stage), change(stage, jobs), write(stage, shown, offset), probes.publish(stage))
            ]
            try:
                found = await watch(page, probes, server.process.pid, minutes)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await browser.close()
    print(probes.told())
    return exceeded(probes, found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=2, help="at least 2: what is held after the first is compared")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        problems = asyncio.run(play(Path(folder), arguments.chromium, max(2, arguments.minutes)))
    for problem in problems:
        print(problem)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
