"""What the agent costs its host: measuring it, judging it against limits, and handing over before one is reached."""
