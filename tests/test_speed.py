"""The fast ways that jit.py takes give what the plain ways give, and figures/speed.py measures what it says."""

import copy
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import jit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "figures"))
import speed


def small(**changes):
    settings = dict(size=16, model="Ti/4", depth=2, width=16, heads=2, classes=5, bottleneck=8, batch_size=4)
    return jit.resolve(jit.Settings(**settings | changes))


def network(s):
    """A network whose weights are not at their start, where much of it is multiplied by 0."""
    torch.manual_seed(0)
    net = jit.JiT(s)
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return net


def gradients(model, net, s):
    torch.manual_seed(1)
    x, y = torch.randn(4, 3, s.size, s.size), torch.tensor([0, 1, 2, 4])
    net.zero_grad()
    total, _, _ = jit.training_loss(model, x, y, s)
    total.backward()
    return [total.detach()] + [p.grad.clone() for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("switches", [dict(cls_loss=1.0), dict(rope=False, qk_norm=False, context_tokens=0)])
def test_the_network_is_one_graph(switches):
    """torch.compile takes the network in one piece (fullgraph refuses a break), and its gradients are the plain ones.

    1e-5: the same operations in fp32. The generators of fast code are left out, since they need a compiler and minutes.
    """
    s = small(**switches)
    net = network(s)
    plain = gradients(net, net, s)
    compiled = gradients(torch.compile(net, backend="eager", fullgraph=True), net, s)
    for ours, expected in zip(compiled, plain, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bottleneck", [0, 8])
def test_patch_embedding_is_the_convolution(bottleneck):
    """A matrix product in place of nn.Conv2d, which is slower: the same to the rounding of 48 products in fp32."""
    s = small(bottleneck=bottleneck)
    embed, z = network(s).x_embedder, torch.randn(2, 3, 16, 16)
    first = embed.proj1 or embed.proj2
    expected = F.conv2d(z, first.weight, first.bias, stride=4)
    if bottleneck:
        expected = embed.proj2(expected)
    torch.testing.assert_close(embed(z), expected.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_fused_optimizer_is_adamw():
    """Ten steps of the fused kernel end where AdamW written out ends.

    1e-4, a hundredth of one step: where a gradient is nearly 0 its rounding decides on the direction of the step.
    """
    s = small(lr=0.01)
    net = network(s)
    other = copy.deepcopy(net)
    optimizer = jit.make_optimizer(net, s)
    trained = [p for p in other.parameters() if p.requires_grad]
    mean, square = [torch.zeros_like(p) for p in trained], [torch.zeros_like(p) for p in trained]
    for step in range(1, 11):
        gradients(net, net, s)
        optimizer.step()
        gradients(other, other, s)
        for p, m, v in zip(trained, mean, square):
            m.mul_(0.9).add_(0.1 * p.grad)
            v.mul_(0.95).add_(0.05 * p.grad**2)
            p.data -= 0.01 * (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
    for ours, expected in zip(net.parameters(), other.parameters()):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_forwards_of_the_official_sampler():
    """Heun-50 makes 99 evaluations; guidance in (0.1, 1) doubles 88 of them, where the official code doubles all."""
    s = small()
    assert speed.count_forwards(s, jit.Sampling(steps=50)) == 99 + 88
    assert speed.count_forwards(s, jit.Sampling(steps=50, cfg=1.0)) == 99
    assert speed.count_forwards(s, jit.Sampling(steps=50, solver="euler", interval=(0.0, 1.0))) == 100


def test_speed_prints_its_table(capsys, monkeypatch):
    """One line each for step, sampling, input and memory, with numbers that can be."""
    monkeypatch.setattr(speed, "peak_flops", lambda device: 1e9)
    speed.main("--model Ti/16 --size 32 --batch 2 --classes 3 --repeats 1 --steps 2 --profile".split())
    lines = capsys.readouterr().out.splitlines()
    for start in ("training step", "sampling", "profile", "input", "peak memory"):
        assert any(line.startswith(start) for line in lines), start
    step = next(line.split() for line in lines if line.startswith("training step"))
    milliseconds, rate = float(step[3]), float(step[5])
    assert rate == pytest.approx(2 / (milliseconds / 1000), rel=0.05)
