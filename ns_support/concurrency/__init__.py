"""Threads, and the ranks of data-parallel training. Depends on torch only."""
