"""Lenses: pixels to rays and back, and points triangulated from photographs.

Stands on torch, numpy, scipy and OpenCV.
"""
