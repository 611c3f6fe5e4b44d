"""This host's IPv4 addresses and ports."""

from __future__ import annotations

import fcntl
import socket
import struct
from contextlib import suppress

from slurmbus_agent.runner.launch_errors import LaunchFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_SIOCGIFADDR = 0x8915
"""Source: netdevice(7)."""
_NAME_LENGTH = 15


def interfaces() -> dict[str, str]:
    """Give the first IPv4 address of each interface that has one."""
    found: dict[str, str] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no address
                request = struct.pack("256s", name.encode()[:_NAME_LENGTH])
                answer = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, request)
                found[name] = socket.inet_ntoa(answer[20:24])
    return found


def addresses(node: str) -> list[str]:
    """Give this host's addresses, the one that its name in Slurm stands for first, loopback last."""
    own = list(interfaces().values())
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        any_socket.connect(("192.0.2.1", 9))  # nothing is sent; it only says which way it would go
        own.insert(0, any_socket.getsockname()[0])
    with suppress(OSError):
        named = socket.gethostbyname(node)
        if named in own:  # a name may stand for another network, too
            own.insert(0, named)
    return sorted(dict.fromkeys(own), key=lambda address: address.startswith("127."))


def address_of(node: str, interface: str | None) -> str:
    """Give this host's address on an interface, or the one that its name stands for.

    Raises:
        LaunchFailed: there is no such interface.
    """
    if interface is None:
        return addresses(node)[0]
    found = interfaces()
    if interface not in found:
        names = ", ".join(sorted(found))
        raise LaunchFailed(f"interface: {node} has no {interface!r} with an IPv4 address; it has {names}")
    return found[interface]


def taken(ports: Iterable[int], address: str = "") -> list[int]:
    """Give those of some ports that somebody listens on."""
    found = []
    for port in ports:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # an ended connection doesn't count
            try:
                one.bind((address, port))
            except OSError:
                found.append(port)
    return found


def answers(address: str, port: int, within: float) -> bool:
    """Tell whether somebody listens there."""
    try:
        socket.create_connection((address, port), within).close()
    except OSError:
        return False
    return True


def free_ports(count: int, address: str = "") -> list[int]:
    """Let the kernel choose ports that nobody listens on now; somebody may take one before it is used."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for one in sockets:
            one.bind((address, 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
