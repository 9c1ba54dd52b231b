"""How nerfstudio's viewer opens on a scene: from where, with what in sight, and with which controls at the top."""

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
"""Part of the way to the scene that the eye is moved ahead of the training camera, past that one's frustum."""
_UPRIGHT = 0.9
"""Cosine between a camera's up and the scene's, of a camera that looks down a little: the view to open with."""
_FRUSTUM = 0.02
"""Size of the training cameras' frustums, by their distance from what they look at."""
_CROWDED = 0.6
"""... and by their distance from one another."""
_AXIS_COSINE = 0.85
"""Cosine above which the scene's up counts as the z axis, which is what parsers make of it."""


class View(NamedTuple):
    """Where to look from, in the units of nerfstudio's scene.

    Attributes:
        position: [3].
        look_at: [3] what is in the middle, and what the mouse turns the view about.
        up: [3] of unit length.
        fov: vertical, radians.
        frustum: a size for the training cameras' frustums.
    """

    position: Tensor
    look_at: Tensor
    up: Tensor
    fov: float
    frustum: float


def opening_view(cameras: Cameras) -> View:
    """The view of a training camera that stands upright, looks down a little and is as far away as most.

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
    # As much of the scene as the camera shows, although the eye is nearer to it.
    half = 0.5 * height / focal / (1 - _FORWARD)
    apart = torch.cdist(origins, origins) + torch.eye(len(origins)).to(origins) * 1e9
    crowded = _CROWDED * float(apart.min(-1).values.median()) if len(origins) > 1 else float("inf")
    frustum = min(_FRUSTUM * float(middle), max(crowded, 1e-3 * float(middle)))
    return View(position, look_at, up, min(2 * float(torch.tensor(half).atan()), 2.0), frustum)


def _distances(origins: Tensor, forward: Tensor) -> Tensor:
    """Distance [N] from each camera to what it looks at: the point nearest to all their axes, if there is one."""
    spread = torch.linalg.vector_norm(origins - origins.mean(0), dim=-1).max().clamp_min(1e-3)
    homogeneous = torch.zeros(len(origins), 4, 4).to(origins)
    homogeneous[:, :3, 3], homogeneous[:, :3, 2] = origins, -forward
    try:
        focus = focus_of_attention(homogeneous.float(), origins.mean(0).float()).to(origins)
    except RuntimeError:  # all look the same way
        focus = origins.mean(0)
    along = ((focus - origins) * forward).sum(-1)
    # Cameras that look outwards, or side by side, meet nowhere near.
    usable = (along > 0.1 * spread) & (along < 50 * spread)
    fallback = along[usable].median() if bool(usable.any()) else spread
    return torch.where(usable, along, fallback)


def with_frustums(config: ViewerConfig, view: View) -> ViewerConfig:
    """A viewer's configuration with frustums of a size that shows, unless someone chose another than nerfstudio's.

    Returns:
        A copy: a run's configuration stays as it was given.
    """
    if config.camera_frustum_scale != ViewerConfig().camera_frustum_scale:
        return config
    return replace(config, camera_frustum_scale=view.frustum * VISER_NERFSTUDIO_SCALE_RATIO)


def show(client: Any, view: View) -> None:
    """Put a browser's camera into a view."""
    client.camera.up_direction = view.up.numpy()
    client.camera.position = (view.position * VISER_NERFSTUDIO_SCALE_RATIO).numpy()
    client.camera.look_at = (view.look_at * VISER_NERFSTUDIO_SCALE_RATIO).numpy()
    client.camera.fov = view.fov


def move_to_top(viewer: Any, label: str, text: str, elements: Sequence[ViewerElement[Any]], place: float) -> Any:
    """Take controls out of nerfstudio's nested folders at the panel's end into a folder of their own above its tabs.

    Args:
        viewer: nerfstudio's, with its controls in place.
        label: the folder's.
        text: Markdown to begin it with; "" for none.
        elements: the controls; with none, and no text, there is no folder.
        place: where among the panel's controls, by viser's order: its own are numbered from 1 on.

    Returns:
        The handle of the text, whose `content` may be changed; None without.
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
    """Remove the folders that `move_to_top` has emptied."""
    containers = viewer.viser_server.gui._container_handle_from_id
    while True:
        empty = [c for c in containers.values() if type(c).__name__ == "GuiFolderHandle" and not c._children]
        if not empty:
            return
        for folder in empty:
            folder.remove()
