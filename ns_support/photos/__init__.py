"""From photographs or a video to a COLMAP model: frames, cameras, features, matches and poses, kept on disk."""
