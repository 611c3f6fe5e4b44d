"""``python -m slurmbus`` is ``slurmbus``."""

from slurmbus.cli import main

raise SystemExit(main())
