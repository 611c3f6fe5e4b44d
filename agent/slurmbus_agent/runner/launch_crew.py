"""The helpers of a launch, one on each node: on this one a child process, on the others the tasks of one step."""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress

from slurmbus_agent.runner import launch_network, launch_steps, payload
from slurmbus_agent.runner.launch_errors import LaunchFailed
from slurmbus_agent.runner.launch_wire import LAUNCH, NODE, Broken, Wire, challenge, proof, same

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from slurmbus_agent.runner.launch_allocation import Node
    from slurmbus_agent.runner.launch_job import Launch

STOPPED_WITHIN = 2.5
"""Seconds for helpers to stop everything on their nodes; then they are killed, and what they leave is Slurm's."""
HELLO_WITHIN = 5.0
"""Seconds for a peer to say who it is."""


class Member:
    """One node's helper."""

    def __init__(self, node: Node, wire: Wire, hello: dict[str, Any]) -> None:
        self.node = node
        self.name = node.name
        self.wire = wire
        self.address = str(hello["address"])
        """The node's address on the network that it shares with the first one."""
        self.gpus: int | None = hello["gpus"]
        """GPUs that Slurm gave; None when it didn't say."""
        self.physical_memory: int = hello["memory"]
        self.shared_memory: int = hello["shared_memory"]
        """Free bytes of /dev/shm."""
        self.gone = False


class Crew:
    """The helpers; every method but :meth:`stop` may raise Interrupted."""

    def __init__(self, job: Launch, interface: str | None = None) -> None:
        """Begin with nobody.

        Args:
            job: the launch.
            interface: the network that the nodes shall use, e.g. ``ib0``; by default that of the node's name.
        """
        self._job = job
        self.members: dict[str, Member] = {}
        """By the node's name, this node's first."""
        self.on_line: Callable[[Member, str, str], None] = lambda _member, _name, _line: None
        self.on_ended: Callable[[Member, str, int, list[str]], None] = lambda _member, _name, _exit, _tail: None
        """Called with a program that was started and has ended by itself: its exit code, or minus the signal."""
        self.on_gone: Callable[[Member], None] = lambda _member: None
        """Called when a helper is gone, with its node perhaps."""
        self._answers: dict[int, dict[str, Any]] = {}
        self._order = 0
        self._stopping = False
        self._children: dict[int, str] = {}
        self._words: list[str] = []
        self._listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._addresses = self._choose(interface)
        alone = len(job.allocation.nodes) == 1
        self._listener.bind(("127.0.0.1" if alone else self._addresses[0] if interface else "", 0))
        self._listener.listen(len(job.allocation.nodes) + 8)
        self.head_address = self._addresses[0]
        """This node's address as the others see it."""

    def _choose(self, interface: str | None) -> list[str]:
        here = self._job.allocation.here.name
        if interface is None:
            return launch_network.addresses(here)
        return [launch_network.address_of(here, interface)]

    def muster(self, within: float) -> None:
        """Start a helper on every node, and wait until all have come.

        Raises:
            LaunchFailed: it names the nodes whose helper didn't come.
        """
        job = self._job
        until = time.monotonic() + within
        self._listener.setblocking(False)  # noqa: FBT003 - its only parameter
        self._hear(self._listener.fileno(), self._accept)
        hosts, port = ",".join(self._addresses), str(self._listener.getsockname()[1])
        program = [sys.executable, "-I", "-S", job.runner, "--node", job.plan.folder]
        local = "127.0.0.1" if len(job.allocation.nodes) == 1 else hosts
        here = [*program, job.allocation.here.name, local, port]
        others = job.allocation.others
        self._start("the helper", here, dict(os.environ))
        if others:
            step = launch_steps.one_on_each(job.allocation, others, os.environ, [*program, "", hosts, port])
            self._start("srun", step, launch_steps.environment(os.environ))
        job.wait(lambda: self._complete() or self._broken(bool(others)), until)
        missing = [node.name for node in job.allocation.nodes if node.name not in self.members]
        if missing:
            said = f"; srun said: {' / '.join(self._words[-3:])}" if self._words else ""
            raise LaunchFailed(f"no process could be started on {', '.join(missing)} within {within:g} s{said}")
        self.members = {node.name: self.members[node.name] for node in job.allocation.nodes}
        self._agree()

    def _broken(self, others: bool) -> bool:
        started = list(self._children.values())
        return "the helper" not in started or (others and "srun" not in started)

    def _complete(self) -> bool:
        return len(self.members) == len(self._job.allocation.nodes)

    def _agree(self) -> None:
        """Settle on the address by which all other nodes reach this one."""
        here = self._job.allocation.here.name
        reached = {one.wire.socket.getsockname()[0] for name, one in self.members.items() if name != here}
        if len(reached) > 1:
            raise LaunchFailed(
                f"the job's nodes reach {here} by different networks ({', '.join(sorted(reached))}); "
                "name the one to use with interface=…"
            )
        if reached:
            self.head_address = reached.pop()
        self.members[here].address = self.head_address

    def _start(self, what: str, argv: list[str], env: dict[str, str]) -> None:
        def ended(_exit: int) -> None:
            del self._children[pid]

        def hear(line: str) -> None:
            self._words.append(line)
            if not self._stopping:
                self._job.say(line)

        pid = self._job.spawn(argv, env, hear, ended)
        self._children[pid] = what

    def _hear(self, descriptor: int, ready: Callable[[], None]) -> None:
        self._job.loop.add(descriptor, ready)

    def _accept(self) -> None:
        with suppress(OSError):  # it went away again
            connection, _ = self._listener.accept()
            connection.settimeout(HELLO_WITHIN)
            wire = Wire(connection)
            try:
                self._welcome(wire)
            except (Broken, KeyError, TypeError):  # a stranger
                wire.close()

    def _welcome(self, wire: Wire) -> None:
        ours = challenge()
        wire.send(challenge=ours)
        hello = wire.receive_one()
        name, secret = str(hello["node"]), self._job.plan.secret
        if not same(proof(secret, NODE, name, ours, str(hello["challenge"])), hello["proof"]):
            raise Broken("wrong proof")
        node = next((node for node in self._job.allocation.nodes if node.name == name), None)
        if node is None or name in self.members:
            raise Broken(f"{name} isn't awaited")
        wire.send(proof=proof(secret, LAUNCH, name, ours, str(hello["challenge"])))
        wire.socket.settimeout(None)
        member = self.members[name] = Member(node, wire, hello)
        self._hear(wire.socket.fileno(), lambda: self._receive(member))

    def _receive(self, member: Member) -> None:
        try:
            messages = member.wire.receive()
        except Broken:
            self._part(member)
            return
        for message in messages:
            if "done" in message:
                self._answers[message["done"]] = message
            elif "line" in message:
                self.on_line(member, message["name"], message["line"])
            elif "ended" in message and not self._stopping:
                self.on_ended(member, message["ended"], message["exit"], message["tail"])

    def _part(self, member: Member) -> None:
        self._job.loop.remove(member.wire.socket.fileno())
        member.wire.close()
        member.gone = True
        if not self._stopping:
            self.on_gone(member)

    def ask(self, orders: dict[str, dict[str, Any]], within: float) -> dict[str, dict[str, Any]]:
        """Give orders to members by their names, all at once, and wait for all answers.

        Raises:
            LaunchFailed: it names the nodes that couldn't carry their order out, or didn't in time.
        """
        numbers = {}
        for name, order in orders.items():
            self._order += 1
            numbers[name] = self._order
            self._send(self.members[name], {**order, "order": self._order})

        def over() -> bool:
            return all(number in self._answers or self.members[name].gone for name, number in numbers.items())

        self._job.wait(over, time.monotonic() + within)
        answers = {name: self._answers.pop(number, None) for name, number in numbers.items()}
        problems = [
            f"{name}: {'no answer' if answer is None else answer['error']}"
            for name, answer in answers.items()
            if answer is None or "error" in answer
        ]
        if problems:
            raise LaunchFailed("; ".join(problems))
        return {name: answer for name, answer in answers.items() if answer is not None}

    def ask_all(self, order: dict[str, Any], within: float) -> dict[str, dict[str, Any]]:
        """Give every member the same order."""
        return self.ask(dict.fromkeys(self.members, order), within)

    def _send(self, member: Member, message: dict[str, Any]) -> None:
        with suppress(Broken):  # its end is noticed where it is read
            member.wire.send(**message)

    def stop(self, within: float = STOPPED_WITHIN) -> None:
        """Stop everything on every node and wait until that is done, at most for some seconds."""
        self._stopping = True
        self._job.loop.remove(self._listener.fileno())
        self._listener.close()
        for member in self._left():
            with suppress(OSError):
                member.wire.socket.shutdown(socket.SHUT_WR)
        until = time.monotonic() + within
        while (self._children or self._left()) and time.monotonic() < until:
            self._job.loop.turn(until)
        payload.kill_children()

    def _left(self) -> Iterable[Member]:
        return [member for member in self.members.values() if not member.gone]
