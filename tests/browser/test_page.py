"""The page in a real browser: what happens on the bus is on it, and a person finds the way."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from playwright.async_api import Page, Route, expect

from browser.endurance import HEAP_GROWTH, NODE_GROWTH, OBSERVE, Probes, measures
from browser.scene import Play, Scene
from contract.bus_site import SITE
from slurmbus_protocol.messages import Partition
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream

PROBES = 50
MANY_JOBS = 1000
MANY_AGENTS = 50
FEW_JOBS = 200
PARTS = 20
"""Each changes every one of the few jobs."""


def test_changes_are_pushed_and_the_page_never_asks(play: Play) -> None:
    async def story(scene: Scene) -> None:
        stage = scene.stage
        await stage.heartbeat(stage.heartbeat_of(SITE))
        async with scene.page() as page:
            await expect(page.get_by_role("button", name=SITE, exact=True)).to_be_visible()
            await expect(page.locator(".site .condition b")).to_have_text("alive")
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            frames: list[str] = []
            page.on("websocket", lambda socket: frames.append(socket.url))
            job = stage.record_of(SITE, JobState.PENDING, 1, name="brand-new")
            await stage.record(job)
            row = page.locator(".sizer .row", has_text="brand-new")
            await expect(row.locator(".state")).to_have_text("PENDING")
            await stage.record(stage.record_of(SITE, JobState.RUNNING, 1, name="brand-new", key=job.key))
            await expect(row.locator(".state")).to_have_text("RUNNING")
            await expect(page.locator("#totals")).to_contain_text("1 running")
            await page.evaluate(OBSERVE)
            probes, names = Probes(), page.locator(".sizer .row .name")
            for number in range(PROBES):
                await probes.send(stage, job, number)
                await expect(names.get_by_text(f"probe-{number}", exact=True)).to_be_visible()
            await probes.collect(page)
            assert len(probes.took) == PROBES
            print(probes.told())  # how long it took depends on the machine; 'python -m browser.endurance' has bounds
            assert asked == []
            assert frames == []  # it came over the connection that was there already

    play(story)


def test_a_job_from_request_to_result_with_its_output(play: Play) -> None:
    async def story(scene: Scene) -> None:
        stage = scene.stage
        job = stage.record_of(SITE, JobState.RUNNING, 60, name="train")
        await stage.record(job)
        end = await stage.output(job, Stream.STDOUT, 0, "first line\nsecond ")
        async with scene.page() as page:
            await page.locator(".sizer .row", has_text="train").click()
            panel = page.locator("#panel")
            await expect(panel.get_by_role("heading", name="train")).to_be_visible()
            log = panel.get_by_role("log")
            await expect(log).to_contain_text("first line")
            end = await stage.output(job, Stream.STDOUT, end, "half\rdone\n")
            await stage.output(job, Stream.STDERR, 0, "careful\n")
            await expect(log.locator(".stdout")).to_have_text(["first line", "done"])
            await expect(log.locator(".stderr")).to_have_text(["careful"])
            await panel.get_by_label("Which output").select_option("stderr")
            await expect(log.locator(".stdout").first).to_be_hidden()
            await expect(panel.locator(".timeline .what")).to_have_text(
                ["request on its way", "staged", "submitted to Slurm", "in the queue", f"ran on {job.node_list}"]
            )
            await stage.record(stage.record_of(SITE, JobState.FAILED, 60, name="train", key=job.key))
            await expect(panel.locator(".state")).to_have_text("FAILED")
            await expect(panel.locator(".job-body .saying")).to_contain_text("exit code 1")
            await expect(page.locator("#attention")).to_contain_text(f"{SITE}: 1 job failed in the last hour")
            await expect(page).to_have_url(f"{scene.server.url}#job/{SITE}/{job.key}/0")

    play(story)


def test_a_site_with_its_agents_and_partitions(play: Play) -> None:
    async def story(scene: Scene) -> None:
        stage = scene.stage
        partition = Partition(name="boost", state="UP", nodes=3456, cpus=110592, default=True, max_time_minutes=1440)
        await stage.answer_partitions(SITE, [partition])
        await stage.heartbeat(stage.heartbeat_of(SITE, alarms=("the quota is nearly full",)))
        await stage.heartbeat(stage.heartbeat_of(SITE, agent_id="second", host="login2", leader=False))
        async with scene.page() as page:
            await expect(page.locator("#attention")).to_contain_text("the quota is nearly full")
            await expect(page.locator(".site .who")).to_contain_text("1 standing by")
            await page.get_by_role("button", name=SITE, exact=True).click()
            panel = page.locator("#panel")
            await expect(panel.locator(".role")).to_have_text(["leader", "standby"])
            await expect(panel.get_by_role("meter", name="memory").first).to_have_attribute("aria-valuenow", "73")
            await expect(panel.get_by_role("row", name="boost")).to_contain_text("3,456")
            beat = stage.heartbeat_of(SITE, leader=False, released=True, alarms=())
            await stage.heartbeat(beat)
            await expect(page.locator("#attention")).to_contain_text(f"{SITE}: the agent was stopped")
            await expect(panel.locator(".role")).to_have_text(["led last", "standby"])

    play(story)


def test_a_thousand_jobs_and_fifty_agents(play: Play) -> None:
    """Few rows are elements, however many jobs there are; search, filters and sorting find what is out of sight."""

    async def story(scene: Scene) -> None:
        stage = scene.stage
        for number in range(MANY_AGENTS):
            await stage.heartbeat(stage.heartbeat_of(f"site-{number:02}"))
        states = (JobState.COMPLETED, JobState.RUNNING, JobState.PENDING, JobState.FAILED)
        jobs = [
            stage.record_of(f"site-{number % MANY_AGENTS:02}", states[number % 4], 10 + number, job_id=50_000 + number)
            for number in range(MANY_JOBS)
        ]
        await asyncio.gather(*map(stage.record, jobs))
        async with scene.page() as page:
            await expect(page.locator("#job-count")).to_have_text("1,000")
            await expect(page.locator(".site")).to_have_count(MANY_AGENTS + 1)  # and the home's own
            rows = page.locator(".sizer .row")
            assert await rows.count() < 60
            await page.locator("#scroller").evaluate("scroller => scroller.scrollTop = scroller.scrollHeight")
            await expect(rows.filter(has_text="50999")).to_be_visible()
            assert await rows.count() < 60
            await page.get_by_label("Search jobs").fill("50777 site-27")
            await expect(rows).to_have_count(1)
            await expect(page.locator("#job-count")).to_have_text("1 of 1,000")
            await page.get_by_label("Search jobs").fill("no such job")
            await expect(page.locator("#no-jobs")).to_have_text("No job fits this search.")
            await page.get_by_label("Search jobs").fill("")
            await page.get_by_role("button", name="failed 250").click()
            await expect(page.locator("#job-count")).to_have_text("250 of 1,000")
            await page.get_by_role("button", name="Slurm id").click()
            await expect(rows.first.locator("[role=cell]").nth(3)).to_have_text("50003")

    play(story)


def test_everything_by_keyboard(play: Play) -> None:
    async def story(scene: Scene) -> None:
        stage = scene.stage
        await stage.heartbeat(stage.heartbeat_of(SITE))
        for number in range(3):
            await stage.record(stage.record_of(SITE, JobState.RUNNING, 10 * (number + 1), name=f"job-{number}"))
        async with scene.page() as page:
            await expect(page.locator(".sizer .row")).to_have_count(3)
            await page.keyboard.press("Tab")
            await expect(page.locator(".skip")).to_be_focused()
            await page.keyboard.press("Enter")
            await page.keyboard.press("/")
            await expect(page.get_by_label("Search jobs")).to_be_focused()
            await _tab_to(page, "#scroller")
            await page.keyboard.press("ArrowDown")
            await page.keyboard.press("ArrowDown")
            await expect(page.get_by_role("button", name="job-1")).to_be_focused()
            await page.keyboard.press("Enter")
            await expect(page.locator("#panel")).to_be_focused()
            await expect(page.locator("#panel h2")).to_have_text("job-1")
            await page.keyboard.press("Escape")
            await expect(page.locator("#panel")).to_be_hidden()
            await expect(page.get_by_role("button", name="job-1")).to_be_focused()
            await page.keyboard.press("End")
            await expect(page.get_by_role("button", name="job-2")).to_be_focused()

    play(story)


async def _tab_to(page: Page, selector: str) -> None:
    for _ in range(20):
        await page.keyboard.press("Tab")
        if await page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} can't be reached by Tab")


def test_the_page_says_when_the_bus_is_lost_and_when_it_is_back(play: Play) -> None:
    async def story(scene: Scene) -> None:
        await scene.stage.heartbeat(scene.stage.heartbeat_of(SITE))
        async with scene.page() as page:
            await expect(page.locator(".site")).to_have_attribute("data-condition", "alive")
            scene.there.owner.server.kill()
            await expect(page.get_by_role("alert").filter(has_text="The bus isn't reachable")).to_be_visible()
            await expect(page.locator("#attention [data-level=bad]")).to_contain_text("The bus isn't reachable")
            await expect(page.locator(".site")).to_have_attribute("data-condition", "unreachable")
            await asyncio.to_thread(scene.there.owner.server.restart)
            await expect(page.locator("#stale-bar")).to_be_hidden()
            await expect(page.locator("#live")).to_have_text("live")

    play(story)


def test_the_page_says_when_its_server_is_gone_and_goes_on_with_the_next(play: Play) -> None:
    async def story(scene: Scene) -> None:
        from browser.served import served

        await scene.stage.heartbeat(scene.stage.heartbeat_of(SITE))
        async with scene.page(signed_in=False) as page:
            scene.server.process.kill()
            alert = page.get_by_role("alert").filter(has_text="The dashboard's server doesn't answer")
            await expect(alert).to_be_visible()
            await expect(page.locator("#live")).to_have_text("not connected")
            scene.server.process.wait()
            with served(scene.there.home, "--public", port=scene.server.port):
                await expect(page.locator("#live")).to_have_text("live")
                await expect(page.locator("#stale-bar")).to_be_hidden()

    play(story, "--public")


def test_a_part_or_an_answer_that_is_lost_on_its_way_is_asked_for_again(play: Play) -> None:
    """Chromium gives up every request when a network comes or goes; a link that was used by it still signs in."""

    async def story(scene: Scene) -> None:
        lost: list[str] = []

        async def lose(route: Route) -> None:
            name = route.request.url.rpartition("/")[2]
            if name in lost:
                await route.continue_()
                return
            lost.append(name)
            if name == "sign-in":
                assert (await route.fetch()).status == 200  # the server has taken it
            await route.abort("failed")

        async with scene.page() as page:
            await page.context.clear_cookies()
            for part in ("store.js", "page.css", "sign-in"):
                await page.route(f"**/{part}", lose)
            await page.goto("about:blank")
            await page.goto(scene.server.link())
            await expect(page.locator("#live")).to_have_attribute("data-live", "yes")
            await expect(page.get_by_role("button", name="Sign out")).to_be_visible()
            assert sorted(lost) == ["page.css", "sign-in", "store.js"]

    play(story)


def test_the_page_says_when_its_server_is_frozen(play: Play) -> None:
    import signal

    async def story(scene: Scene) -> None:
        async with scene.page() as page:
            scene.server.process.send_signal(signal.SIGSTOP)
            await expect(page.locator("#live")).to_have_text("not connected")
            scene.server.process.send_signal(signal.SIGCONT)
            await expect(page.locator("#live")).to_have_text("live")

    play(story)


def test_what_jobs_say_is_text_and_never_markup(play: Play) -> None:
    async def story(scene: Scene) -> None:
        stage = scene.stage
        attack = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
        await stage.heartbeat(stage.heartbeat_of(SITE, alarms=(attack,), host=attack))
        job = stage.record_of(SITE, JobState.RUNNING, 60, name=attack, hint=attack, task_name=attack)
        await stage.record(job)
        await stage.output(job, Stream.STDOUT, 0, f"{attack}\n")
        async with scene.page() as page:
            await expect(page.locator("#attention")).to_contain_text(attack)
            await page.locator(".sizer .row").first.click()
            await expect(page.get_by_role("log")).to_contain_text(attack)
            await expect(page.locator("#panel h2")).to_have_text(attack)
            assert await page.locator("#main img, #panel img, #panel script").count() == 0
            assert "taken" not in await page.title()

    play(story)


def test_what_is_kept_is_bounded(play: Play) -> None:
    """A flood of output, of changes and of heartbeats leaves no more elements and beats than there may be."""

    async def story(scene: Scene) -> None:
        stage = scene.stage
        job = stage.record_of(SITE, JobState.RUNNING, 60, name="flood")
        await stage.record(job)
        async with scene.page() as page:
            await page.locator(".sizer .row").first.click()
            before = await _elements(page)
            offset = 0
            for part in range(40):
                lines = "".join(f"line {part * 250 + line}\n" for line in range(250))
                offset = await stage.output(job, Stream.STDOUT, offset, lines)
            for _ in range(300):
                await stage.heartbeat(stage.heartbeat_of(SITE))
            last = page.get_by_role("log").locator("div").last
            await expect(last).to_have_text("line 9999")
            assert await page.get_by_role("log").locator("div").count() <= 2000
            assert await _elements(page) - before <= 2200

    play(story)


def test_memory_is_flat(play: Play) -> None:
    """After the first tenth of many changes the page's scripts, nodes and listeners grow no more."""

    async def story(scene: Scene) -> None:
        stage = scene.stage
        states = (JobState.PENDING, JobState.RUNNING, JobState.COMPLETED)
        jobs = [stage.record_of(SITE, JobState.PENDING, 60 + number) for number in range(FEW_JOBS)]
        writer = stage.record_of(SITE, JobState.RUNNING, 5000, name="writer")
        await stage.record(writer)
        last = stage.record_of(SITE, JobState.PENDING, 0)
        offset = 0

        async def change(part: int) -> None:
            nonlocal offset
            changed = [
                stage.record_of(SITE, states[part % 3], 60 + number, name=job.name, key=job.key)
                for number, job in enumerate(jobs)
            ]
            await asyncio.gather(*map(stage.record, changed))
            for _ in range(150):  # more than the 120 that are kept
                await stage.heartbeat(stage.heartbeat_of(SITE))
            lines = "".join(f"line {part}-{line}\n" for line in range(2200))  # more than the 2,000 that are kept
            offset = await stage.output(writer, Stream.STDOUT, offset, lines)
            await stage.record(msgspec.structs.replace(last, name=f"part-{part}"))
            await expect(page.locator(".sizer .row .name").get_by_text(f"part-{part}", exact=True)).to_be_visible()
            await expect(page.get_by_role("log").locator("div").last).to_have_text(f"line {part}-2199")

        async with scene.page() as page:
            await page.locator(".sizer .row", has_text="writer").click()
            session = await page.context.new_cdp_session(page)
            await session.send("Performance.enable")
            for part in range(PARTS // 10):
                await change(part)
            before = await measures(session)
            for part in range(PARTS // 10, PARTS):
                await change(part)
            after = await measures(session)
            print(f"after {PARTS // 10 * FEW_JOBS} changes: {before}; after {PARTS * FEW_JOBS}: {after}")
            assert after.heap - before.heap < HEAP_GROWTH
            assert after.nodes - before.nodes < NODE_GROWTH
            assert after.listeners - before.listeners < NODE_GROWTH

    play(story)


async def _elements(page: Page) -> int:
    count: Any = await page.evaluate("document.querySelectorAll('*').length")
    return int(count)
