"""What README.md and figures/*.md say of the code is so: names, commands, pictures, links."""

import re
import shlex

import pytest
import torch
import toy_manifold
from conftest import ROOT

import jit

README = (ROOT / "README.md").read_text()
PAGES = {page.relative_to(ROOT).as_posix(): page.read_text()
         for page in [ROOT / "README.md", *ROOT.glob("figures/*.md")]}  # fmt: skip


def section(title):
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.M | re.S).group(1)


def test_names_of_functions_exist():
    """A reader who searches jit.py for a name from the README finds it."""
    text = section("The idea") + PAGES["figures/class.md"]
    names = set(re.findall(r"`([A-Za-z_][A-Za-z0-9_]*)`", text))
    names -= {"loss_by_t", "nine", *jit.WEIGHTS}  # a key of log.jsonl, a study
    assert len(names) > 5
    assert not [name for name in names if not hasattr(jit, name)]


def test_example_runs():
    """A network, a training step, images: what a notebook would write."""
    blocks = re.findall("^```python\n(.*?)^```", README, re.M | re.S)
    names = {}
    exec(next(block for block in blocks if "from jit import" in block), names)
    net, images = names["net"], names["images"]
    assert images.dtype == torch.uint8 and images.shape[1:] == net.shape
    assert net.final_layer.linear.weight.abs().max() > 0  # it was 0: a step was made


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
    blocks = re.findall(r"```\n(.*?)```", section("The idea"), re.S)
    assert len(blocks) == 4
    training = blocks[0].splitlines()
    assert 5 <= len(training) and lines.index(training[-1]) - lines.index(training[0]) < 12
    for block in blocks:
        assert not [line for line in block.splitlines() if line.strip() not in lines]
