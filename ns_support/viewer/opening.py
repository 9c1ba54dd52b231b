"""The initial state of nerfstudio's viewer: the view, the size of the camera frustums, and the controls at the top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from nerfstudio.cameras.camera_utils import focus_of_attention
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.configs.base_config import ViewerConfig
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO
from nerfstudio.viewer.viewer_elements import ViewerElement
from torch import Tensor

_FORWARD = 0.12
"""Fraction of the distance to the scene by which the view is in front of the training camera, past its frustum."""
_UPRIGHT = 0.9
"""Preferred cosine between the up directions of the camera and the scene: a camera that looks down slightly."""
_FRUSTUM = 0.02
"""Size of the training cameras' frustums, relative to their distance from what they look at, at most."""
_CROWDED = 0.6
"""The same relative to the distance between cameras."""
_AXIS_COSINE = 0.85
"""Cosine above which the scene's up direction is taken to be the z axis, as parsers align it."""


class View(NamedTuple):
    """A view, in the units of nerfstudio's scene.

    Attributes:
        position: [3].
        look_at: [3] the point in the centre, about which the mouse rotates the view.
        up: [3] of unit length.
        fov: vertical field of view (radians).
        frustum: size of the training cameras' frustums.
    """

    position: Tensor
    look_at: Tensor
    up: Tensor
    fov: float
    frustum: float


def opening_view(cameras: Cameras) -> View:
    """The view of a training camera that is upright, looks down slightly and has about the median distance.

    Args:
        cameras: of the training images, N >= 1.
    """
    poses = cameras.camera_to_worlds.double().cpu()
    origins, forward, ups = poses[:, :, 3], -poses[:, :, 2], poses[:, :, 1]
    up = torch.nn.functional.normalize(ups.sum(0), dim=0)
    axis = torch.tensor([0.0, 0.0, 1.0]).to(up)
    if float(up @ axis) > _AXIS_COSINE or not bool(up.any()):
        up = axis
    distances = _distances(origins, forward)
    middle = distances.median()
    chosen = int(((ups @ up - _UPRIGHT).abs() + (distances / middle - 1).abs()).argmin())
    ahead = _FORWARD * distances[chosen]
    position = origins[chosen] + ahead * forward[chosen]
    look_at = origins[chosen] + distances[chosen] * forward[chosen]
    height, focal = float(cameras.height[chosen]), float(cameras.fy[chosen])
    # Shows as much of the scene as the camera does, although the view is nearer.
    half = 0.5 * height / focal / (1 - _FORWARD)
    apart = torch.cdist(origins, origins) + torch.eye(len(origins)).to(origins) * 1e9
    crowded = _CROWDED * float(apart.min(-1).values.median()) if len(origins) > 1 else float("inf")
    frustum = min(_FRUSTUM * float(middle), max(crowded, 1e-3 * float(middle)))
    return View(position, look_at, up, min(2 * float(torch.tensor(half).atan()), 2.0), frustum)


def _distances(origins: Tensor, forward: Tensor) -> Tensor:
    """Distance [N] from each camera to the point nearest to all optical axes, or a fallback if there is none."""
    spread = torch.linalg.vector_norm(origins - origins.mean(0), dim=-1).max().clamp_min(1e-3)
    homogeneous = torch.zeros(len(origins), 4, 4).to(origins)
    homogeneous[:, :3, 3], homogeneous[:, :3, 2] = origins, -forward
    try:
        focus = focus_of_attention(homogeneous.float(), origins.mean(0).float()).to(origins)
    except RuntimeError:  # all cameras have the same direction
        focus = origins.mean(0)
    along = ((focus - origins) * forward).sum(-1)
    # The axes of cameras that look outwards or in parallel do not meet nearby.
    usable = (along > 0.1 * spread) & (along < 50 * spread)
    fallback = along[usable].median() if bool(usable.any()) else spread
    return torch.where(usable, along, fallback)


def with_frustums(config: ViewerConfig, view: View) -> ViewerConfig:
    """A viewer's configuration with the view's frustum size, unless the user set a size.

    Returns:
        A copy, as a run's configuration must not change.
    """
    if config.camera_frustum_scale != ViewerConfig().camera_frustum_scale:
        return config
    return replace(config, camera_frustum_scale=view.frustum * VISER_NERFSTUDIO_SCALE_RATIO)


def show(client: Any, view: View) -> None:
    """Set a browser's camera to a view."""
    client.camera.up_direction = view.up.numpy()
    client.camera.position = (view.position * VISER_NERFSTUDIO_SCALE_RATIO).numpy()
    client.camera.look_at = (view.look_at * VISER_NERFSTUDIO_SCALE_RATIO).numpy()
    client.camera.fov = view.fov


def move_to_top(viewer: Any, label: str, text: str, elements: Sequence[ViewerElement[Any]], place: float) -> Any:
    """Move controls from nerfstudio's nested folders at the end of the panel to a folder above its tabs.

    Args:
        viewer: nerfstudio's viewer, with its controls installed.
        label: of the folder.
        text: Markdown at the top of the folder; "" for none.
        elements: the controls; without controls and text no folder is made.
        place: position in the panel, in viser's order: its own controls are numbered from 1.

    Returns:
        The handle of the text, whose `content` may be changed; None without a text.
    """
    gui = viewer.viser_server.gui
    if not elements and not text:
        return None
    for element in elements:
        element.remove()
    with gui.add_folder(label, order=place):
        words = gui.add_markdown(text) if text else None
        for element in elements:
            element.install(viewer.viser_server)
    return words


def remove_empty_folders(viewer: Any) -> None:
    """Remove the folders that `move_to_top` has left empty."""
    containers = viewer.viser_server.gui._container_handle_from_id
    while True:
        empty = [c for c in containers.values() if type(c).__name__ == "GuiFolderHandle" and not c._children]
        if not empty:
            return
        for folder in empty:
            folder.remove()
