"""The page that shows every site's agent and jobs; :mod:`slurmbus.dashboard.serving` runs it."""
