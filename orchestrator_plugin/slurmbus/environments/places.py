"""Environments that are on the site already: a request only names them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from slurmbus_protocol.environments import check_name
from slurmbus_protocol.errors import InvalidSetting
from slurmbus_protocol.messages import (
    FolderEnvironment,
    ImageEnvironment,
    ModulesEnvironment,
    NamedEnvironment,
)


@dataclass(frozen=True)
class InstalledEnvironment:
    """One that ``slurmbus env push`` has brought there, by its name or the beginning of its hash."""

    name: str

    def wire(self) -> NamedEnvironment:
        """Give what a request says of it."""
        return NamedEnvironment(name=check_name(self.name))


@dataclass(frozen=True)
class SiteFolder:
    """A virtual environment or a conda prefix at an absolute path of the site."""

    path: str

    def wire(self) -> FolderEnvironment:
        """Give what a request says of it."""
        return FolderEnvironment(path=_absolute(self.path))


@dataclass(frozen=True, init=False)
class Modules:
    """Environment modules: ``Modules("python/3.12", "cuda")``.

    Args:
        load: names, loaded in this order.
        use: folders with further modules.
        purge: unload first what the login shell has loaded.
    """

    load: tuple[str, ...]
    use: tuple[str, ...]
    purge: bool

    def __init__(self, *load: str, use: Iterable[str] = (), purge: bool = False) -> None:
        object.__setattr__(self, "load", load)
        object.__setattr__(self, "use", tuple(use))
        object.__setattr__(self, "purge", purge)

    def wire(self) -> ModulesEnvironment:
        """Give what a request says of it."""
        if not self.load or not all(self.load):
            raise InvalidSetting("environment: Modules names no module", hint='e.g. Modules("python/3.12", "cuda")')
        return ModulesEnvironment(load=self.load, use=tuple(map(_absolute, self.use)), purge=self.purge)


@dataclass(frozen=True)
class ApptainerImage:
    """An Apptainer image at an absolute path of the site; the payload runs inside.

    Args:
        path: of the image.
        binds: further folders that are seen inside: ``/scratch``, ``/data:/mnt:ro``. The job's own always are.
        options: further words for ``apptainer exec``: ``--nv``.
        program: ``singularity`` where it is still called so.
    """

    path: str
    binds: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    program: str = "apptainer"

    def wire(self) -> ImageEnvironment:
        """Give what a request says of it."""
        return ImageEnvironment(path=_absolute(self.path), binds=self.binds, options=self.options, program=self.program)


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise InvalidSetting(f"environment: {path!r} is no absolute path", hint="name it as the site's nodes see it")
    return path
