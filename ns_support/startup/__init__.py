"""Process-wide setup that must precede a nerfstudio command. Importing this package performs all of it, once."""

from ns_support.startup.checkpoints import allow_numpy_scalars
from ns_support.startup.ffmpeg import offer_ffmpeg
from ns_support.startup.known_warnings import silence_known_warnings

silence_known_warnings()
allow_numpy_scalars()
offer_ffmpeg()
