"""Claims: who has taken a start of a job.

A claim is the symlink ``starts/<n>`` whose target is ``<job id>:<node>:<nonce>:<milliseconds since 1970>``. Creating a
symlink is atomic with its content on every file system. On NFS the answer may get lost and the repeated call says
"exists": so the target that stands there decides, never the error.
"""

from __future__ import annotations

import os

AGENT_NODE = "@agent"
"""The node in a claim by which the agent seals a job: no start may follow. No host can have this name."""


def target(job_id: int, node: str, nonce: str, claimed_at: float) -> str:
    """Give the target of a claim's symlink."""
    clean = "".join(letter if letter.isalnum() or letter in "-._@" else "-" for letter in node)
    return f"{job_id}:{clean}:{nonce}:{int(claimed_at * 1000)}"


def parse(text: str) -> tuple[int, str, str, float]:
    """Take a target apart into job id, node, nonce and time; ValueError when it is none."""
    job_id, node, nonce, claimed_at = text.split(":")
    return int(job_id), node, nonce, int(claimed_at) / 1000


def take(folder: str, start: int, text: str) -> str:
    """Try to claim a start, and give the target of the claim that stands afterwards: this one or an earlier one."""
    path = f"{folder}/{start}"
    try:
        os.symlink(text, path)
    except FileExistsError:
        return os.readlink(path)
    return text


def latest(folder: str) -> int:
    """Give the highest start that is claimed, -1 when there is none.

    Lists the folder because opening one makes an NFS client ask the server; a missing name may stay cached for long.
    """
    return max((int(name) for name in os.listdir(folder) if name.isdigit()), default=-1)
