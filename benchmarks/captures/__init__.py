"""Captures with the faults that people, cameras, editors and exporters cause.

`data_cases.py` loads those of `cases.py`; `careless_captures.py` makes and trains on those of `faults.py`.
"""
