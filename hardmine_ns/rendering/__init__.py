"""The radiance field of `instant-ngp-hardmine`, and what of it a ray sees. Knows torch, and no nerfstudio."""
