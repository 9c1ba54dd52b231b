"""What both methods share. `threads` and `triton_types` need torch at most, the other modules nerfstudio."""
