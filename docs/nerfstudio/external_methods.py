"""Entries for nerfstudio/configs/external_methods.py: `ns-train` then knows the methods before they are installed."""

from nerfstudio.configs.external_methods import ExternalMethod, external_methods

# RayGauss
external_methods.append(
    ExternalMethod(
        """[bold yellow]RayGauss[/bold yellow]
For more information visit: https://docs.nerf.studio/nerfology/methods/raygauss.html

To enable RayGauss, you must install it first by running:
  [grey]pip install raygauss-hardmine[/grey]""",
        configurations=[
            ("raygauss", "RayGauss. Volumetric ray casting of Gaussians, on a CPU or a GPU"),
            ("raygauss-2408-03356", "RayGauss. Settings of the paper, for a GPU"),
            ("raygaussx-2509-07782", "RayGaussX. Settings of the paper for synthetic scenes, for a GPU"),
            ("raygaussx-2509-07782-real", "RayGaussX. Settings of the paper for real scenes, for a GPU"),
        ],
        pip_package="raygauss-hardmine",
    )
)

# Instant-NGP with hard-sample mining
external_methods.append(
    ExternalMethod(
        """[bold yellow]Instant-NGP with hard-sample mining[/bold yellow]
For more information visit: https://docs.nerf.studio/nerfology/methods/instant_ngp_hardmine.html

To enable Instant-NGP with hard-sample mining, you must install it first by running:
  [grey]pip install raygauss-hardmine[/grey]""",
        configurations=[
            ("instant-ngp-hardmine", "Instant-NGP with hard-sample mining. Unbounded scenes"),
            ("instant-ngp-hardmine-bounded", "Instant-NGP with hard-sample mining. Bounded scenes"),
        ],
        pip_package="raygauss-hardmine",
    )
)
