"""What `ns-train METHOD --help` says about every setting that is ours."""

import dataclasses
import inspect
import io
import itertools
import re
import sys
import typing
from importlib.metadata import entry_points

import pytest
import tyro
import yaml
from tyro import _docstrings as tyro_docstrings

from hardmine_ns.method import instant_ngp_hardmine, instant_ngp_hardmine_bounded
from ns_support.help import documented
from raygauss_ns import method as raygauss_methods

PACKAGES = ("raygauss_ns", "hardmine_ns", "ns_support")
SPECS = [
    *(spec for spec in vars(raygauss_methods).values() if hasattr(spec, "description")),
    instant_ngp_hardmine,
    instant_ngp_hardmine_bounded,
]

RANGE = re.compile(r"[<>]=? ?`?-?[\w.]|\bin [\[(]-?[\d.]+, |\b\d+,? (to|or) \d|\bfrom \w+ to \d|: 0 \(|, 1 to \d")
"""`> 0`, `>= min_num_rays`, `in [0, 1)`, `1 to 8`, `from mining_min_fraction to 1`."""
_UNITS = (
    "scene units?|pixels?|points|steps?|samples|rays|images|Gaussians|voxels|cells|vertices|levels|features|rows|boxes"
    "|units|degrees?|root mean squared distances|in its sides"
)
_RATIOS = "fraction|weight|factor|multiple|opacity|transmittance|logarithm|learning rate|decay|second moment"
UNIT = re.compile(rf"\((1/)?(u|s)\)|\b({_UNITS}|{_RATIOS})\b", re.IGNORECASE)
"""A unit, u being raygauss' unit of length, or what of what a number without one is."""
SYMBOLS = {
    "step_size": "dt",
    "density_threshold": "eps",
    "transmittance_threshold": "eps_T",
    "samples_per_slab": "K",
    "initial_density": "sigma",
    "ssim_lambda": "lambda",
    "iso_weight": "L_iso",
    "densify_threshold": "|dL/dmu|",
    "target_num_samples": "B",
    "mining_min_fraction": "b / B",
    "mining_max_fraction": "b / B",
    "mining_decay": "tau",
    "num_levels": "L",
    "features_per_level": "F",
    "log2_hashmap_size": "T",
    "base_res": "N_min",
    "max_res": "N_max",
}
"""The papers' notation."""


def complaint(text, numeric):
    """What is missing in a setting's help; None: nothing."""
    if not text or len(text.split()) < 2:
        return "text"
    if numeric and not text.startswith("Not used"):
        if not RANGE.search(text):
            return "range"
        if not UNIT.search(text):
            return "unit"
    return None


def configs_below(part):
    """The configurations in a configuration or a dictionary, itself included; ours or not."""
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        yield part
        inner = [getattr(part, field.name) for field in dataclasses.fields(part)]
    else:
        inner = part.values() if isinstance(part, dict) else ()
    for other in inner:
        yield from configs_below(other)


def is_numeric(kind):
    return kind in (int, float) or any(map(is_numeric, typing.get_args(kind)))


def our_fields():
    """(class, field, its type) of each field that a class of ours declares."""
    classes = {type(part) for spec in SPECS for part in configs_below(spec.config)}
    for cls in sorted(
        (cls for cls in classes if cls.__module__.split(".")[0] in PACKAGES), key=lambda cls: cls.__name__
    ):
        kinds = typing.get_type_hints(cls)
        yield from ((cls, name, kinds[name]) for name in vars(cls)["__annotations__"] if not name.startswith("_"))


FIELDS = list(our_fields())


def test_all_of_our_configurations_are_looked_at():
    names = {cls.__name__ for cls, _, _ in FIELDS}
    assert {
        "RayGaussModelConfig",
        "FusedAdamConfig",
        "FullImagesConfig",
        "HardMineModelConfig",
        "AdaptiveRaysPipelineConfig",
        "RayDataManagerConfig",
        "RowAdamOptimizerConfig",
        "AutoDataParserConfig",
    } <= names
    assert len(FIELDS) > 70


@pytest.mark.parametrize(("cls", "name", "kind"), FIELDS, ids=[f"{cls.__name__}.{name}" for cls, name, _ in FIELDS])
def test_every_setting_has_help_with_unit_and_range(cls, name, kind):
    text = tyro_docstrings.get_field_docstring(cls, name, ())
    assert complaint(text, is_numeric(kind)) is None, text
    assert re.search(rf"(?<!\w){re.escape(SYMBOLS.get(name, ''))}(?!\w)", text), f"{text!r} lacks {SYMBOLS.get(name)}"


def test_every_symbol_belongs_to_a_setting():
    assert set(SYMBOLS) <= {name for _, name, _ in FIELDS}


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        (None, "text"),
        ("Rate.", "text"),
        ("Number of levels L.", "range"),
        ("Vertices per axis of the coarsest level, N_min.", "range"),
        ("How much of it there is, > 0.", "unit"),
        ("Distance in scene units at which rays end, > near_plane.", None),
        ("Not used.", None),
    ],
)
def test_the_check_finds_what_is_missing(text, missing):
    assert complaint(text, numeric=True) == missing


def test_every_method_is_described_in_the_list():
    names = {entry.name for entry in entry_points(group="nerfstudio.method_configs")}
    assert {spec.config.method_name for spec in SPECS} <= names
    descriptions = [spec.description for spec in SPECS]
    assert len(set(descriptions)) == len(descriptions)
    assert all(len(text.split()) > 4 and text.endswith(".") for text in descriptions)


DEAD = (
    "--prompt",
    "--pipeline.model.prompt",
    "--pipeline.model.enable-collider",
    "--pipeline.model.collider-params",
    "--pipeline.model.loss-coefficients",
    "--pipeline.datamanager.train-num-rays-per-batch",
    "--pipeline.datamanager.pixel-sampler.max-num-iterations",
    "--pipeline.datamanager.eval-image-indices",
)
"""Options that change nothing with one of the methods or both."""


def shown(config, width, monkeypatch):
    """The lines within the frames of a configuration's `--help` as tyro prints it, and how long they may be."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    # Spelled as a terminal's, by which tyro chooses how it draws frames.
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    with pytest.raises(SystemExit):
        tyro.cli(type(config), default=config, args=["--help"], prog="ns-train")
    sys.stdout.seek(0)
    framed = [line for line in sys.stdout.read().splitlines() if line.startswith("│")]
    assert {len(line) for line in framed} == {width}
    return [line[2:-2] for line in framed], width - 4


def our_options(part, path=""):
    """The options of the fields that classes of ours declare, as `--help` writes them."""
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return
    for field in dataclasses.fields(part):
        name = f"{path}{field.name.replace('_', '-')}"
        declared = next((cls for cls in type(part).__mro__ if field.name in inspect.get_annotations(cls)), object)
        if declared.__module__.split(".")[0] in PACKAGES:
            yield f"--{name}"
        yield from our_options(getattr(part, field.name), f"{name}.")


def texts_below(lines):
    """The lines of help of each option."""
    texts, current = {}, None
    for line in lines:
        words = line.split()
        if line.startswith("--"):
            current = texts.setdefault(words[0], [])
        elif not line.startswith(" "):
            current = None
        elif current is not None:
            current.append(line)
    return texts


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("spec", [raygauss_methods.raygauss, instant_ngp_hardmine], ids=lambda s: s.config.method_name)
def test_texts_fill_their_lines(spec, width, monkeypatch):
    lines, room = shown(spec.config, width, monkeypatch)
    texts, ours = texts_below(lines), set(our_options(spec.config))
    assert len(ours & texts.keys()) > 25
    for option in ours & texts.keys():
        text = texts[option]
        for line, following in itertools.pairwise(text):
            assert len(line.rstrip()) + 1 + len(following.split()[0]) > room, f"{option}: {line.strip()!r} is short"


@pytest.mark.parametrize("spec", [raygauss_methods.raygauss, instant_ngp_hardmine], ids=lambda s: s.config.method_name)
def test_dead_options_are_not_shown(spec, monkeypatch):
    text = "\n".join(shown(spec.config, 120, monkeypatch)[0])
    assert "Not used" not in text
    for option in set(DEAD) & set(our_options(spec.config)):
        assert not re.search(rf"^{option}\b", text, re.MULTILINE), option
    assert "--pipeline.model.prompt" not in text
    assert "collider" not in text


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.config.method_name)
def test_configurations_with_dead_options_still_load(spec):
    text = yaml.dump(spec.config)
    assert "enable_collider" in text
    assert "prompt" in text
    again = yaml.load(text, Loader=yaml.Loader)
    assert again == spec.config


def markers(cls, name):
    return getattr(typing.get_type_hints(cls, include_extras=True)[name], "__metadata__", ())


@pytest.mark.parametrize(("cls", "name", "kind"), FIELDS, ids=[f"{cls.__name__}.{name}" for cls, name, _ in FIELDS])
def test_help_is_a_paragraph_and_dead_settings_are_hidden(cls, name, kind):
    """Each text reaches tyro without the source's line breaks, and what nothing obeys is not shown."""
    (text,) = [marker.help for marker in markers(cls, name) if hasattr(marker, "help")]
    assert "\n" not in text
    assert "  " not in text
    assert text.split() == tyro_docstrings.get_field_docstring(cls, name, ()).split()
    hidden = any(marker is tyro.conf.Suppress[int].__metadata__[0] for marker in markers(cls, name))
    assert hidden or not text.startswith("Not used")


@dataclasses.dataclass
class _Plain:
    number: int = 3
    """One line that is long enough to be broken by whoever prints it on a terminal of sixty columns or so,
    and another."""
    unsaid: int = 4


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_lines_are_as_long_as_the_terminal_is_wide(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        tyro.cli(documented(_Plain), args=["--help"])
    lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
    first = next(i for i, line in enumerate(lines) if "One line that is long" in line)
    text = " ".join(lines[first : first + 5])
    assert "or so, and another." in text
    assert all(len(line) > columns - 30 for line in lines[first : first + 108 // columns])


@pytest.mark.parametrize("name", ["raygauss-export", "raygauss-view", "raygauss-render", "raygauss-photos"])
def test_commands_of_this_package_are_called_by_their_names(name, monkeypatch, capsys):
    (entry,) = entry_points(group="console_scripts", name=name)
    monkeypatch.setattr(sys, "argv", [f"/somewhere/bin/{name}", "--help"])
    with pytest.raises(SystemExit):
        entry.load()()
    assert capsys.readouterr().out.startswith(f"usage: {name} ")
