"""Threads and processes that compute together. Stands on torch."""
