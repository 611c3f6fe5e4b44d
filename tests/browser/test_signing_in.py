"""Who may do what: nothing without signing in by a link that works once, and no other page gets in between."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from playwright.async_api import expect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from browser.scene import Play, Scene
from browser.served import COMMAND, Served, served
from contract.bus_site import SITE, BusSite
from slurmbus.dashboard.links import Links, opening_file
from slurmbus_protocol.messages import Cancel, ControlRefused, Requeue, RequeueAsked
from slurmbus_protocol.states import JobState


@pytest.fixture
def server(bus_there: BusSite) -> Iterator[Served]:
    with served(bus_there.home) as running:
        yield running


def ask(server: Served, method: str, path: str, body: object = None, **headers: str) -> tuple[int, dict[str, str], str]:
    """Send one request with exactly these headers."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    sent = {"Host": f"127.0.0.1:{server.port}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    try:
        connection.request(method, path, json.dumps(body), sent)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()
    finally:
        connection.close()


def sign_in(server: Served) -> tuple[str, str]:
    """Give the cookie and the page's own secret."""
    origin = server.url.rstrip("/")
    status, headers, _ = ask(server, "POST", "/sign-in", {"token": server.token()}, Origin=origin)
    assert status == 200
    assert "HttpOnly" in headers["set-cookie"]
    assert "samesite=strict" in headers["set-cookie"].lower()
    cookie = headers["set-cookie"].partition(";")[0]
    with connect(f"ws://127.0.0.1:{server.port}/feed", origin=origin, additional_headers={"Cookie": cookie}) as socket:
        return cookie, json.loads(socket.recv())["forgery"]


CANCEL = {"site": SITE, "key": "01J0000000000000000000000A", "task": None}


@pytest.mark.parametrize("path", ["/cancel", "/requeue"])
def test_nothing_can_be_done_without_signing_in(server: Served, path: str) -> None:
    origin = server.url.rstrip("/")
    assert ask(server, "POST", path, CANCEL, Origin=origin)[0] == 403
    assert ask(server, "POST", "/sign-out", {}, Origin=origin)[0] == 403
    assert ask(server, "POST", "/sign-in", {"token": "guessed"}, Origin=origin)[0] == 403
    assert ask(server, "POST", "/sign-in", {"wrong": 1}, Origin=origin)[0] == 400
    assert ask(server, "POST", "/sign-in", {"token": "x" * 10_000}, Origin=origin)[0] == 400
    assert ask(server, "GET", path)[0] == 405


@pytest.mark.parametrize("path", ["/cancel", "/requeue"])
def test_another_sites_page_cant_use_the_cookie(server: Served, path: str) -> None:
    origin = server.url.rstrip("/")
    cookie, forgery = sign_in(server)
    known = {"Cookie": cookie, "X_Slurmbus_Page": forgery}
    assert ask(server, "POST", path, CANCEL, **known)[0] == 403  # no origin
    assert ask(server, "POST", path, CANCEL, Origin="http://evil.example", **known)[0] == 403
    assert ask(server, "POST", path, CANCEL, Origin="null", **known)[0] == 403
    assert ask(server, "POST", path, CANCEL, Origin=origin, Cookie=cookie)[0] == 403  # without the page's secret
    assert ask(server, "POST", path, CANCEL, Origin=origin, Sec_Fetch_Site="cross-site", **known)[0] == 403
    assert ask(server, "POST", path, CANCEL, Origin=origin, **known)[0] == 200
    assert ask(server, "POST", "/sign-out", {}, Origin=origin, **known)[0] == 200
    assert ask(server, "POST", path, CANCEL, Origin=origin, **known)[0] == 403


def test_another_name_that_points_here_gets_nothing(server: Served) -> None:
    """DNS rebinding: the browser believes that it talks to evil.example."""
    evil = f"evil.example:{server.port}"
    assert ask(server, "GET", "/", Host=evil)[0] == 403
    assert ask(server, "POST", "/sign-in", {"token": server.token()}, Host=evil, Origin=f"http://{evil}")[0] == 403
    with (
        pytest.raises(InvalidStatus, match="403"),
        connect(f"ws://127.0.0.1:{server.port}/feed", origin="http://evil.example", proxy=None),
    ):
        pass
    assert ask(server, "GET", "/", Host=f"localhost:{server.port}")[0] == 200


def test_every_answer_tells_the_browser_to_be_strict(server: Served) -> None:
    for path in ("/", "/static/js/main.js", "/nowhere", "/static/../../../../etc/passwd"):
        status, headers, body = ask(server, "GET", path)
        assert status in {200, 404}
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe-inline" not in headers["content-security-policy"]
        assert headers["content-security-policy"].count("'sha256-") == 1  # the one script that stands in the page
        assert headers["x-content-type-options"] == "nosniff"
        assert "root:" not in body


def test_another_local_user_sees_nothing_at_the_dashboard_s_port(server: Served, bus_there: BusSite) -> None:
    """Who reaches the loopback gets the empty page; what lets in lies in files that only their owner can read."""
    origin = server.url.rstrip("/")
    url = f"ws://127.0.0.1:{server.port}/feed"
    for cookies in ({}, {"Cookie": f"slurmbus-{server.port}=guessed"}):
        looking = connect(url, origin=origin, additional_headers=cookies)
        with looking as socket, pytest.raises(ConnectionClosed, match="4401"):
            socket.recv()
    status, _, page = ask(server, "GET", "/")
    assert (status, SITE in page) == (200, False)
    token = (bus_there.home.path / "metrics.token").read_text()
    for header in ({}, {"Authorization": "Bearer "}, {"Authorization": f"Bearer {token[:-1]}"}):
        status, headers, body = ask(server, "GET", "/metrics", **header)
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert "slurmbus_" not in body
    assert ask(server, "GET", "/metrics", Authorization=f"Bearer {token}")[0] == 200
    for name in ("dashboard.json", "metrics.token"):
        assert (bus_there.home.path / name).stat().st_mode & 0o077 == 0
    assert bus_there.home.path.stat().st_mode & 0o077 == 0
    command = Path(f"/proc/{server.process.pid}/cmdline").read_text()
    assert not any(secret in command for secret in (token, server.links.key, "token="))


def test_a_link_works_once(server: Served, bus_there: BusSite) -> None:
    origin = server.url.rstrip("/")
    asked = [COMMAND, "dashboard", "--link"]
    environment = {"PATH": "/usr/bin:/bin", "SLURMBUS_HOME": str(bus_there.home.path)}
    another = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout
    for link in (server.printed_link, another.strip()):
        page, _, token = link.partition("#token=")
        assert page == server.url
        assert ask(server, "POST", "/sign-in", {"token": f"9{token}"}, Origin=origin)[0] == 403
        assert ask(server, "POST", "/sign-in", {"token": token}, Origin=origin)[0] == 200
        status, _, problem = ask(server, "POST", "/sign-in", {"token": token}, Origin=origin)
        assert (status, "used before" in problem) == (403, True)
        assert ask(server, "POST", "/sign-in", {"token": token, "attempt": "guessed"}, Origin=origin)[0] == 403
    assert Links.of_page(server.url).until(server.token()) == 0  # of another server
    stale = server.links.link(lifetime=-1).partition("#token=")[2]
    assert ask(server, "POST", "/sign-in", {"token": stale}, Origin=origin)[0] == 403
    server.process.terminate()
    server.process.wait()
    done = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "no dashboard of" in done.stderr


def test_opening_it_puts_no_secret_into_a_command_line(play: Play, tmp_path: Path) -> None:
    """The browser is given a file that only its user can read; what stands there works once, too."""
    browser, told = tmp_path / "browser", tmp_path / "told"
    browser.write_text(f'#!/bin/sh\nprintf %s "$*" >{told}\n')
    browser.chmod(0o700)

    async def story(scene: Scene) -> None:
        file = opening_file(scene.there.home)
        url = told.read_text()
        assert url == file.as_uri()
        assert os.stat(file).st_mode & 0o077 == 0  # noqa: PTH116 - Path's would be taken for one that blocks for long
        async with scene.page(address=url) as page:
            await expect(page.get_by_role("button", name="Sign out")).to_be_visible()
            await expect(page).to_have_url(scene.server.url)
        async with scene.page(address=url, ready=False) as page:
            await expect(page.locator("#sign-in-problem")).to_contain_text("used before")

    play(story, "--open", BROWSER=str(browser))


def test_who_signs_out_leaves_nothing_on_any_page(play: Play) -> None:
    """Also a page that was open beside it, and one whose server was started anew."""

    async def story(scene: Scene) -> None:
        await scene.stage.record(scene.stage.record_of(SITE, JobState.RUNNING, 60, name="train"))
        async with scene.page() as page:
            row = page.locator(".sizer .row", has_text="train")
            await expect(row).to_be_visible()
            beside = await page.context.new_page()
            await beside.goto(scene.server.url)
            await expect(beside.locator(".sizer .row", has_text="train")).to_be_visible()
            await page.get_by_role("button", name="Sign out").click()
            for one in (page, beside):
                await expect(one.locator("#sign-in")).to_be_visible()
                await expect(one.locator("#live")).to_have_text("signed out")
                await expect(one.locator(".sizer .row")).to_have_count(0)
            await page.get_by_label("Link").fill(scene.server.link())
            await page.locator("#sign-in").get_by_role("button", name="Sign in").click()
            await expect(row).to_be_visible()
            scene.server.process.kill()
            scene.server.process.wait()
            with served(scene.there.home, port=scene.server.port) as again:
                await expect(page.locator("#sign-in")).to_be_visible()
                await expect(row).to_have_count(0)
                await page.goto(again.link())  # into the very tab that asks for it: nothing is loaded anew
                await expect(row).to_be_visible()
                await expect(page.locator("#sign-in")).to_be_hidden()
                assert "token" not in page.url

    play(story)


def test_cancelling_a_job_on_the_page(play: Play) -> None:
    async def story(scene: Scene) -> None:
        stage = scene.stage
        job = stage.record_of(SITE, JobState.RUNNING, 60, name="train")
        await stage.record(job)
        async with scene.page(signed_in=False) as page:
            await page.locator(".sizer .row", has_text="train").click()
            await expect(page.locator("#panel .timeline")).to_be_visible()
            await expect(page.get_by_role("button", name="Cancel job…")).to_have_count(0)
        async with scene.page() as page:
            assert "token" not in page.url
            await page.locator(".sizer .row", has_text="train").click()
            await page.get_by_role("button", name="Cancel job…").click()
            await page.get_by_role("button", name="Cancel the job").click()
            await expect(page.locator("#announce")).to_have_text("Asked for the end of train")
            await page.get_by_role("button", name="Sign out").click()
            await expect(page.get_by_role("button", name="Sign in")).to_be_visible()
            await expect(page.get_by_role("button", name="Cancel job…")).to_have_count(0)

    async def and_the_agent_gets_it(scene: Scene) -> None:
        from slurmbus.testing import ScriptedAgent

        await story(scene)
        async with ScriptedAgent(scene.there.home, SITE) as agent:
            request = await agent.request()
        assert isinstance(request, Cancel)
        assert request.reason == "cancelled on the dashboard"

    play(and_the_agent_gets_it, "--public")


def test_requeueing_a_job_on_the_page(play: Play) -> None:
    async def story(scene: Scene) -> None:
        stage = scene.stage
        train = stage.record_of(SITE, JobState.RUNNING, 60, name="train", requeue=True)
        await stage.record(train)
        await stage.record(stage.record_of(SITE, JobState.RUNNING, 60, name="once"))
        async with scene.page(signed_in=False) as page:
            await page.locator(".sizer .row", has_text="train").click()
            await expect(page.locator("#panel .timeline")).to_be_visible()
            await expect(page.get_by_role("button", name="Requeue job…")).to_have_count(0)
        async with scene.page() as page:
            await page.locator(".sizer .row", has_text="once").click()
            await expect(page.get_by_role("button", name="Requeue job…")).to_be_disabled()
            await page.locator(".sizer .row", has_text="train").click()
            await page.get_by_role("button", name="Requeue job…").click()
            await page.get_by_role("button", name="Requeue the job").click()
            await expect(page.locator("#announce")).to_have_text("Asked for another start of train")
            asked = RequeueAsked(id=train.key, at=time.time(), submitter="bob@laptop", outcome="refused")
            no = ControlRefused(id=train.key, at=asked.at, submitter=asked.submitter, code="refused", message="not now")
            await stage.record(msgspec.structs.replace(train, requeues=(asked,), refused=no))
            await expect(page.locator("#panel")).to_contain_text("bob@laptop asked for another start")
            await expect(page.locator("#panel")).to_contain_text("Refused: not now")

    async def and_the_agent_gets_it(scene: Scene) -> None:
        from slurmbus.testing import ScriptedAgent

        await story(scene)
        async with ScriptedAgent(scene.there.home, SITE) as agent:
            request = await agent.request()
        assert isinstance(request, Requeue)
        assert request.reason == "requeued on the dashboard"

    play(and_the_agent_gets_it, "--public")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--listen", "192.0.2.1"), "can't listen on 192.0.2.1"),
        (("--port", "1x"), "is not a valid integer"),
    ],
)
def test_an_address_that_cant_be_used_is_told(bus_there: BusSite, options: tuple[str, str], words: str) -> None:
    environment = {"PATH": "/usr/bin:/bin", "SLURMBUS_HOME": str(bus_there.home.path)}
    done = subprocess.run(
        [COMMAND, "dashboard", *options], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken(bus_there: BusSite, server: Served) -> None:
    environment = {"PATH": "/usr/bin:/bin", "SLURMBUS_HOME": str(bus_there.home.path)}
    argv = [COMMAND, "dashboard", "--port", str(server.port)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"port {server.port}" in done.stderr
    assert "Traceback" not in done.stderr
