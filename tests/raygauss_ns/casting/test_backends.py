"""Which back end casts, and what is said where the one that was asked for cannot."""

import subprocess
import sys

import pytest
import torch

from raygauss_ns.casting import CastSettings, Rays, cast

SETTINGS = CastSettings(step=0.05, density_threshold=0.02)


def test_gpu_needs_tensors_on_a_gpu(random_scene, image_rays, cast_scene):
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match=r'backend "gpu" needs tensors on a GPU, got cpu: move them with \.cuda\(\)'):
        cast_scene(random_scene(2), image_rays(2, 2), SETTINGS, "gpu", 2)


def test_triton_missing(random_scene, image_rays, cast_scene, monkeypatch):
    monkeypatch.setitem(sys.modules, "raygauss_ns.casting.gpu.kernels", None)
    with pytest.raises(ImportError, match=r'backend "gpu" needs Triton 3.2 or newer .*pip install "triton>=3.2"'):
        cast_scene(random_scene(2), image_rays(2, 2), SETTINGS, "gpu", 2)


def test_tensors_on_several_devices(random_scene, image_rays):
    pytest.importorskip("triton")
    scene, rays = random_scene(2), image_rays(2, 2)
    with pytest.raises(ValueError, match="needs all tensors on one device, got cpu and meta"):
        cast(scene.gaussians, scene.colors.to("meta"), Rays(*rays), SETTINGS, backend="gpu")


def test_auto_is_the_cpu_for_tensors_there(random_scene, image_rays, cast_scene):
    scene, rays = random_scene(3), image_rays(3, 2)
    assert torch.equal(cast_scene(scene, rays, SETTINGS, "auto", 3), cast_scene(scene, rays, SETTINGS, "cpu", 3))


def test_importing_the_packages_does_not_import_triton():
    command = (
        "import sys, torch; before = 'triton' in sys.modules; "
        "import raygauss_ns.casting.api, hardmine_ns.hash_encoding.encoding, hardmine_ns.marching; "
        "sys.exit('triton' in sys.modules and not before)"
    )
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0
