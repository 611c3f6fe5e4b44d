"""``dagster dev``: webserver, daemon and code server, as on a person's machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from contract.bus_site import wait_until


class DagsterDev:
    """Started by :meth:`running`, in a folder that is the instance's."""

    def __init__(self, folder: Path, definitions: Path, **environment: str) -> None:
        self.folder = folder
        self.definitions = definitions
        self.environment = environment
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    @contextmanager
    def running(self) -> Iterator[None]:
        environment = {**os.environ, "DAGSTER_HOME": str(self.folder), **self.environment}
        command = [sys.executable, "-m", "dagster", "dev", "-f", str(self.definitions), "-p", str(self.port)]
        with (self.folder / "dev.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
            )
        try:
            wait_until(self.is_up, "Dagster's webserver", 120)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):  # how long Dagster takes to stop isn't what is tested
                process.wait(60)
            with suppress(ProcessLookupError):  # its code server may wait for a step that was killed
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def is_up(self) -> bool:
        try:
            return bool(self.ask("{ version }")["version"])
        except OSError:
            return False

    def ask(self, query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql", body, {"Content-Type": "application/json"}
        )
        # Dagster itself waits for 60 s for its code server before it answers.
        with urllib.request.urlopen(request, timeout=180) as answer:
            found = json.load(answer)
        assert "errors" not in found, found
        return found["data"]
