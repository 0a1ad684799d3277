"""Helpers and fixtures of all tests. Each test has a folder of its own, no network and one thread:
two threads on shared cores wait for each other more than they compute."""

import functools
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # also for the processes that tests start
os.environ["MPLBACKEND"] = "Agg"
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "figures")]

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

import jit  # noqa: E402

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # `nohup python -m pytest &`: Ctrl-C is
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, also in what is started

PREDS = ["x", "eps", "v"]
NINE = [(pred, loss) for pred in PREDS for loss in PREDS]
SMALL = dict(size=16, patch=8, depth=4, width=16, heads=2, bottleneck=4, context_tokens=4,
             context_start=1)  # fmt: skip
TINY = """--model Ti/8 --size 16 --depth 4 --width 16 --heads 2 --bottleneck 4 --batch-size 4
--device cpu""".split()


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Each test in a folder of its own, without network and without torchrun's variables."""

    def no_network(*given, **more):
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def quick_sheets(monkeypatch):
    """Pictures take one step instead of 50, unless a command says how many: half of the time."""
    one_step = functools.partial(jit.sample_images, sampling_steps=1)
    monkeypatch.setattr(jit, "sample_images", one_step)


# Networks and numbers


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def small(**changes):
    """A network of 16 tokens that has all parts."""
    base = dict(size=16, patch=4, classes=5, depth=6, width=32, heads=2, bottleneck=8,
                context_tokens=3, context_start=4)  # fmt: skip
    return jit.JiT(**base | changes)


def fill(net, rng):
    """Weights that can be made anywhere: numpy's RandomState, by sorted name. No weight stays 0."""
    with torch.no_grad():
        for name, p in sorted(net.named_parameters()):
            if name != "pos_embed":
                noise = torch.from_numpy(rng.standard_normal(tuple(p.shape))).float()
                p.copy_(0.1 * noise + ("norm" in name) if p.dim() == 1 else 0.2 * noise)
    return net.eval()


def filled(**changes):
    return fill(small(**changes), np.random.RandomState(0))


def blank(record):
    """A stand-in for the network that puts out zeros and remembers what it was given."""

    def net(z, t, y):
        record.append((z, t, y))
        return torch.zeros_like(z)

    return net


def same(a, b):
    """Equal to the last bit, tensors within dicts and lists."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# Commands, runs and files


def call(*words):
    """The exit code of a command, run in this process: Python with torch takes seconds to start."""
    try:
        return jit.main([str(word) for word in words])
    except SystemExit as end:  # argparse
        return end.code


def train(*words):
    return call("train", *TINY, *words)


def refused(capsys, *words, code=2):
    """The one sentence with which a command ends."""
    capsys.readouterr()
    found = call(*words)
    said = capsys.readouterr().err
    assert found == code and "Traceback" not in said, (words, found, said)
    lines = [line for line in re.split("[\r\n]", said) if "jit.py: " in line]  # \r: a bar
    assert len(lines) == 1 and len(lines[0]) < 400, (words, lines)
    return lines[0]


def save(path, colour, size=(20, 20)):
    """A picture of one colour."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def open_data(name="d", channels=3, size=16):
    return jit.open_data(str(name), (channels, size, size))


def load(out):
    return torch.load(Path(out) / "checkpoint-last.pth", weights_only=True)


def read_log(out):
    """The log without what depends on the clock; of a step written twice, the last line."""
    lines = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    clock = ("images_per_s", "gpu_memory_gb")
    lines = [{key: line[key] for key in line if key not in clock} for line in lines]
    return sorted({line["step"]: line for line in lines}.values(), key=lambda line: line["step"])


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A finished run of 4 steps on three classes: apple, bear, cat."""
    folder = tmp_path_factory.mktemp("run")
    for i, name in enumerate(["apple", "bear", "cat"]):
        save(folder / "data" / name / "1.png", (80 * i, 255 - 80 * i, 30))
        save(folder / "data" / name / "2.png", (255 - 80 * i, 30, 80 * i))
    with pytest.MonkeyPatch.context() as patch:
        one_step = functools.partial(jit.sample_images, sampling_steps=1)
        patch.setattr(jit, "sample_images", one_step)
        words = ["--data", folder / "data", "--out", folder / "r", "--steps", 4, "--log-every", 2]
        assert train(*words, "--save-every", 3, "--warmup", 8, "--lr", 0.01) == 0
    return folder / "r"
