"""A step that stays with one job until its end, or leaves it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import dagster as dg

from dagster_slurmbus import _compat
from dagster_slurmbus.forwarding import Forwarder
from dagster_slurmbus.messages import RelayedMessageReader
from dagster_slurmbus.narrator import Narrator
from dagster_slurmbus.observations import Addresses
from dagster_slurmbus.outcomes import Tail
from dagster_slurmbus.reattach import OnChangedRequest
from dagster_slurmbus.shown import Shown
from slurmbus.client import Following, SiteClient
from slurmbus.errors import check_refusal
from slurmbus.events import Event, Finished, Gap, Output, StateChanged, Waiting
from slurmbus_protocol.errors import SlurmbusError
from slurmbus_protocol.messages import Record
from slurmbus_protocol.subjects import Stream

INTERRUPTS = (KeyboardInterrupt, dg.DagsterExecutionInterruptedError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How ``run()`` behaves towards its job."""

    forward_stdio: bool = True
    forward_termination: bool = True
    termination_timeout_seconds: float = 20.0
    on_changed_request: OnChangedRequest = OnChangedRequest.RESUBMIT


class Watching:
    """One job on behalf of one step.

    Args:
        context: of the step.
        client: of the job's site.
        key: the job's.
        conduct: how to behave.
        reader: takes the Pipes messages.
    """

    def __init__(
        self,
        context: dg.OpExecutionContext,
        client: SiteClient,
        key: str,
        conduct: Conduct,
        reader: RelayedMessageReader,
    ) -> None:
        self.client = client
        self.key = key
        self.stderr = Tail()
        self.last: Record | None = None
        """The newest record that was seen."""
        self.narrator = Narrator(client.site, key, info=context.log.info, warning=context.log.warning)
        self._addresses = Addresses(context)
        self._context = context
        self._conduct = conduct
        self._reader = reader

    def follow(self, submit: Callable[[], object] | None = None) -> Record:
        """Submit the job, if that is to be done, follow it from its first byte, and give its final record."""
        shown = Shown(_compat.shown_path(self._context, self.key))
        self._reader.shown = shown
        self._forwarder = Forwarder(shown, lambda *where: _compat.captured(self._context, *where))
        try:
            with self.client.follow(self.key) as following:
                return self._follow(following, submit)
        finally:
            shown.close()

    def end(self, reason: str) -> Record:
        """Cancel the job and wait for its end, however long that takes; ControlNotAllowed when the agent refuses."""
        control = self.client.cancel(self.key, reason)
        with self.client.follow(self.key, streams=False) as following:
            for event in following:
                if isinstance(event, Finished):
                    self.narrator.state(event.record)
                    return event.record
                if isinstance(event, StateChanged):
                    check_refusal(event.record, control)
                if isinstance(event, StateChanged | Waiting):
                    self._take(event)
        raise RuntimeError(f"following job {self.key} ended without its final record")

    def _follow(self, following: Following, submit: Callable[[], object] | None) -> Record:
        try:
            if submit is not None:
                submit()
            for event in following:
                self._take(event)
                if isinstance(event, Finished):
                    return event.record
        except INTERRUPTS:
            with _compat.capture_interrupts():
                self._leave(following)
            raise
        raise RuntimeError(f"following job {self.key} ended without its final record")

    def _take(self, event: Event) -> None:
        match event:
            case Output(start=start, stream=Stream.MESSAGES, data=data):
                self._reader.feed(start, data)
            case Output(stream=stream, data=data):
                if stream is Stream.STDERR:
                    self.stderr.feed(data)
                if self._conduct.forward_stdio:
                    self._forwarder.output(event)
            case StateChanged(record=record) | Finished(record=record):
                self.last = record
                self.narrator.state(record)
                self._addresses.take(record)
            case Gap():
                self._gap(event)
            case Waiting():
                self.narrator.waiting(event)

    def _gap(self, gap: Gap) -> None:
        if self._forwarder.is_shown(gap):
            return
        self.narrator.gap(gap)
        if self._conduct.forward_stdio:
            self._forwarder.gap(gap)

    def _leave(self, following: Following) -> None:
        """Cancel the job when its run was terminated; otherwise only stop following it."""
        log, job = self._context.log, f"job {self.key} on site {self.client.site}"
        if not (self._conduct.forward_termination and _compat.ends_for_good(self._context)):
            log.warning(
                "this step was interrupted and stops following its job, but %s goes on. A retry of this step finds it "
                "again. See it with 'slurmbus logs -f %s', end it with 'slurmbus cancel %s'",
                job,
                self.key,
                self.key,
            )
            return
        log.info("the run was terminated: cancelling %s", job)
        try:
            control = self.client.cancel(self.key, reason=f"Dagster run {self._context.run_id} was terminated")
            deadline = time.monotonic() + self._conduct.termination_timeout_seconds
            while (left := deadline - time.monotonic()) > 0:
                event = following.wait(left)
                if event is not None:
                    self._take(event)
                if isinstance(event, Finished):
                    return
                if isinstance(event, StateChanged):
                    check_refusal(event.record, control)
        except SlurmbusError as error:
            log.warning("%s couldn't be cancelled: %s. Do it with 'slurmbus cancel %s'", job, error, self.key)
        else:
            log.warning("%s has been told to end and hasn't yet; its agent goes on trying", job)
