"""Flow, network, loss and sampler of jit.py, against closed forms, the paper's numbers and the official code."""

import functools
import ast
import importlib.util
import io
import math
import re
import statistics
import sys
import tokenize
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import jit

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "figures"))
import models

PREDS = ["x", "eps", "v"]
NINE = [(pred, loss) for pred in PREDS for loss in PREDS]
FLOW = jit.Flow(noise_scale=2.0)
UNTURNED = torch.ones(16, 1), torch.zeros(16, 1)  # cos and sin of no rotation


def small(**changes):
    """A network of 16 tokens that has all parts."""
    base = dict(size=16, patch=4, classes=5, depth=6, width=32, heads=2, bottleneck=8, context_tokens=3)
    return jit.JiT(**(base | dict(context_start=4) | changes))


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


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# The flow


def test_training_times_follow_the_paper():
    """FACTS of logit-normal(-0.8, 0.8): median 0.31, P(t < .1) = 4%, P(t > .95) = 1e-6. n = 100,000: 4 sigma = .003."""
    torch.manual_seed(0)
    t = jit.sample_t(100_000)
    assert math.isclose(t.median(), 1 / (1 + math.exp(0.8)), abs_tol=0.004)
    below = 0.5 * (1 + math.erf((math.log(1 / 9) + 0.8) / 0.8 / math.sqrt(2)))
    assert math.isclose(below, 0.0403, abs_tol=1e-4)
    assert math.isclose((t < 0.1).float().mean(), below, abs_tol=0.0025)
    assert (t > 0.95).sum() < 5
    other = jit.sample_t(100_000, mu=0.5, sigma=1.5).logit()
    assert math.isclose(other.mean(), 0.5, abs_tol=0.02) and math.isclose(other.std(), 1.5, abs_tol=0.015)


def test_noise_at_0_data_at_1():
    """z_0 = eps and z_1 = x, and v is dz/dt: a flow in the other direction would pass many other tests."""
    x, eps = normal(2, 3, 4, 4, seed=1), normal(2, 3, 4, 4, seed=2)
    assert torch.equal(jit.interpolate(x, eps, torch.zeros(2)), eps)
    assert torch.equal(jit.interpolate(x, eps, torch.ones(2)), x)
    t = torch.tensor([0.2, 0.7])
    slope = (jit.interpolate(x, eps, t + 0.01) - jit.interpolate(x, eps, t - 0.01)) / 0.02
    v = jit.convert(x, jit.interpolate(x, eps, t), t, "x")["v"]
    torch.testing.assert_close(slope, v, atol=1e-4, rtol=0)  # float32 differences over 0.02


@pytest.mark.parametrize("pred", PREDS)
def test_conversions_find_the_truth(pred):
    """Table 1: from any one of x, eps, v, and z, follow the other two. Inside the clip, at both of its borders too."""
    x, eps = normal(5, 3, 4, 4, seed=1), normal(5, 3, 4, 4, seed=2)
    t = torch.tensor([0.05, 0.3, 0.5, 0.8, 0.95])
    truth = {"x": x, "eps": eps, "v": x - eps}
    found = jit.convert(truth[pred], jit.interpolate(x, eps, t), t, pred)
    for name in PREDS:
        torch.testing.assert_close(found[name], truth[name], atol=3e-5, rtol=0)  # fp32 times 1 / 0.05


def test_conversions_agree_for_any_output():
    """x -> v -> eps -> x comes back, for outputs that are no truth: loss and sampler read a network alike."""
    out, z, t = normal(4, 3, 2, 2, seed=1), normal(4, 3, 2, 2, seed=2), torch.tensor([0.06, 0.4, 0.6, 0.94])
    first = jit.convert(out, z, t, "x")
    for pred in PREDS:
        again = jit.convert(first[pred], z, t, pred)
        for name in PREDS:
            torch.testing.assert_close(again[name], first[name], atol=3e-5, rtol=1e-5)


def test_clip_acts_where_the_division_is():
    """Beyond the clip v = (x - z) / 0.05, as in the official code, so the sampler leaves noise; Flow.t_clip sets it."""
    x, z, t = normal(2, 3, 2, 2, seed=1), normal(2, 3, 2, 2, seed=2), torch.tensor([0.99, 1.0])
    torch.testing.assert_close(jit.convert(x, z, t, "x")["v"], (x - z) / 0.05)
    torch.testing.assert_close(jit.convert(x, z, t, "x", clip=0.2)["v"], (x - z) / 0.2)
    torch.testing.assert_close(jit.convert(x, z, 1 - t, "eps")["v"], (z - x) / 0.05)


def test_clip_changes_nothing_else():
    """Only divisions are clipped: v-prediction has none, and eps-prediction none by 1 - t. Truths come back there."""
    x, eps = normal(2, 3, 4, 4, seed=1), normal(2, 3, 4, 4, seed=2)
    for pred, t in (("v", torch.tensor([0.0, 1.0])), ("eps", torch.tensor([0.98, 1.0]))):
        truth = {"x": x, "eps": eps, "v": x - eps}
        found = jit.convert(truth[pred], jit.interpolate(x, eps, t), t, pred)
        for name in PREDS:
            torch.testing.assert_close(found[name], truth[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("pred, loss", NINE)
def test_perfect_network_has_no_loss(pred, loss):
    """At every t, both ends included: the target must be clipped as the prediction is."""
    x, eps = normal(6, 3, 4, 4, seed=1), normal(6, 3, 4, 4, seed=2)
    t = torch.tensor([0.0, 1e-6, 0.3, 0.97, 1 - 1e-6, 1.0])
    perfect = {"x": x, "eps": eps, "v": x - eps}[pred]
    assert torch.equal(jit.flow_loss(perfect, x, eps, t, pred, loss), torch.zeros(6))


@pytest.mark.parametrize("pred, loss", NINE)
def test_finite_at_both_ends_of_time(pred, loss):
    """Loss and gradient are finite at t = 0 and t = 1: 1 / t and 1 / (1 - t) stand in six of the nine combinations."""
    x, eps = normal(4, 3, 4, 4, seed=1), normal(4, 3, 4, 4, seed=2)
    out = normal(4, 3, 4, 4, seed=3).requires_grad_()
    value = jit.flow_loss(out, x, eps, torch.tensor([0.0, 1e-7, 1 - 1e-7, 1.0]), pred, loss)
    value.sum().backward()
    assert value.isfinite().all() and out.grad.isfinite().all()


@pytest.mark.parametrize("t", [0.1, 0.4, 0.9])
def test_weight_of_an_error_in_all_nine_combinations(t):
    """What an error of 0.1 in the prediction costs, from Table 1 by hand; for x: 1, (t/(1-t))^2, (1/(1-t))^2."""
    x, eps, time = normal(1, 3, 4, 4, seed=1), normal(1, 3, 4, 4, seed=2), torch.tensor([t])
    weights = {
        "x": dict(x=1, eps=(t / (1 - t)) ** 2, v=1 / (1 - t) ** 2),
        "eps": dict(x=((1 - t) / t) ** 2, eps=1, v=1 / t**2),
        "v": dict(x=(1 - t) ** 2, eps=t**2, v=1),
    }
    truth = {"x": x, "eps": eps, "v": x - eps}
    for pred, loss in NINE:
        value = jit.flow_loss(truth[pred] + 0.1, x, eps, time, pred, loss).item()
        assert math.isclose(value, 0.01 * weights[pred][loss], rel_tol=1e-4), (pred, loss)


# The network


@pytest.mark.parametrize("switches", [{}, dict(rope=False, qk_norm=False, context_tokens=0)])
def test_patches_see_each_other(switches):
    """A well-known re-implementation attends across heads, not tokens: no error, a falling loss, blind patches.

    Editing one patch must change the output at every other patch, and no other image of the batch.
    """
    net, z = filled(**switches), normal(2, 3, 16, 16)
    t, y = torch.tensor([0.3, 0.6]), torch.tensor([1, 2])
    with torch.no_grad():
        before = net(z, t, y)
        for row, column in [(0, 0), (1, 2), (3, 3)]:
            edited = z.clone()
            edited[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
            change = (net(edited, t, y) - before).abs()
            patches = change[0].unflatten(2, (4, 4)).unflatten(1, (4, 4)).amax((0, 2, 4))  # (4, 4): largest in a patch
            assert patches.min() > 1e-3, (row, column)  # rounding is 1e-6
            assert change[1].max() < 1e-5


def test_attention_against_loops():
    """One softmax per head and query over tokens, scale 1 / sqrt(d), written without any reshaping."""
    attention, x = jit.Attention(width=32, heads=2, dropout=0.0, qk_norm=True), normal(1, 5, 32)
    with torch.no_grad():
        attention.q_norm.weight.copy_(normal(16, seed=3)), attention.k_norm.weight.copy_(normal(16, seed=4))
        q, k, v = (x[0] @ attention.qkv.weight.T + attention.qkv.bias).split(32, dim=1)
        heads = []
        for h in (slice(0, 16), slice(16, 32)):
            a, b = (w[:, h] / w[:, h].square().mean(1, keepdim=True).add(1e-6).sqrt() for w in (q, k))
            a, b = a * attention.q_norm.weight, b * attention.k_norm.weight
            rows = [sum(p * value for p, value in zip((a[i] @ b.T / 4).softmax(0), v[:, h])) for i in range(5)]
            heads.append(torch.stack(rows))
        expected = torch.cat(heads, dim=1) @ attention.proj.weight.T + attention.proj.bias
        torch.testing.assert_close(attention(x, UNTURNED)[0], expected, atol=1e-5, rtol=1e-4)


def test_rope_depends_on_offsets_only():
    """q at one place, k at another: their product is the same wherever the pair stands, and differs between offsets."""
    side, d = 5, 16
    cos, sin = jit.rope_table(side, d, 0)
    q, k = normal(1, 1, 1, d, seed=1).expand(1, 1, 25, d), normal(1, 1, 1, d, seed=2).expand(1, 1, 25, d)
    product = (jit.rotate(q, cos, sin) @ jit.rotate(k, cos, sin).transpose(-1, -2))[0, 0].view(5, 5, 5, 5)
    seen = {}
    for r1, c1, r2, c2 in np.ndindex(5, 5, 5, 5):
        seen.setdefault((r2 - r1, c2 - c1), []).append(product[r1, c1, r2, c2].item())
    assert all(max(values) - min(values) < 1e-4 for values in seen.values())  # fp32 sums of 16 products of order 1
    means = sorted(np.mean(values) for values in seen.values())
    assert len(means) == 81 and min(np.diff(means)) > 1e-6  # all offsets differ, and so do directions


def test_rope_by_complex_numbers():
    """As released weights need it: neighbours pair up, first half of a head rows, second half columns, theta 10000."""
    x = normal(1, 1, 12, 8)
    cos, sin = jit.rope_table(3, 8, 3)
    found = jit.rotate(x, cos, sin)[0, 0]
    torch.testing.assert_close(found[:3], x[0, 0, :3], atol=0, rtol=0)  # in-context tokens do not turn
    for i, (row, column) in enumerate(np.ndindex(3, 3)):
        pairs = torch.view_as_complex(x[0, 0, 3 + i].view(4, 2))
        angles = torch.tensor([row, row / 100, column, column / 100])  # 10000 ** (-2/4) = 1 / 100
        turned = torch.view_as_real(pairs * torch.polar(torch.ones(4), angles)).flatten()
        torch.testing.assert_close(found[3 + i], turned, atol=1e-6, rtol=0)


def test_in_context_tokens_carry_class_but_not_time():
    """Before block context_start no tokens are added; then K, the class embedding plus a place, without rotation."""
    net = filled()
    joined = []
    for block in net.blocks:
        block.register_forward_pre_hook(lambda _, inputs: joined.append(inputs))
    y = torch.tensor([3])
    with torch.no_grad():
        net(normal(1, 3, 16, 16), torch.tensor([0.3]), y)
    assert [tokens.shape[1] for tokens, _, _ in joined] == [16] * 4 + [19] * 2
    tokens = joined[4][0][:, :3]
    table = net.state_dict()["y_embedder.embedding_table.weight"]
    torch.testing.assert_close(tokens, table[3] + net.in_context_posemb)
    cos, sin = joined[4][2]
    assert torch.equal(cos[:3], torch.ones(3, 16)) and torch.equal(sin[:3], torch.zeros(3, 16))
    image, context = normal(1, 2, 16, 16), normal(1, 2, 3, 16)
    after = jit.rotate(torch.cat([context, image], dim=2), cos, sin)[:, :, 3:]
    assert torch.equal(after, jit.rotate(image, *joined[0][2]))  # joining does not move the image's tokens


def test_position_embedding_is_the_official_one():
    """Recorded from the official code: width 32, 4 x 4 tokens. Column half first, [sin | cos], in float64."""
    recorded = [0, 0.003162, 0.980067, 1, 0.01, 0.950415, 1]
    recorded += [0, 0.540302, 0.99998, 0.198669, 0.000949, 0.99955, 0.812649]
    found = small().pos_embed
    torch.testing.assert_close(found.flatten()[::37], torch.tensor(recorded), atol=1e-6, rtol=0)


# Of FACTS.md: parameters (M) and multiply-adds (G) that fit Tables 5 and 6 of the paper.
PAPER_COSTS = """B/16 256 131.1 25.22, B/32 512 133.2 25.75, B/64 1024 141.5 27.87, L/16 256 458.9 87.94,
L/32 512 461.5 88.62, H/16 256 952.5 181.95, H/32 512 956.1 182.85,
G/16 256 2007 383.74, G/32 512 2012 384.87"""


def cost_by_hand(model, size):
    """(trained parameters, multiply-adds of an image), summed from the paper's description of the network."""
    name, patch = model.split("/")
    s = jit.MODELS[name]
    D, K, heads, r = s["width"], s["context_tokens"], s["heads"], s["bottleneck"]
    N, numbers, hidden = (size // int(patch)) ** 2, 3 * int(patch) ** 2, 4 * D * 2 // 3
    matrices = 3 * D * D + D * D + 3 * D * hidden  # of a token in a block: qkv, projection, SwiGLU
    vectors = 3 * D + D + 2 * hidden + D + 2 * D + 2 * D // heads  # their biases, two norms, q and k norm
    block = matrices + vectors + 6 * D * D + 6 * D
    embed = 256 * D + D * D + 2 * D + 1001 * D + K * D + numbers * r + r * D + D
    last = D + 2 * D * D + 2 * D + D * numbers + numbers
    products = 256 * D + D * D + N * (numbers * r + r * D) + 2 * D * D + N * D * numbers
    for i in range(s["depth"]):
        tokens = N if i < s["context_start"] else N + K
        products += tokens * matrices + 2 * tokens**2 * D + 6 * D * D  # attention: q k^T and its product with v
    return s["depth"] * block + embed + last, products


@pytest.mark.parametrize("row", PAPER_COSTS.replace("\n", " ").split(", "))
def test_table_of_models_has_the_papers_costs(row):
    """Tables 5 and 6 to all digits given, one up or down in the last: a wrong depth, width or bottleneck shows."""
    model, size, *printed = row.split()
    for value, unit, text in zip(cost_by_hand(model, int(size)), (1e6, 1e9), printed):
        assert abs(value / unit - float(text)) < 1.01 * 10 ** -len(text.partition(".")[2])


@pytest.mark.parametrize("model, size", [("B/16", 256), ("Ti/16", 64)])
def test_network_costs_what_its_description_says(model, size):
    """count_cost of figures/models.py counts the real network: exactly the sum by hand, to the last multiplication."""
    assert models.count_cost(model, size) == cost_by_hand(model, size)


def test_table_of_models_is_printed_beside_the_papers(monkeypatch, capsys):
    """Each row of Tables 5 and 6 beside the paper's rounded numbers. Costs by hand: the test above checks the count."""
    monkeypatch.setattr(models, "count_cost", cost_by_hand)
    models.main()
    rows = {tuple(line.split()[:2]): line for line in capsys.readouterr().out.splitlines()}
    assert len(rows) > 9
    for row in ("B/16 256 131 25", "B/64 1024 141 30", "L/32 512 462 89", "H/16 256 953 182", "G/32 512 2012 385"):
        model, size, parameters, products = row.split()
        assert f"({parameters})" in rows[model, size] and f"({products})" in rows[model, size]
    assert "131.1" in rows["B/16", "256"] and "25.2" in rows["B/16", "256"] and "768" in rows["B/16", "256"]


def test_state_dict_of_b16_is_that_of_released_checkpoints():
    """Names and shapes: 183 tensors and no buffers, or released weights would not load."""
    with torch.device("meta"):
        net = jit.JiT(**jit.MODELS["B"], size=256, patch=16, classes=1000)
    D, hidden = 768, 2048
    expected = {
        "pos_embed": (1, 256, D), "in_context_posemb": (1, 32, D), "y_embedder.embedding_table.weight": (1001, D),
        "t_embedder.mlp.0.weight": (D, 256), "t_embedder.mlp.0.bias": (D,), "t_embedder.mlp.2.weight": (D, D),
        "t_embedder.mlp.2.bias": (D,), "x_embedder.proj1.weight": (128, 3, 16, 16),
        "x_embedder.proj2.weight": (D, 128, 1, 1), "x_embedder.proj2.bias": (D,),
        "final_layer.norm_final.weight": (D,), "final_layer.linear.weight": (768, D), "final_layer.linear.bias": (768,),
        "final_layer.adaLN_modulation.1.weight": (2 * D, D), "final_layer.adaLN_modulation.1.bias": (2 * D,),
    }  # fmt: skip
    block = {
        "norm1.weight": (D,), "norm2.weight": (D,), "attn.q_norm.weight": (64,), "attn.k_norm.weight": (64,),
        "attn.qkv.weight": (3 * D, D), "attn.qkv.bias": (3 * D,), "attn.proj.weight": (D, D), "attn.proj.bias": (D,),
        "mlp.w12.weight": (2 * hidden, D), "mlp.w12.bias": (2 * hidden,), "mlp.w3.weight": (D, hidden),
        "mlp.w3.bias": (D,), "adaLN_modulation.1.weight": (6 * D, D), "adaLN_modulation.1.bias": (6 * D,),
    }  # fmt: skip
    expected |= {f"blocks.{i}.{name}": shape for i in range(12) for name, shape in block.items()}
    assert {name: tuple(value.shape) for name, value in net.state_dict().items()} == expected
    assert len(expected) == 183


# Made with the official code on a CPU: its JiT(depth=6, hidden_size=32, num_heads=2, bottleneck_dim=8, patch_size=4,
# in_context_len=3, in_context_start=4, input_size=16, num_classes=5) with the weights of `fill`, in its Denoiser with
# noise_scale 2. Every 197th number of each answer.
OUTPUT = [-0.50932, 0.84732, -1.7288, -2.11181, 0.76596, 3.67145, 0.07892, 0.82199, 0.89227, 3.408, -0.2602, 0.09053]
LOSS = 1060.5224609375
GRADIENT = {  # norms of its parts
    "t_embedder": 18977.0449, "y_embedder": 1307.4434, "x_embedder": 849.3109, "in_context_posemb": 42.1669,
    "blocks.0.": 17326.4375, "blocks.3.": 2994.0066, "blocks.4.": 1774.3064, "blocks.5.": 1091.3398,
    "blocks.2.attn.q_norm": 1.61774, "blocks.2.attn.k_norm": 1.58201, "blocks.2.norm1": 39.2167,
    "blocks.2.attn.qkv.bias": 34.4324, "blocks.2.mlp.w12.bias": 106.669, "blocks.2.adaLN_modulation": 2548.1017,
    "final_layer": 2752.8455,
}  # fmt: skip
GENERATED = {  # lower end of the guidance interval, solver
    (0.1, "heun"): [-2.10228, -0.26641, 1.73578, -1.48315, -1.01613, 2.77421,
                    -0.00307, -0.93908, 1.3224, 2.75768, 2.61619, -0.87556],
    (0.0, "heun"): [-1.7992, -0.08952, 0.88443, -1.88587, -0.89974, 2.77779,
                    0.21744, -0.87046, 1.23746, 2.92573, 2.63872, -0.84478],
    (0.1, "euler"): [-0.99265, 0.69532, -1.34639, -1.99454, -0.34026, 3.31613,
                     0.06704, 0.65919, 1.53513, 1.91678, 1.9682, -1.28075],
}  # fmt: skip


@pytest.fixture(scope="module")
def official():
    """The network and inputs with which the numbers above were recorded."""
    rng = np.random.RandomState(0)
    net = fill(small(), rng)
    x = torch.from_numpy(rng.uniform(-1, 1, (3, 3, 16, 16))).float()
    noise = torch.from_numpy(rng.standard_normal((3, 3, 16, 16))).float()
    return net, x, noise


def close_to_record(found, recorded):
    """Recorded to 5 digits; torch's attention sums in another order: 1e-6 of numbers around 2, some 20 steps on."""
    torch.testing.assert_close(found.flatten()[::197], torch.tensor(recorded), atol=1e-4, rtol=1e-4)


def test_network_puts_out_what_the_official_one_does(official):
    """All of Figure 3 at once: order of modulation, SwiGLU halves, RoPE, qk-norm, class tokens, patch layouts."""
    net, x, _ = official
    with torch.no_grad():
        close_to_record(net(x, torch.tensor([0.0, 0.3, 0.97]), torch.tensor([1, 4, jit.NO_CLASS])), OUTPUT)


def test_loss_and_gradient_are_the_official_ones(official):
    """Algorithm 1, one time beyond the clip: the official Denoiser gave this loss and gradient for these x, eps, t.

    1e-4: the gradient is a sum over 48 tokens in an order that differs; found are 3e-6.
    """
    net, x, noise = official
    t, eps = torch.tensor([0.0, 0.3, 0.97]), 2 * noise
    net.zero_grad()
    out = net(jit.interpolate(x, eps, t), t, torch.tensor([1, 4, 2]))
    loss = jit.flow_loss(out, x, eps, t, "x", "v").mean()
    assert math.isclose(loss.item(), LOSS, rel_tol=1e-5)
    loss.backward()
    for start, norm in GRADIENT.items():
        parts = [p.grad.flatten() for name, p in net.named_parameters() if name.startswith(start)]
        assert math.isclose(torch.cat(parts).norm(), norm, rel_tol=1e-4), start


@pytest.mark.parametrize("low, solver", GENERATED)
def test_samples_are_the_official_ones(official, low, solver):
    """Algorithm 2 with guidance 2.9 inside (low, 0.7), six steps: the official generate() gave these for this noise."""
    net, _, noise = official
    velocity = jit.guided_velocity(net, torch.tensor([1, 4, 2]), FLOW, cfg=2.9, interval=(low, 0.7))
    *_, (_, z, _) = jit.integrate(velocity, 2 * noise, 6, solver)
    close_to_record(z, GENERATED[low, solver])


def test_fresh_network_puts_out_zero():
    """Zero-initialised adaLN and last layer: exactly 0 whatever comes in, so training starts at a known loss."""
    torch.manual_seed(0)
    out = small()(normal(2, 3, 16, 16), torch.tensor([0.1, 0.9]), torch.tensor([0, jit.NO_CLASS]))
    assert torch.equal(out, torch.zeros(2, 3, 16, 16))


def test_weights_start_as_the_official_ones():
    """Xavier's uniform law for matrices, a patch flattened to one row; N(0, 0.02) for embeddings; all else 0 or 1.

    A uniform law with bound b has standard deviation b / sqrt(3). 5% are four sigma of 4,000 draws, 10% of 400.
    """
    torch.manual_seed(0)
    net = small(width=64, depth=2, context_start=1, classes=100, context_tokens=64)
    zero = ("adaLN_modulation.1.weight", "final_layer.linear.weight", "bias")
    embedding = ("embedding_table.weight", "mlp.0.weight", "mlp.2.weight", "in_context_posemb")
    for name, p in net.state_dict().items():
        if name.endswith(zero) or "norm" in name:
            assert torch.equal(p, torch.full_like(p, float("norm" in name))), name
        elif name.endswith(embedding):
            assert math.isclose(p.std(), 0.02, rel_tol=0.05) and p.abs().max() > 0.06, name
        elif name != "pos_embed":
            rows, columns = p.flatten(1).shape
            bound = math.sqrt(6 / (rows + columns))
            assert p.abs().max() <= bound, name
            tolerance = 0.05 if p.numel() > 4000 else 0.1  # the patch convolutions have 384 and 512
            assert math.isclose(p.std(), bound / math.sqrt(3), rel_tol=tolerance), name


def test_first_loss_is_2_96_times_the_mean_square():
    """E[1 / (1-t)^2] = E[(1 + e^u)^2], u ~ N(-0.8, 0.8), is 2.96: checks t's law, the loss weight and the zero start.

    20,000 draws of a variable with standard deviation 3.5: four standard errors are 0.1.
    """
    expected = 1 + 2 * math.exp(-0.8 + 0.32) + math.exp(-1.6 + 1.28)
    assert math.isclose(expected, 2.96, abs_tol=0.005)
    torch.manual_seed(0)
    net = small(size=8, patch=8, depth=2, context_start=1, width=16)
    x = 0.5 * normal(20_000, 3, 8, 8).sign()
    with torch.no_grad():
        loss, t = jit.training_loss(net, x, torch.zeros(len(x), dtype=torch.long), jit.Flow())
    assert loss.shape == t.shape == (20_000,)
    assert math.isclose(loss.mean() / 0.25, expected, abs_tol=0.1)


ABLATIONS = [
    ({}, {}), (dict(rope=False, qk_norm=False, context_tokens=0), {}), (dict(bottleneck=0, channels=1), {}),
    (dict(classes=0), {}), ({}, dict(pred="v", loss="eps")), ({}, dict(pred="eps", loss="x")),
]  # fmt: skip


@pytest.mark.parametrize("switches, flow", ABLATIONS)
def test_every_parameter_learns(switches, flow):
    """Whatever is switched off (Tables 2 and 4), nothing that remains is left out of the forward pass."""
    torch.manual_seed(0)
    net = filled(**switches)
    x, y = normal(4, *net.shape).clamp(-1, 1), torch.arange(4) if net.classes else torch.full((4,), jit.NO_CLASS)
    jit.training_loss(net, x, y, jit.Flow(**flow, label_drop=0.0))[0].mean().backward()
    for name, p in net.named_parameters():
        learns = p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0
        assert learns != (name == "pos_embed"), name


@pytest.mark.parametrize("switches", [{}, dict(rope=False, qk_norm=False, bottleneck=0, channels=1, dropout=0.2)])
def test_arguments_build_the_network_again(switches):
    """A checkpoint holds net.arguments: with them and the weights comes the same network, to the last bit."""
    net = filled(**switches)
    again = jit.JiT(**net.arguments).eval()
    again.load_state_dict(net.state_dict())
    inputs = normal(2, *net.shape), torch.tensor([0.2, 0.7]), torch.tensor([0, jit.NO_CLASS])
    assert torch.equal(again(*inputs), net(*inputs))
    assert [m.p for m in again.modules() if isinstance(m, torch.nn.Dropout)] == [
        m.p for m in net.modules() if isinstance(m, torch.nn.Dropout)
    ]


@pytest.mark.parametrize("wrong", [dict(size=18), dict(width=36), dict(heads=3)])
def test_sizes_that_cannot_work_are_refused(wrong):
    """Patches that do not fill the image, or heads whose numbers do not pair up on two axes: a sentence, at once."""
    with pytest.raises(ValueError, match="multiple"):
        small(**wrong)


@pytest.mark.parametrize("bottleneck", [0, 8])
def test_patch_embedding_is_a_matrix_product(bottleneck):
    """Each patch by itself, its numbers in the order channel, row, column: one matrix, or two through r numbers.

    1e-5: sums of 48 products in fp32.
    """
    embed, z = jit.PatchEmbed(4, 3, bottleneck, 32), normal(2, 3, 16, 16)
    patches = F.unfold(z, 4, stride=4).transpose(1, 2)  # (2, 16 tokens, 48)
    if bottleneck:
        patches = patches @ embed.proj1.weight.flatten(1).T
    expected = patches @ embed.proj2.weight.flatten(1).T + embed.proj2.bias
    torch.testing.assert_close(embed(z), expected, atol=1e-5, rtol=1e-5)


def test_no_class_is_the_last_row_of_the_table():
    """As in released checkpoints. Editing it changes images without class only; another row, those of its class."""
    net, inputs = filled(), (normal(3, 3, 16, 16), torch.tensor([0.2, 0.5, 0.8]), torch.tensor([0, jit.NO_CLASS, 4]))
    table = net.y_embedder["embedding_table"].weight
    with torch.no_grad():
        before = net(*inputs)
        for row, image in ((5, 1), (0, 0), (4, 2)):
            table[row] += 1
            changed = (net(*inputs) - before).abs().amax((1, 2, 3)) > 1e-3  # rounding is 1e-6
            assert changed.tolist() == [i == image for i in range(3)]
            table[row] -= 1


def test_dropout_in_the_middle_half_only():
    """H has 32 blocks: dropout 0.2 in blocks 8 to 23, at the attention's projection and inside the MLP."""
    with torch.device("meta"):
        net = jit.JiT(**jit.MODELS["H"], size=256, patch=16, classes=10)
    rates = [(block.attn.dropout.p, block.mlp.dropout.p) for block in net.blocks]
    assert rates == [(0.0, 0.0)] * 8 + [(0.2, 0.2)] * 16 + [(0.0, 0.0)] * 8
    block, x = jit.Block(width=32, heads=2, dropout=1.0, qk_norm=True), normal(1, 16, 32)
    torch.nn.init.ones_(block.mlp.w3.bias)
    with torch.no_grad():  # where all is dropped, what comes after remains: a bias in the MLP, nothing in attention
        assert torch.equal(block.attn(x, UNTURNED), torch.zeros(1, 16, 32))
        assert torch.equal(block.mlp(x), torch.ones(1, 16, 32))
        block.eval()
        assert block.attn(x, UNTURNED).abs().min() > 0 and (block.mlp(x) - 1).abs().min() > 0


# Training


def blank(record):
    """A stand-in for the network that puts out zeros and remembers what it was given."""

    def net(z, t, y):
        record.append((z, t, y))
        return torch.zeros_like(z)

    return net


def test_tenth_of_the_labels_is_dropped():
    """Guidance needs a field without class: label_drop of the labels become NO_CLASS, the others stay."""
    record, y = [], torch.arange(20_000) % 5
    torch.manual_seed(0)
    jit.training_loss(blank(record), torch.zeros(20_000, 3, 2, 2), y, jit.Flow())
    seen = record[0][2]
    dropped = seen == -1
    assert torch.equal(seen[~dropped], y[~dropped])
    assert math.isclose(dropped.float().mean(), 0.1, abs_tol=0.009)  # 4 sigma of 20,000 draws
    jit.training_loss(blank(record), torch.zeros(20_000, 3, 2, 2), y, jit.Flow(label_drop=0.0))
    assert torch.equal(record[1][2], y)


def test_noise_has_its_scale():
    """noise_scale is the standard deviation of eps: seen in z, which at t near 0 is all noise."""
    record, y = [], torch.zeros(64, dtype=torch.long)
    torch.manual_seed(0)
    jit.training_loss(blank(record), torch.zeros(64, 3, 16, 16), y, FLOW)
    z, t, _ = record[0]
    assert math.isclose((z / (1 - t.view(-1, 1, 1, 1))).std(), 2, rel_tol=0.02)


@pytest.mark.parametrize("flags, scale", [("--size 512", 2), ("--size 64", 1), ("--size 512 --noise-scale 3", 3)])
def test_noise_grows_with_the_image(flags, scale, monkeypatch, tmp_path):
    """Neighbouring pixels of a large image agree, so it takes more noise to hide it: 512 px 2, at most 256 px 1."""
    flows = []
    fake = functools.wraps(jit.train)(lambda net, flow, **others: flows.append(flow))  # flags are read off train
    monkeypatch.setattr(jit, "train", fake)
    assert jit.main(f"train --model Ti/32 --device cpu --out {tmp_path} {flags}".split()) == 0
    assert flows[0].noise_scale == scale


def test_loss_reads_flow_as_conversions_do():
    """Each field of Flow reaches the loss: with the same draws, training_loss is flow_loss of these arguments."""
    flow = jit.Flow(pred="x", loss="eps", mu=0.5, sigma=0.3, noise_scale=3.0, t_clip=0.4)
    record, x = [], normal(16, 3, 4, 4)
    torch.manual_seed(0)
    loss, t = jit.training_loss(blank(record), x, torch.zeros(16, dtype=torch.long), flow)
    torch.manual_seed(0)
    assert torch.equal(t, jit.sample_t(16, 0.5, 0.3)) and t.max() > 0.6  # some beyond the clip
    eps = 3 * torch.randn_like(x)
    assert torch.equal(record[0][0], jit.interpolate(x, eps, t)) and torch.equal(record[0][1], t)
    torch.testing.assert_close(loss, jit.flow_loss(torch.zeros_like(x), x, eps, t, "x", "eps", 0.4))


def test_all_blocks_know_class_and_time():
    """What modulates each block and the last layer is the time's embedding plus the class's: both in full."""
    net, given = filled(), []
    for module in [*net.blocks, net.final_layer]:
        module.register_forward_pre_hook(lambda _, inputs: given.append(inputs[1].flatten()))
    table, time = net.y_embedder["embedding_table"].weight, net.t_embedder["mlp"]
    with torch.no_grad():
        net(normal(1, 3, 16, 16), torch.tensor([0.4]), torch.tensor([1]))
        angles = [0.4 / 10000 ** (i / 128) for i in range(128)]
        features = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
        for c in given:
            torch.testing.assert_close(c, time(features) + table[1], atol=1e-5, rtol=1e-5)
    assert len(given) == 7


def test_average_of_weights():
    """Long after the ramp it is decay's geometric average; before, d = 1 - w / (w + step), whatever the decay."""
    average, decay = [torch.zeros(2)], 0.9
    for step in range(1_000_001, 1_000_021):
        jit.update_average(average, [torch.ones(2)], decay, 9, step)
    torch.testing.assert_close(average[0], torch.full((2,), 1 - decay**20))
    average, plain = [torch.zeros(1, dtype=torch.float64)], 0.0
    for step in range(1, 101):
        jit.update_average(average, [torch.full((1,), float(step), dtype=torch.float64)], 0.9999, 9, step)
        plain = plain * step / (9 + step) + step * 9 / (9 + step)
    assert math.isclose(average[0].item(), plain, rel_tol=1e-9)


def test_average_forgets_the_random_start():
    """In a run of 100 steps the official decay of 0.9999 would keep 99% of the start; the ramp keeps less than 1e-9.

    Its memory is the last 1 / (w + 1) of the run: following the step number it lags 100 / 10 steps behind.
    """
    start, lag = [torch.ones(1, dtype=torch.float64)], [torch.zeros(1, dtype=torch.float64)]
    for step in range(1, 101):
        jit.update_average(start, [torch.zeros(1, dtype=torch.float64)], 0.9999, 9, step)
        jit.update_average(lag, [torch.full((1,), float(step), dtype=torch.float64)], 0.9999, 9, step)
    assert start[0].item() < 1e-9
    assert 8 < 100 - lag[0].item() < 12


# Sampling


def gaussian_flow(mean=0.3, scale=0.4):
    """Exact velocity for data N(mean, scale^2) and noise N(0, 1), and the exact end of the path that starts at z."""

    def velocity(z, t):
        velocity.calls.append(t)
        variance = (t * scale) ** 2 + (1 - t) ** 2
        return mean + (t * scale**2 - (1 - t)) / variance * (z - t * mean)

    velocity.calls = []
    return velocity, lambda z: mean + scale * z


@pytest.mark.parametrize("solver, order", [("euler", 1), ("heun", 2)])
def test_order_of_the_solver(solver, order):
    """Twice the steps, half or a quarter of the error, on an equation with a known solution, in fp64."""
    velocity, solution = gaussian_flow()
    z, errors = normal(100, dtype=torch.float64), []
    for steps in (40, 80):
        *_, (t, end, _) = jit.integrate(velocity, z, steps, solver)
        assert t == 1
        errors.append((end - solution(z)).abs().max().item())
    assert math.isclose(math.log2(errors[0] / errors[1]), order, abs_tol=0.15)
    assert errors[1] < (0.05 if order == 1 else 0.005)


def test_number_of_evaluations_and_last_step():
    """Heun-50 costs 99 evaluations, Euler-50 50; none is at t = 1, where v divides by 0: the last step is Euler's."""
    for solver, count in (("heun", 99), ("euler", 50)):
        velocity, _ = gaussian_flow()
        path = list(jit.integrate(velocity, normal(2), 50, solver))
        assert len(velocity.calls) == count and len(path) == 51
        assert math.isclose(max(velocity.calls), 0.98)
        *_, (t, z, _), (_, end, _) = path
        torch.testing.assert_close(end, z + 0.02 * gaussian_flow()[0](z, t))


def test_path_tells_where_the_tangent_leads():
    """x_pred = z + (1 - t) v, as trajectories show; t goes from 0 to 1 in even steps; the last state is the image."""
    velocity, _ = gaussian_flow()
    path = list(jit.integrate(velocity, normal(3), 4, "euler"))
    assert [t for t, _, _ in path] == [0, 0.25, 0.5, 0.75, 1]
    for t, z, x in path[:-1]:
        torch.testing.assert_close(x, z + (1 - t) * gaussian_flow()[0](z, t))
    assert torch.equal(path[-1][1], path[-1][2])


def separate(net, z, t, y, w):
    """Guidance as the paper writes it: two forwards, v_none + w (v_class - v_none), for an x-predictor."""
    time = torch.full((len(z),), t)
    v_class, v_none = ((net(z, time, labels) - z) / max(1 - t, 0.05) for labels in (y, torch.full_like(y, -1)))
    return v_none + w * (v_class - v_none)


@pytest.mark.parametrize("t, w", [(0.05, 1), (0.1, 1), (0.11, 2.5), (0.89, 2.5), (0.9, 1), (0.99, 1)])
def test_guided_velocity_equals_two_forwards(t, w):
    """Both halves in one forward, inside the open interval (0.1, 0.9); outside, w = 1: the field of the class alone."""
    net, z, y = filled(), normal(3, 3, 16, 16), torch.tensor([0, 4, 2])
    velocity = jit.guided_velocity(net, y, FLOW, cfg=2.5, interval=(0.1, 0.9))
    with torch.no_grad():
        expected = separate(net, z, t, y, w)
        torch.testing.assert_close(velocity(z, t), expected, atol=1e-3, rtol=1e-3)  # fp32, times 2.5 / (1 - t)


def test_guidance_costs_what_it_must():
    """No unconditional forward where w = 1, and both halves in one: batch sizes, labels and number of all forwards."""

    def labels(cfg, interval, times):
        record = []
        velocity = jit.guided_velocity(blank(record), torch.tensor([1, 0]), FLOW, cfg, interval)
        for t in times:
            velocity(torch.zeros(2, 3, 4, 4), t)
        return [y.tolist() for _, _, y in record]

    one, both = [1, 0], [1, 0, -1, -1]
    assert labels(2.0, (0.1, 1.0), [0.0, 0.1, 0.5, 0.99]) == [one, one, both, both]
    assert labels(1.0, (0.0, 1.0), [0.0, 0.5]) == [one, one]
    assert labels(2.0, (0.0, 0.7), [0.0, 0.7, 0.71]) == [both, one, one]  # lower end 0: t = 0 is inside
    assert labels(0.0, (0.0, 1.0), [0.5]) == [both]
    record, y = [], torch.zeros(2, dtype=torch.long)
    list(jit.sample_images(blank(record), y, FLOW, (3, 4, 4), cfg=2.0, interval=(0.0, 1.0)))
    assert len(record) == 99 and all(len(y) == 4 for _, _, y in record)
    record.clear()
    list(jit.sample_images(blank(record), y, FLOW, (3, 4, 4), cfg=1.0, sampling_steps=7, solver="euler"))
    assert len(record) == 7


@pytest.mark.parametrize("classes, count", [(0, 99), (1, 99), (2, 99 + 88)])
def test_one_class_is_nothing_to_guide_towards(classes, count, monkeypatch):
    """`sample` and `eval` leave the field without class alone, where the class tells nothing: half the time."""
    record = []
    net = blank(record)
    net.classes, net.shape, net.pos_embed = classes, (3, 4, 4), torch.zeros(1)
    monkeypatch.setattr(jit, "load_run", lambda *given: (net, FLOW, dict(names=[])))
    *_, batches = jit.open_run(jit.parse_flags("sample RUN --n 1 --device cpu".split()))
    list(batches)
    assert sum(len(z) for z, _, _ in record) == count  # 88 evaluations lie inside (0.1, 1)


@pytest.mark.parametrize("pred", PREDS)
def test_sampler_reads_the_output_as_the_loss_does(pred):
    """A perfect network for one image x draws that image from any noise, whatever it predicts."""
    flow, y = jit.Flow(pred=pred, t_clip=1e-6), torch.tensor([0, 1])
    x, noise = normal(2, 3, 16, 16, seed=5).clamp(-1, 1), normal(2, 3, 16, 16, seed=6)

    def perfect(z, t, y):
        image, time = x.repeat(len(z) // 2, 1, 1, 1), t.view(-1, 1, 1, 1)
        eps = (z - time * image) / (1 - time)
        return {"x": image, "eps": eps, "v": image - eps}[pred]

    velocity = jit.guided_velocity(perfect, y, flow, cfg=3.0)
    if pred == "eps":  # (z - eps) / t: at t = 0 v is lost by the clip, and the path starts elsewhere
        v = velocity(jit.interpolate(x, noise, torch.tensor([0.4, 0.4])), 0.4)
        torch.testing.assert_close(v, x - noise, atol=1e-4, rtol=0)
    else:
        *_, (_, end, _) = jit.integrate(velocity, noise, 20)
        torch.testing.assert_close(end, x, atol=1e-4, rtol=0)  # fp32 over 39 evaluations


def test_clip_leaves_noise_as_the_official_sampler():
    """FACTS: clipped at 0.05, Heun-50 leaves 1.7% of the noise even for a perfect network; a small t_clip mends it."""
    for flow, left in ((jit.Flow(), 0.017), (jit.Flow(t_clip=1e-6), 0.0)):
        velocity = jit.guided_velocity(blank([]), torch.tensor([0]), flow, cfg=1.0)
        noise = normal(1, 3, 16, 16)
        *_, (_, end, _) = jit.integrate(velocity, noise)
        assert math.isclose(end.norm() / noise.norm(), left, abs_tol=5e-4)  # the image is 0


def test_image_depends_on_its_number_and_seed_only():
    """Image i is the same whatever the batch size and the number of images; another seed gives another."""
    net, y = filled(), torch.arange(7) % 5

    def draw(n, **options):
        return torch.cat(list(jit.sample_images(net, y[:n], FLOW, net.shape, sampling_steps=3, **options))).int()

    together, apart, fewer = draw(7, batch_size=7), draw(7, batch_size=3), draw(4, batch_size=2)
    assert together.shape == (7, 3, 16, 16)
    assert (together - apart).abs().max() <= 1  # a sum in another order may round to the next grey level
    assert (together[:4] - fewer).abs().max() <= 1
    assert (draw(1, batch_size=1, seed=1) - together[:1]).abs().float().mean() > 5


def test_noise_of_an_image_is_its_own():
    """N(0, 1) for each (seed, number), the same in any batch: also image 4 of a batch that starts with it."""
    noise = jit.image_noise((3, 16, 16), 0, range(7))
    assert torch.equal(jit.image_noise((3, 16, 16), 0, range(4, 6)), noise[4:6])
    assert not any(torch.equal(noise[i], noise[j]) for i in range(7) for j in range(i))
    assert not torch.equal(jit.image_noise((3, 16, 16), 1, range(7)), noise)
    assert abs(noise.mean()) < 0.06 and math.isclose(noise.std(), 1, abs_tol=0.04)  # 4 sigma of 5,376 draws


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_sampling_starts_from_scaled_noise(scale):
    """What the network sees first, at t = 0, is noise_scale times the noise of the images; batches go on counting."""
    record, y = [], torch.zeros(3, dtype=torch.long)
    sizes = [len(x) for x in jit.sample_images(blank(record), y, jit.Flow(noise_scale=scale), (1, 2, 2), batch_size=2,
                                               sampling_steps=1)]  # fmt: skip
    assert sizes == [2, 1]
    assert torch.equal(torch.cat([z for z, _, _ in record]), scale * jit.image_noise((1, 2, 2), 0, range(3)))


def test_seeds_do_not_repeat():
    """Image (seed, i) and training step (seed, i, 0) have streams of their own; numpy pads (a, b) to (a, b, 0)."""
    assert len({jit.mix_seed(0, i) for i in range(100)} | {jit.mix_seed(0, i, 0) for i in range(100)}) == 200
    assert len({jit.mix_seed(*numbers) for numbers in [(1, 2), (2, 1), (1, 2, 0), (0, 1, 2)]}) == 4


def test_images_are_rounded_and_clipped_at_the_end():
    """-1 is 0, 1 is 255, beyond is clipped, between is rounded: as the official code writes images."""
    levels = torch.arange(256)
    assert torch.equal(jit.to_uint8(levels / 127.5 - 1), levels.to(torch.uint8))
    assert jit.to_uint8(torch.tensor([-3.0, 3.0, 2 * 99.6 / 255 - 1])).tolist() == [0, 255, 100]


def test_small_steps_of_training_help():
    """A network, loss, gradient and optimiser that fit together learn one image in 60 steps: the loss falls by half."""
    torch.manual_seed(0)
    net, x = small(depth=2, context_start=1), normal(1, 3, 16, 16).clamp(-1, 1).expand(16, -1, -1, -1)
    optimizer, losses = torch.optim.AdamW(net.parameters(), 5e-3), []
    for _ in range(60):
        loss, _ = jit.training_loss(net, x, torch.zeros(16, dtype=torch.long), jit.Flow(noise_scale=2.0, label_drop=0))
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        losses.append(loss.mean().item())
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])


# The file itself


EXAMPLE = """
import torch
from jit import MODELS, Flow, JiT, sample_images, training_loss

net = JiT(**MODELS["Ti"], size=64, patch=16, classes=10)
flow = Flow(pred="x", loss="v")
optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
x, y = torch.rand(32, 3, 64, 64) * 2 - 1, torch.randint(10, (32,))  # your images, in [-1, 1]
loss, t = training_loss(net, x, y, flow)
loss.mean().backward()
optimizer.step()
classes = torch.arange(10)
images = torch.cat(list(sample_images(net.eval(), classes, flow, net.shape, sampling_steps=5)))
"""


def test_example_of_the_readme_runs():
    """The README's first example (or the one above, until it has one): a network, a training step, images."""
    blocks = re.findall("^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    names = {}
    exec(next((block for block in blocks if "from jit import" in block), EXAMPLE), names)
    net, images = names["net"], names["images"]
    assert images.dtype == torch.uint8 and images.shape[1:] == net.shape
    assert names["loss"].mean().isfinite()
    assert net.final_layer.linear.weight.abs().max() > 0  # it was 0: a step was made


@pytest.mark.parametrize("name", ["jit.py", "toy_manifold.py"])
def test_one_statement_a_line(name):
    """No semicolons, which would hide lines from the budget above, and no line beyond 120."""
    text = (ROOT / name).read_text()
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    assert not [token.start for token in tokens if token.type == tokenize.OP and token.string == ";"]
    assert max(map(len, text.splitlines())) <= 120


def test_import_does_nothing(monkeypatch, capsys):
    """A notebook may import jit.py: imports at the top, then definitions; no flag is read, nothing is printed."""
    _, *body = ast.parse((ROOT / "jit.py").read_text()).body  # after the docstring
    kinds = [isinstance(node, (ast.Import, ast.ImportFrom)) for node in body]
    everywhere = [node for node in ast.walk(ast.Module(body, [])) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert kinds == sorted(kinds, reverse=True) and sum(kinds) == len(everywhere)
    definitions = (ast.FunctionDef, ast.ClassDef, ast.Assign)
    assert all(isinstance(node, definitions) for node in body[sum(kinds) : -1])
    monkeypatch.setattr(sys, "argv", ["notebook", "--no-such-flag"])
    spec = importlib.util.spec_from_file_location("jit_again", ROOT / "jit.py")
    monkeypatch.setitem(sys.modules, "jit_again", importlib.util.module_from_spec(spec))  # dataclasses look there
    spec.loader.exec_module(sys.modules["jit_again"])
    assert capsys.readouterr() == ("", "")
