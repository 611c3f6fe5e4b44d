"""What runs on the login node during a set-up: Python 3.6 or newer, nothing else; sent as text, never imported."""
