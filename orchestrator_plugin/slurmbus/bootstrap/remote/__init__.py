"""What runs on the login node during a set-up: the standard library only, Python 3.6 or newer; read as text, never imported."""
