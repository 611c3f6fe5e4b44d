"""A real browser, a real bus, and the real command between them."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import async_playwright

from browser.scene import ARGUMENTS, PATIENCE, Play, Scene, Story
from browser.served import served
from browser.stage import Stage
from contract.bus_site import BusSite, bus_site

REQUIRED = "SLURMBUS_REQUIRE_BROWSER"
HANGING = 900.0
"""Seconds after which a story is ended that hangs; each of its steps has a patience of its own."""


@pytest.fixture(scope="session")
def chromium() -> str:
    """The system's browser; without one the test is skipped, or fails where SLURMBUS_REQUIRE_BROWSER is set."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        if os.environ.get(REQUIRED):
            pytest.fail(f"{REQUIRED} is set, and there is no chromium: run 'make browser'")
        pytest.skip("there is no chromium: run 'make browser'")
    return found


@pytest.fixture
def bus_there(tmp_path: Path) -> Iterator[BusSite]:
    """A home with its bus."""
    with bus_site(tmp_path) as there:
        yield there


@pytest.fixture
def play(bus_there: BusSite, chromium: str) -> Play:
    """Run a story with the command serving, and a browser."""

    def run(story: Story, *options: str, **environment: str) -> None:
        async def staged() -> None:
            with served(bus_there.home, *options, **environment) as server:
                async with (
                    asyncio.timeout(HANGING),
                    async_playwright() as playwright,
                    Stage(bus_there.home) as stage,
                ):
                    browser = await playwright.chromium.launch(
                        executable_path=chromium, args=ARGUMENTS, timeout=PATIENCE
                    )
                    try:
                        await story(Scene(bus_there, server, stage, browser))
                    finally:
                        await browser.close()

        asyncio.run(staged())

    return run
