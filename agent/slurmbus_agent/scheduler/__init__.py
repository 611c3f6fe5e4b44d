"""What an agent submits to."""
