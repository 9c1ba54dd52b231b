"""Code used by both methods. The modules here are what nerfstudio uses; each folder is a library on one subject."""
