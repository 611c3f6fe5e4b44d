"""What can go wrong on the client's side, besides :mod:`slurmbus_protocol.errors`.

::

    SlurmbusError
    ├── UnknownJob         the site has no record of this job
    ├── AmbiguousJob       several jobs fit what was typed
    ├── UnknownSite        this home has no such site
    └── LocalNotStarted    the local helper didn't come up
"""

from __future__ import annotations

from typing import ClassVar

from slurmbus_protocol.errors import SlurmbusError


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
