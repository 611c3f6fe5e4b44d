"""The payload of every job: writes bytes that anybody can compute, and notes each of its executions in a shared file.

It runs on the compute nodes with nothing but Python; the checker imports it for `pattern`. What it notes doesn't go
through Slurmbus: one line, appended with O_APPEND, at its begin, while it runs, and at its end.
"""

import json
import os
import signal
import socket
import sys
import time

TICK = 0.5
"""Seconds between two notes of a running payload: what bounds the life of one that was killed."""
LINE = 64
"""Bytes of one line of output, the newline included."""
OUTPUT_LINES = 100
"""Lines of the output file."""


def pattern(job: str, stream: str, begin: int, count: int) -> bytes:
    """Give lines of a stream: each names the job, the stream and its own number, so no two bytes can change places."""
    lines = (
        f"{job} {stream} {number:010d} ".ljust(LINE - 1, "." if number % 2 else "-") for number in range(begin, count)
    )
    return "".join(f"{line}\n" for line in lines).encode()


class Notes:
    """The file in which this job's executions are counted."""

    def __init__(self, folder: str, job: str) -> None:
        self._file = os.open(f"{folder}/{job}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._who = f"{os.environ.get('SLURM_JOB_ID', '0')} {socket.gethostname()} {os.getpid()}"

    def write(self, what: str, extra: str = "") -> None:
        os.write(self._file, f"{what} {self._who} {time.time():.6f} {extra}".rstrip().encode() + b"\n")


def messages_path() -> "str | None":
    """Give the file for Pipes messages, out of what dagster_pipes would read itself."""
    import base64
    import zlib

    value = os.environ.get("DAGSTER_PIPES_MESSAGES")
    return None if value is None else str(json.loads(zlib.decompress(base64.b64decode(value)))["path"])


def main(plan: "dict[str, object]") -> int:
    job = str(plan["id"])
    notes = Notes(str(plan["folder"]), job)
    notes.write("begin")
    seconds, pieces = float(str(plan["seconds"])), int(str(plan["pieces"]))
    files = {"stdout": 1, "stderr": 2}
    path = messages_path()
    if path is not None:
        files["messages"] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    lines = {name: int(str(plan.get(name, 0))) for name in files}
    begun = time.monotonic()
    ticked = begun
    for piece in range(pieces):
        for name, file in files.items():
            data = pattern(job, name, lines[name] * piece // pieces, lines[name] * (piece + 1) // pieces)
            while data:
                data = data[os.write(file, data) :]
        until = begun + seconds * (piece + 1) / pieces
        while (now := time.monotonic()) < until:
            time.sleep(min(TICK, until - now))
            if time.monotonic() - ticked >= TICK:
                ticked = time.monotonic()
                notes.write("tick")
    number = int(str(plan.get("signal", 0)))
    code = int(str(plan.get("exit", 0)))
    output = str(plan.get("output") or "")
    if output:
        with open(output, "wb") as result:
            result.write(pattern(job, "output", 0, OUTPUT_LINES))
    notes.write("end", str(128 + number if number else code))
    if number:
        os.kill(os.getpid(), number)
        signal.pause()
    return code


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
