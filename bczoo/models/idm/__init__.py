"""Inverse dynamics: which actions a video shows, read off the frames before and after each step."""
