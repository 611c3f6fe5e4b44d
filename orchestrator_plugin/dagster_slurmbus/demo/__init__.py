"""A small graph that comes with the package: ``slurmbus demo`` runs it here, or on a site."""
