"""This host's IPv4 addresses and ports."""

from __future__ import annotations

import fcntl
import socket
import struct
from contextlib import suppress

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
    with suppress(OSError):
        named = socket.gethostbyname(node)
        if named in own:  # a name may stand for another network, too
            own.insert(0, named)
    return sorted(dict.fromkeys(own), key=lambda address: address.startswith("127."))


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
