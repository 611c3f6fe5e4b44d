"""The runner's end of the link with a clock of our own, against a socket by hand."""

from __future__ import annotations

import contextlib
import json
import queue
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runner_lab import KEYS
from slurmbus_agent.runner import frames, uplink
from slurmbus_agent.runner.notify import Notifier
from slurmbus_agent.runner.plan import Plan
from slurmbus_agent.runner.streams import Stream
from slurmbus_agent.runner.uplink import Uplink

SECRET = bytes(32)
HELLO = {"key": "K", "task": 0, "start": 0}


class Agent:
    """Listens, and answers only when it is told to; hands are shaken in a thread of its own."""

    def __init__(self, folder: Path, server: str) -> None:
        self.server = server
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.link: ssl.SSLSocket | None = None
        self.links: queue.Queue[ssl.SSLSocket] = queue.Queue()
        address = {
            "hosts": ["127.0.0.1"],
            "port": self.listener.getsockname()[1],
            "server": server,
            "fingerprint": KEYS.fingerprint,
        }
        (folder / "link.new").write_text(json.dumps(address))
        (folder / "link.new").rename(folder / "link")

        threading.Thread(target=self.listen, name="listening").start()

    def listen(self) -> None:
        while True:
            try:
                link, _ = self.listener.accept()
            except OSError:  # it is closed
                return
            link.settimeout(5)
            with contextlib.suppress(OSError):  # the runner was quicker
                self.links.put(KEYS.context.wrap_socket(link, server_side=True))

    def accept(self) -> None:
        if self.link is not None:
            self.link.close()
        self.link = self.links.get(timeout=5)

    def exactly(self, size: int) -> bytes:
        assert self.link is not None
        data = b""
        while len(data) < size:
            piece = self.link.recv(size - len(data))
            assert piece, "the runner has hung up"
            data += piece
        return data

    def receive(self) -> tuple[dict[str, Any], bytes]:
        frame = self.exactly(frames.length(self.exactly(frames.PREFIX)))
        line, _, data = frame.partition(b"\n")
        return {**frames.header_of(line), "line": line + b"\n"}, data

    def send(self, header: dict[str, Any]) -> None:
        assert self.link is not None
        self.link.sendall(frames.pack(header))

    def prove(self, hello: dict[str, Any]) -> None:
        proof = frames.proof(SECRET, frames.AGENT, self.server, "aa", hello["line"])
        self.send({"type": "challenge", "challenge": "aa", "proof": proof})

    def hung_up(self) -> bool:
        assert self.link is not None
        try:
            while self.link.recv(1 << 16):
                pass
        except OSError:
            pass
        return True

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        if self.link is not None:
            self.link.close()
        while not self.links.empty():
            self.links.get().close()


class Scene:
    """An uplink with one stream, and the time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 1000.0
        plan = Plan.__new__(Plan)
        plan.folder, plan.secret, plan.link = str(folder), SECRET, str(folder / "link")
        self.file = (folder / "stdout").open("ab", buffering=0)
        self.stream = Stream("stdout", str(folder / "stdout"), self.file.fileno())
        self.notifier = Notifier()
        self.uplink = Uplink(plan, dict(HELLO), [self.stream], self.notifier, self.now)
        self.agents: list[Agent] = []

    def agent(self, server: str = "s1") -> Agent:
        self.agents.append(Agent(self.folder, server))
        return self.agents[-1]

    def turn(self, wait: float = 5.0) -> None:
        """Do what can be done now, after waiting for the socket in real time."""
        interest = self.uplink.interest()
        ready = 0
        if interest is not None:
            poll = select.poll()
            poll.register(*interest)
            ready = dict(poll.poll(wait * 1000)).get(interest[0], 0)
        self.uplink.work(self.now, ready)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.turn(0)

    def meet(self, agent: Agent) -> None:
        """Come to the point at which the runner has said hello."""
        while self.uplink._stage != "greeting":
            self.turn(0.05)
        agent.accept()

    def connect(self, agent: Agent, offset: int = 0, **more: Any) -> None:
        self.meet(agent)
        hello, _ = agent.receive()
        agent.prove(hello)
        self.turn()
        proof, _ = agent.receive()
        assert proof["proof"] == frames.proof(SECRET, frames.RUNNER, agent.server, "aa", hello["line"])
        agent.send({"type": "welcome", "offsets": {"stdout": offset}, **more})
        self.turn()
        assert self.uplink.up

    def close(self) -> None:
        self.file.close()
        for agent in self.agents:
            agent.close()
        if self.uplink._socket is not None:
            self.uplink._socket.close()
        self.notifier.stop()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    one = Scene(tmp_path)
    yield one
    one.close()


def test_an_idle_link_is_left_alone(scene: Scene) -> None:
    agent = scene.agent()
    scene.connect(agent)
    assert not scene.uplink.owed
    assert scene.uplink.due() == float("inf")
    scene.pass_time(1e6)
    assert scene.uplink.up


def test_silence_counts_from_when_there_is_something_to_say(scene: Scene) -> None:
    agent = scene.agent()
    scene.connect(agent)
    scene.pass_time(1e6)
    scene.file.write(b"hello")
    scene.stream.idle = False
    scene.turn(0)
    assert agent.receive()[1] == b"hello"
    assert scene.uplink.up
    scene.pass_time(uplink.SILENCE - 1)
    agent.send({"type": "alive"})
    scene.turn()
    scene.pass_time(uplink.SILENCE - 1)
    assert scene.uplink.up
    scene.pass_time(2)
    assert not scene.uplink.trying
    assert agent.hung_up()


def test_what_was_under_way_is_sent_again_from_where_the_agent_is(scene: Scene) -> None:
    agent = scene.agent()
    scene.connect(agent)
    scene.file.write(b"0123456789")
    scene.uplink.tell("ended", end={})
    scene.stream.finish()
    scene.turn(0)
    assert agent.receive()[0]["type"] == "ended"
    assert agent.receive()[1] == b"0123456789"
    assert agent.link is not None
    agent.link.close()
    scene.turn()
    assert not scene.uplink.up
    scene.pass_time(1)
    scene.connect(agent, offset=4)
    assert agent.receive()[0]["type"] == "ended"
    header, data = agent.receive()
    assert (header["offset"], data) == (4, b"456789")
    agent.send({"type": "ack", "stream": "stdout", "end": 10, "next": 10, "round": 0})
    agent.send({"type": "noted", "what": "ended"})
    while not scene.uplink.finished():
        scene.turn()
    assert not scene.uplink.owed


def test_a_frozen_agent_is_left_for_the_one_that_took_over(scene: Scene) -> None:
    frozen = scene.agent("s1")
    scene.connect(frozen)
    scene.file.write(b"x")
    scene.stream.idle = False
    scene.turn(0)
    scene.uplink.look_for_another(scene.now)
    assert scene.uplink.up
    second = scene.agent("s2")
    scene.now += 1
    scene.uplink.look_for_another(scene.now)  # the file has changed
    assert not scene.uplink.up
    scene.connect(second)
    assert second.receive()[1] == b"x"


def test_a_zombie_that_says_it_is_alive_is_left_too(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    zombie = scene.agent("s1")
    scene.connect(zombie)
    monkeypatch.setattr(scene.uplink, "_stamp", lambda: scene.uplink._link_file)  # NFS: the change isn't seen yet
    scene.file.write(b"x")
    scene.stream.idle = False
    scene.turn(0)
    scene.agent("s2")
    for _ in range(4):
        scene.now += uplink.STALLED / 4
        zombie.send({"type": "alive"})
        scene.turn()
        scene.uplink.look_for_another(scene.now)
        assert scene.uplink.up
    scene.now += 1
    scene.uplink.look_for_another(scene.now)
    assert not scene.uplink.up


def test_back_off_grows_and_starts_again(scene: Scene) -> None:
    waits = []
    for _ in range(8):
        scene.now = max(scene.now, scene.uplink.due())
        scene.turn(0)  # there is no file 'link'
        waits.append(scene.uplink.due() - scene.now)
    for wait, step in zip(waits, (0.1, 0.3, 1, 2, 4, 8, 8, 8), strict=True):
        assert 0.75 * step <= wait <= 1.25 * step
    agent = scene.agent()
    scene.now = scene.uplink.due()
    scene.connect(agent)
    assert agent.link is not None
    agent.link.close()
    scene.turn()
    assert scene.uplink.due() - scene.now <= 0.125


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\0\0\0\x03{}\n",
        frames.pack({"type": "welcome", "offsets": {}}),
        frames.pack({"type": "challenge"}),
        frames.pack({"type": "challenge", "challenge": "aa", "proof": "00"}),
        frames.pack({"type": "challenge", "challenge": "aa", "proof": None}),
    ],
)
def test_a_false_agent_gets_nothing(scene: Scene, answer: bytes) -> None:
    agent = scene.agent()
    scene.meet(agent)
    agent.receive()
    assert agent.link is not None
    agent.link.sendall(answer)
    scene.turn()
    assert not scene.uplink.trying
    assert agent.hung_up()


@pytest.mark.parametrize(
    "header",
    [
        {"type": "ack", "stream": "stdout", "end": None, "next": 1, "round": 0},
        {"type": "ack"},
        {"type": "welcome", "offsets": {}},
        {"type": "refused"},
        {"type": "nonsense"},
        {},
    ],
)
def test_an_agent_that_talks_nonsense_is_left(scene: Scene, header: dict[str, Any]) -> None:
    agent = scene.agent()
    scene.connect(agent)
    agent.send(header)
    scene.turn()
    assert not scene.uplink.trying


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"hosts": 3, "port": 1, "server": "x"}', '{"hosts": []}'])
def test_a_broken_link_file_is_waited_out(scene: Scene, content: str) -> None:
    (scene.folder / "link").write_text(content)
    scene.turn(0)
    assert not scene.uplink.trying
    agent = scene.agent()
    scene.pass_time(1)
    scene.meet(agent)
    assert agent.receive()[0]["type"] == "hello"


def test_a_silent_address_isnt_waited_for_long(scene: Scene) -> None:
    agent = scene.agent()
    address = json.loads((scene.folder / "link").read_text())
    # nobody answers at the first one (RFC 5737, TEST-NET-1), or the network says so at once
    address["hosts"] = ["192.0.2.1", "127.0.0.1"]
    (scene.folder / "link").write_text(json.dumps(address))
    scene.turn(0)
    scene.pass_time(uplink.CONNECT_WITHIN + 0.1)
    scene.pass_time(0.1)
    scene.meet(agent)
    assert agent.receive()[0]["type"] == "hello"


def test_something_else_that_listens_isnt_waited_for_long(scene: Scene) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = {"hosts": ["127.0.0.1"], "port": listener.getsockname()[1], "server": "x", "fingerprint": "y"}
        (scene.folder / "link").write_text(json.dumps(address))
        scene.turn(0)
        scene.turn()
        scene.pass_time(uplink.GREET_WITHIN - 0.1)
        assert scene.uplink.trying
        scene.pass_time(0.2)
        assert not scene.uplink.trying


def test_nobody_with_another_key_hears_a_word(scene: Scene) -> None:
    agent = scene.agent()
    address = json.loads((scene.folder / "link").read_text())
    address["fingerprint"] = "0" * 64
    (scene.folder / "link").write_text(json.dumps(address))
    failures = scene.uplink.failures
    while scene.uplink.failures == failures:
        scene.turn(0.05)
    agent.accept()
    assert agent.link is not None
    assert agent.hung_up()
    assert not scene.uplink.trying


def test_the_address_that_worked_is_tried_first(scene: Scene) -> None:
    agent = scene.agent()
    address = json.loads((scene.folder / "link").read_text())
    address["hosts"] = ["127.0.0.9", "127.0.0.1"]  # where nobody listens, and where the agent does
    (scene.folder / "link").write_text(json.dumps(address))
    scene.connect(agent)
    assert agent.link is not None
    agent.link.close()
    scene.turn()
    scene.pass_time(1)
    scene.connect(agent)


def test_limits_hold_for_the_connection_on_which_they_were_named(scene: Scene) -> None:
    agent = scene.agent()
    scene.file.write(b"0123456789\nabcdef\nABCDEF\n")
    scene.connect(agent, limits={"stdout": 4}, sample={"bytes": 8, "every": 2.0})
    scene.turn(0)
    chunk, data = agent.receive()
    assert (chunk["offset"], data) == (0, b"0123")
    agent.send({"type": "ack", "stream": "stdout", "end": 4, "next": 4, "round": 0})
    scene.turn()
    scene.pass_time(0.2)
    chunk, data = agent.receive()
    assert (chunk["offset"], data) == (18, b"ABCDEF\n")
    agent.send({"type": "ack", "stream": "stdout", "end": 25, "next": 25, "round": 0})
    scene.turn()
    assert scene.uplink.finished()
    assert agent.link is not None
    agent.link.close()
    scene.turn()
    scene.pass_time(2.5)
    scene.connect(agent, offset=4)  # an agent that doesn't know limits
    scene.turn(0)
    chunk, data = agent.receive()
    assert (chunk["offset"], data) == (4, b"456789\nabcdef\nABCDEF\n")


@pytest.mark.parametrize(
    "welcome", [{"limits": {"stdout": 4}}, {"limits": 3}, {"limits": {"stdout": "x"}, "sample": {}}]
)
def test_a_welcome_that_cant_be_understood_breaks_the_link(scene: Scene, welcome: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        scene.connect(scene.agent(), **welcome)
    assert not scene.uplink.trying


def test_no_link_is_wanted(tmp_path: Path) -> None:
    plan = Plan.__new__(Plan)
    plan.link = ""
    one = Uplink(plan, dict(HELLO), [], Notifier(), time.monotonic())
    one.hurry()
    assert one.due() == float("inf")
