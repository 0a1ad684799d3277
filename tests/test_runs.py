"""Section 8 of jit.py: what is trained, what a run leaves, how it goes on, and what may not end it
or be lost: checkpoints, log and pictures."""

import argparse
import copy
import dataclasses
import functools
import itertools
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (ROOT, SMALL, TINY, call, fill, load, open_data, read_log, refused, same,
                      save, small, train)  # fmt: skip
from PIL import Image

import jit

pytestmark = pytest.mark.usefixtures("quick_sheets")


def write_folder(n):
    """n pictures in three classes, each of its own colour."""
    for i in range(n):
        save(f"d/{i % 3}/{i}.png", (10 * i, 255 - 10 * i, 99), (16, 16))
    return open_data()


# What is computed


def repeatable_loss():
    """A stand-in for jit.training_loss that draws nothing: the same four images in every step."""
    done = itertools.count()

    def loss(model, x, y, flow):
        first = next(done) * len(x) % 4
        part = slice(first, first + len(x))
        generator = torch.Generator().manual_seed(1)
        x, eps = torch.randn(2, 4, 3, 16, 16, generator=generator)[:, part]
        t, y = torch.tensor([0.1, 0.3, 0.5, 0.9])[part], torch.tensor([0, 1, 2, jit.NO_CLASS])[part]
        return jit.flow_loss(model(jit.interpolate(x, eps, t), t, y), x, eps, t, "x", "v"), t

    return loss


@pytest.mark.parametrize("accum", [1, 2])
def test_training_is_adamw_and_two_averages(accum):
    """Ten steps of jit.train, fused kernels and all, end where AdamW and the averages end that are
    written out here: betas .9 and .95, no decay, a rate that rises over four steps and falls in the
    last half; in one part or two. 1e-4, a hundredth of a step: where a gradient is nearly 0 its
    rounding decides on the direction of the step."""
    net = fill(small(depth=2, context_start=1), np.random.RandomState(0)).train()
    other, loss = copy.deepcopy(net), repeatable_loss()
    jit.train(net, jit.Flow(), jit.Shapes(16), "r", steps=10, batch_size=4, accum=accum, lr=0.01,
              warmup=4, cooldown=0.5, loss_function=repeatable_loss())  # fmt: skip
    found = jit.load_checkpoint("r/checkpoint-last.pth")
    trained = {name: p for name, p in other.named_parameters() if p.requires_grad}
    mean, square = dict.fromkeys(trained, 0.0), dict.fromkeys(trained, 0.0)
    averages = {key: copy.deepcopy(other.state_dict()) for key in ("model_ema1", "model_ema2")}
    for step in range(1, 11):
        rate = 0.01 * min(1, step / 4, (11 - step) / 5)
        other.zero_grad()
        loss(other, torch.empty(4), None, None)[0].mean().backward()
        for name, p in trained.items():
            mean[name] = 0.9 * mean[name] + 0.1 * p.grad
            square[name] = 0.95 * square[name] + 0.05 * p.grad**2
            scale = (square[name] / (1 - 0.95**step)).sqrt() + 1e-8
            p.data -= rate * mean[name] / (1 - 0.9**step) / scale
        for key, window in (("model_ema1", 9), ("model_ema2", 36)):
            for name, value in other.state_dict().items():
                averages[key][name] += window / (window + step) * (value - averages[key][name])
    for key, expected in (averages | dict(model=other.state_dict())).items():
        for name, value in expected.items():
            torch.testing.assert_close(found[key][name], value, atol=1e-4, rtol=1e-4)


def test_rate_rises_and_falls():
    """--warmup steps up, then level, then down to nearly 0 in the last --cooldown of the run."""
    words = ["--lr", 1e-3, "--log-every", 1]
    assert train("--out", "r", "--steps", 10, "--warmup", 2, "--cooldown", 0.5, *words) == 0
    expected = [0.5e-3, *[1e-3] * 5, 0.8e-3, 0.6e-3, 0.4e-3, 0.2e-3]
    assert [line["lr"] for line in read_log("r")] == pytest.approx(expected)
    assert train("--out", "s", "--steps", 4, "--warmup", 0, "--cooldown", 0, *words) == 0
    assert [line["lr"] for line in read_log("s")] == pytest.approx([1e-3] * 4)


def test_line_of_the_log():
    """Losses 1, 2 and 6 at t .05, .05 and .95: their mean, and that in ten bins of t; a gradient
    (3, 4) has the norm 5."""
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([3.0, 4.0])
    seen = [(torch.tensor([1.0]), torch.tensor([0.05]))]
    seen += [(torch.tensor([2.0, 6.0]), torch.tensor([0.05, 0.95]))]
    line = jit.summarize(seen, [p, torch.nn.Parameter(torch.zeros(1), requires_grad=False)])
    assert line == dict(loss=3.0, loss_by_t=[1.5, *[None] * 8, 6.0], grad_norm=5.0)


def test_speed_is_that_of_training_alone(monkeypatch):
    """Saving and drawing take a second each here; they were counted in the next line."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def passing(seconds, function):
        def slow(*given, **more):
            now[0] += seconds
            return function(*given, **more)

        return slow

    for name in ("save_checkpoint", "draw_sheet"):
        monkeypatch.setattr(jit, name, passing(100.0, getattr(jit, name)))
    loss = passing(0.5, jit.training_loss)
    jit.train(jit.JiT(**SMALL, classes=10), jit.Flow(), jit.Shapes(16), "r", steps=4, batch_size=4,
              log_every=1, save_every=1, sample_every=1, loss_function=loss)  # fmt: skip
    text = Path("r/log.jsonl").read_text()
    assert text.count('"images_per_s": 8.0,') == 4


def test_each_part_of_each_step_draws_noise_of_its_own():
    """From the seed, the step and the part alone, whatever was drawn before."""
    drawn = []

    def watched(net, x, y, flow):
        drawn.append(torch.rand(()).item())
        torch.rand(len(drawn))  # whatever was drawn before
        return jit.training_loss(net, x, y, flow)

    for out, seed in (("one", 0), ("again", 0), ("other", 1)):
        net = jit.JiT(**SMALL, classes=10)
        jit.train(net, jit.Flow(), jit.Shapes(16), out, 3, batch_size=4, accum=2, seed=seed,
                  loss_function=watched)  # fmt: skip
    assert drawn[:6] == drawn[6:12] and len(set(drawn)) == 12


# H has dropout; with mirroring, label drop and two parts per step, all need their seeds.
LONG = """--model H/8 --context-tokens 2 --context-start 1 --lr 1e-3 --data d --out r --accum 2
--log-every 1 --save-every 10 --sample-every 1000000 --cooldown 0""".split()
PROGRAM = [sys.executable, str(ROOT / "jit.py"), "train", *TINY]


def stop_later(number):
    """Train by command line past the next checkpoint, then send a signal, between two of them: in
    the middle of writing one torch makes another error of Ctrl-C. There is no limit of time: a
    machine may be busy."""
    log = Path("r/log.jsonl")

    def last():
        return read_log("r")[-1]["step"] if log.exists() and log.stat().st_size else 0

    process = subprocess.Popen([*PROGRAM, *LONG, "--steps", "1000000"], stderr=subprocess.PIPE,
                               stdout=subprocess.DEVNULL, text=True, start_new_session=True)
    try:
        goal = last() + 10
        while (last() < goal or last() % 10 != 3) and process.poll() is None:
            time.sleep(0.005)
        os.killpg(process.pid, number)  # timeout, Slurm and a terminal signal all of them
        _, said = process.communicate()
    finally:
        process.kill()
    return process.returncode, said


def test_stopped_run_equals_an_uninterrupted_one():
    """kill -9, then Ctrl-C, then SIGTERM, then the rest: every bit of weights, averages, optimizer
    and log as if nothing had been. Ctrl-C says in one sentence how to go on."""
    write_folder(6)
    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, -15)):
        returned, said = stop_later(number)
        saved = load("r")["step"]
        assert returned == code and "Traceback" not in said and saved >= 10 and saved % 10 == 0
        if number == signal.SIGINT:
            assert "jit.py: stopped; a training goes on" in said
    steps = saved + 3
    assert train(*LONG, "--steps", steps) == 0  # steps may change
    assert train(*LONG, "--steps", steps, "--out", "whole") == 0
    one, two = load("r"), load("whole")
    assert one["config"]["network"]["dropout"] == 0.2 and one["config"]["recipe"]["flip"]
    for key in ("model", "model_ema1", "model_ema2", "optimizer", "step"):
        assert same(one[key], two[key]), key
    assert read_log("r") == read_log("whole") and len(read_log("r")) == steps
    assert not same(one["model"], one["model_ema1"])


def test_two_processes_equal_two_parts():
    """torchrun with 2 processes computes what one does with --accum 2: same batch, same gradient.
    Sums of two numbers in another order: 1e-6, but Adam's first steps divide gradients by their own
    size. One of the two speaks."""
    write_folder(8)
    words = ["--data", "d", "--steps", 3, "--log-every", 2, "--lr", 1e-3, "--warmup", 0,
             "--cfg", 1]  # fmt: skip
    launch = "-m torch.distributed.run --standalone --nproc-per-node 2".split()
    command = [PROGRAM[0], *launch, *PROGRAM[1:], *map(str, words), "--out", "ddp"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("x-prediction") == done.stderr.count("8 images") == 1
    assert train(*words, "--accum", 2, "--out", "one") == 0
    ddp, one = load("ddp"), load("one")
    for key in ("model", "model_ema1"):
        for name in one[key]:
            torch.testing.assert_close(ddp[key][name], one[key][name], atol=1e-5, rtol=1e-4)
    assert train(*words, "--out", "other") == 0  # a part of four images draws other noise
    assert not same(one["model"], load("other")["model"])
    assert [line["step"] for line in read_log("ddp")] == [2, 3]
    words[words.index("--steps") + 1] = 4  # it goes on as one process, in other parts, too
    assert train(*words, "--out", "ddp") == 0 and load("ddp")["step"] == 4


def test_a_batch_must_divide():
    """5 images in 2 parts were 4."""
    with pytest.raises(jit.Stop, match="--accum 2"):
        jit.train(jit.JiT(**SMALL, classes=10), jit.Flow(), jit.Shapes(16), "r", batch_size=5,
                  accum=2)  # fmt: skip


def test_small_folders_are_kept_in_memory(monkeypatch):
    """All or nothing: over shuffled epochs a cache of a part would hardly ever be hit."""
    write_folder(6)
    for limit, kept in ((6 * 3 * 16 * 16, 6), (6 * 3 * 16 * 16 - 1, 0)):
        monkeypatch.setattr(jit, "MEMORY_LIMIT", limit)
        data = open_data()
        data.batch([*range(6)])
        assert len(data.kept) == kept


# What it leaves


def test_checkpoint_has_the_official_layout(run):
    """Keys and prefix of the official code, so that files can be exchanged; what is ours is plain
    data beside them. With it a log, in which a mean ends at each checkpoint, and a picture."""
    names = ["checkpoint-last.pth", "log.jsonl", "samples-000004.png"]
    assert sorted(path.name for path in run.iterdir() if path.name != "samples.png") == names
    assert [line["step"] for line in read_log(run)] == [2, 3, 4]
    checkpoint = load(run)
    config, averages = checkpoint["config"], ("model_ema1", "model_ema2")
    net = jit.JiT(**config["network"])
    expected = {"net." + name: value.shape for name, value in net.state_dict().items()}
    for key in ("model", *averages):
        assert {name: value.shape for name, value in checkpoint[key].items()} == expected
    assert checkpoint["step"] == 4 and config["names"] == ["apple", "bear", "cat"]
    assert config["counts"] == [2, 2, 2] and net.classes == 3 and config["recipe"]["lr"] == 0.01
    assert config["flow"] == dataclasses.asdict(jit.Flow())
    (group,) = checkpoint["optimizer"]["param_groups"]
    assert group["betas"] == (0.9, 0.95) and group["weight_decay"] == 0
    state = checkpoint["optimizer"]["state"]
    parameters = list(net.parameters())
    assert all(state[i]["exp_avg"].shape == parameters[i].shape for i in state)


def test_sheets_are_of_the_average_in_eval_mode(monkeypatch):
    """The raw weights jump about, and dropout would spoil the picture. The sheet is guided by --cfg
    and has all classes in turn."""
    seen, real = [], jit.sample_images

    @functools.wraps(real)
    def watched(net, y, flow, shape, **options):
        seen.append((any(module.training for module in net.modules()), y.tolist(), options))
        seen.append({f"net.{name}": p.clone() for name, p in net.state_dict().items()})
        return real(net, y, flow, shape, **options)

    monkeypatch.setattr(jit, "sample_images", watched)
    assert train("--out", "r", "--steps", 3, "--cfg", 3, "--lr", 0.1) == 0
    (first, weights), checkpoint = seen, load("r")
    settings = dict(cfg=3.0, batch_size=4)  # parts as in training
    assert first == (False, [*range(10)] * 4, settings)
    assert same(weights, dict(checkpoint["model_ema1"]))
    assert not same(weights, dict(checkpoint["model"]))


def test_captions_stay_in_their_tiles():
    """A long name ran into its neighbour's; without classes there is none."""
    images = torch.zeros(20, 3, 16, 16, dtype=torch.uint8)
    jit.draw_sheet("one.png", ["W" * 60, *[""] * 19], images.split(7))
    sheet = np.asarray(Image.open("one.png")).min(2)
    width = sheet.shape[1] // 10
    assert sheet[:16, :width].min() < 128 and (sheet[:16, width:] == 255).all()


def test_files_are_replaced_whole():
    """A crash while writing leaves the old file, and the next writing is not disturbed."""
    path = Path("checkpoint")
    jit.write_whole(path, lambda place: place.write_text("old"))

    def crash(place):
        place.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jit.write_whole(path, crash)
    assert path.read_text() == "old"
    jit.write_whole(path, lambda place: place.write_text("new"))
    assert path.read_text() == "new" and [file.name for file in Path().iterdir()] == ["checkpoint"]


# What may not end it


def test_disk_full_while_saving(capsys):
    """The old checkpoint stays, and the run goes on from it. A limit on the size of a file is as
    good as a full disk: the system refuses to write on."""
    assert train("--out", "r", "--steps", 2) == 0
    before, limits = load("r"), resource.getrlimit(resource.RLIMIT_FSIZE)
    half = Path("r/checkpoint-last.pth").stat().st_size // 2
    resource.setrlimit(resource.RLIMIT_FSIZE, (half, limits[1]))
    try:
        with pytest.raises(RuntimeError):  # torch's
            train("--out", "r", "--steps", 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert same(load("r"), before)
    assert train("--out", "r", "--steps", 4) == 0


@pytest.mark.parametrize("wrong", [math.nan, math.inf, "gradient"])
def test_what_is_not_finite_ends_the_run(wrong, monkeypatch, capsys):
    """The last good checkpoint stays: not one of NaNs."""
    steps = itertools.count(1)

    def spoiled(net, x, y, flow):
        loss, t = jit.training_loss(net, x, y, flow)
        if next(steps) < 4:
            return loss, t
        if wrong == "gradient":
            loss.register_hook(lambda gradient: gradient * math.nan)
        return (loss if wrong == "gradient" else loss + wrong), t

    monkeypatch.setattr(jit, "train", functools.partial(jit.train, loss_function=spoiled))
    words = ["train", *TINY, "--out", "r", "--steps", 9, "--save-every", 1]
    assert "try a lower --lr" in refused(capsys, *words)
    checkpoint = load("r")
    assert checkpoint["step"] == 3
    assert all(value.isfinite().all() for value in checkpoint["model"].values())


# How it goes on


def test_steps_may_be_raised_but_little_else(capsys):
    """Other settings are named and refused; a finished run stays as it is, and says no more steps
    than it has. --log, --save and --sample-every may change."""
    words = ["--out", "r", "--steps", 2]
    assert train(*words) == 0
    first = load("r")
    for steps in (2, 1):
        capsys.readouterr()
        assert train(*words, "--steps", steps) == 0
        assert "r after step 2" in capsys.readouterr().err and same(load("r"), first)
    said = refused(capsys, "train", *TINY, *words, "--lr", 0.5, "--pred", "v", "--no-rope")
    assert "lr 0.004" in said and "pred x" in said and "rope True" in said and "steps" not in said
    assert same(load("r"), first)
    every = ["--save-every", 1, "--log-every", 1, "--sample-every", 1]
    assert train(*words, "--steps", 4, *every) == 0
    assert load("r")["step"] == 4 and Path("r/samples-000003.png").exists()


def test_a_run_killed_before_its_first_save_starts_anew(capsys):
    """A log is there, and half a file; and what another program wrote is no run."""
    Path("early").mkdir()
    Path("early/log.jsonl").write_text('{"step": 1, "loss": 1}\n')
    Path("early/.part-checkpoint-last.pth").write_text("half")
    assert train("--out", "early", "--steps", 1) == 0
    assert load("early")["step"] == 1
    official_checkpoint(twelve_blocks(), "early/checkpoint-last.pth")
    assert "is not a run" in refused(capsys, "train", *TINY, "--out", "early")


def test_a_run_keeps_its_data(capsys):
    """Moved data are the same data, and eval looks there from now on. Renamed classes and another
    image are not."""
    save("cats/train/a/1.png", "red"), save("cats/train/b/1.png", "blue")
    assert train("--data", "cats/train", "--steps", 1) == 0
    out = next(Path("runs").iterdir())
    place = str(Path("cats/train").resolve())
    assert out.name == "train-Ti-8-x" and load(out)["config"]["data"] == place
    Path("cats").rename("moved")
    assert train("--data", "moved/train", "--out", out, "--steps", 2) == 0
    assert load(out)["config"]["data"] == str(Path("moved/train").resolve())
    words = ["train", *TINY, "--data", "moved/train", "--out", out, "--steps", 4]
    Path("moved/train/b").rename("moved/train/c")
    assert "'a', 'b'" in refused(capsys, *words)
    Path("moved/train/c").rename("moved/train/b"), save("moved/train/b/2.png", "green")
    assert "counts [1, 1]" in refused(capsys, *words)
    assert load(out)["step"] == 2


def test_a_run_goes_on_in_smaller_parts():
    """What to do where memory is short: the same batch, in two parts."""
    words = ["--out", "r", "--batch-size", 4]
    assert train(*words, "--steps", 1) == 0 and train(*words, "--steps", 2, "--accum", 2) == 0
    assert load("r")["step"] == 2


# Checkpoints


def twelve_blocks(**changes):
    """As B has: no file tells where in-context tokens join."""
    net = small(**dict(size=32, patch=8, depth=12, width=16, bottleneck=4) | changes)
    return fill(net, np.random.RandomState(0))


def official_checkpoint(net, path, prefix="net.", args=None):
    """As the official code writes it: names with prefix, its flags, no config of ours."""
    weights = {prefix + name: value for name, value in net.state_dict().items()}
    halves = {name: value / 2 for name, value in weights.items()}
    torch.save(dict(model=weights, model_ema1=halves, model_ema2=weights, optimizer={}, epoch=3,
                    args=args), path)  # fmt: skip


def answer(net):
    """What it puts out, once."""
    z = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return net(z, torch.tensor([0.2, 0.7]), torch.tensor([1, jit.NO_CLASS])).detach()


def test_official_checkpoint_loads():
    """Released files hold no config: it follows from the shapes, and from their flags where they
    say more. Same network, same output, the right weights."""
    net = twelve_blocks()
    flags = argparse.Namespace(img_size=32, noise_scale="2.5", t_eps=0.01)
    official_checkpoint(net, "official.pth", args=flags)
    loaded, flow, _ = jit.load_run("official.pth", "raw", "cpu")
    assert loaded.arguments == net.arguments and not loaded.training
    assert flow == jit.Flow(noise_scale=2.5, t_clip=0.01) and same(answer(loaded), answer(net))
    averaged = jit.load_run("official.pth", "ema1", "cpu")[0].final_layer.linear.weight
    assert torch.equal(averaged, net.final_layer.linear.weight / 2)
    assert call("sample", "official.pth", "--n", 2, "--sampling-steps", 2, "--classes", "4,0") == 0
    assert Path("samples.png").exists() and call("sample", "official.pth", "--classes", "cat") == 2


def test_official_checkpoint_without_flags(capsys):
    """Without flags, or with empty ones, the paper's noise scale is taken. A file with raw weights
    alone says how to use it; with flags that cannot be read safely, why."""
    net = twelve_blocks()
    for args in (None, argparse.Namespace(noise_scale=None, t_eps=None)):
        official_checkpoint(net, "bare.pth", args=args)
        loaded, flow, _ = jit.load_run("bare.pth", "raw", "cpu")
        assert same(answer(loaded), answer(net)) and flow == jit.Flow()
    official_checkpoint(twelve_blocks(depth=6, context_start=2), "six.pth")
    assert jit.load_run("six.pth", "raw", "cpu")[0].context_start == 2
    official_checkpoint(net, "path.pth", args=argparse.Namespace(output_dir=Path("out")))
    assert "PosixPath" in refused(capsys, "sample", "path.pth")
    torch.save(dict(model=net.state_dict()), "only.pth")
    assert "--weights raw" in refused(capsys, "sample", "only.pth")
    assert call("sample", "only.pth", "--weights", "raw", "--n", 1, "--sampling-steps", 1) == 0


def test_official_sizes_are_recognised():
    """The class joins at another block in each size, which no shape tells."""
    for model, patch, size in (("B", 16, 256), ("B", 32, 512), ("L", 16, 256), ("H", 16, 256),
                               ("G", 32, 512)):  # fmt: skip
        network = dict(size=size, patch=patch, classes=1000, **jit.MODELS[model])
        with torch.device("meta"):
            weights = jit.JiT(**network).state_dict()
        config = jit.official_config(weights, None)
        assert dict(network, **config["network"]) == network | dict(channels=3), model
        assert config["flow"]["noise_scale"] == size / 256


class Poison:
    def __reduce__(self):
        return os.mkdir, ("poisoned",)


SPOILED = {
    "empty": b"", "page": b"<html>", "cut": b"PK\x03\x04", "no model": dict(epoch=3),
    "no weights": dict(model={}), "weights alone": {"net.pos_embed": torch.zeros(1)},
    "another network": dict(model={"w": torch.zeros(1)}), "tensor": torch.zeros(3), "list": [1, 2],
    "none": dict(model=None), "poison": dict(model=Poison()),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOILED)
def test_files_that_are_no_checkpoints(kind, capsys):
    """One sentence with the name of the file, and nothing in it is executed: a pickle can run
    anything. torch advises to load it with weights_only=False."""
    contents, path = SPOILED[kind], Path("r/checkpoint-last.pth")
    path.parent.mkdir()
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    else:
        torch.save(contents, path)
    for words in (["sample", "r", "--weights", "raw"], ["eval", path, "--weights", "raw"],
                  ["train", *TINY, "--out", "r"]):  # fmt: skip
        said = refused(capsys, *words)
        assert str(path) in said and "weights_only" not in said
    assert not Path("poisoned").exists()


def test_what_is_not_used_is_not_read(run, monkeypatch):
    """`sample` needs a quarter of the file: the others stay on disk (mmap), as they do when a run
    goes on in each process of torchrun."""
    if os.name == "nt":
        pytest.skip("Windows does not replace a file that is open so")
    loaded, read = [], torch.load

    def loading(*given, **more):
        loaded.append(more.get("mmap"))
        return read(*given, **more)

    monkeypatch.setattr(torch, "load", loading)
    jit.load_run(run, "raw", "cpu")
    assert train("--out", "r", "--steps", 1) == 0 and train("--out", "r", "--steps", 2) == 0
    assert loaded == [True, True]
