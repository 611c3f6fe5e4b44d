"""The bus through a Unix socket, as the end of an SSH tunnel on a login node is one."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from slurmbus.home import Home
from slurmbus.owner import ServerOwner
from slurmbus.settings import ConnectionSettings
from slurmbus_protocol import certificates
from slurmbus_protocol.bus import Bus, BusSettings
from slurmbus_protocol.errors import BusUnreachable


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[ServerOwner]:
    home = Home(tmp_path / "home")
    home.add_site("a")
    with ServerOwner(home) as owner:
        yield owner


@contextlib.asynccontextmanager
async def tunnel(path: Path, port: int) -> AsyncIterator[None]:
    """Do what ``ssh -R path:localhost:port`` does: a socket here, a connection there for each of its own."""
    ends: set[asyncio.StreamWriter] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, away = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        ends.update((writer, away))
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(copy(reader, away), copy(there, writer))

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield
    finally:
        server.close()
        path.unlink()  # noqa: ASYNC240 - a local file
        for end in ends:
            end.transport.abort()


def settings_of(home: Home, path: Path) -> BusSettings:
    settings = ConnectionSettings.of_site(home, "a").bus_settings()
    return replace(settings, servers=(f"nats+unix://{path}",), probe_interval=0.2)


def test_it_comes_back_with_the_socket_and_with_the_server(owner: ServerOwner, tmp_path: Path) -> None:
    path = tmp_path / "tunnel"
    path.mkdir(mode=0o700)
    path /= "bus.sock"

    async def working(bus: Bus) -> None:
        while True:
            with contextlib.suppress(BusUnreachable):
                await bus.api("INFO")
                return
            await asyncio.sleep(0.05)

    async def scenario() -> None:
        async with asyncio.timeout(90):
            async with tunnel(path, owner.address.port):
                bus = await Bus(settings_of(owner.home, path)).__aenter__()
                await working(bus)
                owner.server.kill()
                owner.server.restart()  # it is tied to this thread
                await bus.next_connection(1)
                await working(bus)
            while bus.connected:
                await asyncio.sleep(0.05)
            with pytest.raises(BusUnreachable, match=r"bus\.sock"):
                while True:
                    await bus.api("INFO")
            async with tunnel(path, owner.address.port):
                await working(bus)
                await bus.__aexit__(None, None, None)

    asyncio.run(scenario())


def test_tls_is_inside(owner: ServerOwner, tmp_path: Path) -> None:
    """Who can replace the socket still isn't the bus."""
    settings = settings_of(owner.home, tmp_path / "bus.sock")
    theirs = certificates.make_authority("theirs")

    async def scenario() -> str:
        async with asyncio.timeout(30), tunnel(tmp_path / "bus.sock", owner.address.port):
            with pytest.raises(BusUnreachable) as caught:
                async with Bus(replace(settings, ca_file=None, ca=theirs.pem)):
                    pass
            return caught.value.message

    assert "certificate verify failed" in asyncio.run(scenario())


def test_nobody_at_the_socket_is_said(owner: ServerOwner, tmp_path: Path) -> None:
    async def connect() -> None:
        async with Bus(settings_of(owner.home, tmp_path / "bus.sock")):
            pass

    with pytest.raises(BusUnreachable, match=r"bus\.sock: .*No such file"):
        asyncio.run(connect())
    os.mkfifo(tmp_path / "bus.sock")
    with pytest.raises(BusUnreachable, match=r"bus\.sock: .*refused"):
        asyncio.run(connect())
