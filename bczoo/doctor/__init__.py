"""What of an installation and a machine works, and what mends the rest: ``bczoo doctor``."""
