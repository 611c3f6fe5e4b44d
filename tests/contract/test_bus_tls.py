"""The bus is encrypted, and only the server whose authority is pinned is spoken to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import ssl
import time
import tomllib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from slurmbus.home import Home, free_port
from slurmbus.owner import ServerOwner
from slurmbus.settings import ConnectionSettings
from slurmbus_protocol import certificates
from slurmbus_protocol.bus import Bus, BusSettings
from slurmbus_protocol.embedded import BusUser, EmbeddedServer, new_user_seed, public_key
from slurmbus_protocol.errors import BusUnreachable, InvalidSetting
from slurmbus_protocol.server_tls import RENEW_DAYS, TLS_NAME, VALID_DAYS, ServerTls

DAY = 86_400.0


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.add_site("a")
    return home


@pytest.fixture
def owner(home: Home) -> Iterator[ServerOwner]:
    with ServerOwner(home) as owner:
        yield owner


def settings_of(home: Home) -> BusSettings:
    return ConnectionSettings.of_site(home, "a").bus_settings()


def works(settings: BusSettings) -> None:
    async def ask() -> None:
        async with asyncio.timeout(20), Bus(settings) as bus:
            await bus.api("INFO")

    asyncio.run(ask())


def reason(settings: BusSettings) -> str:
    with pytest.raises(BusUnreachable) as caught:
        works(settings)
    return caught.value.message


def served_certificate(port: int) -> bytes:
    """Give the certificate that the server shows now."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        while plain.recv(1) != b"\n":
            pass
        with context.wrap_socket(plain) as encrypted:
            certificate = encrypted.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate


def test_client_and_agent_pin_the_homes_authority(home: Home, owner: ServerOwner) -> None:
    assert home.bus_url().startswith("tls://")
    works(settings_of(home))
    bundle = tomllib.loads(home.bundle_path("a").read_text())
    agent = BusSettings(tuple(bundle["servers"]), bundle["nkey_seed"], inbox="_INBOX_a", ca=bundle["ca"])
    for settings in (replace(agent, tls_name=TLS_NAME), replace(agent, servers=(owner.server.url,), tls_name=None)):

        async def connect(settings: BusSettings) -> bool:
            async with asyncio.timeout(20), Bus(settings) as bus:
                return await bus.probe()

        assert asyncio.run(connect(settings))


def test_strict_readers_take_the_certificates(owner: ServerOwner, home: Home) -> None:
    """Python 3.13 and newer check every word of RFC 5280."""
    context = ssl.create_default_context(cafile=home.tls.authority)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with socket.create_connection(("127.0.0.1", owner.address.port), timeout=10) as plain:
        while plain.recv(1) != b"\n":
            pass
        with context.wrap_socket(plain, server_hostname=TLS_NAME) as encrypted:
            assert encrypted.version() == "TLSv1.3"


def test_keys_are_private(home: Home) -> None:
    for path in (home.path / "tls").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


def test_another_authority_is_refused(home: Home, owner: ServerOwner) -> None:
    theirs = certificates.make_authority("theirs")
    assert "certificate verify failed" in reason(replace(settings_of(home), ca_file=None, ca=theirs.pem))


def test_another_name_is_refused(home: Home, owner: ServerOwner) -> None:
    assert "not valid for 'elsewhere'" in reason(replace(settings_of(home), tls_name="elsewhere"))


def test_a_server_in_between_with_an_authority_of_its_own_is_refused(home: Home, tmp_path: Path) -> None:
    """Whoever sits at the port may know all the public things, and even let us in with our own key."""
    client = BusUser("client", public_key(home.credentials.read_text().strip()))
    address = home.set_bus_address()
    with EmbeddedServer(tmp_path / "false", [client], port=address.port, tls=ServerTls(tmp_path / "false-tls")):
        assert "certificate verify failed" in reason(settings_of(home))


def test_a_server_that_leaves_tls_out_learns_nothing(home: Home, tmp_path: Path) -> None:
    """nats-py alone would greet it in the clear, with its key's signature."""
    client = BusUser("client", public_key(home.credentials.read_text().strip()))
    address = home.set_bus_address()
    with EmbeddedServer(tmp_path / "false", [client], port=address.port):
        assert "offers no TLS" in reason(settings_of(home))

    heard = bytearray()

    async def strip() -> str:
        done = asyncio.Event()

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            info = {"server_id": "x", "version": "2.12.0", "headers": True, "max_payload": 1 << 20, "nonce": "n" * 22}
            writer.write(b"INFO " + json.dumps(info).encode() + b"\r\n")
            heard.extend(await reader.read())
            writer.close()
            await writer.wait_closed()
            done.set()

        async with await asyncio.start_server(talk, "127.0.0.1", address.port):
            with pytest.raises(BusUnreachable) as caught:
                async with Bus(settings_of(home)):
                    pass
            await done.wait()
        return caught.value.message

    assert "offers no TLS" in asyncio.run(strip())
    assert not heard


def test_a_client_in_the_clear_is_refused(home: Home, owner: ServerOwner) -> None:
    with socket.create_connection(("127.0.0.1", owner.address.port), timeout=10) as plain, plain.makefile("rb") as file:
        assert json.loads(file.readline().removeprefix(b"INFO "))["tls_required"]
        plain.sendall(b'CONNECT {"verbose":true}\r\nPING\r\n')
        with contextlib.suppress(ConnectionResetError):
            assert b"PONG" not in file.read()


def test_a_certificate_is_renewed_while_the_server_runs(home: Home, owner: ServerOwner) -> None:
    before = served_certificate(owner.address.port)
    authority = home.tls.pinned()

    async def scenario() -> None:
        async with asyncio.timeout(30), Bus(settings_of(home)) as bus:
            assert not await asyncio.to_thread(owner.server.renew)
            facts = home.path / "tls" / "server.json"
            facts.write_text(json.dumps({"expires": time.time() + (RENEW_DAYS - 1) * DAY}))
            assert await asyncio.to_thread(owner.server.renew)
            while await asyncio.to_thread(served_certificate, owner.address.port) == before:
                await asyncio.sleep(0.02)
            await bus.api("INFO")  # an open connection stays

    asyncio.run(scenario())
    assert home.tls.pinned() == authority
    works(settings_of(home))


def test_an_expired_certificate_is_refused_and_replaced_at_the_next_start(home: Home) -> None:
    folder = home.path / "tls"
    authority = certificates.Certificate((folder / "ca.pem").read_text(), (folder / "ca.key").read_text())
    expired = certificates.issue(authority, [TLS_NAME], days=0)
    with ServerOwner(home) as owner:
        (folder / "server.pem").write_text(expired.pem + expired.key)
        owner.server.kill()
        owner.server.restart()
        assert "expired" in reason(settings_of(home))
        (folder / "server.json").write_text('{"expires": 0}')
    with ServerOwner(home):
        works(settings_of(home))


def test_when_a_certificate_is_due(tmp_path: Path) -> None:
    tls = ServerTls(tmp_path / "tls")
    now = time.time()
    assert tls.ensure(now)
    made = tls.certificate.read_text()
    assert not tls.ensure(now + (VALID_DAYS - RENEW_DAYS - 1) * DAY)
    assert tls.certificate.read_text() == made
    assert tls.ensure(now + (VALID_DAYS - RENEW_DAYS + 1) * DAY)
    assert tls.certificate.read_text() != made
    (tmp_path / "tls" / "ca.key").write_text("garbage")
    with pytest.raises(InvalidSetting, match="authority can't be read"):
        tls.ensure(now + 2 * VALID_DAYS * DAY)


def test_a_home_from_before_tls_goes_on(home: Home) -> None:
    """Its agents' files name no authority: over loopback they are let in until their sites are added again."""
    shutil.rmtree(home.path / "tls")
    profile = home.path / "sites" / "a.toml"
    profile.write_text(profile.read_text().replace("tls = true\n", ""))
    bundle = tomllib.loads(home.bundle_path("a").read_text())
    with pytest.raises(BusUnreachable, match="before there was TLS"):
        settings_of(home)

    async def old_agent(port: int) -> bool:
        """Connect as an agent of then did."""
        settings = BusSettings((f"nats://127.0.0.1:{port}",), bundle["nkey_seed"], inbox="_INBOX_a")
        async with asyncio.timeout(20), Bus(settings) as bus:
            return await bus.probe()

    with ServerOwner(home) as owner:
        port = owner.address.port
        assert home.sites_without_tls() == ["a"]
        works(settings_of(home))
        assert asyncio.run(old_agent(port))
        home.add_site("a")
        owner.look()

        async def wait_until_refused() -> None:
            async with asyncio.timeout(30):
                while True:
                    try:
                        await old_agent(port)
                    except BusUnreachable:
                        return
                    await asyncio.sleep(0.05)

        asyncio.run(wait_until_refused())
        works(settings_of(home))
        assert home.sites_without_tls() == []


def test_beyond_loopback_there_is_no_way_without(home: Home) -> None:
    profile = home.path / "sites" / "a.toml"
    profile.write_text(profile.read_text().replace("tls = true\n", ""))
    home.set_bus_address()
    assert home.also_plain()
    home.set_bus_address("0.0.0.0")
    assert not home.also_plain()


@contextlib.asynccontextmanager
async def connected(settings: BusSettings) -> AsyncIterator[Bus]:
    async with asyncio.timeout(60), Bus(settings) as bus:
        yield bus


def test_over_websocket(home: Home) -> None:
    """With TLS and the pinned authority, through a restart of the server, and with messages of any size."""
    port = free_port("127.0.0.1")
    with ServerOwner(home, websocket=port) as owner:
        settings = replace(settings_of(home), servers=(f"wss://127.0.0.1:{port}",))

        async def scenario() -> None:
            async with connected(settings) as bus:
                async with bus.inbox() as (subject, subscription):
                    for size in (0, 10, 70_000, 900_000):
                        await bus.tell(subject, b"x" * size)
                        assert len((await subscription.next_msg(10)).data) == size
                owner.server.kill()
                owner.server.restart()  # it is tied to this thread
                await bus.next_connection(1)
                await bus.api("INFO")

        asyncio.run(scenario())
        theirs = certificates.make_authority("theirs")
        assert "certificate verify failed" in reason(replace(settings, ca_file=None, ca=theirs.pem))
        with pytest.raises(InvalidSetting, match="isn't encrypted"):
            works(replace(settings, servers=(f"ws://127.0.0.1:{port}",)))
    assert home.set_bus_address().websocket == port


def test_a_websocket_through_the_environments_proxy(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port("127.0.0.1")
    asked = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        there, away = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(copy(reader, away), copy(there, writer))

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def scenario(settings: BusSettings) -> None:
        async with asyncio.timeout(30), await asyncio.start_server(proxy, "127.0.0.1", 0) as server:
            monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            async with Bus(settings) as bus:
                await bus.api("INFO")

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ServerOwner(home, websocket=port):
        asyncio.run(scenario(replace(settings_of(home), servers=(f"wss://127.0.0.1:{port}",))))
    assert asked[0].startswith(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n".encode())


def test_a_plain_websocket(tmp_path: Path) -> None:
    """Of somebody's own server behind somebody's own proxy."""
    seed = new_user_seed()
    port = free_port("127.0.0.1")
    with EmbeddedServer(tmp_path / "bus", [BusUser("client", public_key(seed))], websocket=port) as server:
        works(BusSettings((f"ws://127.0.0.1:{port}",), seed))
        assert "no WebSocket" in reason(BusSettings((server.url.replace("nats://", "ws://"),), seed))


def test_addresses_of_several_kinds_are_tried_in_their_order(home: Home, owner: ServerOwner, tmp_path: Path) -> None:
    nowhere = (f"nats+unix://{tmp_path}/none.sock", f"wss://127.0.0.1:{free_port('127.0.0.1')}")
    works(replace(settings_of(home), servers=(*nowhere, owner.address.url)))
    assert "none.sock" in reason(replace(settings_of(home), servers=nowhere))
