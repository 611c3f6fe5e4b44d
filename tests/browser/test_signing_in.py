"""Who may do what: looking is free, everything else needs the token, and no other page can get in between."""

from __future__ import annotations

import http.client
import json
import subprocess
import time
from collections.abc import Iterator

import msgspec
import pytest
from playwright.async_api import expect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from browser.scene import Play, Scene
from browser.served import COMMAND, Served, served
from contract.bus_site import SITE, BusSite
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
    status, headers, _ = ask(server, "POST", "/sign-in", {"token": server.token}, Origin=origin)
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
    assert ask(server, "POST", "/sign-in", {"token": server.token}, Host=evil, Origin=f"http://{evil}")[0] == 403
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
        assert headers["x-content-type-options"] == "nosniff"
        assert "root:" not in body


def test_who_listens_for_others_lets_only_in_who_is_signed_in(bus_there: BusSite) -> None:
    with served(bus_there.home, "--private") as server:
        origin = server.url.rstrip("/")
        url = f"ws://127.0.0.1:{server.port}/feed"
        with connect(url, origin=origin) as socket, pytest.raises(ConnectionClosed, match="4401"):
            socket.recv()
        assert sign_in(server)[1]


def test_cancelling_a_job_on_the_page(play: Play) -> None:
    async def story(scene: Scene) -> None:
        stage = scene.stage
        job = stage.record_of(SITE, JobState.RUNNING, 60, name="train")
        await stage.record(job)
        async with scene.page() as page:
            await page.locator(".sizer .row", has_text="train").click()
            await expect(page.locator("#panel .timeline")).to_be_visible()
            await expect(page.get_by_role("button", name="Cancel job…")).to_have_count(0)
        async with scene.page(signed_in=True) as page:
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

    play(and_the_agent_gets_it)


def test_requeueing_a_job_on_the_page(play: Play) -> None:
    async def story(scene: Scene) -> None:
        stage = scene.stage
        train = stage.record_of(SITE, JobState.RUNNING, 60, name="train", requeue=True)
        await stage.record(train)
        await stage.record(stage.record_of(SITE, JobState.RUNNING, 60, name="once"))
        async with scene.page() as page:
            await page.locator(".sizer .row", has_text="train").click()
            await expect(page.locator("#panel .timeline")).to_be_visible()
            await expect(page.get_by_role("button", name="Requeue job…")).to_have_count(0)
        async with scene.page(signed_in=True) as page:
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

    play(and_the_agent_gets_it)


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
