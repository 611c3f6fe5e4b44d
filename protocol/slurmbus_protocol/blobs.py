"""Content-addressed files on the bus: put in windows, resumable, verified when they are fetched."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import BinaryIO

from slurmbus_protocol import subjects
from slurmbus_protocol.bus import Bus
from slurmbus_protocol.codec import BLOB_CHUNK
from slurmbus_protocol.errors import BlobCorrupt, BlobMissing

WINDOW = 16
"""Chunks under way at once. Source: measured, 620 MB/s on loopback and 162 MB/s at 40 ms round trip."""


def chunk_count(size: int) -> int:
    """How many messages a file of ``size`` bytes takes; an empty file takes one."""
    return max(1, -(-size // BLOB_CHUNK))


def hash_file(path: Path) -> tuple[str, int]:
    """Give a file's SHA-256 in hex and its size in bytes."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return digest.hexdigest(), file.tell()


async def put_bytes(bus: Bus, data: bytes) -> str:
    """Keep some bytes as a blob and return their digest."""
    digest = hashlib.sha256(data).hexdigest()
    pieces = [data[at : at + BLOB_CHUNK] for at in range(0, len(data), BLOB_CHUNK)] or [b""]
    for index, piece in enumerate(pieces):
        await bus.publish_until_acknowledged(subjects.blob(digest, index), piece, expected_last=0)
    return digest


async def put_file(
    bus: Bus,
    path: Path,
    digest: str,
    size: int,
    *,
    resume: bool = True,
    moved: Callable[[int], None] = lambda _: None,
) -> int:
    """Keep a file as a blob, skipping the chunks that are there already; return how many bytes were sent.

    Args:
        bus: where it goes.
        path: of the file.
        digest: its SHA-256.
        size: its bytes.
        resume: ask which chunks are there already. Agents may not ask; then every chunk is sent, and one that is there
            isn't stored again.
        moved: called with the bytes that are on the bus, or under way to it.

    Raises:
        BlobCorrupt: the file changed since it was hashed.
    """
    have = await _held(bus, digest, size) if resume else set()
    sent = 0
    if len(have) == chunk_count(size):
        return sent
    gate = asyncio.Semaphore(WINDOW)

    async def put(index: int, piece: bytes) -> None:
        try:
            await bus.publish_until_acknowledged(subjects.blob(digest, index), piece, expected_last=0)
        finally:
            gate.release()

    check = hashlib.sha256()
    try:
        with path.open("rb") as file:
            async with asyncio.TaskGroup() as group:
                for index in range(chunk_count(size)):
                    piece = file.read(BLOB_CHUNK)
                    check.update(piece)
                    if index not in have:
                        await gate.acquire()
                        group.create_task(put(index, piece))
                        sent += len(piece)
                    moved(index * BLOB_CHUNK + len(piece))
    except ExceptionGroup as failures:  # callers know the errors of one publish, not groups of them
        raise failures.exceptions[0] from failures
    if check.hexdigest() != digest:
        raise BlobCorrupt(f"{path} changed while it was being uploaded", hint="run it again")
    return sent


async def _held(bus: Bus, digest: str, size: int) -> set[int]:
    """Tell which chunks the bus holds; one question answers for small files."""
    total = chunk_count(size)
    if total == 1:
        found = await bus.last(subjects.BLOBS, subjects.blob(digest, 0))
        return {0} if found is not None else set()
    held: set[int] = set()
    while True:
        body = {"subjects_filter": f"blob.{digest}.*", "offset": len(held)}
        answer = await bus.api(f"STREAM.INFO.{subjects.BLOBS}", body)
        names = answer["state"].get("subjects") or {}
        held.update(int(name.rpartition(".")[2]) for name in names)
        if not names or len(held) >= int(answer.get("total", len(held))):
            return held


async def fetch(bus: Bus, digest: str, size: int) -> AsyncIterator[bytes]:
    """Give a blob's bytes in order, at most WINDOW chunks ahead.

    Raises:
        BlobMissing: a chunk isn't on the bus.
        BlobCorrupt: raised after the last piece when the whole doesn't hash to its name.
    """
    check = hashlib.sha256()
    total = chunk_count(size)
    pending: list[asyncio.Task[bytes]] = []
    index = 0
    try:
        while index < total or pending:
            while index < total and len(pending) < WINDOW:
                pending.append(asyncio.create_task(_fetch_chunk(bus, digest, index)))
                index += 1
            piece = await pending.pop(0)
            check.update(piece)
            yield piece
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    if check.hexdigest() != digest:
        raise BlobCorrupt(f"the bytes of blob {digest[:12]} don't fit its name")


async def _fetch_chunk(bus: Bus, digest: str, index: int) -> bytes:
    found = await bus.last(subjects.BLOBS, subjects.blob(digest, index))
    if found is None:
        raise BlobMissing(f"chunk {index} of blob {digest[:12]} isn't on the bus")
    return found.data


async def fetch_into(bus: Bus, digest: str, size: int, file: BinaryIO) -> None:
    """Write a blob into an open file; the errors are those of :func:`fetch`, then the file's content is useless."""
    written = 0
    async for piece in fetch(bus, digest, size):
        written += len(piece)
        if written > size:
            raise BlobCorrupt(f"blob {digest[:12]} is larger than the {size:,} bytes that were announced")
        await asyncio.to_thread(file.write, piece)  # a parallel file system may take its time
    if written != size:
        raise BlobCorrupt(f"blob {digest[:12]} has {written:,} bytes, not {size:,}")
