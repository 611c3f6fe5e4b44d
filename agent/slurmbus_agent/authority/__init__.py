"""What an agent may do, for whom, and until when: policies, the login's grant, keys, ownership, stop files."""
