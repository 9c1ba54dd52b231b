"""What training corrects of a capture: poses, exposure and colour, and pixels that show what has moved."""
