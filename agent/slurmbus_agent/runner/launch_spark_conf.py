"""What Spark is told: where it is, how much it gets, and the payload's spark-defaults.conf."""

from __future__ import annotations

import glob
import os
import shutil

from slurmbus_agent.runner.launch_errors import LaunchFailed
from slurmbus_agent.runner.launch_question import module_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from slurmbus_agent.runner.launch_crew import Crew, Member
    from slurmbus_agent.runner.launch_job import Launch

MIB = 1024 * 1024
DAEMON_MIB = 512
"""Of the master and of each worker."""
HEAP_SHARE = 0.6
"""Of a node's memory, for the executor's heap; Python workers and what the JVM needs beside its heap take the rest."""
LEAST_HEAP_MIB = 512
"""Spark refuses less than 450 MiB."""
DEFAULTS = "spark-defaults.conf"
DEFAULTS_FOLDER = "/conf"
"""In the cluster's folder on the first node."""
EXECUTOR_OPTIONS = "spark.executor.extraJavaOptions"
PYSPARK_HINT = (
    "install it there (pip install pyspark), name the Python that has it with SparkLauncher(python=…), or name an "
    "installed Spark with SparkLauncher(spark_home=…)"
)
JAVA_HINT = "load one in the preamble (module load java), or set JAVA_HOME"


class Home:
    """An installed Spark."""

    def __init__(self, folder: str, *, own_python: bool) -> None:
        self.folder = folder
        self.program = folder + "/bin/spark-class"
        if not os.access(self.program, os.X_OK):
            raise LaunchFailed(f"spark_home: there is no {self.program}; name the folder that has bin/ and jars/")
        self._own_python = own_python

    @property
    def python_path(self) -> list[str]:
        """What a Python needs to import the pyspark of this Spark."""
        if self._own_python:
            return []
        folder = self.folder + "/python"
        return [folder, *sorted(glob.glob(folder + "/lib/py4j-*.zip"))] if os.path.isdir(folder) else []


def find_home(job: Launch) -> Home:
    """Find Spark and Java on this node.

    Raises:
        LaunchFailed: one of them isn't there; it says what to do.
    """
    named = job.options["spark_home"] or os.environ.get("SPARK_HOME")
    if named:
        home = Home(str(named).rstrip("/"), own_python=False)
    else:
        package = module_of(job, str(job.options["python"]), "pyspark", PYSPARK_HINT)
        home = Home(os.path.dirname(package), own_python=True)
    java = os.environ.get("JAVA_HOME")
    if not (os.access(java + "/bin/java", os.X_OK) if java else shutil.which("java")):
        where = f"JAVA_HOME={java}" if java else "PATH"
        raise LaunchFailed(
            f"Spark needs Java, and {job.allocation.here.name} has none in its {where}; {JAVA_HINT}", 127
        )
    return home


class Sizes:
    """What Spark gets of the nodes."""

    def __init__(self, members: Iterable[Member], here: str, options: dict[str, Any]) -> None:
        """Divide what Slurm gave; LaunchFailed when it is too little."""
        self.driver = int(options["driver_memory_mib"])
        self.cores: dict[str, int] = {}
        """By node."""
        self.offered: dict[str, int] = {}
        """MiB by node."""
        for member in members:
            total = (member.node.memory or member.physical_memory) // MIB
            beside = DAEMON_MIB + (DAEMON_MIB + self.driver if member.name == here else 0)
            self.offered[member.name] = total - beside
            self.cores[member.name] = options["cores_per_node"] or member.node.cpus
        least = min(self.offered, key=lambda name: self.offered[name])
        self.executor: int = options["executor_memory_mib"] or int(self.offered[least] * HEAP_SHARE)
        if self.executor < LEAST_HEAP_MIB and not options["executor_memory_mib"]:
            raise LaunchFailed(
                f"{least} has {max(0, self.offered[least])} MiB left for an executor and its Python, too little for "
                "Spark; ask Slurm for more memory, or set executor_memory_gb"
            )
        self.offered = {name: max(size, self.executor) for name, size in self.offered.items()}


def folder_of(crew: Crew, wanted: str | None, within: float) -> str:
    """Make a private folder for Spark's files on every node's own disk, the same on each, and give its path.

    Raises:
        LaunchFailed: it can't be made on some node. One on a shared file system is there already on the second node.
    """
    name = f"/spark-{os.urandom(4).hex()}"
    own = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - the folder is private
    words = ""
    for base in [wanted] if wanted is not None else dict.fromkeys((own, "/tmp")):  # noqa: S108
        folder = base.rstrip("/") + name
        try:
            crew.ask_all({"do": "folder", "path": folder}, within)
        except LaunchFailed as error:
            words = f"{base} can't be used: {error}"
        else:
            return folder
    raise LaunchFailed(f"temp_dir: {words}; name a folder on each node's own disk")


def java_options(folder: str) -> str:
    """Give what keeps a JVM from leaving files of its own outside of a folder when it is killed."""
    return f"-Djava.io.tmpdir={folder} -XX:-UsePerfData"


def defaults(address: str, host: str, secret: str, sizes: Sizes, conf: Mapping[str, str]) -> dict[str, str]:
    """Give what the payload needs to attach and to get all that there is; the user's ``conf`` may say otherwise."""
    return {
        "spark.driver.memory": f"{sizes.driver}m",
        "spark.executor.memory": f"{sizes.executor}m",
        **conf,
        "spark.master": address,
        "spark.authenticate": "true",
        "spark.authenticate.secret": secret,
        "spark.driver.host": host,
        "spark.driver.bindAddress": host,
        "spark.ui.port": "0",
    }


def write(folder: str, values: Mapping[str, str]) -> None:
    """Make a folder for SPARK_CONF_DIR: the user's or the site's own files, and the cluster's values on top."""
    os.mkdir(folder, 0o700)
    lines = []
    own = os.environ.get("SPARK_CONF_DIR") or os.environ.get("SPARK_HOME", "/nowhere") + "/conf"
    for path in sorted(glob.glob(own + "/*")):
        if os.path.basename(path) != DEFAULTS:
            os.symlink(path, f"{folder}/{os.path.basename(path)}")
            continue
        with open(path, encoding="utf-8") as file:
            lines.append(file.read())
    # Of a name that comes twice the last one counts. Source: java.util.Properties.
    lines += [f"{_escaped(name)} {_escaped(value)}" for name, value in values.items()]
    with open(f"{folder}/{DEFAULTS}", "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def _escaped(text: str) -> str:
    """Write a name or a value as java.util.Properties reads it."""
    for letter, written in (("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        text = text.replace(letter, written)
    return text
