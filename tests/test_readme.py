"""What the README says of the code is true of the code: names, commands, pictures."""

import re
import shlex
from pathlib import Path

import pytest

import jit

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def section(title):
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.M | re.S).group(1)


@pytest.mark.parametrize("title", ["The idea", "Reading guide to jit.py", "Details that matter"])
def test_names_of_functions_exist(title):
    """A reader who searches jit.py for a name from the README finds it."""
    names = set(re.findall(r"`([A-Za-z_][A-Za-z0-9_]*)`", section(title)))
    inner = {"initialize"}  # a method of JiT
    names -= set(jit.WEIGHTS)  # values of --weights
    assert len(names) > 5
    assert not {name for name in names - inner if not hasattr(jit, name)}
    assert all(hasattr(jit.JiT, name) for name in inner)


def test_commands_are_understood():
    """Every `python jit.py ...` of the README has a command and flags that exist."""
    commands = re.findall(r"(?:python|torchrun [^`\n]*?) jit\.py ((?:train|sample|eval|stats|info)[^`\n#]*)", README)
    assert len(commands) > 10
    for command in commands:
        jit.parse_flags([word for word in shlex.split(command) if word != "..."])


def test_pictures_are_there_and_small():
    """Every picture that the README shows is committed, and none is over 1 MB."""
    pictures = re.findall(r"\((figures/[\w.-]+)\)", README)
    assert len(pictures) > 3
    for picture in pictures:
        assert (ROOT / picture).stat().st_size < 2**20, picture


def test_every_picture_has_its_command():
    """A list says which command drew each picture in figures/."""
    for picture in (ROOT / "figures").glob("*.[pg][ni][gf]"):
        assert picture.name in README, picture.name


def test_algorithms_stand_beside_lines_of_the_code():
    """What the README shows as a line of jit.py is one, whole."""
    lines = {line.strip() for line in (ROOT / "jit.py").read_text().splitlines()}
    shown = re.findall(r"\| `([^`|]+ = [^`]+)` \|", section("The idea"))
    assert len(shown) > 6
    assert not [line for line in shown if line not in lines]


def test_command_line_is_complete(capsys):
    """Every flag that a --help names stands in the README's table, and no other."""
    helps = ""
    for command in ("train", "sample", "eval", "stats", "info"):
        with pytest.raises(SystemExit):
            jit.parse_flags([command, "--help"])
        helps += capsys.readouterr().out
    known = set(re.findall(r"(?m)^  (--[\w-]+)", helps)) | {"--help"}
    assert set(re.findall(r"`(--[\w-]+)`", section("Command line"))) | {"--help"} == known
