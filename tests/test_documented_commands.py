"""Every command that the documentation shows exists, with its options and values: documented_commands.py says how."""

import pytest
from documented_commands import PAGES, ROOT, Command, check, commands

SHOWN = {command.text: command for page in PAGES for command in commands(page.read_text(), str(page.relative_to(ROOT)))}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Whatever a program does although it should only read its words, it does in an empty folder."""
    monkeypatch.chdir(tmp_path)


def test_commands_are_found():
    block = "    A=1 ns-train raygauss \\\n        --data D  # a comment\n    no program\n"
    text = f"Type `ns-eval --load-config X`, or\n\n{block}"
    assert [(command.text, command.whole) for command in commands(text)] == [
        ("A=1 ns-train raygauss --data D", True),
        ("ns-eval --load-config X", False),
    ]
    assert len(SHOWN) >= 60


@pytest.mark.parametrize("command", SHOWN.values(), ids=lambda command: f"{command.page}-{command.text}")
def test_command(command):
    if check(command).startswith("not checked"):
        pytest.skip("Open3D needs libusb")


@pytest.mark.parametrize(
    "text",
    [
        "ns-train raygauss --pipeline.model.no-such-option 1 --data DIR",
        "ns-train raygauss --max-num-iterations many --data DIR",
        "ns-nothing --data DIR",
        "raygauss-export nothing --load-config DIR",
        "python benchmarks/nothing.py",
        "python benchmarks/casting.py --nothing",
        "python examples/demo.py --nothing 1",
        "python -m pytest tests/nothing",
        'pip install ".[nothing]"',
    ],
)
def test_what_does_not_exist_is_found_out(text):
    with pytest.raises(AssertionError):
        check(Command("", 1, text, True))
    with pytest.raises(AssertionError):
        check(Command("", 1, text, False))
