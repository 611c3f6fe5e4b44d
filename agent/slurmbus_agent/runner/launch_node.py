"""A launch's helper on one node: ``<runner> --node <folder of the job> <node> <hosts> <port>``.

It starts what the launch orders, and when the launch closes the connection, or is gone, kills all of it and removes
the folders that it made. Every process below it is its own: orphans come up to it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from contextlib import suppress

from slurmbus_agent.runner import launch_environment, payload
from slurmbus_agent.runner.environment import SHELL
from slurmbus_agent.runner.launch_folders import Folders
from slurmbus_agent.runner.launch_lines import Lines, how_it_ended
from slurmbus_agent.runner.launch_loop import Loop
from slurmbus_agent.runner.launch_network import free_ports, taken
from slurmbus_agent.runner.launch_wire import LAUNCH, NODE, Broken, Wire, challenge, proof, same
from slurmbus_agent.runner.plan import BadPlan, Plan
from slurmbus_agent.runner.protocol import EXIT_SETUP
from slurmbus_agent.runner.signals import Signals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CONNECT_WITHIN = 5.0
"""Seconds for one address; there may be networks that swallow what is sent to them."""
NEVER = 86400.0


def main(argv: list[str]) -> int:
    """Serve a launch to its end, and give the exit code."""
    try:
        folder, node, hosts, port = argv[2:]
        secret = Plan(folder).secret
        wire = _connect(hosts.split(","), int(port))
    except (ValueError, BadPlan, Broken) as error:
        sys.stderr.write(f"slurmbus: the helper on {os.uname().nodename} can't start: {error}\n")
        return EXIT_SETUP
    helper = Helper(wire, folder)
    try:
        _introduce(wire, node or os.environ.get("SLURMD_NODENAME") or os.uname().nodename, secret)
        helper.serve()
    except Broken:
        pass  # it closes its side when all is done, or it is gone
    finally:
        helper.clean_up()
    return 0


def _connect(hosts: list[str], port: int) -> Wire:
    problems = []
    for host in hosts:
        try:
            connection = socket.create_connection((host, port), CONNECT_WITHIN)
        except OSError as error:
            problems.append(f"{host}:{port}: {error.strerror or error}")
            continue
        connection.settimeout(None)
        return Wire(connection)
    raise Broken(f"the job's first node can't be reached ({'; '.join(problems)})")


def _introduce(wire: Wire, node: str, secret: bytes) -> None:
    theirs = str(wire.receive_one().get("challenge"))
    ours = challenge()
    address = wire.socket.getsockname()[0]
    wire.send(
        node=node,
        address=address,
        challenge=ours,
        proof=proof(secret, NODE, node, theirs, ours),
        **seen_here(),
    )
    if not same(proof(secret, LAUNCH, node, theirs, ours), wire.receive_one().get("proof")):
        raise Broken("the other side doesn't know the job's secret")


def seen_here() -> dict[str, Any]:
    """Give what only this node knows: GPUs that Slurm gave (None when it didn't say), memory and shared memory."""
    gpus = None
    for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"):
        if name in os.environ:
            gpus = len([one for one in os.environ[name].split(",") if one.strip() not in ("", "-1", "NoDevFiles")])
            break
    try:
        shm = os.statvfs("/dev/shm")  # noqa: S108 - it is only looked at
        shared = shm.f_bavail * shm.f_frsize
    except OSError:
        shared = 0
    return {
        "gpus": gpus,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "shared_memory": shared,
    }


class Helper:
    """Carries out orders; one thread, as everywhere in a launch."""

    def __init__(self, wire: Wire, folder: str) -> None:
        self._wire = wire
        self._cwd = Plan(folder).cwd
        self._signals = Signals()
        self._loop = Loop(self._signals)
        self._folders = Folders()
        self._running: dict[int, float] = {}
        """Seconds that a program gets to end by itself, by its process."""
        self._over = False

    def serve(self) -> None:
        """Carry out orders until the launch goes; signals of Slurm reach the programs by themselves."""
        self._loop.add(self._wire.socket.fileno(), self._hear)
        if self._wire.waiting:  # the first order came with the end of the introduction
            self._hear()
        while not self._over:
            self._loop.turn(time.monotonic() + NEVER)

    def _hear(self) -> None:
        try:
            orders = self._wire.receive()
        except Broken:
            self._over = True
            return
        for order in orders:
            try:
                answer = getattr(self, f"_do_{order['do']}")(order)
            except (OSError, payload.NotStarted) as error:
                answer = {"error": str(error)}
            if answer is not None:
                self._say(done=order["order"], **answer)

    def _say(self, **message: Any) -> None:
        try:
            self._wire.send(**message)
        except Broken:
            self._over = True

    def _do_ports(self, order: dict[str, Any]) -> dict[str, Any]:
        return {"ports": free_ports(order["count"])}

    def _do_folder(self, order: dict[str, Any]) -> dict[str, Any]:
        self._folders.make(order["path"])
        return {}

    def _do_taken(self, order: dict[str, Any]) -> dict[str, Any]:
        return {"taken": taken(order["ports"])}

    def _do_prepare(self, order: dict[str, Any]) -> None:
        reader, writer = os.pipe()
        os.set_inheritable(writer, True)  # noqa: FBT003 - its only parameter
        last = [sys.executable, "-I", "-S", os.path.abspath(sys.argv[0]), "--environment", str(writer)]
        argv = ["/bin/bash", "-euo", "pipefail", "-c", SHELL, "slurmbus", order["commands"], "0", *last]

        content = launch_environment.Content(reader)

        def ready() -> None:
            if not content.read():
                self._loop.remove(reader)

        def over(exit_code: int, tail: list[str]) -> None:
            content.read()  # to the end only where the commands left nothing running
            self._loop.remove(reader)
            os.close(reader)
            if exit_code or not content.data:
                words = f": {tail[-1]}" if tail else ""
                self._say(done=order["order"], error=f"{how_it_ended(exit_code)}{words}")
            else:
                launch_environment.take_over(content.data)
                self._say(done=order["order"])

        try:
            self._start({**order, "argv": argv, "env": {}, "name": "prepare"}, over)
        except payload.NotStarted:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        self._loop.add(reader, ready)

    def _do_run(self, order: dict[str, Any]) -> None:
        self._start(order, lambda exit_code, _tail: self._say(done=order["order"], exit=exit_code))

    def _do_start(self, order: dict[str, Any]) -> dict[str, Any]:
        self._start(order, lambda exit_code, tail: self._say(ended=order["name"], exit=exit_code, tail=tail))
        return {}

    def _start(self, order: dict[str, Any], over: Any) -> None:
        reader, writer = os.pipe()
        try:
            running = payload.start(order["argv"], {**os.environ, **order["env"]}, self._cwd, writer, writer)
        except payload.NotStarted:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        lines = Lines(reader, lambda text: self._say(line=text, name=order["name"]))
        self._running[running.pid] = float(order.get("grace", 0.0))

        def ready() -> None:
            if not lines.read():
                self._loop.remove(reader)

        def ended(exit_code: int) -> None:
            self._running.pop(running.pid)
            if self._loop.has(reader):
                ready()
            over(exit_code, list(lines.tail))

        self._loop.add(reader, ready)
        self._loop.add_child(running.pid, ended)

    def _do_clear(self, _order: dict[str, Any]) -> dict[str, Any]:
        self._loop.forget_children()
        self._running.clear()
        payload.kill_children()
        return {}

    def clean_up(self) -> None:
        """Stop everything, remove what was made, and close the connection: so the launch knows."""
        self._loop.remove(self._wire.socket.fileno())
        for pid, grace in self._running.items():
            if grace:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGTERM)
        begun = time.monotonic()
        while any(grace for grace in self._running.values()):
            until = begun + max(self._running.values())
            if time.monotonic() >= until:
                break
            self._loop.turn(until)
        for pid in self._running:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        payload.kill_children()
        self._folders.remove()
        self._wire.close()
