"""Reading streams by pulling, without gaps.

A :func:`read` goes on over lost connections, restarted servers and deleted consumers: it always asks for the sequence
after the last one that it gave out.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from slurmbus_protocol.bus import RETRY_DELAYS, ApiError, Bus, Stored
from slurmbus_protocol.errors import BusUnreachable

log = logging.getLogger(__name__)

_SECONDS = 1_000_000_000
PULL_BATCH = 256
PULL_BYTES = 8 * 1024 * 1024
PULL_HEARTBEATS = 6
"""Signs of life of the server before the question is asked again."""
IDLE_HEARTBEAT = 5.0
INACTIVE_THRESHOLD = 60.0


class ConsumerGone(BusUnreachable):
    """The consumer was deleted or forgotten by the server."""

    code = "consumer-gone"


async def pull(
    bus: Bus, stream: str, consumer: str, *, batch: int = PULL_BATCH, idle_heartbeat: float = IDLE_HEARTBEAT
) -> AsyncGenerator[Msg]:
    """Give the messages of a pull consumer as they come, for ever.

    Args:
        bus: the connection.
        stream: of the consumer.
        consumer: its name.
        batch: how many messages the server may send ahead.
        idle_heartbeat: seconds between two signs of life of the server while nothing comes. They show that it still
            knows of the question; a lost connection is noticed by the connection itself.

    Raises:
        ConsumerGone: the consumer isn't there any more.
        BusUnreachable: not even idle heartbeats come.
    """
    request = json.dumps(
        {
            "batch": batch,
            "max_bytes": PULL_BYTES,
            "expires": int(PULL_HEARTBEATS * idle_heartbeat * _SECONDS),
            "idle_heartbeat": int(idle_heartbeat * _SECONDS),
        }
    ).encode()
    subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
    silence = 2 * idle_heartbeat + 1.0
    moved = asyncio.create_task(bus.next_connection(bus.connections))
    try:
        async with bus.inbox() as (inbox, subscription):
            wanted = 0
            while True:
                if wanted == 0:
                    await bus.tell(subject, request, reply=inbox)
                    wanted = batch
                msg = await _next(bus, stream, subscription, moved, silence)
                status = (msg.headers or {}).get("Status") if not msg.data else None
                if status is None:
                    wanted -= 1
                    yield msg
                elif status == "503":
                    raise ConsumerGone(f"{stream}: the server doesn't know consumer {consumer}")
                elif status != "100":
                    _raise_if_gone(stream, consumer, msg)
                    wanted = 0
    finally:
        moved.cancel()
        await asyncio.gather(moved, return_exceptions=True)


async def _next(bus: Bus, stream: str, subscription: Subscription, moved: asyncio.Task[int], silence: float) -> Msg:
    """Wait for a message, but not on a connection that was made anew: the server has forgotten the pull request."""
    try:
        if subscription.pending_msgs:
            return await subscription.next_msg(timeout=silence)
        getter = asyncio.create_task(subscription.next_msg(timeout=silence))
        try:
            await asyncio.wait({getter, moved}, return_when=asyncio.FIRST_COMPLETED)
            if getter.done():
                return getter.result()
            raise BusUnreachable(f"{stream}: the connection was made anew")
        finally:
            getter.cancel()
            await asyncio.gather(getter, return_exceptions=True)
    except (TimeoutError, nats.errors.Error) as error:
        bus.suspect()
        raise BusUnreachable(f"{stream}: nothing is heard from the bus") from error


def _raise_if_gone(stream: str, consumer: str, msg: Msg) -> None:
    words = (msg.headers or {}).get("Description", "").lower()
    if "deleted" in words or "not found" in words or "leadership" in words or "shutdown" in words:
        raise ConsumerGone(f"{stream}: consumer {consumer} is gone: {words}")


def stored(msg: Msg) -> Stored:
    """Turn a delivered message into what the stream holds."""
    metadata = msg.metadata
    return Stored(
        subject=msg.subject,
        data=msg.data,
        headers=msg.headers or {},
        sequence=metadata.sequence.stream,
        time=metadata.timestamp.timestamp(),
    )


async def create_reader(
    bus: Bus, stream: str, filters: Sequence[str], start_sequence: int | None, *, history: bool = True
) -> str:
    """Make an ephemeral pull consumer over some subjects and return its name."""
    config: dict[str, Any] = {
        "ack_policy": "none",
        "mem_storage": True,
        "num_replicas": 1,
        "inactive_threshold": int(INACTIVE_THRESHOLD * _SECONDS),
        "filter_subjects": list(filters),
        "replay_policy": "instant",
    }
    if start_sequence is None:
        config["deliver_policy"] = "all" if history else "last_per_subject"
    else:
        config["deliver_policy"] = "by_start_sequence"
        config["opt_start_seq"] = start_sequence
    answer = await bus.api(f"CONSUMER.CREATE.{stream}", {"stream_name": stream, "config": config})
    return str(answer["name"])


async def read(
    bus: Bus, stream: str, filters: Sequence[str], *, start_sequence: int | None = None, history: bool = True
) -> AsyncGenerator[Stored]:
    """Give every message of some subjects in order, from the first one on, for ever; lost connections are repaired.

    Without ``history`` it begins with the last message of each subject.
    """
    following = start_sequence
    attempt = 0
    while True:
        try:
            consumer = await create_reader(bus, stream, filters, following, history=history)
            async with aclosing(pull(bus, stream, consumer)) as messages:
                async for msg in messages:
                    item = stored(msg)
                    attempt = 0
                    if following is None or item.sequence >= following:
                        following = item.sequence + 1
                        yield item
        except (BusUnreachable, ApiError) as error:
            log.debug("reading %s: %s", stream, error)
            delay = RETRY_DELAYS[min(attempt, len(RETRY_DELAYS) - 1)]
            attempt += 1
            await asyncio.sleep(delay)
