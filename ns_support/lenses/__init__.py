"""Lenses: pixels to rays and back, and points triangulated from images.

Depends on torch, numpy, scipy and OpenCV.
"""
