"""Everything that can go wrong between a client, the bus and an agent, as one tree.

::

    SlurmbusError
    ├── BadMessage                 bytes that are no message of ours
    │   ├── NotDecodable           not msgpack, or not our envelope
    │   ├── UnknownType            a type this side has never heard of
    │   ├── UnsupportedVersion     a known type in a version this side can't read
    │   ├── InvalidBody            a field is missing or has the wrong type
    │   ├── TooLarge               more bytes than the limit of its kind
    │   └── WrongAddress           the body names another site or key than its subject
    ├── NotAllowed                 signature, expiry or policy forbids it
    │   ├── BadSignature
    │   └── RequestExpired
    ├── InvalidName                a token that can't stand in a subject
    ├── InvalidSetting             a configuration value that can't be used
    ├── BusUnreachable             no connection, or no answer in time        (retryable)
    │   ├── BusRefused             the bus doesn't know this key, or doesn't let its user do this
    │   └── BusNotStoring          the bus answers, but doesn't store what is sent
    ├── BusFull                    a stream has reached its limit             (retryable)
    ├── BusMisconfigured           a stream exists with other settings
    ├── SiteUnreachable            no agent answers for the site              (retryable)
    ├── AgentTooOld                the site's agent doesn't know something that the request needs
    ├── NotRequeueable             the job can't be sent back to the queue
    ├── BlobMissing                the bus doesn't hold a file's bytes (any more) (retryable)
    ├── BlobCorrupt                bytes don't hash to their name
    ├── EnvironmentUnusable        an environment can't be packed or installed
    │   ├── UnknownEnvironment     the site has no such environment
    │   └── EnvironmentInUse       it can't be removed while jobs use it
    └── LostMessages               bytes of a stream that nobody has any more

Each error says what a person should do next in ``hint``. ``code`` is the stable name that crosses the bus.
"""

from __future__ import annotations

from typing import ClassVar


class SlurmbusError(Exception):
    """Slurmbus couldn't do what it was asked for."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        """Take the class's docstring as the message when none is given."""
        self.message = message or (type(self).__doc__ or self.code).splitlines()[0]
        self.hint = self.default_hint if hint is None else hint
        super().__init__(self.message)

    def __str__(self) -> str:
        """Give the message, and the hint when there is one."""
        return f"{self.message} ({self.hint})" if self.hint else self.message


class BadMessage(SlurmbusError):
    """The bytes aren't a message that can be read here."""

    code = "bad-message"


class NotDecodable(BadMessage):
    """The bytes aren't msgpack, or not a Slurmbus envelope."""

    code = "not-decodable"
    default_hint = "only Slurmbus' own clients publish here"


class UnknownType(BadMessage):
    """The message type isn't known here."""

    code = "unknown-type"
    default_hint = "the other side may be newer: upgrade this one"


class UnsupportedVersion(BadMessage):
    """The message's version can't be read here."""

    code = "unsupported-version"
    default_hint = "versions N and N-1 work together: upgrade the older side"


class InvalidBody(BadMessage):
    """A field is missing or has the wrong type."""

    code = "invalid-body"


class TooLarge(BadMessage):
    """The message is larger than its kind may be."""

    code = "too-large"
    default_hint = "ship large data as files, not inside the request"


class WrongAddress(BadMessage):
    """The message names another site or job than the subject that it came on."""

    code = "wrong-address"


class NotAllowed(SlurmbusError):
    """The request isn't allowed."""

    code = "not-allowed"


class BadSignature(NotAllowed):
    """The request isn't signed by a key that this site trusts."""

    code = "bad-signature"
    default_hint = "add the client's public key to the agent's trusted_keys"


class RequestExpired(NotAllowed):
    """The request had expired before an agent could take it."""

    code = "request-expired"
    default_hint = "submit it again"


class InvalidName(SlurmbusError):
    """The name can't be used in a subject."""

    code = "invalid-name"
    default_hint = "use lower-case letters, digits, '-' and '_'"


class InvalidSetting(SlurmbusError):
    """A setting has a value that can't be used."""

    code = "invalid-setting"


class BusUnreachable(SlurmbusError):
    """The bus doesn't answer."""

    code = "bus-unreachable"
    retryable = True
    default_hint = "check that the NATS server runs and that its address is right"


class BusRefused(BusUnreachable):
    """The bus refuses this user."""

    code = "bus-refused"
    retryable = False
    default_hint = "ask whoever runs the NATS server: it doesn't know this key, or gives its user too few permissions"


class BusNotStoring(BusUnreachable):
    """The bus answers, but doesn't store what is sent."""

    code = "bus-not-storing"
    default_hint = "make room on the NATS server's disk and restart it; its log says more"


class BusFull(SlurmbusError):
    """A stream of the bus has reached its limit."""

    code = "bus-full"
    retryable = True
    default_hint = "free space on the NATS server or raise the stream's max_bytes"


class BusMisconfigured(SlurmbusError):
    """A stream exists on the bus with other settings than Slurmbus needs."""

    code = "bus-misconfigured"


class SiteUnreachable(SlurmbusError):
    """No agent answers for this site."""

    code = "site-unreachable"
    retryable = True
    default_hint = "log in to the cluster and start it with 'slurmbus-agent run --site NAME'"


class AgentTooOld(SlurmbusError):
    """The site's agent doesn't know something that the request needs."""

    code = "agent-too-old"
    default_hint = "upgrade the agent on the site"


class NotRequeueable(SlurmbusError):
    """The job can't be sent back to the queue."""

    code = "not-requeueable"


class BlobMissing(SlurmbusError):
    """The bus doesn't hold the bytes of a file."""

    code = "blob-missing"
    retryable = True
    default_hint = "submit again: the file will be uploaded again"


class BlobCorrupt(SlurmbusError):
    """The bytes of a file don't hash to its name."""

    code = "blob-corrupt"


class EnvironmentUnusable(SlurmbusError):
    """The environment can't be used."""

    code = "environment-unusable"


class UnknownEnvironment(EnvironmentUnusable):
    """The site has no such environment."""

    code = "unknown-environment"
    default_hint = "'slurmbus env list' shows those that it has, 'slurmbus env push' brings one there"


class EnvironmentInUse(EnvironmentUnusable):
    """The environment is used by unfinished jobs."""

    code = "environment-in-use"
    default_hint = "wait for the jobs' end, or cancel them"


class LostMessages(SlurmbusError):
    """Bytes of a stream are gone from the bus and from the spool."""

    code = "lost-messages"


class BudgetSpent(SlurmbusError):
    """The agent has asked Slurm so often lately that its own limits forbid another question now."""

    code = "budget-spent"
    retryable = True
