"""The client side of Slurmbus, and the ``slurmbus`` command; imports no Dagster."""
