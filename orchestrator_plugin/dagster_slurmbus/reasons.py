"""Why a job waits, in plain words, and what to do about it.

Source of the names: "JOB REASON CODES" of squeue(1), job_state_reason of slurm.h; of the meanings: resource_limits
of Slurm's documentation. ``{job}`` is the job's id.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Reason(NamedTuple):
    """Why, what to do, and whether anybody has to do anything."""

    why: str
    advice: str = ""
    stuck: bool = False
    """It doesn't start by itself."""


_TURN = "it starts when it is its turn; a shorter time limit or fewer resources may let it in earlier"
_RELEASE = "let it go with 'scontrol release {job}', or end it with 'scancel {job}'"
_STAFF = "ask the site's staff"
_LIMITS = "'sacctmgr show qos' and 'sacctmgr show assoc' show the limits"

REASONS = {
    "Priority": Reason("other jobs come first", _TURN),
    "Resources": Reason("it is the next one, and what it asks for isn't free yet", _TURN),
    "Dependency": Reason("a job that it depends on hasn't ended yet"),
    "DependencyNeverSatisfied": Reason(
        "what it depends on can't happen any more", "end it with 'scancel {job}' and run it again", stuck=True
    ),
    "BeginTime": Reason("it was asked to begin later, or waits a moment after a requeue"),
    "SchedDefer": Reason("the scheduler is asked not to look at every job at once; it will soon"),
    "Licenses": Reason("the licences that it asks for are in use"),
    "Reservation": Reason("its reservation hasn't begun, or is full"),
    "ReservationDeleted": Reason("its reservation was deleted", "run it again without", stuck=True),
    "ReservationInvalid": Reason("its reservation isn't there", "run it again without", stuck=True),
    "ReqNodeNotAvail": Reason(
        "nodes that it needs are down, drained or reserved", "'sinfo -R' says why; ask for others, or wait"
    ),
    "NodeDown": Reason("a node that it needs is down", "'sinfo -R' says why"),
    "NvidiaImexChannels": Reason("other jobs use all of the GPUs' IMEX channels"),
    "MaxPoweredUpNodes": Reason("as many nodes as are allowed are powered up"),
    "MpiPortsBusy": Reason("the ports reserved for MPI are in use"),
    "Prolog": Reason("its nodes are being prepared"),
    "Cleaning": Reason("what is left of its last start is being cleaned up"),
    "JobArrayTaskLimit": Reason("as many tasks of its array run as were asked to run at once"),
    "FedJobLock": Reason("the clusters of the federation are deciding which one runs it"),
    "JobHeldUser": Reason("it is held, by you or in your name", _RELEASE, stuck=True),
    "JobHeldAdmin": Reason(
        "it is held by the staff, or because its priority is 0",
        f"{_STAFF}; or end it with 'scancel {{job}}'",
        stuck=True,
    ),
    "JobHoldMaxRequeue": Reason("it was requeued too often and is held", _RELEASE, stuck=True),
    "PartitionDown": Reason("its partition takes no jobs up at the moment", "wait, or use another partition"),
    "PartitionInactive": Reason("its partition is closed", "use another partition", stuck=True),
    "PartitionNodeLimit": Reason(
        "it asks for more or fewer nodes than its partition allows",
        "correct nodes=…, or use another partition",
        stuck=True,
    ),
    "PartitionTimeLimit": Reason(
        "it asks for more time than its partition allows", "correct time_limit=…, or use another partition", stuck=True
    ),
    "PartitionConfig": Reason(
        "its partition doesn't allow what it asks for", "'scontrol show partition' says what it allows", stuck=True
    ),
    "BadConstraints": Reason(
        "no node has what it asks for", "correct the request; 'sinfo' shows the nodes", stuck=True
    ),
    "Constraints": Reason("no node that is up has what it asks for", "'sinfo' shows the nodes"),
    "MaxMemPerLimit": Reason("it asks for more memory than is allowed", "correct mem=…", stuck=True),
    "InvalidAccount": Reason("its account isn't valid", "correct account=…", stuck=True),
    "AccountNotAllowed": Reason(
        "its account may not use its partition", "correct account=… or partition=…", stuck=True
    ),
    "InvalidQOS": Reason("its QOS isn't valid", "correct qos=…", stuck=True),
    "QOSNotAllowed": Reason("its QOS may not be used there", "correct qos=… or partition=…", stuck=True),
    "QOSUsageThreshold": Reason("its account has used too much for its QOS", f"use another QOS, or wait; {_LIMITS}"),
    "QOSJobLimit": Reason("as many jobs as its QOS allows run", _LIMITS),
    "QOSResourceLimit": Reason("its QOS uses all that it may", _LIMITS),
    "QOSTimeLimit": Reason("its QOS has used up its time", _LIMITS),
    "AssociationJobLimit": Reason("as many jobs as its account allows run", _LIMITS),
    "AssociationResourceLimit": Reason("its account uses all that it may", _LIMITS),
    "AssociationTimeLimit": Reason("its account has used up its time", _LIMITS),
    "AccountingPolicy": Reason("a limit of its account or QOS", _LIMITS),
    "BurstBufferResources": Reason("the burst buffer has no room yet"),
    "BurstBufferStageIn": Reason("its files are being brought into the burst buffer"),
    "BurstBufferOperation": Reason(
        "the burst buffer failed", f"{_STAFF}; or end it with 'scancel {{job}}'", stuck=True
    ),
    "JobLaunchFailure": Reason("it couldn't be launched on its nodes", _RELEASE, stuck=True),
    "SystemFailure": Reason("something of the cluster failed: Slurm itself, a file system or the network", _STAFF),
    # Of jobs that have ended; one that was requeued may still show them.
    "NonZeroExitCode": Reason("its last start ended with an exit code other than 0"),
    "RaisedSignal": Reason("its last start was ended by a signal"),
    "TimeLimit": Reason("its last start reached its time limit"),
    "OutOfMemory": Reason("its last start ran out of memory"),
    "DeadLine": Reason("it can't be finished before its deadline"),
    "InactiveLimit": Reason("its last start was inactive for too long"),
    # What slurmctld writes in its own words (state_desc).
    "launch failed requeued held": Reason(
        "it couldn't be launched on its nodes, was put back and is held", f"find out why, then {_RELEASE}", stuck=True
    ),
    "user env retrieval failed requeued held": Reason(
        "your login environment couldn't be read on its node; it was put back and is held",
        f"make your shell's profile start quickly, then {_RELEASE}",
        stuck=True,
    ),
    "job requeued in held state": Reason("it was put back and is held", _RELEASE, stuck=True),
    "job requeued in special exit state": Reason("it was put back and is held (special exit)", _RELEASE, stuck=True),
    "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions": Reason(
        "nodes that it needs are down, drained or reserved", "'sinfo -R' says why; ask for others, or wait"
    ),
}

SHOWN_STATES = {
    "SUSPENDED": Reason(
        "its processes are stopped for now; they go on when it is resumed", "'scontrol resume {job}' does that"
    ),
    "STOPPED": Reason(
        "its processes were stopped by a signal and keep their CPUs", "'scancel -s CONT {job}' lets them go on"
    ),
    "REQUEUED": Reason("it was put back and will start again"),
    "REQUEUE_HOLD": Reason("it was put back and is held", _RELEASE, stuck=True),
    "REQUEUE_FED": Reason("it was put back, to run on another cluster of the federation"),
    "SPECIAL_EXIT": Reason("it was put back and is held (special exit)", _RELEASE, stuck=True),
    "RESV_DEL_HOLD": Reason("its reservation was deleted, and it is held", _RELEASE, stuck=True),
    "CONFIGURING": Reason("its nodes are being made ready"),
    "POWER_UP_NODE": Reason("its nodes are being powered up"),
    "EXPEDITING": Reason("it is put back at the front of the queue, because a node failed"),
    "COMPLETING": Reason("it is ending"),
    "STAGE_OUT": Reason("its files are being brought out of the burst buffer"),
    "SIGNALING": Reason("it is being sent a signal"),
    "RESIZING": Reason("it is about to change its size"),
    "REVOKED": Reason("another cluster of the federation runs it"),
}
"""What Slurm calls a job beside its base state. Source: "JOB STATE CODES" of squeue(1)."""

_RESOURCES = {
    "cpu": "CPUs",
    "mem": "memory",
    "memory": "memory",
    "node": "nodes",
    "gres": "GPUs or other generic resources",
    "license": "licences",
    "bb": "burst buffer",
    "energy": "energy",
    "billing": "billing units",
    "unknown": "some resource",
    "job": "jobs",
    "jobs": "jobs",
    "submitjob": "submitted jobs",
    "submitjobs": "submitted jobs",
    "wall": "time",
    "wallduration": "time",
}
_LIMIT = re.compile(
    r"(?P<whose>qos|assoc)?(?P<kind>grp|max|min)"
    rf"(?P<what>{'|'.join(sorted(_RESOURCES, key=len, reverse=True))})"
    r"(?P<minutes>(run)?(minutes|mins))?(?P<scope>per(job|node|user|account))?(?P<last>limit|notsatisfied)?",
    re.IGNORECASE,
)


def explain(reason: str) -> Reason | None:
    """Explain a reason as Slurm gives it; None for one that nobody here has heard of."""
    for known in (reason, re.split(r"[,:(]", reason, maxsplit=1)[0].strip()):
        found = REASONS.get(known) or _limit(known)
        if found is not None:
            return found
    return None


def explain_state(slurm_state: str) -> Reason | None:
    """Explain what Slurm calls a job beside its base state, e.g. ``PENDING REQUEUE_HOLD``."""
    found = [SHOWN_STATES[word] for word in slurm_state.split() if word in SHOWN_STATES]
    return max(found, key=lambda reason: reason.stuck, default=None)


def _limit(name: str) -> Reason | None:
    """Put the sentence together for one of the two hundred limits: QOSMaxCpuPerUserLimit, AssocGrpMemRunMinutes, …."""
    match = _LIMIT.fullmatch(name)
    if match is None:
        return None
    whose = "account" if (match["whose"] or "").lower() == "assoc" else "QOS"
    what = _RESOURCES[match["what"].lower()]
    scope = (match["scope"] or "").lower().removeprefix("per")
    kind = match["kind"].lower()
    if match["minutes"]:
        what = f"minutes of {what}"
    if kind == "min":
        return Reason(f"it asks for less than its {whose} wants of {what}", f"ask for more; {_LIMITS}", stuck=True)
    if kind == "grp":
        return Reason(
            f"the jobs of its {whose} together use all the {what} that they may", f"it waits for them; {_LIMITS}"
        )
    if scope == "user" or what in {"jobs", "submitted jobs"}:
        who = "its account has" if scope == "account" else "you have"
        return Reason(f"{who} all the {what} in use that its {whose} allows", f"it waits for those; {_LIMITS}")
    if scope == "account":
        return Reason(
            f"its account has all the {what} in use that its {whose} allows", f"it waits for those; {_LIMITS}"
        )
    where = " on one node" if scope == "node" else ""
    return Reason(
        f"it asks for more {what}{where} than its {whose} allows one job", f"ask for less; {_LIMITS}", stuck=True
    )
