"""Input data: images, masks, poses and points are read exactly, corrected with a warning, or refused.

Both methods and all parsers read their data through this package. Only `checks` imports a datamanager.
"""
