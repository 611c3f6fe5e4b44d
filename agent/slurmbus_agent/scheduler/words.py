"""What the words of Slurm's commands mean. Pure; they are Slurm's error texts (slurm_errno.c) of 22.05 to 26.05.

The commands print no error numbers. What decides is whether the controller itself has answered: its "no" is final, and
anything that went wrong on the way may have been carried out.
"""

from __future__ import annotations

import errno
import os
import re
from enum import Enum

from slurmbus_agent.scheduler.command import Ended


class Meaning(Enum):
    """What became of a call that failed."""

    REFUSED = "the controller said no"
    NOT_SENT = "nothing was sent, or the controller said: not now"
    UNKNOWN = "it may have been carried out"


_NOT_SENT = frozenset(
    {
        "communication connection failure",  # 1001
        "can't find an address, check slurm.conf",  # 1012
        "unable to contact slurm controller (connect failure)",  # 1800
        "rate limit exceeded, please retry momentarily",  # 1804
        "rate limit exceeded, please retry later",  # 1805
        "maxjobcount limit reached",  # 2007
        "unable to create job record, try again",  # 2007, before 23.02
        "requested nodes are busy",  # 2016
        "slurm backup controller in standby mode",  # 2027
        "controller is in standby mode, try a different controller",  # 2131
        "failed to connect to authentication agent",  # 6002
    }
)
_ON_THE_WAY = frozenset(
    {
        "unexpected message received",
        "message send failure",
        "message receive failure",
        "communication shutdown failure",
        "incompatible versions of client and server code",
        "i/o stream version number error",
        "protocol authentication error",
        "insane message length",
        "plugin initialization failed",
        "unexpected missing socket error",
        "unable to process incoming file descriptor",
        "unable to process outgoing file descriptor",
        "unable to process incoming and outgoing file descriptors",
        "read would block",
        "write would block",
        "connection rejected by handler",
        "unable to contact slurm controller (send failure)",
        "unable to contact slurm controller (receive failure)",
        "unable to contact slurm controller (shutdown failure)",
        "received zero length message",
        "received message length < 0",
        "failed to send entire message",
        "header lengths are longer than data received",
        "socket timed out on send/recv operation",
        "zero bytes were transmitted or received",
        "no error",
        "success",
    }
)
_OF_THE_SYSTEM = frozenset(os.strerror(number).lower() for number in errno.errorcode)

_SUBMISSION = re.compile(r"^\S+: error: Batch job submission failed: (?P<words>.+)$", re.MULTILINE)
_ARGUMENTS = re.compile(
    r"^(?:sbatch: error: |(?:\S*/)?sbatch: (?:unrecognized option|invalid option|ambiguous option|option ))",
    re.MULTILINE,
)
"""What sbatch says when it, or a filter of the site in it, doesn't take its arguments or the script, before it sends
anything; but for the one that a submission has failed. getopt(3) names it as it was started, by path."""
_CONFIGURATION = re.compile(
    r"^sbatch: (?:error|fatal): .*(?:configuration|slurm\.conf|fetch_config|dns_srv)", re.MULTILINE
)
"""What it says when it can't find out where the controller is."""

RETRYING = (b"sleeping and retrying", b"temporarily disabled, retrying", b"retrying in 1sec")
"""What sbatch says before it sleeps for a second, and for a second longer each time."""
_NO_CONF = "retrying in 1sec"
_NOT_YET = ("job queue full", "temporarily")
_SLEEP = 1.0


def of_submit(ended: Ended) -> Meaning:
    """Give what became of a submit that gave no id."""
    if any(words.decode() in ended.stderr for words in RETRYING):
        # Killed within its first sleep it has sent one submit, and the controller's answer to that was: not now.
        answered = any(word in ended.stderr for word in _NOT_YET) and ended.seconds < _SLEEP
        return Meaning.NOT_SENT if answered or _NO_CONF in ended.stderr else Meaning.UNKNOWN
    if ended.trouble or not ended.code:
        return Meaning.UNKNOWN
    said = _SUBMISSION.findall(ended.stderr)
    if said:
        return of_words(said[-1])
    if _CONFIGURATION.search(ended.stderr):
        return Meaning.NOT_SENT
    return Meaning.REFUSED if _ARGUMENTS.search(ended.stderr) else Meaning.UNKNOWN


def of_words(words: str) -> Meaning:
    """Give the meaning of one of Slurm's error texts."""
    plain = words.strip().rstrip(".").lower()
    if plain in _NOT_SENT:
        return Meaning.NOT_SENT
    if plain in _ON_THE_WAY or plain in _OF_THE_SYSTEM or plain.startswith("unknown error"):
        return Meaning.UNKNOWN
    return Meaning.REFUSED


_NUMBERS = {
    "invalid partition name specified": 2000,
    "no partition specified or system default partition": 2001,
    "more processors requested than permitted": 2005,
    "node count specification invalid": 2006,
    "requested node configuration is not available": 2014,
    "requested partition configuration not available now": 2015,
    "invalid node name specified": 2018,
    "task count specification invalid": 2025,
    "invalid feature specification": 2029,
    "memory required by task is not available": 2044,
    "invalid account or account/partition combination specified": 2045,
    "job violates accounting/qos policy (job submit limit, user's size and/or time limits)": 2050,
    "invalid job time limit": 2051,
    "requested time limit is invalid (missing or exceeds some limit)": 2051,
    "access denied to requested reservation": 2052,
    "requested reservation is invalid": 2053,
    "invalid qos specification": 2066,
    "cpu count specification invalid": 2069,
    "cpu count per node can not be satisfied": 2069,
    "access/permission denied": 2002,
    "user's group not permitted to use this partition": 2003,
    "requested nodes not in this partition": 2004,
    "task distribution specification invalid": 2023,
    "invalid --distribution specification": 2023,
    "requested operation not supported on this system": 2036,
    "requested operation is presently disabled": 2037,
    "job dependency problem": 2038,
    "licenses currently unavailable": 2040,
    "invalid license specification": 2048,
    "invalid time specified": 2054,
    "requested reservation not usable now": 2056,
    "invalid wckey specification": 2057,
    "circular job dependency": 2071,
    "burst buffer permission denied": 2092,
    "burst buffer resource limit exceeded": 2093,
    "burst buffer request invalid": 2094,
    "invalid mcs_label specified": 2099,
    "duplicate generic resource (gres) specification": 2102,
    "job --batch option is invalid or not a subset of --constraint": 2114,
    "requested gres option unsupported by configured selecttype plugin": 2122,
    "invalid --nice value": 2123,
    "invalid time-min specification (exceeds job's time or other limits)": 2124,
    "cannot request more threads per core than the job allocation": 2132,
    "invalid preferred feature specification": 2133,
    "invalid extra constraints specification": 2171,
    "requested topology configuration is not available": 2178,
    "invalid generic resource (gres) specification": 2072,
    "invalid trackable resource (tres) specification": 2072,
    "invalid generic resource (gres) type specification": 2119,
}
"""slurm_errno.h's numbers of the texts for which there is a hint."""


def number_of(ended: Ended) -> int:
    """Give Slurm's error number of a failed submit; 0 when there is no hint for it anyway."""
    plain = [
        re.sub(r"^\S+: (error: )?(Batch job submission failed: )?", "", line) for line in ended.stderr.splitlines()
    ]
    return next((number for line in reversed(plain) if (number := _NUMBERS.get(line.strip().lower()))), 0)
