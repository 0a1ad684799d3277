"""What README.md and figures/*.md say of the code is so: names, commands, pictures, links."""

import re
import shlex

import pytest
import torch
import toy_manifold
from conftest import ROOT, filled

import jit

README = (ROOT / "README.md").read_text()
PAGES = {page.relative_to(ROOT).as_posix(): page.read_text()
         for page in [ROOT / "README.md", *ROOT.glob("figures/*.md")]}  # fmt: skip


def section(title):
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.M | re.S).group(1)


def test_names_of_functions_exist():
    """A reader who searches jit.py for a name from the README finds it."""
    text = section("The code") + PAGES["figures/class.md"]
    names = set(re.findall(r"`([A-Za-z_][A-Za-z0-9_]*)`", text))
    names -= {"Gated", *jit.WEIGHTS}  # a class of variants.py
    assert len(names) > 5
    assert not [name for name in names if not hasattr(jit, name)]


def test_example_runs(monkeypatch):
    """Edit one patch of z, look at all patches: what the class is shown in a notebook."""
    net = filled(**jit.MODELS["Ti"] | dict(size=64, patch=16, classes=10))
    monkeypatch.setattr(jit, "load_run", lambda *given: (net, jit.Flow(), {}))
    (block,) = re.findall("^```python\n(.*?)^```", PAGES["figures/class.md"], re.M | re.S)
    names = dict(jit=jit, torch=torch, F=torch.nn.functional)
    exec(block, names)
    change = torch.nn.functional.avg_pool2d(names["change"], 16)
    assert change.shape == (1, 4, 4) and change.min() > 0


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page):
    """Every command of a page has flags and files that exist."""
    text = PAGES[page].replace("\\|", "|")
    pattern = r"(?:python|torchrun [^`\n]*?) jit\.py ((?:train|sample|eval)\b[^`\n#;]*)"
    assert page != "README.md" or len(re.findall(pattern, text)) > 5  # it looks at something
    for command in re.findall(pattern, text):
        jit.parse_flags(shlex.split(command.replace("$w", "2").replace("$e", "ema1")))
    for command in re.findall(r"python toy_manifold\.py([^`\n#;|]*)", text):
        words = [word for word in shlex.split(command) if not word.isupper()]
        toy_manifold.parse(words if "STUDY" not in command else [])
    for script in re.findall(r"python (figures/\w+\.py)", text):
        assert (ROOT / script).exists(), script


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_are_there(page):
    """Every link to a file of the repository leads there, and no picture is over 1 MB."""
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", PAGES[page]):
        assert (folder / target).exists(), target
        assert (folder / target).stat().st_size < 2**20, target


def test_every_picture_has_its_command():
    """A list says which command drew each picture in figures/."""
    named = set(re.findall(r"`([\w.]+\.(?:png|gif))`", PAGES["figures/README.md"])) - {"NAME.png"}
    assert named == {path.name for path in (ROOT / "figures").iterdir()
                     if path.suffix in (".png", ".gif")}  # fmt: skip


def test_algorithms_are_lines_of_the_code():
    """What README shows as Algorithms 1 and 2 stands in jit.py, line by line, in this order."""
    lines = [line.strip() for line in (ROOT / "jit.py").read_text().splitlines()]
    blocks = re.findall(r"```\n(.*?)```", section("The code"), re.S)
    assert len(blocks) == 2
    training = blocks[0].splitlines()
    assert 5 <= len(training) and lines.index(training[-1]) - lines.index(training[0]) < 12
    for block in blocks:
        assert not [line for line in block.splitlines() if line.strip() not in lines]
