"""What a story in the browser plays with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from playwright.async_api import Browser, Error, Page, expect

from browser.served import Served
from browser.stage import Stage
from contract.bus_site import BusSite

PATIENCE = 120_000
"""Milliseconds for a step, also for the browser's start: a busy machine isn't a fault of the page."""
ATTEMPTS = 10
expect.set_options(timeout=PATIENCE)

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Scene:
    """What a test plays with."""

    there: BusSite
    server: Served
    stage: Stage
    browser: Browser

    @asynccontextmanager
    async def page(
        self, *, signed_in: bool = True, ready: bool = True, address: str | None = None, **context: Any
    ) -> AsyncIterator[Page]:
        """Open the page, or what leads there; errors on its console fail the test."""
        browser_context = await self.browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **context})
        browser_context.set_default_timeout(PATIENCE)
        page = await browser_context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if "Security Policy" in line.text else None)
        try:
            await self._go(page, address or (self.server.link() if signed_in else self.server.url))
            if ready:
                await expect(page.locator("#live")).to_have_attribute("data-live", "yes")
            yield page
        finally:
            await browser_context.close()
        assert errors == []

    async def _go(self, page: Page, address: str) -> None:
        """Open an address, again where a container's network that came or went beside us ended the first attempt."""
        for _ in range(ATTEMPTS):
            try:
                await page.goto(address)
            except Error as error:
                if "ERR_NETWORK_CHANGED" not in error.message:
                    raise
            else:
                return
        raise AssertionError("the network changed all the time")


Story = Callable[[Scene], Coroutine[Any, Any, None]]
Play = Callable[..., None]
