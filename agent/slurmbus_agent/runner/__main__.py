"""Where the runner begins: ``python3 -I -S <runner> <folder of the job>``.

This file alone is written for Python 3.5 too: an older one than the runner needs looks for a newer one, and becomes it.
"""
# ruff: noqa: RUF005, UP031, UP036 - for old Pythons

import os
import sys

SOURCES = {}  # type: dict[str, str]  # the other modules by name; filled in when the runner is made one file
NEWER = ("python3", "python3.13", "python3.12", "python3.11", "python3.10", "python3.9", "python3.14")
EXIT_SETUP = 125


def find_newer() -> None:
    """Become a Python that is new enough, or say that there is none."""
    tried = os.environ.get("SLURMBUS_PYTHONS_TRIED", "").split()
    for name in NEWER:
        if name not in tried:
            tried.append(name)
            os.environ["SLURMBUS_PYTHONS_TRIED"] = " ".join(tried)
            try:
                os.execvp(name, [name, "-I", "-S"] + sys.argv)  # noqa: S606 - no shell is wanted
            except OSError:
                continue
    found = ".".join(str(number) for number in sys.version_info[:3])
    sys.stderr.write(
        "slurmbus: Python 3.9 or newer is needed, %s has %s; load one in the profile or set 'python' for this site\n"
        % (os.uname()[1], found)
    )
    sys.exit(EXIT_SETUP)


class Bundled:
    """Imports the modules in SOURCES. A zip file would cost 6 to 16 ms more, for what Python imports to read it."""

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> "ModuleSpec | None":
        """Say where a module comes from."""
        if name not in SOURCES:
            return None
        return ModuleSpec(name, self, is_package=not SOURCES[name])  # type: ignore[arg-type]  # Loader costs 5 ms

    def create_module(self, _spec: object) -> None:
        """Leave it to Python."""

    def exec_module(self, module: object) -> None:
        """Fill a module."""
        name = vars(module)["__name__"]
        exec(compile(SOURCES[name], name, "exec"), vars(module))  # noqa: S102 - it is our own


if __name__ == "__main__":
    if sys.version_info < (3, 9):
        find_newer()
    os.environ.pop("SLURMBUS_PYTHONS_TRIED", None)
    from importlib.machinery import ModuleSpec

    sys.meta_path.insert(0, Bundled())
    from slurmbus_agent.runner.job import main

    exit_code = main(sys.argv)
    sys.stderr.flush()
    os._exit(exit_code)  # taking the interpreter apart would cost 5 ms
