"""The messages, names and rules that both ends of Slurmbus' bus share."""

__version__ = "0.1.0"
