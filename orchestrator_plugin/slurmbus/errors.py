"""What can go wrong on the client's side, besides :mod:`slurmbus_protocol.errors`.

::

    SlurmbusError
    ├── UnknownJob         the site has no record of this job
    ├── AmbiguousJob       several jobs fit what was typed
    ├── UnknownSite        this home has no such site
    ├── LocalNotStarted    the local helper didn't come up
    ├── LoginFailed        nobody got in at the site, or the connection broke
    ├── SiteUnfit          the site lacks something that the agent needs
    └── NotAllowed
        └── ControlNotAllowed   the site's agent refused to do that to the job
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from slurmbus_protocol.errors import NotAllowed, SlurmbusError

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


def check_refusal(record: Record, control: str) -> None:
    """Raise ControlNotAllowed when the record says that this control was refused."""
    refused = record.refused
    if refused is not None and refused.id == control:
        raise ControlNotAllowed(f"job {record.key} goes on: {refused.message}", hint=refused.hint)
