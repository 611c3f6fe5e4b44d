"""The folder of one job in the spool."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from slurmbus_agent.runner import claims
from slurmbus_agent.spool_array import read_request, write_request
from slurmbus_agent.spool_files import Claim, Report, RunnerPlan, StoredRequest
from slurmbus_agent.spool_work import WorkDir
from slurmbus_agent.spool_writing import FILE_MODE, SpoolUnusable, make_folder, sync_folder, typed, write
from slurmbus_protocol import codec
from slurmbus_protocol.errors import BadMessage, InvalidSetting
from slurmbus_protocol.messages import Record
from slurmbus_protocol.subjects import Stream

_plan_decoder = msgspec.json.Decoder(RunnerPlan)
_report_decoder = msgspec.json.Decoder(Report)

T = TypeVar("T")


class JobDir:
    """One job's folder; made by :meth:`slurmbus_agent.spool.Spool.job`.

    Every method works on the shared file system and may take long: call them in a thread.

    Args:
        path: the folder.
        name: ``<key>.<task>``.
        count: is called once for each metadata operation on the file system.
        discard: removes the folder.
        shared: what the tasks of an array share, where this is one of them.
    """

    def __init__(
        self, path: Path, name: str, count: Callable[[], None], discard: Callable[[str], None], shared: Path
    ) -> None:
        self.path = path
        self.shared = shared
        """The folder that the tasks of an array share, where this is one of them."""
        self._name = name
        self._count = count
        self._discard = discard

    @property
    def batch_output(self) -> Path:
        """Where the batch script's own output goes."""
        return self.path / "batch.out"

    # ------------------------------------------------------------------ what the agent writes

    def create(self, request: bytes, subject: str, headers: Mapping[str, str]) -> None:
        """Make the folder and keep the request in it; one that is there already stays as it is."""
        make_folder(self.path)
        make_folder(self.path / "starts")
        self._count()
        write_request(self.path, StoredRequest(subject=subject, headers=dict(headers), data=request))

    def create_task(self) -> None:
        """Make the folder of an array's task; its request lies where its siblings find it, too."""
        make_folder(self.path)
        make_folder(self.path / "starts")
        self._count()

    def read_request(self) -> StoredRequest | None:
        """Give the request, or None when the folder or the request isn't there."""
        for folder in (self.path, self.shared):
            self._count()
            request = read_request(folder)
            if request is not None:
                return request
        return None

    def work_dir(self, work_base: str | None) -> WorkDir:
        """Make the payload's working directory, in ``work_base`` or, when that is None, in the spool.

        Raises:
            InvalidSetting: ``work_base`` isn't absolute, or no folder can be made there.
        """
        if work_base is None:
            make_folder(self.path / "work")
            return WorkDir(self.path / "work")
        base = Path(work_base)
        if not base.is_absolute() or ".." in base.parts:
            raise InvalidSetting(f"work_base: {work_base!r} is no absolute path", hint="e.g. /scratch/alice/runs")
        try:
            make_folder(base / self._name)
        except SpoolUnusable as error:
            raise InvalidSetting(f"work_base: {error.message}", hint="name a folder that you may write to") from error
        return WorkDir(base / self._name)

    def write_plan(self, plan: RunnerPlan) -> None:
        """Say what the runner shall do.

        An agent that was killed may have made the folder and not yet the one for the claims.
        """
        make_folder(self.path / "starts")
        write(self.path / "plan.json", msgspec.json.encode(plan))

    def read_plan(self) -> RunnerPlan | None:
        """Give the plan, or None when none was written yet."""
        data = self._content("plan.json")
        return None if data is None else _decode(_plan_decoder, data, self.path / "plan.json")

    def write_context(self, context: bytes) -> None:
        """Put down Dagster Pipes' context for the payload."""
        write(self.path / "context", context)

    def write_record(self, record: Record) -> None:
        """Keep the job's record, so that its outcome survives the loss of the bus."""
        write(self.path / "record", codec.encode(record))

    def read_record(self) -> Record | None:
        """Give the record that was kept, or None when none was."""
        data = self._content("record")
        if data is None:
            return None
        try:
            return codec.decode_as(data, Record)
        except BadMessage as error:
            raise SpoolUnusable(f"{self.path / 'record'} can't be read: {error.message}", hint="") from error

    # ------------------------------------------------------------------ secret values

    def put_secrets(self, start: int, content: bytes) -> None:
        """Put down the secret variables of a start, unless that was done; then they may have been taken already."""
        path = self.path / f"{start}.secrets"
        new = self.path / f".{start}.secrets.{secrets.token_hex(4)}"
        self._count()
        with typed(path):
            try:
                with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE), "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                _take_place(new, path)
            finally:
                new.unlink(missing_ok=True)
            sync_folder(self.path)

    def burn_secrets(self) -> None:
        """Leave no secret variables behind."""
        self._count()
        with typed(self.path):
            for path in self.path.glob("*.secrets*"):
                os.truncate(path, 0)
            for path in self.path.glob(".*.secrets.*"):
                path.unlink(missing_ok=True)

    # ------------------------------------------------------------------ claims

    def claim(self, claim: Claim) -> Claim:
        """Try to claim a start, and give the claim that stands afterwards: this one or an earlier one.

        With ``node=AGENT_NODE`` the agent seals the job: no runner takes this start or a later one.
        """
        text = claims.target(claim.job_id, claim.node, claim.nonce, claim.claimed_at)
        folder = self.path / "starts"
        self._count()
        with typed(folder):
            found = claims.take(str(folder), claim.start, text)
            sync_folder(folder)
        return self._parse(claim.start, found)

    def claims(self) -> list[Claim]:
        """Give all claims, in the order of their starts."""
        folder = self.path / "starts"
        self._count()
        try:
            starts = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
        except FileNotFoundError:
            return []
        found = []
        for start in starts:
            self._count()
            with typed(folder):
                found.append(self._parse(start, str((folder / str(start)).readlink())))
        return found

    def _parse(self, start: int, text: str) -> Claim:
        try:
            job_id, node, nonce, claimed_at = claims.parse(text)
        except ValueError as error:
            raise SpoolUnusable(f"{self.path}/starts/{start} is no claim: {text[:80]!r}", hint="") from error
        return Claim(start=start, job_id=job_id, node=node, nonce=nonce, claimed_at=claimed_at)

    # ------------------------------------------------------------------ what the runner writes

    def report(self, start: int) -> Report | None:
        """Give what the runner of a start last reported, or None when it hasn't yet."""
        data = self._content(f"{start}.report")
        return None if data is None else _decode(_report_decoder, data, self.path / f"{start}.report")

    def final_sizes(self, start: int) -> dict[str, int]:
        """Give the bytes of each stream of a start that is over: as its runner reported its end, else as files end.

        The latter is right only after the job has left COMPLETING: on NFS sizes are stale while a file grows.
        """
        report = self.report(start)
        if report is not None and report.end is not None:
            return dict(report.end.sizes)
        return {stream.value: self._size(start, stream) for stream in Stream}

    def _size(self, start: int, stream: Stream) -> int:
        path = self._stream(start, stream)
        self._count()
        with typed(path):
            try:
                file = os.open(path, os.O_RDONLY)  # a fresh open makes an NFS client ask the server
            except FileNotFoundError:
                return 0
            try:
                return os.fstat(file).st_size
            finally:
                os.close(file)

    def read(self, start: int, stream: Stream, offset: int, length: int) -> bytes:
        """Read a byte range of a stream by a fresh open; shorter than ``length`` when the file ends before.

        The range must not go beyond what :meth:`report` or :meth:`final_sizes` gave: further on, NFS clients see
        stale data and zeros that nobody wrote.
        """
        path = self._stream(start, stream)
        self._count()
        with typed(path):
            try:
                file = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                return b""
            try:
                pieces: list[bytes] = []
                while length > 0 and (piece := os.pread(file, length, offset)):
                    pieces.append(piece)
                    offset += len(piece)
                    length -= len(piece)
                return b"".join(pieces)
            finally:
                os.close(file)

    def _stream(self, start: int, stream: Stream) -> Path:
        return self.path / f"{start}.{stream.value}"

    # ------------------------------------------------------------------ the end

    def remove(self) -> None:
        """Remove the folder and all that is in it, never anything outside the spool; may be repeated."""
        self._discard(self._name)

    def _content(self, name: str) -> bytes | None:
        self._count()
        path = self.path / name
        with typed(path):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None


def _decode(decoder: msgspec.json.Decoder[T] | msgspec.msgpack.Decoder[T], data: bytes, path: Path) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SpoolUnusable(f"{path} can't be read: {error}", hint="somebody else wrote to it") from error


def _take_place(new: Path, path: Path) -> None:
    """Give a file its name unless that is taken."""
    try:
        os.link(new, path)
    except FileExistsError:
        return
    except OSError:  # a file system without hard links
        if not path.exists():
            new.rename(path)
