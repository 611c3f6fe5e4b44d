"""Makes a job's spool ready before it is submitted, and brings its outputs back afterwards."""

from __future__ import annotations

import asyncio
import glob
import os
import pwd
import secrets
import sys
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec

from slurmbus_agent import budgets
from slurmbus_agent.environments.activation import activate
from slurmbus_agent.environments.service import Environments, Tell
from slurmbus_agent.events import Staged
from slurmbus_agent.launching import launch_fields
from slurmbus_agent.sizes import MAX_PROBLEMS, fitting
from slurmbus_agent.spool import JobDir, RunnerPlan, Spool, WorkDir, batch_script, check_path
from slurmbus_agent.spool_files import RunnerEnvironment
from slurmbus_protocol import blobs, traces
from slurmbus_protocol.bus import Bus
from slurmbus_protocol.errors import InvalidSetting
from slurmbus_protocol.messages import FileRef, ImageEnvironment, JobSpec, Record
from slurmbus_protocol.plans import CommandPlan

_FILES_OF_A_JOB = 16
_SECRET_BYTES = 32


class Stager:
    """Moves files between the bus and the spool.

    Args:
        bus: a connection of its own, so that large files don't hold up anything else.
        spool: where jobs live.
        runner: the runner's file in the spool.
        python: the interpreter that starts it on compute nodes.
        environments: those of the site.
        here: whether jobs are processes of this machine, which see what the agent sees.
    """

    def __init__(
        self, bus: Bus, spool: Spool, runner: Path, python: str, environments: Environments, *, here: bool = False
    ) -> None:
        self._bus = bus
        self._spool = spool
        self._runner = runner
        self._python = sys.executable if here else python
        self._environments = environments
        self._here = here
        self._gate = asyncio.Semaphore(budgets.STAGING_AT_ONCE)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """Of what several jobs need and one of them fetches."""
        self._installed: dict[str, str] = {}

    async def stage(
        self, folder: JobDir, record: Record, spec: JobSpec, tell: Tell, shared: tuple[FileRef, ...] = ()
    ) -> Staged:
        """Get the environment ready, and make working directory, files, context and plan.

        Args:
            folder: the job's.
            record: the job's.
            spec: what was asked for.
            tell: called with what takes long, for people.

        Args:
            folder: of the job.
            record: of the job.
            spec: what was asked for.
            shared: the files among ``spec.files`` that a task has in common with its siblings.

        Raises:
            EnvironmentUnusable: the environment can't be had.
            SpoolFull: no bytes or inodes are left.
            InvalidSetting: a path of the request can't be used.
            BlobMissing: the bus doesn't hold a file any more.
            BlobCorrupt: a file's bytes aren't the ones that were asked for.
        """
        if isinstance(spec.environment, ImageEnvironment) and not isinstance(spec.plan, CommandPlan):
            raise InvalidSetting(
                "environment: a launch over several processes can't run inside of an image in this version",
                hint="use BashLauncher with the image, or start 'apptainer exec' for each process yourself",
            )
        activation = await activate(spec.environment, self._environments, tell)
        async with self._gate:
            work = await asyncio.to_thread(self._prepare, folder, spec)
            pipes_path = await self._place_pipes_module(spec.pipes_module)
            for file in spec.files:
                if file in shared:
                    await self._share(record, work, file)
                else:
                    await self._place(work, file)
            environment = activation.runner if activation is not None else None
            await asyncio.to_thread(self._write_plan, folder, record, spec, work, pipes_path, environment)
        return Staged(
            spool=str(folder.path),
            work_dir=str(work.path),
            environment=activation.digest if activation is not None else None,
        )

    def _prepare(self, folder: JobDir, spec: JobSpec) -> WorkDir:
        for file in spec.files:
            check_path(file.path, "files")
        for output in spec.outputs:
            check_path(output, "outputs")
        if spec.cwd is not None and not Path(spec.cwd).is_absolute():
            raise InvalidSetting(f"cwd: {spec.cwd!r} is no absolute path", hint="e.g. /scratch/alice/project")
        work = folder.work_dir(spec.work_base)
        size = sum(file.size for file in spec.files) + len(spec.pipes_context or b"")
        self._spool.check_room(size, len(spec.files) + _FILES_OF_A_JOB)
        if spec.work_base is not None:
            self._spool.check_room(size, len(spec.files) + 1, work.path)
        return work

    async def _place(self, work: WorkDir, file: FileRef) -> None:
        with work.place(file.path, executable=file.executable) as target:
            await blobs.fetch_into(self._bus, file.sha256, file.size, target)

    async def _share(self, record: Record, work: WorkDir, file: FileRef) -> None:
        """Let a file of a whole array appear in a task's working directory; it is fetched once."""
        array = self._spool.array(record.key)
        name = array.file_name(file.sha256, executable=file.executable)
        async with self._locks.setdefault(f"{record.key} {name}", asyncio.Lock()):
            if not await asyncio.to_thread(array.has, name):
                files = await asyncio.to_thread(array.files)
                await self._place(files, msgspec.structs.replace(file, path=name))
                await asyncio.to_thread(array.seal, name)
        await asyncio.to_thread(array.link, name, work, file.path)

    async def _place_pipes_module(self, module: FileRef | None) -> str | None:
        if module is None:
            return None
        async with self._locks.setdefault(module.sha256, asyncio.Lock()):
            if module.sha256 not in self._installed:
                self._installed[module.sha256] = await self._install_pipes_module(module)
        return self._installed[module.sha256]

    async def _install_pipes_module(self, module: FileRef) -> str:
        content = b"".join([piece async for piece in blobs.fetch(self._bus, module.sha256, module.size)])
        return str(await asyncio.to_thread(self._spool.install_pipes_module, module.sha256, content))

    def _write_plan(
        self,
        folder: JobDir,
        record: Record,
        spec: JobSpec,
        work: WorkDir,
        pipes_path: str | None,
        environment: RunnerEnvironment | None,
    ) -> None:
        if spec.pipes_context is not None:
            folder.write_context(spec.pipes_context)
        folder.write_plan(
            RunnerPlan(
                key=record.key,
                task=record.task,
                argv=_argv(spec, work),
                preamble=spec.plan.preamble,
                launch=launch_fields(spec.plan),
                cwd=spec.cwd or str(work.path),
                work=str(work.path),
                secret=secrets.token_bytes(_SECRET_BYTES),
                env={**traces.variables(spec.trace), **spec.env},
                requeue=spec.options.requeue,
                pipes=spec.pipes_context is not None,
                pipes_path=pipes_path,
                array_index=record.task - record.array_base if record.tasks else None,
                link=str(self._spool.link),
                environment=environment,
                secrets=spec.sealed is not None,
            )
        )

    def batch_script(self, folder: JobDir, record: Record) -> str:
        """Give the batch script of a job, or of an array."""
        base = record.array_base if record.tasks else None
        return batch_script(self._python, self._runner, folder.path, login=not self._here, array_base=base)

    def environment(self) -> dict[str, str]:
        """Give what jobs start from.

        On a cluster that is what a login shell needs, and the rest comes from its profile. On this machine it is the
        agent's own environment with its Python first, as for any other process that is started here.
        """
        if self._here:
            path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
            return {**os.environ, "PATH": path}
        user = pwd.getpwuid(os.getuid())
        return {
            "HOME": user.pw_dir,
            "USER": user.pw_name,
            "LOGNAME": user.pw_name,
            "SHELL": user.pw_shell or "/bin/sh",
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": os.environ.get("LANG", "C.UTF-8"),
        }

    async def collect(self, record: Record, spec: JobSpec) -> tuple[tuple[FileRef, ...], str | None]:
        """Put the outputs that exist on the bus; give them, and what can't be brought back in words."""
        work = Path(record.work_dir or "")
        found, problems = await asyncio.to_thread(_find_outputs, work, spec)
        outputs = []
        names = fitting(found)
        if len(names) < len(found):
            problems.append(f"{len(found) - len(names)} more files than a record can name: put them into an archive")
        for name in names:
            path = work / name
            digest, size = await asyncio.to_thread(blobs.hash_file, path)
            await blobs.put_file(self._bus, path, digest, size, resume=False)
            outputs.append(FileRef(path=name, sha256=digest, size=size, executable=os.access(path, os.X_OK)))
        return tuple(outputs), "; ".join(problems)[:MAX_PROBLEMS] or None


def _argv(spec: JobSpec, work: WorkDir) -> tuple[str, ...]:
    """Give the payload's words, with the path of its working directory where the request leaves a place for it."""
    word = spec.work_word
    return spec.plan.argv if word is None else tuple(one.replace(word, str(work.path)) for one in spec.plan.argv)


def _find_outputs(work: Path, spec: JobSpec) -> tuple[list[str], list[str]]:
    """Give the names of the outputs that exist and fit into the limit, and words about the others."""
    found: list[str] = []
    problems: list[str] = []
    room = spec.outputs_limit
    for pattern in spec.outputs:
        names = sorted(glob.glob(pattern, root_dir=work, recursive=True)) if glob.has_magic(pattern) else [pattern]
        files = [name for name in names if (work / name).is_file() and name not in found]
        if not files and pattern not in found:
            problems.append(f"{pattern} wasn't written")
        for name in files:
            size = (work / name).stat().st_size
            if size > room:
                problems.append(f"{name} ({size:,} bytes) is over the limit of {spec.outputs_limit:,} bytes in all")
                continue
            room -= size
            found.append(name)
    return found, problems
