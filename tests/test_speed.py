"""The fast ways that jit.py takes give what the plain ways give, and figures/speed.py measures what it says."""

import argparse
import copy
import itertools
import mmap
import re
import sys
import time
from pathlib import Path

import pytest
import torch

import jit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "figures"))
import speed

CPU = torch.device("cpu")
FLOW = jit.Flow()


def network(**changes):
    """A network whose weights are not at their start, where much of it is multiplied by 0."""
    base = dict(size=16, patch=4, classes=10, depth=2, width=16, heads=2, bottleneck=8, context_tokens=4)
    torch.manual_seed(0)
    net = jit.JiT(**(base | dict(context_start=1) | changes))
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return net


def gradients(model, net):
    torch.manual_seed(1)
    x, y = torch.randn(4, *net.shape), torch.tensor([0, 1, 2, 4])
    net.zero_grad()
    loss, _ = jit.training_loss(model, x, y, FLOW)
    loss.mean().backward()
    return [loss.detach()] + [p.grad.clone() for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("switches", [{}, dict(rope=False, qk_norm=False, context_tokens=0)])
def test_the_network_is_one_graph(switches):
    """torch.compile takes the network in one piece (fullgraph refuses a break), and its gradients are the plain ones.

    1e-5: the same operations in fp32. The generators of fast code are left out, since they need a compiler and minutes.
    """
    net = network(**switches)
    plain = gradients(net, net)
    compiled = gradients(torch.compile(net, backend="eager", fullgraph=True), net)
    for ours, expected in zip(compiled, plain, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def repeatable_loss():
    """A stand-in for jit.training_loss that draws nothing: the same four images in every step, in parts or at once."""
    done = itertools.count()

    def loss(model, x, y, flow):
        first = next(done) * len(x) % 4
        part = slice(first, first + len(x))
        x, eps = torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1))[:, part]
        t, y = torch.tensor([0.1, 0.3, 0.5, 0.9])[part], torch.tensor([0, 1, 2, jit.NO_CLASS])[part]
        return jit.flow_loss(model(jit.interpolate(x, eps, t), t, y), x, eps, t, "x", "v"), t

    return loss


def run(net, out, loss_function, monkeypatch, **options):
    """A run without its sheet of samples; returns its checkpoint."""
    monkeypatch.setattr(jit, "sample_images", lambda *given, **more: [torch.zeros(40, 3, 16, 16, dtype=torch.uint8)])
    jit.train(net, FLOW, jit.Shapes(16), out, cooldown=0.0, loss_function=loss_function, **options)
    return jit.load_checkpoint(out / jit.CHECKPOINT)


@pytest.mark.parametrize("accum", [1, 2])
def test_training_is_adamw_and_two_averages(accum, tmp_path, monkeypatch):
    """Ten steps of jit.train, fused kernels and all, end where AdamW and the averages end that are written out here.

    In one part or two; betas .9 and .95, no decay, a rate that rises over four steps, averages with their windows.
    1e-4, a hundredth of a step: where a gradient is nearly 0 its rounding decides on the direction of the step.
    """
    net = network()
    other = copy.deepcopy(net)
    options = dict(steps=10, batch_size=4, accum=accum, lr=0.01, warmup=4)
    found, loss = run(net, tmp_path / "run", repeatable_loss(), monkeypatch, **options), repeatable_loss()
    trained = {name: p for name, p in other.named_parameters() if p.requires_grad}
    mean, square = dict.fromkeys(trained, 0.0), dict.fromkeys(trained, 0.0)
    averages = {key: copy.deepcopy(other.state_dict()) for key in ("model_ema1", "model_ema2")}
    for step in range(1, 11):
        other.zero_grad()
        loss(other, torch.empty(4), None, None)[0].mean().backward()
        for name, p in trained.items():
            mean[name] = 0.9 * mean[name] + 0.1 * p.grad
            square[name] = 0.95 * square[name] + 0.05 * p.grad**2
            scale = (square[name] / (1 - 0.95**step)).sqrt() + 1e-8
            p.data -= 0.01 * min(1, step / 4) * mean[name] / (1 - 0.9**step) / scale
        for key, window in (("model_ema1", 9), ("model_ema2", 36)):
            for name, value in other.state_dict().items():
                averages[key][name] += window / (window + step) * (value - averages[key][name])
    for key, expected in (averages | dict(model=other.state_dict())).items():
        for name, value in expected.items():
            torch.testing.assert_close(found[key][name], value, atol=1e-4, rtol=1e-4)


def test_gradients_are_freed_after_the_forward(tmp_path, monkeypatch):
    """Freed at the end of a step, their memory goes back to the system: B/16's next backward then faults on 20,000 to
    130,000 pages, where else it does on one. So a forward still finds the gradients of the step before: in jit.train,
    with parts too, and in speed.py's step.
    """
    seen = []

    def spying(model, x, y, flow):
        seen.append(model.final_layer.linear.weight.grad is not None)
        return jit_loss(model, x, y, flow)

    jit_loss = jit.training_loss
    run(network(), tmp_path / "whole", spying, monkeypatch, steps=3, batch_size=2)
    run(network(), tmp_path / "parts", spying, monkeypatch, steps=2, batch_size=2, accum=2)
    assert seen == [False, True, True] + [False, True, True, True]
    seen.clear()
    monkeypatch.setattr(jit, "training_loss", spying)
    args = argparse.Namespace(model="Ti/16", size=32, batch=2, classes=3, steps=2, compile=False)
    step = speed.our_works(args, CPU)["training step"]
    step()
    step()
    assert seen == [False, True]


# figures/speed.py


def test_forwards_of_the_official_sampler():
    """Heun-50 makes 99 evaluations; guidance in (0.1, 1) doubles 88 of them, where the official code doubles all."""
    assert speed.count_forwards(50) == 99 + 88
    assert speed.count_forwards(50, cfg=1.0) == 99
    assert speed.count_forwards(50, solver="euler", interval=(0.0, 1.0)) == 100


def test_what_is_measured():
    """Sleep passes by the clock and not of the CPU; each page of fresh memory that is touched is a fault."""
    if sys.platform == "win32":
        pytest.skip("Windows tells of no page faults")
    assert measured(lambda: time.sleep(0.1))["clock"] > 0.1
    assert measured(lambda: time.sleep(0.1))["cpu"] < 0.05

    def touch(pages=1000):
        with mmap.mmap(-1, pages * mmap.PAGESIZE) as memory:
            for i in range(pages):
                memory[i * mmap.PAGESIZE] = 1

    assert measured(touch)["faults"] >= 1000 > 500 > measured(lambda: None)["faults"]


def measured(work):
    return speed.measure(work, CPU)


FAKE = {  # in place of the official code: a training step burns 0.2 s of the CPU, a sample sleeps as long
    "model_jit.py": """
JiT_models = {}


def JiT(**sizes):
    names = "depth hidden_size num_heads bottleneck_dim patch_size in_context_len in_context_start".split()
    names += "input_size in_channels num_classes attn_drop proj_drop".split()
    assert sorted(sizes) == sorted(names) and sizes["hidden_size"] == 128 and sizes["patch_size"] == 16
""",
    "denoiser.py": """
import time

import torch
from model_jit import JiT_models


class Denoiser(torch.nn.Module):
    def __init__(self, args):
        super().__init__()
        JiT_models[args.model](input_size=args.img_size, in_channels=3, num_classes=args.class_num,
                               attn_drop=args.attn_dropout, proj_drop=args.proj_dropout)
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x, y):
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
        return (self.weight.cuda() * x).mean()

    def generate(self, y):
        time.sleep(0.2)

    def update_ema(self):
        pass
""",
}


def test_speed_prints_its_table(tmp_path, capfd, monkeypatch):
    """A line each for step and sampling of both sides, their ratios by CPU time and by the clock, input and memory.

    The stand-in for the official code needs 200 ms, of the CPU for a step and by the clock for a sample.
    """
    for name, text in FAKE.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(speed, "peak_flops", lambda device: 1e9)
    words = "--model Ti/16 --size 32 --batch 2 --classes 3 --repeats 1 --steps 2 --profile --official"
    speed.main([*words.split(), str(tmp_path)])
    text = capfd.readouterr().out
    for start in ("profile", "input", "peak memory    ours", "peak memory    official", "Believe the clock"):
        assert re.search(f"^{start}", text, re.M), start
    number, lines = "([0-9.]+)", {}
    for work in speed.WORKS:
        for side in ("ours", "official"):
            pattern = rf"^{work} +{side} +{number} ms +{number} ms CPU +{number} page faults +{number} images/s"
            lines[work, side] = [float(value) for value in re.search(pattern, text, re.M).groups()]
            assert lines[work, side][3] == pytest.approx(2000 / lines[work, side][0], rel=0.05, abs=0.05)
    assert lines["training step", "official"][1] >= 200  # of the CPU
    assert lines["sampling", "official"][0] >= 200 and lines["sampling", "official"][1] < 100
    ratio = float(re.search(f"training step +ours is {number} times as fast by CPU time", text)[1])
    expected = lines["training step", "official"][1] / lines["training step", "ours"][1]
    assert ratio == pytest.approx(expected, rel=0.05)  # the two are printed rounded


def test_a_side_that_fails_ends_the_comparison(tmp_path, capfd):
    """--official with a wrong folder: its own message, then a sentence; nothing waits for an answer for ever."""
    with pytest.raises(SystemExit, match="a side has ended"):
        speed.compare(["--size", "32", "--official", str(tmp_path)], ["official"], 1)
    assert "denoiser" in capfd.readouterr().err
