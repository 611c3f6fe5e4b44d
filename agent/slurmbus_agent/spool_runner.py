"""The runner as one file, and the batch script that starts it."""

from __future__ import annotations

import hashlib
import shlex
from functools import cache
from importlib import resources
from pathlib import Path

from slurmbus_agent.runner.protocol import EXIT_SETUP

_PLACE = "SOURCES = {}"


@cache
def bundle() -> tuple[str, bytes]:
    """Give the file name and the content of the runner of this version."""
    package = resources.files("slurmbus_agent.runner")
    texts = {entry.name: entry.read_text() for entry in package.iterdir() if entry.name.endswith(".py")}
    main = texts.pop("__main__.py")
    texts.pop("__init__.py")
    sources = {"slurmbus_agent": "", "slurmbus_agent.runner": ""}  # packages are empty
    for name in sorted(texts):
        sources[f"slurmbus_agent.runner.{name.removesuffix('.py')}"] = texts[name]
    if main.count(_PLACE) != 1:
        raise AssertionError(f"runner/__main__.py must hold {_PLACE!r} once")
    content = main.replace(_PLACE, f"SOURCES = {sources!a}").encode()
    return f"runner-{hashlib.sha256(content).hexdigest()[:12]}.py", content


def batch_script(python: str, runner: Path, job_dir: Path, *, login: bool = True, array_base: int | None = None) -> str:
    """Give the batch script of a job: it only finds a Python and becomes the runner.

    Args:
        python: the interpreter to try first, a name or a path; any Python 3 will do, the runner looks for a newer
            one when it is older than 3.9.
        runner: what :meth:`slurmbus_agent.spool.Spool.prepare` gave.
        job_dir: the job's folder in the spool; of an array, that of any of its tasks.
        login: whether a login shell sets the environment up; without, it is what the job was submitted with.
        array_base: what is added to a task's index to give its number, for an array; None for a single job.
    """
    folder = shlex.quote(str(job_dir))
    if array_base is not None:
        folder = f"{shlex.quote(str(job_dir.with_suffix('')))}.$(({array_base} + SLURM_ARRAY_TASK_ID))"
    shell = "/bin/bash -l" if login else "/bin/bash"
    names = " ".join(shlex.quote(name) for name in dict.fromkeys((python, "python3")))
    return f"""\
#!{shell}
# A profile may leave anything behind: stop at nothing until the runner takes over.
set +eu
shopt -s execfail
for name in {names}; do
  python=$(type -P -- "$name") && builtin exec "$python" -I -S {shlex.quote(str(runner))} {folder}
done
echo "slurmbus: there is no Python 3 on $HOSTNAME; load one in the profile or set 'python' for this site" >&2
builtin exit {EXIT_SETUP}
"""
