"""What the runner shall do, as the agent wrote it down, and what follows from it for the payload."""

from __future__ import annotations

import json
import os
import sys
import zlib
from binascii import a2b_base64, b2a_base64

from slurmbus_agent.runner.environment import SHELL, Environment


class BadPlan(Exception):
    """The plan can't be read."""


class Plan:
    """A job's plan; the fields are those of the file plan.json."""

    def __init__(self, folder: str) -> None:
        """Read the plan in a job's folder; BadPlan when that can't be done."""
        self.folder = folder
        try:
            with open(folder + "/plan.json", "rb") as file:
                content = json.loads(file.read())
            self.key = str(content["key"])
            self.task = int(content["task"])
            self.argv = [str(word) for word in content["argv"]]
            self.cwd = str(content["cwd"])
            self.work = str(content.get("work") or self.cwd)
            self.secret = a2b_base64(content["secret"])
            self.preamble = str(content.get("preamble") or "")
            self.env = {str(name): str(value) for name, value in (content.get("env") or {}).items()}
            self.secrets = bool(content.get("secrets"))
            self.requeue = bool(content.get("requeue"))
            self.array_index: int | None = content.get("array_index")
            self.pipes = bool(content.get("pipes"))
            self.pipes_path = str(content.get("pipes_path") or "")
            self.link = str(content.get("link") or "")
            self.launch = dict(content.get("launch") or {})
            self.runs_in = Environment(content.get("environment") or {})
        except OSError as error:
            raise BadPlan(f"{folder}/plan.json can't be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadPlan(f"{folder}/plan.json isn't a plan: {type(error).__name__}: {error}") from error

    @property
    def needs_shell(self) -> bool:
        """Tell whether bash has something to do before the payload."""
        return bool(self.preamble) or self.runs_in.needs_shell

    def command(self, start: int, runner: str) -> list[str]:
        """Give the words to execute: the payload's, or the runner's own when there is something to start before it."""
        argv = self.inside(self.argv)
        if self.launch:
            argv = [sys.executable, "-I", "-S", runner, "--launch", self.folder, str(start)]
        if self.needs_shell:
            own = [self.preamble, str(len(self.runs_in.modules)), *self.runs_in.modules]
            return ["/bin/bash", "-euo", "pipefail", "-c", SHELL, "slurmbus", *own, *argv]
        return argv

    def inside(self, argv: list[str]) -> list[str]:
        """Give the words that execute a command where the payload runs: in its image, if it has one."""
        folders = [folder for folder in (self.folder, self.pipes_path, self.work) if folder]
        return self.runs_in.wrap(argv, self.cwd, folders)

    def environment(self, start: int) -> dict[str, str]:
        """Give the payload's environment: the login shell's, then the plan's, then ours."""
        env = dict(os.environ)
        env.update(self.env)
        self.runs_in.set_variables(env, shell=self.needs_shell)
        env["SLURMBUS_JOB_KEY"] = self.key
        env["SLURMBUS_TASK"] = str(self.task)
        env["SLURMBUS_START"] = str(start)
        env["SLURMBUS_SPOOL"] = self.folder
        env["SLURMBUS_WORK_DIR"] = self.work
        if self.pipes:
            env["DAGSTER_PIPES_CONTEXT"] = pipes_parameter(self.folder + "/context")
            env["DAGSTER_PIPES_MESSAGES"] = pipes_parameter(f"{self.folder}/{start}.messages")
        if self.pipes_path and self.needs_shell:  # bash adds it, after what the preamble makes of PYTHONPATH
            env["SLURMBUS_PIPES_PATH"] = self.pipes_path
        elif self.pipes_path:
            own = env.get("PYTHONPATH")
            env["PYTHONPATH"] = f"{own}:{self.pipes_path}" if own else self.pipes_path
        return env


def pipes_parameter(path: str) -> str:
    """Encode a path for Dagster Pipes. Source: dagster_pipes, encode_param."""
    return b2a_base64(zlib.compress(json.dumps({"path": path}).encode()), newline=False).decode()
