"""The door through which all data come: what is read exactly, what is mended with a word, and what is refused.

Both methods and every parser pass through it. Nothing here imports a datamanager.
"""
