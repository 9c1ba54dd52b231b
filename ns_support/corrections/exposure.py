"""Exposure and colour of each photograph: an affine map of the scene's colours, trained with the scene.

A phone meters every photograph anew. Where the same wall is brighter in one than in another, a radiance field has no
way to agree with both, and explains the difference by fog in front of the cameras. As in 3D Gaussian splatting's
exposure compensation, a photograph shows

    c' = (I + A_i) c + b_i

of the scene's colour c, with A_i and b_i starting at 0 and held near it. Evaluation uses their mean over the
photographs; what remains is one colour map per held-out photograph, which "cc_psnr" takes out
(`ns_support.metrics`).
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from ns_support.corrections.host_flag import HostFlag
from ns_support.corrections.newton import curvature_term

ExposureMode: TypeAlias = Literal["auto", "on", "off"]
EXPOSURE_MODES = get_args(ExposureMode)
START = 0.05
"""Fraction of the training after which photographs may differ: before, the scene's own faults would be taken for
theirs."""
TRIAL = 0.4
"""Fraction of the training after which "auto" decides."""
LEAST_SPREAD = 0.08
"""Standard deviation of the photographs' brightness (natural logarithm) from which "auto" keeps the correction."""
_PENALTY = 0.01
"""Weight of the mean square of a photograph's A and b in the loss."""
_MIDDLE = 0.5
"""Grey whose brightness is compared."""
_CLIPPED = 0.5 / 255
"""Distance from 0 and 1 within which a colour counts as clipped."""


class Exposure(nn.Module):
    """One affine colour map for each training photograph.

    Args:
        mode: "off": none; "on": trained; "auto": trained, and given up if the photographs turn out to agree.
        num_photos: N >= 0 training photographs.
    """

    in_use: Tensor
    decided: Tensor

    def __init__(self, mode: ExposureMode, num_photos: int) -> None:
        super().__init__()
        self.mode = mode
        self.is_on = mode != "off" and num_photos > 1
        self._in_use, self._decided = HostFlag(), HostFlag()
        self.starts = False
        """Whether photographs may differ at the step at hand."""
        self._of_image: Tensor | None = None
        """A view of the adjustments that belongs to the image at hand: what it contributes to the gradient is summed
        before it joins that of other images, whichever process they are in."""
        self._seen: tuple[Tensor, Tensor | int] | None = None
        """Colours and coverage [n, 4] at the step at hand, and the number of their photograph, or numbers [n]."""
        if self.is_on:
            self.adjustments = nn.Parameter(torch.zeros(num_photos, 3, 4))
            """[N, 3, 4]: A_i and, in the last column, b_i."""
            self.curvature = nn.Parameter(torch.zeros(num_photos, 4, 4))
            """Zeros, whose gradient is the curvature of the loss (`corrections.newton`)."""
            self.register_buffer("in_use", torch.ones((), dtype=torch.bool))
            # A part of the state, so that a resumed training does not decide again, by what has changed since.
            self.register_buffer("decided", torch.zeros((), dtype=torch.bool))

    def unused_state(self) -> dict[str, Tensor]:
        """The state of a training that corrected nothing."""
        return {name: torch.zeros_like(value) for name, value in self.state_dict().items()}

    def get_param_groups(self) -> dict[str, list[nn.Parameter]]:
        """The group "exposure", if there is anything to train."""
        return {"exposure": [self.adjustments, self.curvature]} if self.is_on else {}

    @property
    def corrects(self) -> bool:
        """Whether photographs differ from the scene's colours."""
        return self.is_on and self._in_use.read(self.in_use)

    @property
    def moves(self) -> bool:
        """Whether corrections are trained at the step at hand; before that they are the identity."""
        return self.training and self.starts and self.corrects

    @property
    def acts(self) -> bool:
        """Whether calling this changes colours."""
        return self.moves if self.training else self.corrects

    def forward(self, colors: Tensor, coverage: Tensor, photo: Tensor | int | None) -> Tensor:
        """The scene's colours as a photograph shows them.

        Args:
            colors: [*, 3] of the scene, multiplied by its coverage: without a background.
            coverage: [*, 1], how opaque the scene is.
            photo: number of the photograph, or numbers [*]; None: the mean of all, as in evaluation.

        Returns:
            [*, 3], still without a background.
        """
        if not self.acts:
            return colors
        if photo is None:
            rows = self.adjustments.mean(0)
        else:
            self._of_image = self.adjustments.view_as(self.adjustments)
            rows = self._of_image[photo]
            if self.training:
                numbers = photo.reshape(-1) if isinstance(photo, Tensor) else photo
                self._seen = torch.cat([colors, coverage], -1).detach().reshape(-1, 4), numbers
        return colors + (rows[..., :3] * colors[..., None, :]).sum(-1) + rows[..., 3] * coverage

    def mean_map(self) -> tuple[Tensor, Tensor] | None:
        """The mean photograph's I + A [3, 3] and b [3], for files of the scene's colours; None: the identity."""
        if not self.corrects:
            return None
        mean = self.adjustments.detach().mean(0)
        return torch.eye(3, device=mean.device) + mean[:, :3], mean[:, 3]

    def curvature_of(self, weight: Tensor) -> Tensor:
        """A term of the loss, of value 0, by which `VisitNewton` learns how far to move the photographs' maps.

        Args:
            weight: [n] second derivative of the loss with respect to a colour of each pixel that was corrected last.
        """
        assert self._seen is not None
        features, photos = self._seen
        eye = 2 * _PENALTY / 12 * torch.eye(4, dtype=features.dtype, device=features.device)
        if isinstance(photos, int):
            return curvature_term(self.curvature[photos], (weight * features.mT) @ features + eye)
        products = (weight[:, None, None] * features[:, :, None] * features[:, None] + eye / len(features)).flatten(1)
        sums = products.new_zeros(len(self.curvature), 16).index_add(0, photos, products)
        return curvature_term(self.curvature, sums.view(-1, 4, 4))

    def penalty(self, photo: Tensor | int) -> Tensor:
        """What holds a photograph's map (or the mean of several) near the identity; a scalar."""
        adjustments = self.adjustments if self._of_image is None else self._of_image
        return _PENALTY * adjustments[photo].square().mean()

    def before_step(self, progress: float) -> None:
        """Take note of what fraction of the training is done."""
        self.starts = progress >= START

    @torch.no_grad()
    def spread(self) -> Tensor:
        """Standard deviation, over the photographs, of the logarithm of what they make of grey; a scalar."""
        gray = _MIDDLE * (1 + self.adjustments[..., :3].sum(-1)) + self.adjustments[..., 3]
        return gray.clamp_min(1e-3).mean(-1).log().std()

    @torch.no_grad()
    def after_step(self, progress: float) -> str:
        """In mode "auto", decide once the trial is over.

        Args:
            progress: fraction of the training that is done.

        Returns:
            What was decided, for the user; "" at all other steps.
        """
        self._of_image = self._seen = None
        if self.moves:
            self.adjustments.sub_(self.adjustments.mean(0))
        if self.mode != "auto" or not self.corrects or progress < TRIAL or self._decided.read(self.decided):
            return ""
        self.decided.fill_(True)
        spread = float(self.spread())
        if spread >= LEAST_SPREAD:
            return f"The photographs differ in brightness by {spread:.0%}: each keeps a colour correction of its own."
        self.in_use.fill_(False)
        self.adjustments.zero_()
        return (
            f"The photographs differ in brightness by {spread:.0%} as far as can be told by now, less than "
            f"{LEAST_SPREAD:.0%}: their exposures are not corrected."
        )


def within_range(rgb: Tensor, image: Tensor) -> Tensor:
    """Colours as an image can hold them: where it is clipped, it does not tell how bright or dark the scene is there.

    Args:
        rgb: [*, 3] of the scene, in an exposure that may exceed the image's range.
        image: [*, 3] in [0, 1].

    Returns:
        [*, 3] where the image is at an end of its range, no further beyond it; elsewhere as they were.
    """
    shown = torch.where(image >= 1 - _CLIPPED, rgb.clamp(max=1.0), rgb)
    return torch.where(image <= _CLIPPED, shown.clamp(min=0.0), shown)


def color_corrected(image: Tensor, ground_truth: Tensor) -> Tensor:
    """An image whose colours come as close to the ground truth as one affine map can bring them.

    The map is fitted by least squares to the pixels that neither image clips. Pixels that the image clips, such as a
    white background, stay as they are: they say nothing of the colours that they would have had.

    Args:
        image: [H, W, 3].
        ground_truth: [H, W, 3], same device.

    Returns:
        [H, W, 3] in [0, 1].
    """
    found, wanted = image.clamp(0, 1).reshape(-1, 3).double(), ground_truth.clamp(0, 1).reshape(-1, 3).double()
    open_ = ((found >= _CLIPPED) & (found <= 1 - _CLIPPED)).all(1)
    used = open_ & ((wanted >= _CLIPPED) & (wanted <= 1 - _CLIPPED)).all(1)
    rows = torch.cat([found, torch.ones_like(found[:, :1])], 1)
    # Its departure from the identity, so that an image without colours to fit stays as it is; the pseudo-inverse,
    # because an image of few colours does not determine all of the map.
    fitted = rows[used]
    change = torch.linalg.pinv(fitted.T @ fitted, hermitian=True) @ (fitted.T @ (wanted - found)[used])
    corrected = torch.where(open_[:, None], found + rows @ change, found)
    return corrected.clamp(0, 1).to(image).view_as(image)
