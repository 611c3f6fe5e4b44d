"""``python -m slurmbus_cluster build [RELEASE…]`` builds the images, and says why when that can't be done here."""

from __future__ import annotations

import sys

from .errors import ClusterError
from .image import DEFAULT_RELEASE, ensure_image


def main(arguments: list[str]) -> int:
    """Run the command; 2 for wrong usage, 1 when the image can't be built."""
    if arguments[:1] != ["build"]:
        print("usage: python -m slurmbus_cluster build [RELEASE…]", file=sys.stderr)
        return 2
    try:
        for release in arguments[1:] or [DEFAULT_RELEASE]:
            print(f"the cluster's image of {release} is {ensure_image(print, release)}")
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
