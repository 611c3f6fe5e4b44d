"""The runner as one file, and the batch script that starts it."""

from __future__ import annotations

import hashlib
import io
import shlex
import zipfile
from functools import cache
from importlib import resources
from pathlib import Path

from slurmbus_agent.runner.protocol import EXIT_SETUP

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip format knows no earlier time; always the same, so that the hash is


@cache
def bundle() -> tuple[str, bytes]:
    """Give the file name and the content of the runner of this version."""
    package = resources.files("slurmbus_agent.runner")
    sources = {entry.name: entry.read_bytes() for entry in package.iterdir() if entry.name.endswith(".py")}
    members = {
        "__main__.py": sources.pop("__main__.py"),
        "slurmbus_agent/__init__.py": b"",
        **{f"slurmbus_agent/runner/{name}": sources[name] for name in sorted(sources)},
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, source in members.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), source)
    content = buffer.getvalue()
    return f"runner-{hashlib.sha256(content).hexdigest()[:12]}.pyz", content


def batch_script(python: str, runner: Path, job_dir: Path) -> str:
    """Give the batch script of a job: it only finds a Python and becomes the runner.

    Args:
        python: the interpreter to try first, a name or a path; any Python will do, the runner looks for a newer one
            when it is older than 3.9.
        runner: what :meth:`slurmbus_agent.spool.Spool.prepare` gave.
        job_dir: the job's folder in the spool.
    """
    names = " ".join(shlex.quote(name) for name in dict.fromkeys((python, "python3", "python")))
    return f"""\
#!/bin/bash -l
# A profile may leave anything behind: stop at nothing until the runner takes over.
set +eu
shopt -s execfail
for name in {names}; do
  python=$(type -P -- "$name") && builtin exec "$python" -I -S {shlex.quote(str(runner))} {shlex.quote(str(job_dir))}
done
echo "slurmbus: there is no Python on $HOSTNAME; load one in the profile or set 'python' for this site" >&2
builtin exit {EXIT_SETUP}
"""
