"""Trials of `reliability.py`: kills, damaged files, senseless settings, long runs. Each runs in a forked process."""
