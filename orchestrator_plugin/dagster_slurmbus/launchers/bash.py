"""Programs of one process: Python payloads, scripts, and whatever has an interpreter."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pydantic import Field, field_validator

from dagster_slurmbus._compat import is_env_var
from dagster_slurmbus.launchers.base import ComputeLauncher
from dagster_slurmbus.values import wrong
from slurmbus_protocol.plans import AnyPlan, CommandPlan

_BASH: tuple[str, ...] = ("bash", "-euo", "pipefail")
_PYTHON = (".py",)
_SHELL = (".sh", ".bash")
_PROGRAMS = (b"#!", b"\x7fELF")
"""How files begin that the system can execute by themselves. Source: execve(2)."""


class BashLauncher(ComputeLauncher):
    """Starts ``.py`` payloads with the site's Python, ``.sh`` payloads with bash under ``set -euo pipefail``.

    Everything else starts with ``interpreter`` or, without one, as a program of its own: a file whose first line names
    its interpreter (``#!``), or a binary.
    """

    python: str = Field(default="python3", description="The site's Python: a name on PATH there, or a path there.")
    interpreter: str | None = Field(
        default=None,
        description="The program, with its own arguments, that starts every payload, e.g. Rscript --vanilla.",
    )

    @field_validator("interpreter", mode="before")
    @classmethod
    def _interpreter_is_words(cls, value: object) -> object:
        if isinstance(value, str) and not is_env_var(value):
            try:
                words = shlex.split(value)
            except ValueError as error:
                raise ValueError(f"{value!r} can't be taken apart into words: {error}") from None
            if not words:
                raise ValueError("it is empty; name a program, e.g. 'Rscript --vanilla', or leave it out")
        return value

    def plan(self, payload: str, args: Sequence[str] = ()) -> AnyPlan:
        """Choose the program by ``interpreter``, else by the payload's suffix."""
        return CommandPlan(argv=self.words(payload, args), preamble=self.preamble)

    def words(self, payload: str, args: Sequence[str] = ()) -> tuple[str, ...]:
        """Give the words of the command that starts a payload."""
        suffix = PurePosixPath(payload).suffix
        if self.interpreter is not None:
            program: tuple[str, ...] = tuple(shlex.split(self.interpreter))
        elif suffix in _PYTHON:
            program = (self.python,)
        elif suffix in _SHELL:
            program = _BASH
        else:
            return (payload if "/" in payload else f"./{payload}", *args)
        return (*program, payload, *args)

    def check(self, path: Path) -> None:
        """Refuse a file that nothing here can start; ``dagster.Failure`` says what to do."""
        if self.interpreter is not None or path.suffix in (*_PYTHON, *_SHELL):
            return
        with path.open("rb") as file:
            begin = file.read(4)
        if not begin.startswith(_PROGRAMS):
            raise wrong(
                f"payload_path: {path.name!r} is no .py or .sh file, and no program: its first line doesn't name an "
                f"interpreter (#!); name one with {type(self).__name__}(interpreter=…)"
            )
        if not os.access(path, os.X_OK):
            raise wrong(
                f"payload_path: {path.name!r} isn't executable: run 'chmod +x {shlex.quote(path.name)}', or name its "
                f"interpreter with {type(self).__name__}(interpreter=…)"
            )
