"""axe-core finds nothing, in any view, in light and dark, on a desk and on a phone."""

from __future__ import annotations

from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, expect

from browser.scene import Play, Scene
from contract.bus_site import SITE
from slurmbus_protocol.messages import Partition
from slurmbus_protocol.states import JobState
from slurmbus_protocol.subjects import Stream

DESK: dict[str, Any] = {"viewport": {"width": 1400, "height": 900}}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


async def _nothing_found(page: Page, view: str) -> None:
    found = await Axe().run(page)
    assert found.violations_count == 0, f"{view}: {found.generate_report()}"


@pytest.mark.parametrize(
    ("scheme", "device"),
    [("light", DESK), ("dark", DESK), ("light", PHONE)],
    ids=["light", "dark", "phone"],  # the colours of a phone are those of a desk
)
def test_axe_finds_no_violations(play: Play, scheme: str, device: dict[str, Any]) -> None:
    async def story(scene: Scene) -> None:
        stage = scene.stage
        async with scene.page(signed_in=False, color_scheme=scheme, **device) as page:
            await _nothing_found(page, "empty")
            await stage.answer_partitions(SITE, [Partition(name="main", state="UP", nodes=4, cpus=512)])
            await stage.heartbeat(stage.heartbeat_of(SITE, alarms=("the quota is nearly full",)))
            for state in (JobState.PENDING, JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.TIMEOUT):
                await stage.record(stage.record_of(SITE, state, 100))
            job = stage.record_of(SITE, JobState.RUNNING, 50, name="open-me")
            await stage.record(job)
            await stage.output(job, Stream.STDOUT, 0, "some\n" * 100)
            await stage.output(job, Stream.STDERR, 0, "warning\n")
            await expect(page.locator(".sizer .row")).to_have_count(6)
            await _nothing_found(page, "overview")
            if device is PHONE:
                assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it is too wide"
            await page.evaluate(f"location.hash = 'job/{SITE}/{job.key}/0'")
            await expect(page.get_by_role("log")).to_contain_text("warning")
            await _nothing_found(page, "job")
            await page.evaluate(f"location.hash = 'site/{SITE}'")
            await expect(page.locator("#panel table")).to_be_visible()
            await _nothing_found(page, "site")
            await page.locator("#panel").get_by_role("button", name="Close the details").click()
            await page.get_by_role("button", name="Sign in").click()
            await _nothing_found(page, "signing in")
            await page.get_by_role("button", name="Close").click()
            scene.server.process.kill()
            await expect(page.locator("#stale-bar")).to_be_visible()
            await _nothing_found(page, "stale")

    play(story, "--public")
