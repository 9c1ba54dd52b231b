"""Constants of the real spherical harmonics, with the signs of 3D Gaussian splatting and tiny-cuda-nn."""

Y0 = 0.28209479177387814
"""1 / (2 sqrt(pi))"""
Y1 = 0.4886025119029199
"""sqrt(3 / (4 pi))"""
Y2 = (1.0925484305920792, 0.31539156525252005, 0.5462742152960396)
"""sqrt(15 / (4 pi)), sqrt(5 / (16 pi)), sqrt(15 / (16 pi))"""
Y3 = (0.5900435899266435, 2.890611442640554, 0.4570457994644658, 0.3731763325901154, 1.445305721320277)
"""sqrt(35 / (32 pi)), sqrt(105 / (4 pi)), sqrt(21 / (32 pi)), sqrt(7 / (16 pi)), sqrt(105 / (16 pi))"""
