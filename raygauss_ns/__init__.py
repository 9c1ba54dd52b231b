"""RayGauss: volumetric ray casting of Gaussians, as a nerfstudio method."""
