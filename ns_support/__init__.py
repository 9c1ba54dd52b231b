"""What both methods share. Only `threads` stands on torch alone; the other modules meet nerfstudio."""
