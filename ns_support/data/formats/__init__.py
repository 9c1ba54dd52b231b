"""The formats of data folders: recognised by their files, read by nerfstudio's parsers."""
