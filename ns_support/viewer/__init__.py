"""Additions of both methods to nerfstudio's viewer."""
