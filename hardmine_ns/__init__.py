"""instant-ngp trained by online hard-sample mining, as nerfstudio methods."""
