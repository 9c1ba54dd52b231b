"""What both methods put into nerfstudio's viewer."""
