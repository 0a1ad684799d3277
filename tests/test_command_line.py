"""Section 9 of jit.py, as a user meets it: flags, exit codes, one sentence for each mistake, and
surroundings of all kinds. Commands run in this process: torch takes seconds to start."""

import ast
import inspect
import runpy
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, call, load, refused, save, train
from PIL import Image

import jit

pytestmark = pytest.mark.usefixtures("quick_sheets")
FEW = ["--n", 5, "--sampling-steps", 2, "--device", "cpu"]


def read_pngs(folder):
    """All images of a folder, by name: (n, H, W, C)."""
    paths = sorted(Path(folder).rglob("*.png"), key=lambda path: path.name)
    return np.stack([np.asarray(Image.open(path)).astype(int) for path in paths])


def drawn(run, name, *words):
    """The images that a command draws into the folder `name`."""
    assert call("sample", run, *FEW, "--png-dir", name, *words) == 0
    return read_pngs(name)


# Training


@pytest.fixture
def seen(monkeypatch):
    """What a command would train with."""
    given = {}

    def train(net, flow, data, out, **more):
        given.update(more, net=net, flow=flow, data=data, out=out)

    train.__signature__ = inspect.signature(jit.train)
    monkeypatch.setattr(jit, "train", train)
    return given


@pytest.mark.parametrize("model, batch, lr, cooldown", [
    ("Ti/16", 16, 4e-3, 0.5), ("S/16", 16, 5e-4, 0.5), ("B/16", 1024, 2e-4, 0),
    ("B/16", 16, 2.5e-5, 0), ("L/16", 4096, 4e-4, 0), ("H/16", 256, 1e-4, 0),
    ("G/16", 64, 5e-5, 0)])  # fmt: skip
def test_default_rate(model, batch, lr, cooldown, seen):
    """The paper's 2e-4 at a batch of 1,024, and Adam's noise scales with the root of it."""
    words = ["--model", model, "--batch-size", batch, "--depth", 1, "--context-start", 0]
    assert call("train", *words, "--width", 64, "--heads", 1) == 0
    assert (seen["lr"], seen["cooldown"]) == (pytest.approx(lr), cooldown)


def test_flags_reach_the_training(seen):
    """512 pixels have noise of standard deviation 2, 256 and less 1; shapes are never mirrored, all
    other data by default; every field of Flow and argument of train is what the flag says."""
    save("d/1.png", "red"), save("d/2.png", "red")
    for words, scale, flip in (("--size 512 --model Ti/32", 2, False), ("--data d", 1, True),
                               ("--data d --no-flip --noise-scale 3", 3, False)):  # fmt: skip
        assert call("train", *words.split(), "--device", "cpu") == 0
        assert seen["flow"].noise_scale == scale and seen["flip"] == flip
    words = """--pred eps --loss x --mu -1.5 --sigma .5 --label-drop .2 --t-clip .1 --steps 7
    --accum 2 --batch-size 6 --lr .1 --warmup 3 --cooldown .25 --seed 5 --log-every 2 --save-every 3
    --sample-every 4 --cfg 1.5 --no-rope --no-qk-norm --context-tokens 0 --bottleneck 0"""
    assert call("train", *words.split(), "--device", "cpu") == 0
    assert seen["flow"] == jit.Flow("eps", "x", -1.5, 0.5, 1.0, 0.2, 0.1)
    expected = dict(steps=7, accum=2, batch_size=6, lr=0.1, warmup=3, cooldown=0.25, seed=5,
                    cfg=1.5, log_every=2, save_every=3, sample_every=4)  # fmt: skip
    assert {key: seen[key] for key in expected} == expected
    network = seen["net"].arguments
    assert not network["rope"] and not network["qk_norm"]
    assert network["context_tokens"] == network["bottleneck"] == 0


def test_zero_is_right_where_it_means_something():
    """No bottleneck, no in-context tokens, all with their class, no warm-up, seed 0."""
    words = "--bottleneck 0 --context-tokens 0 --label-drop 0 --warmup 0 --seed 0 --cfg 0 --mu 0"
    assert train(*words.split(), "--steps", 1, "--out", "r") == 0
    assert call("sample", "r", *FEW, "--interval", 0, 1, "--cfg", 0) == 0
    assert train("--depth", 1, "--context-start", 0, "--steps", 1, "--out", "s") == 0


def test_training_in_a_thread():
    """As in a notebook or a web demo: no signal handler is set."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    codes = []
    thread = threading.Thread(target=lambda: codes.append(train("--out", "r", "--steps", 1)))
    thread.start(), thread.join()
    assert codes == [0] and train("--out", "r", "--steps", 2) == 0
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


# Sampling


def test_sample_writes_sheet_or_files(run, capsys):
    """Both show the same images; classes take turns or are as asked, and files lie in the folder of
    their class; seeds and weights act. Images of before are not mixed with new ones."""
    assert call("sample", run, *FEW, "--batch-size", 2) == 0
    assert str(run / "samples.png") in capsys.readouterr().err
    sheet = np.asarray(Image.open(run / "samples.png"))
    images = drawn(run, "p", "--batch-size", 2)
    turns = ["apple", "bear", "cat", "apple", "bear"]
    names = [f"p/{name}/{i:06d}.png" for i, name in enumerate(turns)]
    assert sorted(map(str, Path("p").rglob("*.png"))) == sorted(names)
    assert jit.open_data("p", (3, 16, 16)).counts == [2, 2, 1]  # to train on, or to compare with
    assert images.shape == (5, 16, 16, 3)
    for i, image in enumerate(images):  # the sheet has them six times as large, ten in a row
        tile = sheet[16 + 3 : 16 + 96 : 6, 100 * i + 2 + 3 : 100 * i + 98 : 6]
        assert (tile == image).all()
    bear = drawn(run, "bear", "--classes", "bear")
    assert (bear[1] == images[1]).all() and not (bear == images).all()
    assert not (drawn(run, "seed", "--seed", 1) == images).all()
    assert not (drawn(run, "raw", "--weights", "raw") == images).all()
    before = {path: path.read_bytes() for path in Path("p").rglob("*.png")}
    assert "exists: 'p'" in refused(capsys, "sample", run, *FEW, "--png-dir", "p")
    assert before == {path: path.read_bytes() for path in Path("p").rglob("*.png")}


def test_sample_matches_the_library(run):
    """The command draws what the method draws with the averaged weights of the checkpoint."""
    words = "--n 2 --sampling-steps 3 --cfg 1.5 --seed 7 --interval 0 0.8 --solver euler".split()
    found, checkpoint = drawn(run, "p", *words), load(run)
    net = jit.JiT(**checkpoint["config"]["network"]).eval()
    weights = checkpoint["model_ema1"].items()
    net.load_state_dict({name.removeprefix("net."): value for name, value in weights})
    velocity = jit.guided_velocity(net, torch.tensor([0, 1]), jit.Flow(), 1.5, (0.0, 0.8))
    z = jit.integrate(velocity, jit.image_noise((3, 16, 16), 7, range(2)), 3, "euler")
    pixels = ((z + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(found - pixels).max() <= 0.51


@pytest.mark.parametrize("flags", ["--label-drop 0", "--data one", "--data flat"])
def test_no_guidance_towards_what_was_never_trained(flags, capsys):
    """--label-drop 0 trains no field without class, and one class tells nothing, or none: there is
    no guidance, which is said, and where no class was trained none can be asked."""
    save("one/cat/1.png", "red"), save("flat/1.png", "red")
    assert train(*flags.split(), "--out", "r", "--steps", 1, "--lr", 0.1) == 0
    capsys.readouterr()
    strong = drawn("r", "strong", "--cfg", 9)
    assert "no guidance" in capsys.readouterr().err
    assert (strong == drawn("r", "none", "--cfg", 1)).all()
    assert "no guidance" not in capsys.readouterr().err
    if flags == "--data flat":
        assert "--classes star" in refused(capsys, "sample", "r", "--classes", "star")


def test_names_come_before_numbers(capsys):
    """Of classes 001 and 1 is 1 the second; an error names some of many, and says so."""
    for name in ("001", "1", *(f"{i} of a long list" for i in range(100))):
        save(Path("d", name, "1.png"), "red", (4, 4))
    assert train("--data", "d", "--out", "r", "--steps", 1) == 0
    assert drawn("r", "p", "--classes", "1,001").shape == (5, 16, 16, 3)
    assert sorted(path.name for path in Path("p").iterdir()) == ["001", "1"]
    said = refused(capsys, "sample", "r", "--classes", "2")
    assert "--classes 2" in said and said.endswith(" ...")


def test_many_images_need_a_folder(run, capsys):
    """A sheet of 6,000 would be 68,400 pixels high, and in memory until the end."""
    assert "--png-dir" in refused(capsys, "sample", run, "--n", 1001)


# Mistakes: exit code 2, one sentence


ERRORS = """train --data nowhere: nowhere; train --data empty: no images;
train --data broken: cannot be read; train --data split: train; train --data some.npz: some.npz;
train --data cifar10: cifar10; train --model X/16: --model X/16; train --model B: --model B;
train --model Ti/0: --model; train --model Ti/-8: --model; train --model /8: --model;
train --size 20: size 20; train --size 20 --model Ti/16: patch 16;
train --width 100 --heads 3: width 100; train --heads 5: heads 5;
train --depth 1: context_start 1; train --context-start 9: context_start 9;
train --out file/deeper: file; train --out file: file; train --pred noise: --pred;
train --stepz 3: --stepz; train --accum 3: --batch-size; train --device cuda: --device cuda;
sample: run; sample nowhere: nowhere; sample empty: checkpoint-last.pth; sample file: file;
sample half.pth: half.pth; sample RUN --classes bare: apple, bear, cat;
sample RUN --classes 1: --classes 1; sample RUN --interval 0.1: --interval;
sample RUN --interval a b: --interval; sample RUN --interval 0.5 0.5: --interval;
sample RUN --interval 1 0.1: --interval; eval RUN --interval 1 0.1: --interval;
sample RUN --png-dir file: file; eval nowhere: nowhere;
eval empty: checkpoint-last.pth; eval RUN --inception nowhere.pth: nowhere.pth"""
FLOATS = {"train": "mu sigma lr noise-scale label-drop t-clip cooldown cfg", "sample": "cfg"}
NUMBERS = [f"{command} --{name} {value}" for command, names in FLOATS.items()
           for name in names.split() for value in ("nan", "inf", "-inf", "1e999")]  # fmt: skip
NUMBERS += [f"train --{name} 0" for name in """sigma noise-scale lr t-clip steps accum size heads
            depth width batch-size log-every save-every sample-every""".split()]  # fmt: skip
NUMBERS += """train --noise-scale -1, train --label-drop 1.5, train --label-drop -0.1,
train --label-drop 1,
train --t-clip 2, train --cooldown 1.5, train --cfg -1, train --batch-size -1, train --steps many,
train --seed 18446744073709551616, train --seed -1, train --context-tokens -1, train --warmup -1,
train --steps 1e3, train --depth 99999999999999999999999, sample --interval nan 1,
sample --interval 2 3, sample --interval -1 0.5, sample --n 0,
sample --n -1, sample --sampling-steps 0, sample --seed 18446744073709551616, eval --n 0,
sample --batch-size 0, eval --cfg nan""".split(",")


@pytest.fixture
def mistakes(run):
    """All the files that the errors need."""
    Path("empty").mkdir(), save("broken/1.png", "red").write_bytes(b"no image")
    save("split/train/a/1.png", "red"), save("split/val/a/1.png", "red"), save("flat/1.png", "red")
    np.savez("some.npz", arr_0=np.zeros((2, 16, 16, 3), np.uint8))
    Path("file").write_text("nothing")
    checkpoint = load(run)
    checkpoint["model_ema1"].popitem()
    torch.save(checkpoint, "half.pth")


def test_errors_are_one_sentence(run, mistakes, capsys):
    """It names what is wrong, there is no traceback, and nothing has begun."""
    lines = [line.rpartition(": ") for line in ERRORS.replace("\n", " ").split("; ")]
    cases = [(command.split(), phrase) for command, _, phrase in lines]
    for line in NUMBERS:
        command, *flags = line.split()
        cases.append(([command, *([] if command == "train" else ["RUN"]), *flags], flags[0]))
    for words, phrase in cases:
        words = [str(run) if word == "RUN" else word for word in words]
        if words[:1] == ["train"]:
            words[1:1] = [*TINY, "--steps", "1"]
        assert phrase in refused(capsys, *words), words
        assert not list(Path().rglob("runs/*/checkpoint-last.pth")), words


def test_a_bug_is_a_traceback(run, monkeypatch):
    """Whoever changes jit.py needs file and line, also where memory is short; Ctrl-C is no bug."""
    bugs = RuntimeError("shapes differ"), ValueError("too many"), TypeError("no"), KeyError("w")
    for error in (*bugs, torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()):
        def broken(*given, error=error):
            raise error

        monkeypatch.setattr(jit.JiT, "forward", broken)
        for words in (["train", *TINY, "--out", "r", "--steps", 1], ["sample", run, *FEW]):
            if isinstance(error, KeyboardInterrupt):
                assert call(*words) == 130
            else:
                with pytest.raises(type(error)):
                    call(*words)


def test_nothing_hangs_on_assert():
    """python -O takes them out: a wrong covariance would score 0."""
    tree = ast.parse((ROOT / "jit.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]


# Surroundings


def test_import_does_nothing(monkeypatch, capsys):
    """A notebook may import jit.py: no flag is read, nothing is printed, no device is opened."""
    monkeypatch.setattr(sys, "argv", ["notebook", "--no-such-flag"])
    runpy.run_path(str(ROOT / "jit.py"), run_name="jit_again")
    assert capsys.readouterr() == ("", "")


def test_help_names_every_command_and_flag(capsys):
    """--help needs no data and no network. Each flag has a sentence of its own, and a default, or
    says from what it follows."""
    helps = {}
    for words, found in (([], "eval"), (["train"], "--cooldown"), (["sample"], "--png-dir")):
        assert call(*words, "--help") == 0
        helps[words[0] if words else ""] = " ".join(capsys.readouterr().out.split())
        assert found in helps[words[0] if words else ""]
    texts = [details["help"] for details in jit.FLAGS.values()]
    assert len(set(texts)) == len(texts) and "None" not in "".join(helps.values())
    assert "logit(t); lower is noisier (Table 3) (default: -0.8)" in helps["train"]
    assert "(default: of --model)" in helps["train"] and "(default: 16)" in helps["train"]
    assert "drawn at a time (default: 50)" in helps["sample"] and "--lr" not in helps["sample"]
