"""``python -m slurmbus_agent`` is ``slurmbus-agent``."""

from slurmbus_agent.cli import main

raise SystemExit(main())
