"""The spool (stub: the signatures are final)."""
