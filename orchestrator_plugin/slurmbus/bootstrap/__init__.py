"""The one login: finding out about a site, installing the agent there, and keeping it running."""
