"""The streams, the bucket and the consumers of the bus: their settings, and making them."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import Any

from slurmbus_protocol import subjects
from slurmbus_protocol.bus import ApiError, Bus
from slurmbus_protocol.errors import BusFull, BusMisconfigured

BUS_ID = "slurmbus.bus_id"
_STREAM_NOT_FOUND = 10059
_NAME_IN_USE = 10058
_CONSUMER_NOT_FOUND = 10014
_CONSUMER_EXISTS = {10013, 10148}
_SECONDS = 1_000_000_000
MINIMUM_API_LEVEL = 2  # nats-server 2.12; older ones ignore settings silently

GIB = 1024**3


@dataclass(frozen=True, slots=True)
class BusLimits:
    """The most that each stream may hold, in bytes. A bus without limits fills its disk."""

    requests: int = GIB // 4
    states: int = 1 * GIB
    forget: int = GIB // 64
    messages: int = 4 * GIB
    logs: int = 4 * GIB
    blobs: int = 8 * GIB
    agents: int = GIB // 16

    @property
    def total(self) -> int:
        """What the server must be allowed to store."""
        return self.requests + self.states + self.forget + self.messages + self.logs + self.blobs + self.agents


def stream_configs(limits: BusLimits) -> list[dict[str, Any]]:
    """Give the settings of every stream, in JetStream's own words (docs.nats.io, "JetStream API reference")."""
    p = subjects.PREFIX
    common: dict[str, Any] = {
        "retention": "limits",
        "storage": "file",
        "num_replicas": 1,
        "allow_direct": True,
        "max_age": 0,
    }
    return [
        {
            **common,
            "name": subjects.REQUESTS,
            "subjects": [f"{p}.*.req.*", f"{p}.*.ctl.*.*"],
            "discard": "new",
            "max_bytes": limits.requests,
        },
        {
            **common,
            "name": subjects.STATES,
            "subjects": [f"{p}.*.job.*.*.state"],
            "discard": "new",
            "max_bytes": limits.states,
            "max_msgs_per_subject": 64,
        },
        {
            # What agents want to have forgotten. They can't remove anything themselves: a permission to purge, or to
            # roll up, holds for a whole stream with the messages of all sites.
            **common,
            "name": subjects.FORGET,
            "subjects": [f"{p}.*.job.*.*.forget"],
            "discard": "new",
            "max_bytes": limits.forget,
            "max_msgs_per_subject": 1,
        },
        {
            **common,
            "name": subjects.MESSAGES,
            "subjects": [f"{p}.*.msg.*.*.*"],
            "discard": "new",
            "max_bytes": limits.messages,
            "compression": "s2",
        },
        {
            **common,
            "name": subjects.LOGS,
            "subjects": [f"{p}.*.log.*.*.*.*"],
            "discard": "old",
            "max_bytes": limits.logs,
            "compression": "s2",
        },
        {
            **common,
            "name": subjects.BLOBS,
            "subjects": ["blob.*.*"],
            "discard": "old",
            "max_bytes": limits.blobs,
            "max_msgs_per_subject": 1,
        },
        {
            **common,
            "name": f"KV_{subjects.AGENTS_BUCKET}",
            "subjects": [f"$KV.{subjects.AGENTS_BUCKET}.>"],
            "discard": "new",
            "max_bytes": limits.agents,
            "max_msgs_per_subject": 1,
            "deny_delete": True,
        },
    ]


async def ensure_streams(bus: Bus, limits: BusLimits | None = None) -> str:
    """Make what is missing, compare what is there, and return the bus id.

    Raises:
        BusFull: the server may store too little; the message names the stream.
        BusMisconfigured: the server is too old, or a stream exists with other settings; the message names them.
    """
    account = await bus.api("INFO")
    level = int(account.get("api", {}).get("level", 0))
    if level < MINIMUM_API_LEVEL:
        raise BusMisconfigured(
            f"the NATS server's JetStream API level is {level}, Slurmbus needs {MINIMUM_API_LEVEL}",
            hint="use nats-server 2.12 or newer",
        )
    configs = stream_configs(limits or BusLimits())
    first = await _ensure_stream(bus, configs[0], {BUS_ID: secrets.token_hex(16)})
    bus_id = str(first.get("metadata", {}).get(BUS_ID, ""))
    await asyncio.gather(*(_ensure_stream(bus, config, {BUS_ID: bus_id}) for config in configs[1:]))
    return bus_id


async def _ensure_stream(bus: Bus, config: dict[str, Any], metadata: dict[str, str]) -> dict[str, Any]:
    name = config["name"]
    try:
        found = (await bus.api(f"STREAM.INFO.{name}"))["config"]
    except ApiError as error:
        if error.number != _STREAM_NOT_FOUND:
            raise
        try:
            found = (await bus.api(f"STREAM.CREATE.{name}", {**config, "metadata": metadata}))["config"]
        except BusFull as full:
            raise BusFull(
                f"the NATS server has too little storage for stream {name} of {config['max_bytes']:,} bytes",
                hint="raise its max_file_store, or the account's limit",
            ) from full
        except ApiError as create_error:
            if create_error.number != _NAME_IN_USE:  # another client was faster
                raise
            found = (await bus.api(f"STREAM.INFO.{name}"))["config"]
    differences = [
        f"{key} is {found.get(key)!r}, not {asked!r}"
        for key, asked in config.items()
        if key != "max_bytes" and (found.get(key) or None) != (asked or None)
    ]
    if not int(found.get("max_bytes") or 0) > 0:
        differences.append("max_bytes isn't set")
    if differences:
        raise BusMisconfigured(
            f"stream {name} exists with other settings: {'; '.join(differences)}",
            hint="change them with the nats command, or let Slurmbus use a NATS account of its own",
        )
    return dict(found)


def consumer_config(site: str) -> dict[str, Any]:
    """Give the settings of the durable consumer from which a site's agent pulls its requests."""
    p = f"{subjects.PREFIX}.{subjects.check_token(site, 'site')}"
    return {
        "durable_name": subjects.consumer(site),
        "name": subjects.consumer(site),
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": 8 * _SECONDS,
        "max_ack_pending": 1000,
        "max_deliver": -1,
        "filter_subjects": [f"{p}.req.*", f"{p}.ctl.*.*"],
        "replay_policy": "instant",
    }


async def ensure_consumer(bus: Bus, site: str, bus_id: str) -> None:
    """Make the site's consumer on REQUESTS when it isn't there: agents may not create consumers themselves."""
    name = subjects.consumer(site)
    try:
        await bus.api(f"CONSUMER.INFO.{subjects.REQUESTS}.{name}")
    except ApiError as error:
        if error.number != _CONSUMER_NOT_FOUND:
            raise
        config = {**consumer_config(site), "metadata": {BUS_ID: bus_id}}
        body = {"stream_name": subjects.REQUESTS, "config": config, "action": "create"}
        try:
            await bus.api(f"CONSUMER.CREATE.{subjects.REQUESTS}.{name}", body)
        except ApiError as create_error:
            if create_error.number not in _CONSUMER_EXISTS:
                raise


async def consumer_bus_id(bus: Bus, site: str) -> str | None:
    """Read the bus id from the site's consumer, or None when no client has made it yet."""
    try:
        info = await bus.api(f"CONSUMER.INFO.{subjects.REQUESTS}.{subjects.consumer(site)}")
    except ApiError as error:
        if error.number in {_CONSUMER_NOT_FOUND, _STREAM_NOT_FOUND}:
            return None
        raise
    return str(info["config"].get("metadata", {}).get(BUS_ID, ""))


def agent_permissions(site: str) -> dict[str, Any]:
    """Give the least that an agent's user needs, in the words of nats-server's configuration.

    Agents may never create consumers: a consumer's deliver subject isn't checked against permissions.
    """
    p = f"{subjects.PREFIX}.{subjects.check_token(site, 'site')}"
    consumer = subjects.consumer(site)
    kv = f"$KV.{subjects.AGENTS_BUCKET}.{site}"
    inbox = f"{agent_inbox(site)}.>"
    direct = "$JS.API.DIRECT.GET"
    return {
        "publish": {
            "allow": [
                f"{p}.job.>",
                f"{p}.msg.>",
                f"{p}.log.>",
                "blob.>",
                kv,
                f"{kv}.>",
                f"$JS.API.CONSUMER.MSG.NEXT.{subjects.REQUESTS}.{consumer}",
                f"$JS.API.CONSUMER.INFO.{subjects.REQUESTS}.{consumer}",
                f"$JS.ACK.{subjects.REQUESTS}.{consumer}.>",
                f"$JS.ACK.*.*.{subjects.REQUESTS}.{consumer}.>",
                f"{direct}.{subjects.REQUESTS}.{p}.>",
                f"{direct}.{subjects.STATES}.{p}.>",
                f"{direct}.{subjects.MESSAGES}.{p}.>",
                f"{direct}.{subjects.LOGS}.{p}.>",
                f"{direct}.{subjects.BLOBS}.blob.>",
                f"{direct}.KV_{subjects.AGENTS_BUCKET}.{kv}",
                f"{direct}.KV_{subjects.AGENTS_BUCKET}.{kv}.>",
                inbox,
            ]
        },
        "subscribe": {"allow": [inbox, f"{p}.rpc.>", "$SRV.>"]},
        "allow_responses": {"max": 100, "expires": "1m"},
    }


def agent_inbox(site: str) -> str:
    """Give the inbox prefix of a site's agents, so that no other user can listen to their answers."""
    return f"_INBOX_{subjects.check_token(site, 'site')}"
