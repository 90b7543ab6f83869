"""Recordings of this project, turned into datasets that other libraries read: ``bczoo data export``.

The way of a recording: `command.py` reads its steps and finds its video, `lerobot.py` writes both into a dataset.
"""
