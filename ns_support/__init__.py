"""What both methods share. The modules here are what nerfstudio sees; the folders are libraries of one subject each."""
