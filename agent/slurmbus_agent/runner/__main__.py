"""Where the runner begins: ``python3 -I -S <runner> <folder of the job>``.

This file alone is written for every Python, also 2.7: an older one looks for a newer one, and becomes it.
"""
# ruff: noqa: ANN201, RUF005, UP031, UP036 - every Python must be able to read this

import os
import sys

NEWER = ("python3", "python3.13", "python3.12", "python3.11", "python3.10", "python3.9", "python3.14")
EXIT_SETUP = 125


def find_newer():
    # type: () -> None
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


if __name__ == "__main__":
    if sys.version_info < (3, 9):
        find_newer()
    os.environ.pop("SLURMBUS_PYTHONS_TRIED", None)
    from slurmbus_agent.runner.job import main

    sys.exit(main(sys.argv))
