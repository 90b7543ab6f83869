"""A page that shows a policy at play."""
