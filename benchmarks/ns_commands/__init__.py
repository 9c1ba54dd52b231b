"""The commands that `commands.py` runs: nerfstudio's, and this project's exporter."""
