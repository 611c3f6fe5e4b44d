"""What the user may use on the cluster: accounts, partitions, QOS; and a queue configuration made of them."""

from __future__ import annotations

import re

import msgspec

from slurmbus.bootstrap.session import Remote

PATIENCE = 30.0
_ASSOCIATIONS = ("sacctmgr", "--noheader", "--parsable2", "show", "associations")
_FIELDS = "format=account,partition,qos,defaultqos"
_PARTITIONS = ("scontrol", "show", "partition", "--oneliner")
_MODEST_MINUTES = 60


class Association(msgspec.Struct, frozen=True, kw_only=True):
    """One account, perhaps in one partition only, with the QOS that it may use."""

    account: str
    partition: str = ""
    qos: tuple[str, ...] = ()
    default_qos: str = ""


class PartitionFound(msgspec.Struct, frozen=True, kw_only=True):
    """One partition."""

    name: str
    state: str = ""
    default: bool = False
    max_time: str = ""
    nodes: int = 0
    cpus: int = 0
    accounts: tuple[str, ...] = ()
    """Those that may use it; none is all."""


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """What the user may use."""

    associations: tuple[Association, ...] = ()
    partitions: tuple[PartitionFound, ...] = ()
    problem: str = ""


def look(remote: Remote, user: str, environment: dict[str, str]) -> Account:
    """Ask Slurm's commands on the login node."""
    asked = remote.run([*_ASSOCIATIONS, f"user={user}", _FIELDS], env=dict(environment), timeout=PATIENCE)
    shown = remote.run(list(_PARTITIONS), env=dict(environment), timeout=PATIENCE)
    return Account(
        associations=parse_associations(asked.out) if asked.code == 0 else (),
        partitions=parse_partitions(shown.out) if shown.code == 0 else (),
        problem="; ".join(done.words for done in (asked, shown) if done.code != 0),
    )


def parse_associations(text: str) -> tuple[Association, ...]:
    """Read what ``sacctmgr --parsable2`` prints (pure)."""
    found = []
    for line in text.splitlines():
        fields = [*line.split("|"), "", "", "", "", ""]
        if fields[0]:
            qos = tuple(name for name in fields[2].split(",") if name)
            found.append(Association(account=fields[0], partition=fields[1], qos=qos, default_qos=fields[3]))
    return tuple(found)


def parse_partitions(text: str) -> tuple[PartitionFound, ...]:
    """Read what ``scontrol show partition --oneliner`` prints (pure)."""
    found = []
    for line in text.splitlines():
        values = dict(re.findall(r"(\w+)=(\S*)", line))
        if "PartitionName" not in values:
            continue
        allowed = values.get("AllowAccounts", "ALL")
        found.append(
            PartitionFound(
                name=values["PartitionName"],
                state=values.get("State", ""),
                default=values.get("Default") == "YES",
                max_time=values.get("MaxTime", ""),
                nodes=_number(values.get("TotalNodes", "")),
                cpus=_number(values.get("TotalCPUs", "")),
                accounts=() if allowed == "ALL" else tuple(allowed.split(",")),
            )
        )
    return tuple(found)


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _partition(account: Account) -> PartitionFound | None:
    usable = [one for one in account.partitions if one.state in {"UP", ""}]
    return next((one for one in usable if one.default), usable[0] if usable else None)


def trial_options(account: Account) -> dict[str, str]:
    """Give what a small job has to name: a partition, where Slurm chooses none by itself (pure)."""
    partition = _partition(account)
    return {} if partition is None or partition.default else {"partition": partition.name}


def queue_configuration(account: Account) -> str:
    """Give a ``SlurmQueueConfig`` to paste: with the default partition, and an account that may use it (pure)."""
    partition = _partition(account)
    accounts = list(dict.fromkeys(one.account for one in account.associations))
    words = []
    if partition is not None:
        words.append(f'partition="{partition.name}"')
        fitting = [name for name in accounts if not partition.accounts or name in partition.accounts]
        accounts = fitting or accounts
    if accounts:
        words.append(f'account="{accounts[0]}"')
    words += [f'time_limit="{_modest(partition)}"', "cpus=1", 'mem="1G"']
    return f"SlurmQueueConfig({', '.join(words)})"


def _modest(partition: PartitionFound | None) -> str:
    limit = minutes(partition.max_time) if partition is not None else None
    wanted = min(_MODEST_MINUTES, limit) if limit else _MODEST_MINUTES
    return f"{wanted // 60:02}:{wanted % 60:02}:00"


def minutes(text: str) -> int | None:
    """Read a limit as Slurm prints it (``1-02:03:04``); None for none (pure)."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if found is None:
        return None
    days, hours, mins, seconds = (int(part or 0) for part in found.groups())
    return days * 1440 + hours * 60 + mins + (1 if seconds else 0)


def describe(account: Account) -> list[str]:
    """Say what there is, a line each (pure)."""
    lines = []
    for one in account.associations:
        where = f" in partition {one.partition}" if one.partition else ""
        default = f" (default {one.default_qos})" if one.default_qos else ""
        lines.append(f"account {one.account}{where}: QOS {', '.join(one.qos) or 'none'}{default}")
    for part in account.partitions:
        words = [f"{part.nodes} nodes, {part.cpus} CPUs", f"at most {part.max_time}"]
        words += ["default"] if part.default else []
        words += [part.state.lower()] if part.state != "UP" else []
        words += [f"for {', '.join(part.accounts)}"] if part.accounts else []
        lines.append(f"partition {part.name}: {'; '.join(words)}")
    if account.problem:
        lines.append(f"Slurm says: {account.problem}")
    return lines
