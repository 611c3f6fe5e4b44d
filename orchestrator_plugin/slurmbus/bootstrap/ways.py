"""How the agent reaches the bus from the site: straight out, over WebSocket, or back through the login's connection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import msgspec

from slurmbus.bootstrap.plan import Choice
from slurmbus.bootstrap.probe import Dialled, Probe
from slurmbus.bootstrap.session import Remote
from slurmbus.bootstrap.ssh import Master
from slurmbus.errors import LoginFailed, SiteUnfit
from slurmbus.home import EMBEDDED, Home, SiteProfile
from slurmbus_protocol.dialling import in_plain, is_loopback

_WEB = ("ws", "wss")
_PORTS = {"ws": 80, "wss": 443}


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """How the agent reaches the bus."""

    way: Choice
    servers: tuple[str, ...]
    """Addresses for the agent; of a tunnel only its end on the site, once it stands."""
    target: str = ""
    """Where a tunnel comes out: ``host:port`` as this machine sees the bus."""


def addresses(home: Home, profile: SiteProfile, client: str) -> list[str]:
    """Give the addresses under which the site could reach the bus, the likeliest first.

    Args:
        home: whose bus.
        profile: the site's.
        client: this machine's address as the login node sees it.
    """
    if profile.bus != EMBEDDED:
        return list(profile.bus)
    there = home.bus_address()
    if there is None:
        return []
    url = urlsplit(there.url)
    hosts = [there.host]
    if there.host in {"0.0.0.0", "::"}:  # noqa: S104 - recognised, not bound
        hosts = [host for host in (client,) if host]
    ports = {url.scheme: there.port}
    if there.websocket is not None:
        ports["wss"] = there.websocket
    return [f"{scheme}://{_bracketed(host)}:{port}" for scheme, port in ports.items() for host in hosts]


def place_of(url: str) -> tuple[str, int]:
    """Give host and port of an address."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 4222)


def choose(
    wanted: str,
    urls: Sequence[str],
    dialled: Sequence[Dialled],
    target: str,
    *,
    here: bool = False,
    pinned: bool = True,
    allow_plain: bool = False,
) -> Route:
    """Choose a way (pure).

    Args:
        wanted: auto, direct, websocket or tunnel.
        urls: the addresses of the bus.
        dialled: which of them were reached from the site.
        target: the bus as this machine sees it, for a tunnel.
        here: the site is this machine, whose loopback isn't somebody else's.
        pinned: whether the authority of the bus's certificate is known.
        allow_plain: the bus may be reached without TLS.

    Raises:
        SiteUnfit: the way that was asked for can't be gone.
    """
    plain = [] if allow_plain else [url for url in urls if in_plain(url, pinned=pinned)]
    urls = [url for url in urls if url not in plain]
    reached = {(one.host, one.port) for one in dialled if one.open}
    open_urls = [url for url in urls if place_of(url) in reached and (here or not is_loopback(place_of(url)[0]))]
    straight = [url for url in open_urls if urlsplit(url).scheme not in _WEB]
    web = [url for url in open_urls if urlsplit(url).scheme in _WEB]
    if wanted in {"auto", "direct"} and straight:
        return Route(way=Choice("direct", f"the login node reaches {straight[0]}"), servers=tuple(straight))
    if wanted in {"auto", "websocket"} and web:
        return Route(way=Choice("websocket", f"the login node reaches {web[0]}"), servers=tuple(web))
    why = "; ".join(f"{url} isn't encrypted (--allow-plain would allow it)" for url in plain)
    why = why if plain and not urls else _why_not(urls, dialled, here=here) + (f"; {why}" if why else "")
    if wanted in {"direct", "websocket"}:
        raise SiteUnfit(
            f"the way {wanted!r} can't be gone: {why}",
            hint="leave it to --way auto, or name how the site reaches the bus with --agent-url",
        )
    return Route(
        way=Choice("tunnel", "as you said" if wanted == "tunnel" else why),
        servers=(),
        target=target,
    )


def _why_not(urls: Sequence[str], dialled: Sequence[Dialled], *, here: bool) -> str:
    if not urls:
        return "the bus has no address yet"
    if not here and all(is_loopback(place_of(url)[0]) for url in urls):
        return "the bus listens on this machine only"
    reasons = [f"{one.host}:{one.port}: {one.why}" for one in dialled if not one.open]
    return f"the login node doesn't reach the bus ({'; '.join(reasons)})"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def find(remote: Remote, home: Home, profile: SiteProfile, probe: Probe, wanted: str, *, here: bool) -> Route:
    """Try from the site which way can be gone, and choose.

    Raises:
        SiteUnfit: none that was asked for.
    """
    urls = list(profile.agent_servers or ()) if wanted != "tunnel" and not _is_tunnel(profile) else []
    urls = urls or addresses(home, profile, probe.client)
    dialled = []
    if wanted != "tunnel":
        for host, port in dict.fromkeys(map(place_of, urls)):
            if here or not is_loopback(host):
                dialled.append(Dialled(**remote.call("dial", host=host, port=port)))
    pinned = profile.bus == EMBEDDED or profile.ca_file is not None
    target = target_of(home, profile)
    return choose(wanted, urls, dialled, target, here=here, pinned=pinned, allow_plain=profile.allow_plain)


def target_of(home: Home, profile: SiteProfile) -> str:
    """Give where a tunnel comes out: the bus as this machine sees it."""
    host, port = place_of(home.bus_url() if profile.bus == EMBEDDED else profile.bus[0])
    return f"{_bracketed(host)}:{port}"


def _is_tunnel(profile: SiteProfile) -> bool:
    return any(url.startswith("nats+unix:") or is_loopback(place_of(url)[0]) for url in profile.agent_servers or ())


# ---------------------------------------------------------------------- the tunnel


def open_tunnel(
    master: Master, remote: Remote, site: str, probe: Probe, target: str, scheme: str, note: Callable[[str], None]
) -> tuple[str, bool]:
    """Let the site reach the bus through the connection; give the address for the agent, and whether it is new.

    A Unix socket in a folder of the user's own, or, where the site doesn't allow that, a port on the loopback, which
    the other users of the login node could open, too: TLS and keys stand before the bus in either case.

    Raises:
        LoginFailed: the site allows neither.
    """
    socket = f"{_socket_folder(remote, probe)}/{site}.sock"
    if _leads_here(master, remote, socket):
        return f"nats+unix://{socket}", False
    try:
        master.forward(socket, target)
    except LoginFailed as error:
        note(f"no Unix socket: {error.message}")
    if not remote.call("hang_up", path=socket):
        return _open_port(master, remote, target, scheme), True
    return f"nats+unix://{socket}", True


def open_again(master: Master, remote: Remote, server: str, target: str) -> None:
    """Let the site reach the bus under the same address as before; the agent connects again by itself.

    Raises:
        LoginFailed: the site doesn't allow it any more, or the port is somebody else's now.
    """
    parts = urlsplit(server)
    if parts.scheme == "nats+unix":
        if not _leads_here(master, remote, parts.path):
            master.forward(parts.path, target)
        return
    master.forward(f"{parts.hostname}:{parts.port}", target)


def _leads_here(master: Master, remote: Remote, socket: str) -> bool:
    """Tell whether a tunnel ends at a socket of the site; else the socket is removed, to be made anew.

    Nothing goes over a connection that was just opened: whoever listens then is the server of an earlier one, which
    hasn't noticed yet that the network changed or this machine slept, and for as long as TCP tries again.
    """
    if not remote.call("hang_up", path=socket):
        return False
    if master.opened:
        remote.call("remove", path=socket)
        return False
    return True


def _open_port(master: Master, remote: Remote, target: str, scheme: str) -> str:
    port = master.forward("127.0.0.1:0", target)
    if port is None or not remote.call("dial", host="127.0.0.1", port=port)["open"]:
        raise LoginFailed(
            "the site lets nothing back through the login's connection",
            hint="ask its support for AllowStreamLocalForwarding or AllowTcpForwarding (sshd_config), or let the agent "
            "reach the bus another way: a team's NATS server, or --way websocket",
        )
    return f"{scheme}://127.0.0.1:{port}"


def _socket_folder(remote: Remote, probe: Probe) -> str:
    """Give a folder on the login node itself that only the user can open: home file systems may take no sockets."""
    own = f"/tmp/slurmbus-{probe.uid}"  # noqa: S108 - looked at by private_folder
    candidates = [f"{probe.runtime}/slurmbus"] if probe.runtime else []
    found: str = remote.call("private_folder", paths=[*candidates, own, f"{probe.home}/.slurmbus/.run"])
    return found
