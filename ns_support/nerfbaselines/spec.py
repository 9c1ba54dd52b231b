"""Registers both methods with NeRFBaselines, which runs this file if NERFBASELINES_REGISTER names it."""

from __future__ import annotations

from typing import Any

from nerfbaselines import register

_INSTALL = """
pip install raygauss-hardmine nerfbaselines
"""
_CONDA = {"environment_name": "raygauss-hardmine", "python_version": "3.11", "install_script": _INSTALL}
_BLENDER: list[dict[str, str]] = [{"dataset": "blender"}]


def _spec(name: str, method: str, title: str, description: str, presets: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": name,
        "method_class": f"ns_support.nerfbaselines.method:{method}",
        "conda": _CONDA,
        "metadata": {
            "name": title,
            "description": description,
            "licenses": [{"name": "Apache 2.0"}],
        },
        "presets": presets,
        "implementation_status": {"blender": "working"},
    }


register(
    _spec(
        "raygauss",
        "RayGauss",
        "RayGauss",
        "Volumetric ray casting of Gaussians (arXiv 2408.03356, 2509.07782), on a CPU or a GPU.",
        {"blender": {"@apply": _BLENDER, "object": True}},
    )
)
register(
    _spec(
        "instant-ngp-hardmine",
        "InstantNGPHardMine",
        "Instant-NGP, hard samples",
        "Instant-NGP trained by online hard-sample mining, on a CPU or a GPU.",
        {
            "blender": {
                "@apply": _BLENDER,
                "object": True,
                "method": "instant-ngp-hardmine-bounded",
                "pipeline.model.background_color": "white",
            }
        },
    )
)
