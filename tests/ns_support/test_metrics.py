import io
import math
import urllib.error

import matplotlib
import pytest
import torch

from ns_support import metrics
from ns_support.metrics import ERROR_RANGE, LazyLPIPS, comparison_images, image_metrics


class FakeLPIPS(torch.nn.Module):
    """Stands for torchmetrics' class, whose weights need a download."""

    built = 0

    def __init__(self, net_type, normalize):
        super().__init__()
        assert (net_type, normalize) == ("alex", True)
        type(self).built += 1
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, image, ground_truth):
        return (image - ground_truth).abs().mean()

    def reset(self):
        pass


@pytest.fixture
def online(monkeypatch):
    FakeLPIPS.built = 0
    monkeypatch.setattr("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", FakeLPIPS)
    monkeypatch.setattr(metrics, "_check_obtainable", lambda url: None)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    attempts = []

    def refuse(request, timeout):
        attempts.append(timeout)
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return attempts


def pair(size=64):
    torch.manual_seed(0)
    return torch.rand(size, size, 3), torch.rand(size, size, 3)


class TestLazyLPIPS:
    def test_is_built_once_and_on_first_use(self, online):
        lpips = LazyLPIPS()
        assert FakeLPIPS.built == 0
        image, truth = pair()
        assert lpips(image, truth) == pytest.approx(float((image - truth).abs().mean()))
        lpips(image, truth)
        assert FakeLPIPS.built == 1

    def test_stays_out_of_a_models_state(self, online):
        model = torch.nn.Module()
        model.lpips = LazyLPIPS()
        model.lpips(*pair())
        assert not model.state_dict()
        assert not list(model.modules())[1:]
        torch.save(model.state_dict(), io.BytesIO())

    def test_offline_it_says_so_once_and_gives_none(self, offline, capsys):
        lpips = LazyLPIPS()
        assert lpips(*pair()) is None
        said = " ".join(capsys.readouterr().out.split())
        assert said.startswith("LPIPS is left out")
        assert "no network" in said
        assert lpips(*pair()) is None
        assert capsys.readouterr().out == ""
        assert len(offline) == 1
        assert 0 < offline[0] < 60  # a silent network must not hold up an evaluation for minutes

    def test_small_images_have_none(self, online):
        assert LazyLPIPS()(*pair(30)) is None
        assert FakeLPIPS.built == 0


def test_the_smallest_size_is_alexnets():
    from torchmetrics.functional.image.lpips import _LPIPS

    network = _LPIPS(pretrained=False, net="alex", pnet_rand=True)
    size = metrics._ALEXNET_MIN_SIZE
    assert network(torch.rand(1, 3, size, size), torch.rand(1, 3, size, size)).isfinite().all()
    with pytest.raises(RuntimeError):
        network(torch.rand(1, 3, size - 1, size - 1), torch.rand(1, 3, size - 1, size - 1))


class TestImageMetrics:
    def test_psnr_of_a_known_error(self):
        found = image_metrics(torch.full((16, 20, 3), 0.6), torch.full((16, 20, 3), 0.5))
        assert found["psnr"] == pytest.approx(20.0, abs=1e-3)
        assert set(found) == {"psnr", "ssim"}
        assert all(type(value) is float for value in found.values())

    def test_equal_images(self):
        image, _ = pair()
        found = image_metrics(image, image)
        assert found["ssim"] == pytest.approx(1.0)
        assert found["psnr"] == math.inf

    def test_values_out_of_range_count_as_clamped(self):
        image, truth = pair()
        image[0, 0, 0], truth[0, 0, 0] = 1.0, 0.0
        beyond = image.clone()
        beyond[0, 0, 0] = 7.0
        assert image_metrics(beyond, truth) == image_metrics(image, truth)

    def test_lpips_is_there_when_it_can_be(self, online):
        assert "lpips" in image_metrics(*pair(), LazyLPIPS())

    def test_lpips_is_left_out_when_it_can_not(self, offline):
        assert "lpips" not in image_metrics(*pair(), LazyLPIPS())

    def test_tiny_images_have_psnr_only(self):
        assert set(image_metrics(*pair(7))) == {"psnr"}

    def test_refuses_other_shapes(self):
        with pytest.raises(ValueError, match=r"\[H, W, 3\], got \[4, 4, 3\] and \[4, 5, 3\]"):
            image_metrics(torch.zeros(4, 4, 3), torch.zeros(4, 5, 3))


class TestComparisonImages:
    def outputs(self, accumulation):
        depth = torch.linspace(2.0, 4.0, 12).reshape(3, 4, 1) * (accumulation > 0)
        return {"rgb": torch.rand(3, 4, 3), "accumulation": accumulation, "depth": depth}

    def test_shapes_and_sides(self):
        outputs, truth = self.outputs(torch.ones(3, 4, 1)), torch.rand(3, 4, 3)
        images = comparison_images(outputs, truth)
        assert {key: tuple(image.shape) for key, image in images.items()} == {
            "img": (3, 12, 3),
            "accumulation": (3, 4, 3),
            "depth": (3, 4, 3),
        }
        assert torch.equal(images["img"][:, :4], truth)
        assert torch.equal(images["img"][:, 4:8], outputs["rgb"])

    def test_the_errors_colours_have_a_fixed_range(self):
        """Whatever else is in the picture, an error has the same colour."""
        outputs, truth = self.outputs(torch.ones(3, 4, 1)), torch.full((3, 4, 3), 0.5)
        outputs["rgb"] = truth.clone()
        outputs["rgb"][0, 1] += torch.tensor([0.75, -0.75, 0.0]) * ERROR_RANGE
        outputs["rgb"][0, 2:4] += torch.tensor([1.01 * ERROR_RANGE, 0.4])[:, None]
        errors = comparison_images(outputs, truth)["img"][:, 8:]
        black, middle, brightest = (torch.tensor(matplotlib.colormaps["inferno"].colors[i]) for i in (0, 127, 255))
        torch.testing.assert_close(errors[0], torch.stack([black, middle, brightest, brightest]).float())
        torch.testing.assert_close(errors[1:], black.float().expand(2, 4, 3))

    def test_colours_out_of_range_count_as_clamped(self):
        outputs, truth = self.outputs(torch.ones(3, 4, 1)), torch.ones(3, 4, 3)
        outputs["rgb"] = torch.full((3, 4, 3), 7.0)
        errors = comparison_images(outputs, truth)["img"][:, 8:]
        assert errors.max() < 0.02

    def test_an_empty_background_does_not_use_up_the_depths_colours(self):
        accumulation = torch.ones(3, 4, 1)
        whole = comparison_images(self.outputs(accumulation), torch.rand(3, 4, 3))["depth"]
        outputs = self.outputs(accumulation)
        outputs["accumulation"] = torch.cat([accumulation, torch.zeros(3, 1, 1)], dim=1)
        outputs["depth"] = torch.cat([outputs["depth"], torch.zeros(3, 1, 1)], dim=1)
        outputs["rgb"] = torch.rand(3, 5, 3)
        assert torch.equal(comparison_images(outputs, torch.rand(3, 5, 3))["depth"][:, :4], whole)

    @pytest.mark.parametrize("fill", [0.0, math.nan, math.inf])
    def test_an_empty_picture_is_finite(self, fill):
        outputs = self.outputs(torch.zeros(3, 4, 1))
        outputs["depth"] = torch.full((3, 4, 1), fill)
        assert all(image.isfinite().all() for image in comparison_images(outputs, torch.rand(3, 4, 3)).values())
