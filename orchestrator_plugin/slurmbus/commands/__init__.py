"""The commands of ``slurmbus``, one module each; imported when they run."""
