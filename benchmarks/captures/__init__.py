"""Captures with the faults that cameras, editors and exporters cause: what `data_cases.py` loads."""
