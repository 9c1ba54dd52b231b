"""What `pretended_gpu` runs in the place of each Triton kernel: it writes results that a step can go on with.

Values matter only in that they are finite, and that numbers of samples fit each other. A kernel without an entry here
is compiled for a GPU when it is launched, and fails.
"""

from importlib import import_module

import torch

SAMPLES = 24
"""Samples that a ray has, of a tenth of a unit each; so the search takes two rounds."""


def _fill(**values):
    """Write constants to the arguments of these names."""

    def work(grid, arguments):
        for name, value in values.items():
            arguments[name].fill_(value)

    return work


def _march(grid, arguments):
    if not arguments["WRITE"]:
        arguments["counts"].fill_(SAMPLES)
        return
    steps = torch.arange(SAMPLES, dtype=torch.float32)
    rays = grid[0]
    arguments["t_starts"].copy_((1 + 0.1 * steps).repeat(rays))
    arguments["t_ends"].copy_((1.1 + 0.1 * steps).repeat(rays))
    arguments["ray_indices"].copy_(torch.arange(rays).repeat_interleave(SAMPLES))


def _search(grid, arguments):
    """24 visible samples of each ray, as far as there is room."""
    arguments["counts"].fill_(SAMPLES)
    arguments["looked_up"].fill_(SAMPLES)
    arguments["lost"].zero_()
    arguments["counters"].fill_(SAMPLES * grid[0])


def _order(grid, arguments):
    rays, capacity = arguments["num_rays"], arguments["capacity"]
    ends = arguments["ends"].clamp(max=capacity)
    arguments["offsets"].copy_(ends)
    arguments["kept"].fill_(1.0)
    arguments["report"].fill_(SAMPLES * rays)
    steps = torch.arange(SAMPLES, dtype=torch.float32).repeat(rays)[:capacity]
    owners = torch.arange(rays).repeat_interleave(SAMPLES)[:capacity]
    arguments["ray_indices"][: len(owners)] = owners
    for name, first in (("t_starts", 1.0), ("t_ends", 1.1), ("t_middles", 1.05)):
        arguments[name][: len(steps)] = first + 0.1 * steps


def _write(grid, arguments):
    """A row for each that there is room for."""
    most = arguments["most"]
    arguments["indices"].copy_(torch.arange(most))
    arguments["weights"].fill_(2.0)
    arguments["report"].fill_(1.0)


STAND_INS = {
    "hardmine_ns.rendering.gpu.harmonics.harmonics_kernel": _fill(out=0.1),
    "hardmine_ns.rendering.gpu.harmonics.harmonics_gradient_kernel": _fill(out=1e-3),
    "hardmine_ns.mining.gpu.measure_kernel": _fill(values=0.5),
    "hardmine_ns.mining.gpu.sums_kernel": _fill(out=1.0),
    "hardmine_ns.mining.gpu.count_kernel": _fill(counts=1, settled=1.0),
    "hardmine_ns.mining.gpu.write_kernel": _write,
    "hardmine_ns.rendering.gpu.launch.search_kernel": _search,
    "hardmine_ns.rendering.gpu.launch.order_kernel": _order,
    "ns_support.kernels.gpu.probe_kernel": _fill(out=1.0),
    "ns_support.adam.gpu.steps_kernel": _fill(rates=1.0),
    "ns_support.adam.gpu.adam_kernel": _fill(),
    "raygauss_ns.casting.gpu.launch.forward_kernel": _fill(out=0.5),
    "raygauss_ns.casting.gpu.launch.backward_kernel": _fill(moments=1e-3),
    "raygauss_ns.casting.gpu.kernels_growing.growing_forward_kernel": _fill(out=0.5),
    "raygauss_ns.casting.gpu.kernels_growing.growing_backward_kernel": _fill(moments=1e-3),
    "raygauss_ns.casting.gpu.launch.collect_kernel": _fill(),
    "raygauss_ns.casting.gpu.geometry.rays_kernel": _fill(out_origins=0.0, out_nears=0.0, out_ends=9),
    "raygauss_ns.casting.gpu.geometry.supports_kernel": _fill(records=0.5, corners=0.5, cutoffs=1.0, boxes=0.5),
    "raygauss_ns.casting.gpu.geometry.geometry_gradient_kernel": _fill(
        of_means=1e-3, of_scales=1e-3, of_quats=1e-3, of_densities=1e-3, of_colors=1e-3
    ),
    "raygauss_ns.casting.gpu.building.codes_kernel": _fill(codes=0),
    "raygauss_ns.casting.gpu.building.level_kernel": _fill(
        ordered_records=0.5, ordered_cutoffs=1.0, blocks=0.5, unions=0.5, bounds=0.5
    ),
    "raygauss_ns.casting.gpu.kernels_growing.growing_collect_kernel": _fill(),
    "raygauss_ns.gaussians.gpu.isotropy_kernel": _fill(sums=0.5),
    "raygauss_ns.gaussians.gpu.isotropy_gradient_kernel": _fill(gradient=1e-3),
    "raygauss_ns.gaussians.gpu.observe_kernel": _fill(found=1e-3),
    "raygauss_ns.gaussians.gpu.over_kernel": _fill(image=0.5, accumulation=0.5, mean_depths=0.5),
    "raygauss_ns.gaussians.gpu.over_gradient_kernel": _fill(of_through=1e-3),
    "raygauss_ns.color.gpu.color_kernel": _fill(colors=0.5),
    "raygauss_ns.color.gpu.color_gradient_kernel": _fill(
        of_means=1e-3, of_base=1e-3, of_rest=1e-3, of_amplitudes=1e-3, of_sharpness=1e-3, of_axes=1e-3
    ),
    "raygauss_ns.ssim.gpu.similarity_kernel": _fill(slopes=1e-3, totals=1.0),
    "raygauss_ns.ssim.gpu.mixture_kernel": _fill(value=0.5),
    "raygauss_ns.ssim.gpu.similarity_gradient_kernel": _fill(gradient=1e-3),
    "hardmine_ns.hash_encoding.gpu.encoding.forward_kernel": _fill(out=0.01),
    "hardmine_ns.hash_encoding.gpu.encoding.table_gradient_kernel": _fill(gradient=1e-3),
    "hardmine_ns.hash_encoding.gpu.encoding.position_gradient_kernel": _fill(gradient=1e-3),
    "hardmine_ns.hash_encoding.gpu.adam.row_adam_kernel": _fill(),
    "hardmine_ns.marching.gpu.compositing.composite_kernel": _fill(weights=0.03, after=0.5, sums=0.5),
    "hardmine_ns.marching.gpu.compositing.composite_gradient_kernel": _fill(of_thickness=1e-3, of_colors=1e-3),
    "hardmine_ns.marching.gpu.compositing.visible_kernel": _fill(visible=1),
    "hardmine_ns.marching.gpu.marching.march_kernel": _march,
    "hardmine_ns.marching.gpu.marching.merge_kernel": _fill(firsts=1),
}


def all_of_them():
    """Of each kernel: the module that launches it, its name there, and its stand-in."""
    for path, work in STAND_INS.items():
        module, _, name = path.rpartition(".")
        yield import_module(module), name, work
