"""How quickly changes reach the page, and whether its memory stays flat: ``python -m browser.endurance --minutes 30``.

50 agents beat every two seconds, 1,000 jobs change ten times a second, one job is open and writes. Every minute a line
tells how long changes took from the publish to the page's elements, and what page and server hold.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from playwright.async_api import CDPSession, Page, async_playwright

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

    async def publish(self, stage: Stage) -> None:
        probe = stage.record_of(SITE, JobState.PENDING, 0.0)
        for number in itertools.count():
            now = time.time()
            name = f"probe-{number}"
            self.sent[name] = now
            await stage.record(msgspec.structs.replace(probe, name=name, created_at=now, updated_at=now))
            await asyncio.sleep(PROBE_INTERVAL)

    async def collect(self, page: Page) -> list[float]:
        found = await page.evaluate(TAKE)
        took = [at / 1000 - self.sent.pop(name) for name, at in found if name in self.sent]
        self.took.extend(took)
        return took


async def beat(stage: Stage) -> None:
    while True:
        for number in range(AGENTS):
            await stage.heartbeat(stage.heartbeat_of(f"site-{number:02}"))
            await asyncio.sleep(BEAT / AGENTS)


async def change(stage: Stage, jobs: list[Record]) -> None:
    states = (JobState.PENDING, JobState.RUNNING, JobState.COMPLETED)
    for number in itertools.count():
        old = jobs[number % JOBS]
        state = states[number // JOBS % len(states)]
        age = time.time() - old.created_at
        await stage.record(stage.record_of(old.site, state, age, name=old.name, key=old.key))
        await asyncio.sleep(1 / CHANGES_A_SECOND)


async def write(stage: Stage, job: Record) -> None:
    offset = 0
    for number in itertools.count():
        offset = await stage.output(job, Stream.STDOUT, offset, f"step {number}: {'.' * 60}\n" * 5)
        await asyncio.sleep(1.0)


async def measures(session: CDPSession) -> tuple[int, int, float]:
    """What the page's scripts hold after a collection, how many nodes there are, and the page's CPU seconds so far."""
    await session.send("HeapProfiler.collectGarbage")
    metrics: Any = await session.send("Performance.getMetrics")
    found = {entry["name"]: entry["value"] for entry in metrics["metrics"]}
    return int(found["JSHeapUsedSize"]), int(found["Nodes"]), float(found["TaskDuration"])


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


async def watch(page: Page, probes: Probes, pid: int, minutes: float) -> None:
    session = await page.context.new_cdp_session(page)
    await session.send("Performance.enable")
    print(COLUMNS, flush=True)
    *_, before = await measures(session)
    for minute in range(1, int(minutes) + 1):
        await asyncio.sleep(60)
        took = sorted(await probes.collect(page)) or [float("nan")]
        used, nodes, busy = await measures(session)
        p50, p95 = statistics.median(took), took[int(0.95 * (len(took) - 1))]
        print(
            f"{minute:6}  {p50 * 1000:8.0f} ms {p95 * 1000:5.0f} {took[-1] * 1000:5.0f}  {used / 2**20:8.1f} MiB"
            f"   {nodes:8}   {resident(pid) / 2**20:8.1f} MiB   {(busy - before) / 60:8.0%}",
            flush=True,
        )
        before = busy


async def play(folder: Path, chromium: str, minutes: float) -> None:
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
            await page.goto(f"{server.url}#job/{SITE}/{shown.key}/0")
            await page.evaluate(OBSERVE)
            probes = Probes()
            tasks = [
                asyncio.create_task(work)
                for work in (beat(stage), change(stage, jobs), write(stage, shown), probes.publish(stage))
            ]
            try:
                await watch(page, probes, server.process.pid, minutes)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await browser.close()
    took = sorted(probes.took)
    p99 = took[int(0.99 * (len(took) - 1))]
    print(f"{len(took)} changes: p50 {statistics.median(took) * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        asyncio.run(play(Path(folder), arguments.chromium, arguments.minutes))


if __name__ == "__main__":
    main()
