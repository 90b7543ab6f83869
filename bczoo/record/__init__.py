"""Writing recordings: demonstrations of experts and people, corrections of a policy."""
