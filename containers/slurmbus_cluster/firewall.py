"""Ports of a host that others can't reach for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from .cluster import Cluster


@contextmanager
def closed(
    cluster: Cluster,
    host: str,
    ports: str,
    *,
    to: Sequence[str] = (),
    but: Sequence[str] = (),
    answer: Literal["REJECT", "DROP"] = "REJECT",
) -> Iterator[None]:
    """Close TCP ports of a host while the block runs, also to connections that exist.

    Args:
        cluster: whose host it is.
        host: whose ports are closed.
        ports: one, or a range, e.g. ``22`` or ``1024:65535``.
        to: the hosts to which they are closed; without any: to everybody.
        but: the hosts to which they stay open.
        answer: whether who knocks is told, or waits.
    """
    sources = [*((name, "ACCEPT") for name in but), *((name, answer) for name in to or ("",))]
    rules = [
        ["INPUT", "-p", "tcp", "--dport", ports, *(["-s", cluster.ip(name)] if name else []), "-j", target]
        for name, target in sources
    ]
    try:
        for rule in reversed(rules):
            cluster.exec(host, ["iptables", "-I", *rule])
        yield
    finally:
        for rule in rules:
            cluster.exec(host, ["iptables", "-D", *rule], check=False)
