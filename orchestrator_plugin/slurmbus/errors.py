"""What can go wrong on the client's side, besides :mod:`slurmbus_protocol.errors`.

::

    SlurmbusError
    ├── UnknownJob         the site has no record of this job
    ├── AmbiguousJob       several jobs fit what was typed
    ├── UnknownSite        this home has no such site
    ├── LocalNotStarted    the local helper didn't come up
    ├── LoginFailed        nobody got in at the site, or the connection broke
    ├── SiteUnfit          the site lacks something that the agent needs
    ├── RequeueUnknown     Slurm was told to requeue the job, and didn't answer
    └── NotAllowed
        └── ControlNotAllowed   the site's agent refused to do that to the job
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from slurmbus_protocol.errors import NotAllowed, NotRequeueable, SlurmbusError

if TYPE_CHECKING:  # the command answers --help without msgspec
    from slurmbus_protocol.messages import Record


class UnknownJob(SlurmbusError):
    """The site has no record of this job."""

    code: ClassVar[str] = "unknown-job"
    default_hint: ClassVar[str] = "'slurmbus jobs --all' lists what there is"


class AmbiguousJob(SlurmbusError):
    """Several jobs fit."""

    code: ClassVar[str] = "ambiguous-job"
    default_hint: ClassVar[str] = "give more of the key"


class UnknownSite(SlurmbusError):
    """This home has no such site."""

    code: ClassVar[str] = "unknown-site"
    default_hint: ClassVar[str] = "'slurmbus sites' lists what there is, 'slurmbus sites add NAME' makes one"


class LocalNotStarted(SlurmbusError):
    """The local helper didn't come up."""

    code: ClassVar[str] = "local-not-started"


class LoginFailed(SlurmbusError):
    """Nobody got in at the site, or the connection broke."""

    code: ClassVar[str] = "login-failed"


class SiteUnfit(SlurmbusError):
    """The site lacks something that the agent needs."""

    code: ClassVar[str] = "site-unfit"


class ControlNotAllowed(NotAllowed):
    """The site's agent refused to do that to the job."""

    code: ClassVar[str] = "control-not-allowed"


class RequeueUnknown(SlurmbusError):
    """Slurm was told to requeue the job, and didn't answer. It isn't told again."""

    code: ClassVar[str] = "requeue-unknown"
    default_hint: ClassVar[str] = "look at the job's state, and ask again if it still runs its old start"


def check_refusal(record: Record, control: str) -> None:
    """Raise ControlNotAllowed when the record says that this control was refused."""
    refused = record.refused
    if refused is not None and refused.id == control:
        raise ControlNotAllowed(f"job {record.key} goes on: {refused.message}", hint=refused.hint)


def check_requeue(record: Record, control: str) -> bool:
    """Tell whether the record has an answer to this requeue, and Slurm did it.

    Raises:
        NotRequeueable: nothing was done, and why.
        RequeueUnknown: Slurm may have done it.
    """
    if record.refused is not None and record.refused.id == control:
        raise NotRequeueable(f"job {record.key} wasn't requeued: {record.refused.message}", hint=record.refused.hint)
    asked = next((one for one in record.requeues if one.id == control), None)
    if asked is not None and asked.outcome == "refused":  # another refusal stands in the record since
        raise NotRequeueable(f"job {record.key} wasn't requeued: {asked.message}")
    if asked is not None and asked.outcome == "unknown":
        raise RequeueUnknown(f"it isn't known whether job {record.key} was requeued: {asked.message}")
    return asked is not None and asked.outcome == "done"
