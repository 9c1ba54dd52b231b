"""What several benchmarks share. The scripts beside this folder are run as `python benchmarks/NAME.py`."""
