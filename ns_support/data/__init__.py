"""All data come in here: what is read exactly, what is mended with a word, and what is refused.

Both methods and every parser read images, masks, poses and points through it. Nothing here but `checks` imports a
datamanager.
"""
