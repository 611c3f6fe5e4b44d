"""The real command, serving the page of a home."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from slurmbus.dashboard.links import Links
from slurmbus.home import Home

COMMAND = str(Path(sys.executable).with_name("slurmbus"))


@dataclass
class Served:
    """A running ``slurmbus dashboard``."""

    process: subprocess.Popen[str]
    url: str
    printed_link: str
    """Signs one browser in."""
    links: Links

    def link(self) -> str:
        """Give a new link, as ``slurmbus dashboard --link`` does."""
        return self.links.link()

    def token(self) -> str:
        return self.link().partition("#token=")[2]

    @property
    def port(self) -> int:
        return int(self.url.rstrip("/").rpartition(":")[2])


@contextmanager
def served(home: Home, *options: str, port: int = 0, **environment: str) -> Iterator[Served]:
    """Run it until the end of the block."""
    process = subprocess.Popen(
        [COMMAND, "dashboard", "--port", str(port), *options],
        env={"PATH": "/usr/bin:/bin", "SLURMBUS_HOME": str(home.path), "PYTHONWARNINGS": "error", **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        page, link = _address(process, "dashboard"), _address(process, "sign in")
        yield Served(process, page, link, Links.of(home))
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def _address(process: subprocess.Popen[str], what: str) -> str:
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.fullmatch(rf"{what}: (http://\S+)", line.strip())
    assert found, line + process.stderr.read()
    return found[1]
