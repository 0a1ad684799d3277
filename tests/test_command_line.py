"""Section 9 of jit.py, as a user meets it: flags, exit codes, one sentence for each mistake, and
surroundings of all kinds. Commands run in this process: torch takes seconds to start."""

import ast
import inspect
import io
import os
import runpy
import signal
import subprocess
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
    return np.stack([np.asarray(Image.open(p)).astype(int) for p in sorted(Path(folder).iterdir())])


def drawn(run, name, *words):
    """The images that a command draws into the folder `name`."""
    assert call("sample", run, *FEW, "--png-dir", name, *words) == 0
    return read_pngs(name)


# Training


@pytest.mark.parametrize("model, batch, lr, cooldown", [
    ("Ti/16", 16, 4e-3, 0.5), ("S/16", 16, 5e-4, 0.5), ("B/16", 1024, 2e-4, 0),
    ("B/16", 16, 2.5e-5, 0), ("L/16", 4096, 4e-4, 0), ("H/16", 256, 1e-4, 0),
    ("G/16", 64, 5e-5, 0)])  # fmt: skip
def test_default_rate(model, batch, lr, cooldown):
    """The paper's 2e-4 at a batch of 1,024, and Adam's noise scales with the root of it."""
    args = jit.parse_flags(["train", "--model", model, "--batch-size", str(batch)])
    _, _, recipe = jit.settings_of(args)
    assert (recipe["lr"], recipe["cooldown"]) == (pytest.approx(lr), cooldown)


def test_flags_reach_the_training(monkeypatch):
    """512 pixels have noise of standard deviation 2, 256 and less 1; shapes are never mirrored, all
    other data by default; every field of Flow and argument of train is what the flag says."""
    save("d/1.png", "red"), save("d/2.png", "red")
    seen = {}

    def train(net, flow, data, out, **given):
        seen.update(given, net=net, flow=flow, data=data, out=out)

    train.__signature__ = inspect.signature(jit.train)
    monkeypatch.setattr(jit, "train", train)
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
    with pytest.raises(KeyError):  # a flag that no function takes is an error at the start
        jit.add_flag(None, "no_such_thing", jit.train, "")


def test_zero_is_right_where_it_means_something():
    """No bottleneck, no in-context tokens, all with their class, no warm-up, seed 0."""
    words = "--bottleneck 0 --context-tokens 0 --label-drop 0 --warmup 0 --seed 0 --cfg 0 --mu 0"
    assert train(*words.split(), "--steps", 1, "--out", "r") == 0
    assert call("sample", "r", *FEW, "--interval", 0, 1, "--cfg", 0, "--t-clip", 1) == 0
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
    """Both show the same images; classes take turns or are as asked, by name or number; seeds and
    weights act. Images of before are not mixed with new ones."""
    assert call("sample", run, *FEW, "--batch-size", 2) == 0
    assert str(run / "samples.png") in capsys.readouterr().err
    sheet = np.asarray(Image.open(run / "samples.png"))
    images = drawn(run, "p", "--batch-size", 2)
    assert sorted(path.name for path in Path("p").iterdir()) == [f"{i:06d}.png" for i in range(5)]
    assert images.shape == (5, 16, 16, 3)
    for i, image in enumerate(images):  # the sheet has them six times as large, ten in a row
        tile = sheet[16 + 3 : 16 + 96 : 6, 100 * i + 2 + 3 : 100 * i + 98 : 6]
        assert (tile == image).all()
    bear, one = drawn(run, "bear", "--classes", "bear"), drawn(run, "one", "--classes", "1")
    assert (bear[1] == images[1]).all() and (bear == one).all() and not (bear == images).all()
    assert not (drawn(run, "seed", "--seed", 1) == images).all()
    assert not (drawn(run, "raw", "--weights", "raw") == images).all()
    assert not (drawn(run, "clip", "--t-clip", 1) == images).all()
    before = {path: path.read_bytes() for path in Path("p").iterdir()}
    assert "--png-dir p" in refused(capsys, "sample", run, *FEW, "--png-dir", "p")
    assert before == {path: path.read_bytes() for path in Path("p").iterdir()}


def test_sample_matches_the_library(run):
    """The command draws what the method draws with the averaged weights of the checkpoint."""
    words = "--n 2 --sampling-steps 3 --cfg 1.5 --seed 7 --interval 0 0.8 --solver euler".split()
    found, checkpoint = drawn(run, "p", *words), load(run)
    net = jit.JiT(**checkpoint["config"]["network"]).eval()
    weights = checkpoint["model_ema1"].items()
    net.load_state_dict({name.removeprefix("net."): value for name, value in weights})
    velocity = jit.guided_velocity(net, torch.tensor([0, 1]), jit.Flow(), 1.5, (0.0, 0.8))
    for _, z, _ in jit.integrate(velocity, jit.image_noise((3, 16, 16), 7, range(2)), 3, "euler"):
        pass
    pixels = ((z + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(found - pixels).max() <= 0.51


@pytest.mark.parametrize("drop", [0, 1])
def test_no_guidance_towards_what_was_never_trained(drop, capsys):
    """--label-drop 0 trains no field without class, 1 none with: guidance is off, which is said,
    and where no class was trained none can be asked for."""
    assert train("--label-drop", drop, "--out", "r", "--steps", 1, "--lr", 0.1) == 0
    capsys.readouterr()
    strong = drawn("r", "strong", "--cfg", 9)
    assert "--label-drop" in capsys.readouterr().err
    assert (strong == drawn("r", "none", "--cfg", 1)).all()
    if drop:
        assert "--classes" in refused(capsys, "sample", "r", "--classes", "star")


def test_names_of_any_kind(capsys):
    """A name may be a number, hold a comma or a line break, and letters with accents, which macOS
    writes as two characters. Of a thousand classes an error names a few."""
    for name in ("7", "a,b", "a\nb", "cafe\u0301", *(f"{i} of a long list" for i in range(100))):
        save(Path("d", name, "1.png"), "red", (4, 4))
    assert train("--data", "d", "--out", "r", "--steps", 1) == 0
    assert "--classes cow" in refused(capsys, "sample", "r", "--classes", "cow")
    names = load("r")["config"]["names"]
    for word, name in (("7", "7"), ("a,b", "a,b"), ("caf\u00e9", "caf\u00e9"),
                       ("cafe\u0301", "caf\u00e9")):  # fmt: skip
        y, captions = jit.pick_classes(2, len(names), names, word)
        assert y.tolist() == [names.index(name)] * 2 and captions == [name] * 2
        assert call("sample", "r", *FEW, "--classes", word) == 0
    for words in ("7,a\nb", "7, a\nb"):
        assert jit.pick_classes(3, len(names), names, words)[1] == ["7", "a\nb", "7"]


# Mistakes: exit code 2, one sentence


ERRORS = """train --data nowhere: nowhere; train --data empty: no images;
train --data broken: broken can; train --data split: train; train --data some.npz: some.npz;
train --data cifar10: cifar10; train --model X/16: --model X/16; train --model B: --model B;
train --model Ti/0: --model; train --model Ti/-8: --model; train --model /8: --model;
train --size 20: size 20; train --size 20 --patch 16: patch 16;
train --width 100 --heads 3: width 100; train --heads 5: heads 5;
train --depth 1: context_start 1; train --context-start 9: context_start 9;
train --out file/deeper: file; train --out file: file; train --out empty/../split: split;
train --flip: --flip; train --pred noise: --pred; train --stepz 3: --stepz;
train --accum 3: --batch-size; train --device cuda: --device cuda; paint: paint; : command;
sample: run; sample nowhere: nowhere; sample empty: checkpoint-last.pth; sample file: file;
sample half.pth: half.pth; sample RUN --classes bare: apple, bear, cat;
sample RUN --classes 3: --classes 3; sample RUN --interval 0.1: --interval;
sample RUN --interval a b: --interval; sample RUN --interval 0.5 0.5: --interval;
sample RUN --interval 1 0.1: --interval; sample RUN --png-dir file: file; eval nowhere: nowhere;
eval empty: checkpoint-last.pth; eval flat --size 16: --reference;
eval RUN --inception file: SHA-256; train --out=: empty; eval RUN --reference=: empty"""
EMPTY = "train --data, train --out, sample, eval, sample RUN --png-dir, eval RUN --reference"
EMPTY += ", eval RUN --inception, eval RUN --stats"
FLOATS = {"train": "mu sigma lr noise-scale label-drop t-clip cooldown cfg", "sample": "cfg t-clip"}
NUMBERS = [f"{command} --{name} {value}" for command, names in FLOATS.items()
           for name in names.split() for value in ("nan", "inf", "-inf", "1e999")]  # fmt: skip
NUMBERS += [f"train --{name} 0" for name in """sigma noise-scale lr t-clip steps accum size heads
            depth width patch batch-size log-every save-every sample-every""".split()]  # fmt: skip
NUMBERS += """train --noise-scale -1, train --label-drop 1.5, train --label-drop -0.1,
train --t-clip 2, train --cooldown 1.5, train --cfg -1, train --batch-size -1, train --steps many,
train --seed 18446744073709551616, train --seed -1, train --context-tokens -1, train --warmup -1,
train --steps 1e3, train --depth 99999999999999999999999, sample --interval nan 1,
sample --interval 2 3, sample --interval -1 0.5, sample --t-clip 2, sample --t-clip 0, sample --n 0,
sample --n -1, sample --sampling-steps 0, sample --seed 18446744073709551616, eval --n 0,
sample --batch-size 0, eval --n 1, eval --size 0, eval --size -8, eval --cfg nan""".split(",")


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
    """It names what is wrong, there is no traceback, and nothing has begun. An empty word is what a
    variable leaves that is not set: as a path it would be the current folder."""
    lines = [line.rpartition(": ") for line in ERRORS.replace("\n", " ").split("; ")]
    cases = [(command.split(), phrase) for command, _, phrase in lines]
    cases += [([*words.split(), ""], "") for words in EMPTY.split(", ")]
    for line in NUMBERS:
        command, *flags = line.split()
        cases.append(([command, *([] if command == "train" else ["RUN"]), *flags], flags[0]))
    for words, phrase in cases:
        words = [str(run) if word == "RUN" else word for word in words]
        if words[:1] == ["train"]:
            words[1:1] = [*TINY, "--steps", "1"]
        assert phrase in refused(capsys, *words), words
        assert not Path("runs").exists(), words


def test_where_the_result_goes_is_looked_at_first(run, monkeypatch, capsys):
    """A read-only folder is found before a million images are read or 50,000 drawn."""
    save("d/1.png", "red")
    for name in ("integrate", "open_data", "load_inception"):
        monkeypatch.setattr(jit, name, None)  # a call would fail
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    for words in (["sample", run], ["sample", run, "--png-dir", "p"],
                  ["eval", run, "--stats", "s/x.npz"],
                  ["train", *TINY, "--data", "d", "--out", "r"]):  # fmt: skip
        assert "cannot be written" in refused(capsys, *words)


def test_a_bug_is_a_traceback(run, monkeypatch, capsys):
    """Whoever changes jit.py needs file and line; lack of memory and Ctrl-C are no bugs."""
    assert str(jit.Stop("x")) == "x" and jit.Stop("x").code == 2 and jit.Stop("x", 1).code == 1
    bugs = RuntimeError("shapes differ"), ValueError("too many"), TypeError("no"), KeyError("w")
    memory = MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")
    for error in (*bugs, *memory, KeyboardInterrupt()):
        def broken(*given, error=error):
            raise error

        monkeypatch.setattr(jit.JiT, "forward", broken)
        for words in (["train", *TINY, "--out", "r", "--steps", 1], ["sample", run, *FEW]):
            if error in bugs:
                with pytest.raises(type(error)):
                    call(*words)
            elif error in memory:
                assert "memory" in refused(capsys, *words, code=1)
            else:
                assert "stopped" in refused(capsys, *words, code=130)


def test_nothing_hangs_on_assert():
    """python -O takes them out: a wrong covariance would score 0."""
    tree = ast.parse((ROOT / "jit.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]


# Surroundings


@pytest.mark.parametrize("environment", ["RANK=1", "RANK= WORLD_SIZE= LOCAL_RANK=",
                                         "RANK=0 WORLD_SIZE=1 LOCAL_RANK=0"])  # fmt: skip
def test_variables_that_are_no_torchrun(environment, monkeypatch):
    """Left over, empty, or one process: it trains, writes and samples as without them."""
    for word in environment.split():
        monkeypatch.setenv(*word.split("="))
    assert train("--out", "r", "--steps", 1) == 0 and load("r")["step"] == 1
    assert call("sample", "r", *FEW) == 0


@pytest.mark.parametrize("environment", ["WORLD_SIZE=two", "RANK=0 WORLD_SIZE=2",
                                         "RANK=one WORLD_SIZE=2"])  # fmt: skip
def test_odd_variables_of_torchrun(environment, run, monkeypatch, capsys):
    """No numbers, or processes without the others' address. torchrun is for training only: each
    process would draw every image and write the same files."""
    for word in environment.split():
        monkeypatch.setenv(*word.split("="))
    for words in (["train", *TINY, "--steps", 1], ["sample", run], ["eval", run]):
        refused(capsys, *words)
    monkeypatch.setenv("MASTER_ADDR", "localhost"), monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert "torchrun" in refused(capsys, "sample", run)


def test_output_that_nobody_reads():
    """`2>&1 | head -c 99`, or one closed and one on a full disk: the training goes on to its end.
    With a console of 256 characters, class names in Cyrillic and in bytes that are no text."""
    for name in ("кот", os.fsdecode(b"caf\xe9")):
        save(Path("d", name, "1.png"), "red")
    flags = [*TINY, "--data", "d", "--steps", "30", "--cfg", "1"]
    command = " ".join([sys.executable, str(ROOT / "jit.py"), "train", *flags])
    odd, processes = dict(PYTHONIOENCODING="cp1252"), []
    for i, ending in enumerate(("2>&1 | head -c 99", ">&- 2>/dev/full")):
        line = f"{command} --out r{i} {ending}; exit ${{PIPESTATUS[0]}}"
        processes.append(subprocess.Popen(["bash", "-c", line], env=os.environ | odd, text=True,
                                          stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    for i, process in enumerate(processes):
        _, said = process.communicate(timeout=90)
        assert process.returncode == 0 and "Traceback" not in said, said
        assert load(f"r{i}")["step"] == 30 and len(load(f"r{i}")["config"]["names"]) == 2


def test_run_in_a_notebook(run, monkeypatch):
    """%run jit.py: stdout is any object there, and has no reconfigure."""
    written = io.StringIO()
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, written)
    words = ["sample", run, *FEW, "--png-dir", "p", "--n", 1]
    monkeypatch.setattr(sys, "argv", ["jit.py", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "jit.py"), run_name="__main__")
    assert end.value.code == 0 and "p\n" in written.getvalue()


def test_import_does_nothing(monkeypatch, capsys):
    """A notebook may import jit.py: no flag is read, nothing is printed, no device is opened."""
    monkeypatch.setattr(sys, "argv", ["notebook", "--no-such-flag"])
    runpy.run_path(str(ROOT / "jit.py"), run_name="jit_again")
    assert capsys.readouterr() == ("", "")


def test_help_names_every_command_and_flag(capsys):
    """--help needs no data and no network."""
    for words, found in (([], "eval"), (["train"], "--cooldown"), (["sample"], "--png-dir")):
        assert call(*words, "--help") == 0 and found in capsys.readouterr().out


def test_a_result_that_is_lost_is_no_success(run, monkeypatch, capsys):
    """eval > FILE on a full disk: the number is gone, and the exit code says so."""
    zeros = torch.zeros(2, 3)
    monkeypatch.setattr(jit, "load_inception", lambda path, device: lambda images: (zeros, zeros))
    monkeypatch.setattr(jit, "moments", lambda batches: (len(list(batches)), None, None))
    monkeypatch.setattr(jit, "inception_score", lambda logits: (1.0, 0.0))
    monkeypatch.setattr(jit, "frechet_distance", lambda *moments: 0.0)

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    assert "No space left" in refused(capsys, "eval", run, "--n", 2, "--reference", "shapes")


def test_a_bug_in_the_sampler_costs_no_training(monkeypatch):
    """Only memory and disk may cost a sheet in silence; a bug is a traceback, after saving."""
    monkeypatch.setattr(jit, "guided_velocity", None)
    with pytest.raises(TypeError):
        train("--out", "r", "--steps", 1)
    assert load("r")["step"] == 1
