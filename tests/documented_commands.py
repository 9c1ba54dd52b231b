"""The commands that README.md, CONTRIBUTING.md and docs/ show, each given to the parser that it would meet.

    PYTHONPATH=. python tests/documented_commands.py

lists every command with what was found out about it. A command that nobody can run as it stands is not run: it ends
where its parser has accepted the words. `tests/commands` and `benchmarks/commands.py` run nerfstudio's commands.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import inspect
import io
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import tyro

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
PROGRAM = re.compile(r"(?:[A-Z_]+=\S+ )*(ns-[a-z-]+|raygauss-[a-z]+|python|make|pip|uv|git|apt|docker)$")
STANDS_FOR = {"METHOD": "raygauss", "PARSER": "blender-data", "N": "5"}
"""What a word in capitals is taken to be; every other one is a path, and stays."""
NETWORK = ("git clone", "git push", "pip install", "uv pip", "apt install", "apt-get", "ns-download-data", "docker")
"""Commands that need the network: of these only the first word is looked at, and the extras of a `pip install`."""
GPU = ("python benchmarks/gpu.py", "python -m pytest tests/gpu")
"""Commands that need a GPU to end well; their words are checked like all others."""


INCOMPLETE = re.compile(r"[Rr]equired|expected (?:at least )?(?:one|1) argument|[Mm]issing")
"""What parsers say of words that lack something but have nothing wrong."""

WRONG = re.compile(r"[Uu]nrecognized|invalid choice|[Ii]nvalid")


class Command(NamedTuple):
    """A command as a page shows it."""

    page: str
    line: int
    text: str
    whole: bool
    """Whether it is to be typed as it stands: it is in a code block. In a sentence, a few words may stand for it."""

    @property
    def needs(self) -> str:
        """What it takes to run it: "network", "GPU" or nothing."""
        kinds = {"network": NETWORK, "GPU": GPU}
        return next((kind for kind, starts in kinds.items() if self.text.startswith(starts)), "")


class AcceptedError(Exception):
    """Ends a program as soon as its parser has accepted the words."""


def commands(text: str, page: str = "") -> list[Command]:
    """All commands of a page: the lines of its code blocks and the code in its sentences that begin with a program.

    Variables that a block sets are filled in; a backslash joins lines; what follows a `#` or `>` is left out.
    """
    found, variables = [], {}
    lines = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    prose = []
    for number, line in enumerate(lines, 1):
        block = re.match(r"(?: {4}|\$ )(\S.*)$", line)
        if not block:
            prose.append(line)
            continue
        prose.append("")
        shown = re.sub(r"\s+(?:#|>).*$", "", block[1]).removeprefix("$ ")
        if assigned := re.fullmatch(r'([A-Z]+)="(.*)"', shown):
            variables[assigned[1]] = assigned[2]
        shown = re.sub(r"\$([A-Z]+)", lambda match: variables.get(match[1], match[0]), shown)
        found += [Command(page, number, part, True) for part in shown.split(" && ") if _begins_with_program(part)]
    whole = "\n".join(prose)
    for match in re.finditer(r"(?<!`)`([^`]+)`(?!`)", whole):
        number = whole.count("\n", 0, match.start()) + 1
        parts = " ".join(match[1].split()).split(" && ")
        found += [
            Command(page, number, part, False)
            for part in parts
            if " " in part and _begins_with_program(part) and not re.match(r"make \w+ \w+ ", part)  # a script's `make`
        ]
    return found


def _begins_with_program(text: str) -> bool:
    words = re.match(r"(?:[A-Z_]+=\S+ )*\S+", text)
    return bool(words and PROGRAM.fullmatch(words[0]))


def check(command: Command) -> str:
    """Say what was found out about a command.

    Raises:
        AssertionError: its program, target, file, option or value does not exist; the message says which.
    """
    words = [STANDS_FOR.get(word, word) for word in shlex.split(command.text)]
    while "=" in words[0]:
        words.pop(0)
    if words[-1] == "...":
        words.pop()
    if command.needs == "network":
        _check_extras(words)
        return "not run: needs the network"
    if words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        return "make knows the target"
    if words[0] == "ns-train" and words[1].startswith("--load"):
        words.insert(1, "raygauss")
    if words[:2] == ["python", "-c"]:
        compile(words[2], "documented", "exec")
        return "is Python"
    if words[:3] == ["python", "-m", "pytest"]:
        for word in words[3:]:
            assert "/" not in word or (ROOT / word).exists(), f"{word} does not exist"
        return "its files exist"
    if words[:3] == ["python", "-m", "venv"]:
        return "not run: makes an environment"
    if words[1] == "tests/data/write_runs.py":
        return "not run: its results are kept for ever"
    if words[0] in ("pip", "git"):
        return "not run: changes the installation or the repository"
    program = _script(words[1]) if words[0] == "python" else _entry_point(words[0])
    if words[1:] == ["--help"]:
        return "its program exists"
    if not command.whole and len(words) == 2 and words[1].startswith("--") and inspect.isfunction(program):
        option = words[1].removeprefix("--").replace("-", "_")
        assert option in inspect.getsource(inspect.getmodule(program)), f"{words[0]} has no {words[1]}"
        return "its program has the option"
    return _parse(program, words[1:] if words[0] == "python" else words, command.whole)


def _check_extras(words: list[str]) -> None:
    named = {extra for word in words for extras in re.findall(r"\[([\w,]+)\]", word) for extra in extras.split(",")}
    settings = (ROOT / "pyproject.toml").read_text()
    table = settings.split("[project.optional-dependencies]")[1].split("\n[")[0]
    assert named <= set(re.findall(r"^(\w+) =", table, re.MULTILINE)), f"no such extra: {named}"


def _script(name: str):
    path = ROOT / name
    assert path.is_file(), f"{name} does not exist"
    assert re.search(r"^(?:import|from) (?:argparse|tyro)", path.read_text(), re.MULTILINE), f"{name} reads no options"

    def run() -> None:
        with mock.patch.object(sys, "path", [str(path.parent), *sys.path]):
            runpy.run_path(str(path), run_name="__main__")

    return run


def _entry_point(name: str):
    found = importlib.metadata.entry_points(group="console_scripts", name=name)
    assert found, f"{name} is not installed"
    try:
        return next(iter(found)).load()
    except ImportError as error:
        if "libusb" in str(error):  # Open3D needs it, and it is no package of Python's
            return None
        raise


def _of_one_method(kind: object, words: list[str]) -> object:
    """Of `ns-train`'s many methods the one that is named: the parser of all of them takes seconds to make."""
    from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion, all_descriptions, all_methods

    if kind is not AnnotatedBaseConfigUnion or len(words) < 2 or words[1] not in all_methods:
        return kind
    # A second one, since tyro makes no subcommand of a single choice.
    names = [words[1], next(name for name in all_methods if name != words[1])]
    union = tyro.extras.subcommand_type_from_defaults(
        {name: all_methods[name] for name in names}, descriptions={name: all_descriptions[name] for name in names}
    )
    return tyro.conf.SuppressFixed[tyro.conf.FlagConversionOff[union]]


def _parse(program, words: list[str], whole: bool) -> str:
    """Run a program until it has read its words; more of them may be required if they are not the whole command."""
    if program is None:
        return "not checked: Open3D needs libusb"
    parser = argparse.ArgumentParser
    ours, all_words, known_words = tyro.cli, parser.parse_args, parser.parse_known_args
    depth = 0

    def cli(kind, *args, **kwargs):
        if words[0] == "ns-train":
            kind = _of_one_method(kind, words)
        if inspect.isfunction(kind):  # tyro would call it
            kind = functools.wraps(kind)(lambda *_, **__: None)
        ours(kind, *args, **kwargs)
        raise AcceptedError

    def outermost(parse):
        """Parsers call one another; the program hears of the outermost only."""

        def parsed(*args, **kwargs):
            nonlocal depth
            depth += 1
            try:
                result = parse(*args, **kwargs)
            finally:
                depth -= 1
            if depth == 0:
                raise AcceptedError
            return result

        return parsed

    said = io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", words))
        stack.enter_context(mock.patch.object(tyro, "cli", cli))
        stack.enter_context(mock.patch.object(parser, "parse_args", outermost(all_words)))
        stack.enter_context(mock.patch.object(parser, "parse_known_args", outermost(known_words)))
        stack.enter_context(contextlib.redirect_stdout(said))
        stack.enter_context(contextlib.redirect_stderr(said))
        try:
            program()
        except AcceptedError:
            return "its parser accepts it"
        except SystemExit as end:
            code = end.code
        else:
            raise AssertionError(f"{words[0]} read no words")
    if not whole and INCOMPLETE.search(said.getvalue()) and not WRONG.search(said.getvalue()):
        return "its parser would accept it with more words"
    assert code in (0, None), said.getvalue()
    return "answers"


def main() -> None:
    """List all commands and what was found out."""
    bad = 0
    for page in PAGES:
        for command in commands(page.read_text(), str(page.relative_to(ROOT))):
            try:
                result = check(command)
            except AssertionError as error:
                result, bad = f"WRONG: {error}", bad + 1
            suffix = " (needs a GPU to end well)" if command.needs == "GPU" else ""
            print(f"{command.page}: {command.text}\n    {result}{suffix}", flush=True)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
