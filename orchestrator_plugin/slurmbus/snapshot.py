"""The last message of each of many subjects, in one go."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing, suppress

from slurmbus_protocol.bus import Bus, Stored, parse_time
from slurmbus_protocol.errors import BusUnreachable
from slurmbus_protocol.reading import pull, stored

_SECONDS = 1_000_000_000
_INACTIVE_THRESHOLD = 30


async def latest(bus: Bus, stream: str, filters: Sequence[str]) -> tuple[list[Stored], float]:
    """Give the last message of each subject that fits, and the bus's clock in seconds since 1970.

    Raises:
        BusUnreachable: it doesn't answer.
        ApiError: the stream isn't there.
    """
    config = {
        "ack_policy": "none",
        "deliver_policy": "last_per_subject",
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": _INACTIVE_THRESHOLD * _SECONDS,
        "filter_subjects": list(filters),
        "replay_policy": "instant",
    }
    answer = await bus.api(f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config})
    name, now = str(answer["name"]), parse_time(str(answer["ts"]))
    found: dict[str, Stored] = {}
    try:
        if int(answer["num_pending"]):
            async with aclosing(pull(bus, stream, name)) as messages:
                async for msg in messages:
                    item = stored(msg)
                    found[item.subject] = item
                    if msg.metadata.num_pending == 0:
                        break
    finally:
        with suppress(BusUnreachable):  # the server drops it by itself
            await bus.tell(f"$JS.API.CONSUMER.DELETE.{stream}.{name}", b"")
    return list(found.values()), now
