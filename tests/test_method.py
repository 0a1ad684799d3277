"""Flow, network, loss and sampler of jit.py, against closed forms, the paper's numbers and the official code."""

import math

import numpy as np
import pytest
import torch

import jit

PREDS = ["x", "eps", "v"]
NINE = [(pred, loss) for pred in PREDS for loss in PREDS]


def small(**changes):
    """Settings of a network of 16 tokens that has all parts."""
    base = dict(model="Ti/4", size=16, classes=5, depth=6, width=32, heads=2, bottleneck=8, context_tokens=3)
    return jit.resolve(jit.Settings(**(base | dict(context_start=4, noise_scale=2.0) | changes)))


def fill(net, rng):
    """Weights that can be made anywhere: numpy's RandomState, by sorted name. No weight stays 0."""
    with torch.no_grad():
        for name, p in sorted(net.named_parameters()):
            if name != "pos_embed":
                noise = torch.from_numpy(rng.standard_normal(tuple(p.shape))).float()
                p.copy_(0.1 * noise + ("norm" in name) if p.dim() == 1 else 0.2 * noise)
    return net.eval()


def filled(s):
    return fill(jit.JiT(s), np.random.RandomState(0))


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


def test_uniform_times():
    """--t-law uniform covers [0, 1) evenly: mean 1/2, variance 1/12, a tenth below a tenth."""
    torch.manual_seed(0)
    t = jit.sample_t(100_000, law="uniform")
    assert math.isclose(t.mean(), 0.5, abs_tol=0.004) and math.isclose(t.var(), 1 / 12, abs_tol=0.001)
    assert math.isclose((t < 0.1).float().mean(), 0.1, abs_tol=0.004)


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
    """Beyond the clip v = (x - z) / 0.05, as the official code, so the sampler leaves noise; --t-clip sets it."""
    x, z, t = normal(2, 3, 2, 2, seed=1), normal(2, 3, 2, 2, seed=2), torch.tensor([0.99, 1.0])
    torch.testing.assert_close(jit.convert(x, z, t, "x")["v"], (x - z) / 0.05)
    torch.testing.assert_close(jit.convert(x, z, t, "x", clip=0.2)["v"], (x - z) / 0.2)
    torch.testing.assert_close(jit.convert(x, z, 1 - t, "eps")["v"], (z - x) / 0.05)


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


@pytest.mark.parametrize("kind", ["linear", "edm"])
def test_precondition_is_the_formula_of_table_10(kind):
    """c_skip z + c_out net with the paper's coefficients, where they can be computed as printed: 0 < t < 1."""
    out, z = normal(5, 3, 2, 2, seed=1), normal(5, 3, 2, 2, seed=2)
    for i, t in enumerate([0.01, 0.3, 0.5, 0.9, 0.99]):
        sigma_t, sigma_d = (1 - t) / t, 0.5
        c_skip = t if kind == "linear" else 1 / t * sigma_d**2 / (sigma_d**2 + sigma_t**2)
        c_out = 1 - t if kind == "linear" else sigma_d * sigma_t / math.sqrt(sigma_d**2 + sigma_t**2)
        found = jit.precondition(out, z, torch.full((5,), t), kind)[i]
        torch.testing.assert_close(found, c_skip * z[i] + c_out * out[i], atol=1e-6, rtol=1e-5)


def test_precondition_at_both_ends():
    """At t = 1 the input is the image: c_skip 1, c_out 0. At t = 0 it is all noise: no 0 / 0. "none" does nothing."""
    out, z = normal(2, 3, 2, 2, seed=1), normal(2, 3, 2, 2, seed=2)
    for kind in ("linear", "edm"):
        torch.testing.assert_close(jit.precondition(out, z, torch.ones(2), kind), z)
    torch.testing.assert_close(jit.precondition(out, z, torch.zeros(2), "linear"), out)
    torch.testing.assert_close(jit.precondition(out, z, torch.zeros(2), "edm"), 0.5 * out)  # sigma_d
    assert jit.precondition(out, z, torch.zeros(2), "none") is out


# The network


@pytest.mark.parametrize("switches", [{}, dict(rope=False, qk_norm=False, norm="layer", mlp="gelu", context_tokens=0)])
def test_patches_see_each_other(switches):
    """A well-known re-implementation attends across heads, not tokens: no error, a falling loss, blind patches.

    Editing one patch must change the output at every other patch, and no other image of the batch.
    """
    net, z = filled(small(**switches)), normal(2, 3, 16, 16)
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
    s = small(rope=False)
    attention, x = jit.Attention(s, 0.0), normal(1, 5, 32)
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
        torch.testing.assert_close(attention(x, None)[0], expected, atol=1e-5, rtol=1e-4)


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
    net = filled(small())
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
    torch.testing.assert_close(cos[3:], joined[0][2][0])


def test_position_embedding_is_the_official_one():
    """Recorded from the official code: width 32, 4 x 4 tokens. Column half first, [sin | cos], in float64."""
    recorded = [0, 0.003162, 0.980067, 1, 0.01, 0.950415, 1]
    recorded += [0, 0.540302, 0.99998, 0.198669, 0.000949, 0.99955, 0.812649]
    found = jit.JiT(small()).pos_embed
    torch.testing.assert_close(found.flatten()[::37], torch.tensor(recorded), atol=1e-6, rtol=0)


# Of FACTS.md: parameters (M) and multiply-adds (G) that fit Tables 5 and 6 of the paper.
PAPER_COSTS = """B/16 256 131.1 25.22, B/32 512 133.2 25.75, B/64 1024 141.5 27.87, L/16 256 458.9 87.94,
L/32 512 461.5 88.62, H/16 256 952.5 181.95, H/32 512 956.1 182.85,
G/16 256 2007 383.74, G/32 512 2012 384.87"""


def cost_by_hand(s):
    """(trained parameters, multiply-adds of an image), summed from the paper's description of the network."""
    D, N, K, patch = s.width, (s.size // s.patch) ** 2, s.context_tokens, s.channels * s.patch**2
    hidden = 4 * D * 2 // 3
    matrices = 3 * D * D + D * D + 3 * D * hidden  # of a token in a block: qkv, projection, SwiGLU
    vectors = 3 * D + D + 2 * hidden + D + 2 * D + 2 * D // s.heads  # their biases, two norms, q and k norm
    block = matrices + vectors + 6 * D * D + 6 * D
    embed = 256 * D + D * D + 2 * D + (s.classes + 1) * D + K * D + patch * s.bottleneck + s.bottleneck * D + D
    last = D + 2 * D * D + 2 * D + D * patch + patch
    products = 256 * D + D * D + N * (patch * s.bottleneck + s.bottleneck * D) + 2 * D * D + N * D * patch
    for i in range(s.depth):
        tokens = N if i < s.context_start else N + K
        products += tokens * matrices + 2 * tokens**2 * D + 6 * D * D  # attention: q k^T and its product with v
    return s.depth * block + embed + last, products


@pytest.mark.parametrize("row", PAPER_COSTS.replace("\n", " ").split(", "))
def test_table_of_models_has_the_papers_costs(row):
    """Tables 5 and 6 to all digits given, one up or down in the last: a wrong depth, width or bottleneck shows."""
    model, size, *printed = row.split()
    s = jit.resolve(jit.Settings(model=model, size=int(size), classes=1000))
    for value, unit, text in zip(cost_by_hand(s), (1e6, 1e9), printed):
        assert abs(value / unit - float(text)) < 1.01 * 10 ** -len(text.partition(".")[2])


@pytest.mark.parametrize("model, size", [("B/16", 256), ("Ti/16", 64)])
def test_network_costs_what_its_description_says(model, size):
    """count_cost, which `info` prints, counts the real network: exactly the sum by hand, to the last multiplication."""
    s = jit.resolve(jit.Settings(model=model, size=size, classes=1000))
    assert jit.count_cost(s) == cost_by_hand(s)


def test_state_dict_of_b16_is_that_of_released_checkpoints():
    """Names and shapes: 183 tensors and no buffers, or released weights would not load."""
    with torch.device("meta"):
        net = jit.JiT(jit.resolve(jit.Settings(model="B/16", size=256, classes=1000)))
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
    net = fill(jit.JiT(small()), rng)
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
        close_to_record(net(x, torch.tensor([0.0, 0.3, 0.97]), torch.tensor([1, 4, 5])), OUTPUT)


def test_loss_is_the_official_one(official):
    """Algorithm 1, one time beyond the clip: the official Denoiser gave this loss for these x, eps, t."""
    net, x, noise = official
    t, eps = torch.tensor([0.0, 0.3, 0.97]), 2 * noise
    with torch.no_grad():
        out = net(jit.interpolate(x, eps, t), t, torch.tensor([1, 4, 2]))
    assert math.isclose(jit.flow_loss(out, x, eps, t, "x", "v").mean(), LOSS, rel_tol=1e-5)


@pytest.mark.parametrize("low, solver", GENERATED)
def test_samples_are_the_official_ones(official, low, solver):
    """Algorithm 2 with guidance 2.9 inside (low, 0.7), six steps: the official generate() gave these for this noise."""
    net, _, noise = official
    s, sampling = small(), jit.Sampling(cfg=2.9, interval=(low, 0.7), steps=6, solver=solver)
    velocity = jit.guided_velocity(net, torch.tensor([1, 4, 2]), s, sampling)
    *_, (_, z, _) = jit.integrate(velocity, 2 * noise, sampling.steps, sampling.solver)
    close_to_record(z, GENERATED[low, solver])


def test_fresh_network_puts_out_zero():
    """Zero-initialised adaLN and last layer: exactly 0 whatever comes in, so training starts at a known loss."""
    torch.manual_seed(0)
    net = jit.JiT(small())
    out = net(normal(2, 3, 16, 16), torch.tensor([0.1, 0.9]), torch.tensor([0, 5]))
    assert torch.equal(out, torch.zeros(2, 3, 16, 16))


def test_first_loss_is_2_96_times_the_mean_square():
    """E[1 / (1-t)^2] = E[(1 + e^u)^2], u ~ N(-0.8, 0.8), is 2.96: checks t's law, the loss weight and the zero start.

    20,000 draws of a variable with standard deviation 3.5: four standard errors are 0.1.
    """
    expected = 1 + 2 * math.exp(-0.8 + 0.32) + math.exp(-1.6 + 1.28)
    assert math.isclose(expected, 2.96, abs_tol=0.005)
    torch.manual_seed(0)
    s = small(size=8, model="Ti/8", depth=2, context_start=1, width=16)
    x = 0.5 * normal(20_000, 3, 8, 8).sign()
    with torch.no_grad():
        loss, flow, t = jit.training_loss(jit.JiT(s), x, torch.zeros(len(x), dtype=torch.long), s)
    assert math.isclose(loss / 0.25, expected, abs_tol=0.1)
    assert math.isclose(flow.mean(), loss, rel_tol=1e-5) and flow.shape == t.shape == (20_000,)


ABLATIONS = [
    {}, dict(norm="layer", mlp="gelu", rope=False, qk_norm=False, context_tokens=0), dict(bottleneck=0, channels=1),
    dict(classes=0), dict(cls_loss=100.0), dict(pred="v", loss="eps"), dict(pred="eps", loss="x"), dict(precond="edm"),
]  # fmt: skip


@pytest.mark.parametrize("switches", ABLATIONS)
def test_every_parameter_learns(switches):
    """Whatever is switched off (Tables 2, 4, 10, 11), nothing that remains is left out of the forward pass."""
    torch.manual_seed(0)
    s = small(**switches, label_drop=0.0)
    net = filled(s)
    x = normal(4, s.channels, 16, 16).clamp(-1, 1)
    jit.training_loss(net, x, torch.arange(4) % max(1, s.classes), s)[0].backward()
    for name, p in net.named_parameters():
        learns = p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0
        assert learns != (name == "pos_embed"), name


def test_layer_norm_variant_is_dits():
    """--norm layer leaves scale and shift to adaLN: no weights of its own, mean 0 and variance 1."""
    norm = jit.make_norm(small(norm="layer"))
    assert not list(norm.parameters())
    x = norm(3 + 2 * normal(4, 32))
    torch.testing.assert_close(x.mean(-1), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.var(-1, correction=0), torch.ones(4), atol=1e-4, rtol=0)


def test_dropout_in_the_middle_half_only():
    """H has 32 blocks: dropout 0.2 in blocks 8 to 23, at the attention's projection and inside the MLP."""
    with torch.device("meta"):
        net = jit.JiT(jit.resolve(jit.Settings(model="H/16", size=256, classes=10)))
    rates = [(block.attn.dropout.p, block.mlp.dropout.p) for block in net.blocks]
    assert rates == [(0.0, 0.0)] * 8 + [(0.2, 0.2)] * 16 + [(0.0, 0.0)] * 8
    block = jit.Block(small(), 0.5).train()
    with torch.no_grad():
        for part, inputs in ((block.attn, (normal(1, 16, 32), None)), (block.mlp, (normal(1, 16, 32),))):
            assert not torch.equal(part(*inputs), part(*inputs))
            part.eval()
            assert torch.equal(part(*inputs), part(*inputs))


# Training


def blank(record, classes=5):
    """A stand-in for the network that puts out zeros and remembers what it was given."""

    def net(z, t, y, return_logits=False):
        record.append((z, t, y))
        return (torch.zeros_like(z), None) if return_logits else torch.zeros_like(z)

    return net


def test_tenth_of_the_labels_is_dropped():
    """Guidance needs a field without class: label_drop of the labels become number s.classes, the others stay."""
    s, record = small(label_drop=0.1), []
    torch.manual_seed(0)
    y = torch.arange(20_000) % 5
    jit.training_loss(blank(record), torch.zeros(20_000, 3, 2, 2), y, s)
    seen = record[0][2]
    dropped = seen == 5
    assert torch.equal(seen[~dropped], y[~dropped])
    assert math.isclose(dropped.float().mean(), 0.1, abs_tol=0.009)  # 4 sigma of 20,000 draws
    jit.training_loss(blank(record), torch.zeros(20_000, 3, 2, 2), y, small(label_drop=0.0))
    assert torch.equal(record[1][2], y)


def test_noise_has_its_scale():
    """noise_scale is the standard deviation of eps: seen in z, which at t near 0 is all noise. 512 px: 2, 64 px: 1."""
    assert jit.resolve(jit.Settings(model="B/32", size=512)).noise_scale == 2
    assert jit.resolve(jit.Settings(model="B/16", size=64)).noise_scale == 1
    record, y = [], torch.zeros(64, dtype=torch.long)
    jit.training_loss(blank(record), torch.zeros(64, 3, 16, 16), y, small(noise_scale=2.0))
    z, t, _ = record[0]
    assert math.isclose((z / (1 - t.view(-1, 1, 1, 1))).std(), 2, rel_tol=0.02)


def test_classification_loss_of_table_11():
    """The blocks before the head must find the class, not be told it; the loss gains lambda / (numbers) * CE."""
    s = small(cls_loss=100.0, label_drop=0.5)
    net, z, t = filled(s), normal(3, 3, 16, 16), torch.tensor([0.2, 0.5, 0.8])
    with torch.no_grad():
        out1, logits1 = net(z, t, torch.tensor([0, 1, 2]), return_logits=True)
        out2, logits2 = net(z, t, torch.tensor([3, 4, 5]), return_logits=True)
    assert torch.equal(logits1, logits2) and logits1.shape == (3, 5)
    assert (out1 - out2).abs().amax((1, 2, 3)).min() > 1e-2
    kept = []
    net.cls_head.register_forward_hook(lambda module, inputs, output: kept.append(output))
    y = torch.tensor([0, 3, 1])
    total, flow, _ = jit.training_loss(net, z, y, s)
    entropy = sum(-kept[0][i].log_softmax(0)[y[i]] for i in range(3)) / 3  # the true class, dropped or not
    torch.testing.assert_close(total, flow.mean() + 100 / 768 * entropy, atol=1e-4, rtol=1e-5)


def test_without_the_classification_loss_all_blocks_know_the_class():
    """Only Table 11 hides it: else the first block's modulation depends on the class."""
    net, given = filled(small()), []
    net.blocks[0].register_forward_pre_hook(lambda _, inputs: given.append(inputs[1]))
    with torch.no_grad():
        for y in (0, 1):
            net(normal(1, 3, 16, 16), torch.tensor([0.4]), torch.tensor([y]))
    table = net.state_dict()["y_embedder.embedding_table.weight"]
    torch.testing.assert_close((given[1] - given[0]).flatten(), table[1] - table[0], atol=1e-5, rtol=0)


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


def separate(net, z, t, y, s, w):
    """Guidance as the paper writes it: two forwards, v_none + w (v_class - v_none), for an x-predictor."""
    time = torch.full((len(z),), t)
    v_class, v_none = ((net(z, time, labels) - z) / max(1 - t, 0.05) for labels in (y, torch.full_like(y, s.classes)))
    return v_none + w * (v_class - v_none)


@pytest.mark.parametrize("t, w", [(0.05, 1), (0.1, 1), (0.11, 2.5), (0.89, 2.5), (0.9, 1), (0.99, 1)])
def test_guided_velocity_equals_two_forwards(t, w):
    """Both halves in one forward, inside the open interval (0.1, 0.9); outside, w = 1: the field of the class alone."""
    s = small()
    net, z, y = filled(s), normal(3, 3, 16, 16), torch.tensor([0, 4, 2])
    velocity = jit.guided_velocity(net, y, s, jit.Sampling(cfg=2.5, interval=(0.1, 0.9)))
    with torch.no_grad():
        expected = separate(net, z, t, y, s, w)
        torch.testing.assert_close(velocity(z, t), expected, atol=1e-3, rtol=1e-3)  # fp32, times 2.5 / (1 - t)


def test_guidance_costs_what_it_must():
    """No unconditional forward where w = 1, and both halves in one: batch sizes, labels and number of all forwards."""

    def sizes(s, cfg, interval, times):
        record = []
        velocity = jit.guided_velocity(blank(record), torch.tensor([1, 0]), s, jit.Sampling(cfg=cfg, interval=interval))
        for t in times:
            velocity(torch.zeros(2, 3, 4, 4), t)
        return [y.tolist() for _, _, y in record]

    one, both = [1, 0], [1, 0, 5, 5]
    assert sizes(small(), 2.0, (0.1, 1.0), [0.0, 0.1, 0.5, 0.99]) == [one, one, both, both]
    assert sizes(small(), 1.0, (0.0, 1.0), [0.0, 0.5]) == [one, one]
    assert sizes(small(), 2.0, (0.0, 0.7), [0.0, 0.7, 0.71]) == [both, one, one]  # lower end 0: t = 0 is inside
    assert sizes(small(), 0.0, (0.0, 1.0), [0.5]) == [both]
    for classes in (0, 1):  # there is nothing to guide towards
        assert sizes(small(classes=classes), 2.0, (0.0, 1.0), [0.5]) == [one]
    record = []
    y = torch.zeros(2, dtype=torch.long)
    list(jit.denoise(blank(record), y, small(), jit.Sampling(cfg=2.0, interval=(0.0, 1.0))))
    assert len(record) == 99 and all(len(labels) == 4 for _, _, labels in record)


@pytest.mark.parametrize("pred, precond", [(pred, "none") for pred in PREDS] + [("x", "linear"), ("x", "edm")])
def test_sampler_reads_the_output_as_the_loss_does(pred, precond):
    """A perfect network for one image x draws that image from any noise, whatever it predicts; so do both solvers."""
    s, sampling = small(pred=pred, precond=precond), jit.Sampling(steps=20, t_clip=1e-6, cfg=3.0)
    x = normal(2, 3, 16, 16, seed=5).clamp(-1, 1)

    def perfect(z, t, y):
        image, time = x.repeat(len(z) // 2, 1, 1, 1), t.view(-1, 1, 1, 1)
        eps = (z - time * image) / (1 - time)
        if precond == "linear":
            return (image - time * z) / (1 - time)
        if precond == "edm":
            variance = (time / 2) ** 2 + (1 - time) ** 2
            return (image - time / 4 / variance * z) / ((1 - time) / 2 / variance.sqrt())
        return {"x": image, "eps": eps, "v": image - eps}[pred]

    *_, (_, first, _), (_, end, _) = jit.denoise(perfect, torch.tensor([0, 1]), s, sampling)
    if pred == "eps":  # z - eps over t: v at t = 0 is lost by the clip, and the path starts elsewhere
        velocity = jit.guided_velocity(perfect, torch.tensor([0, 1]), s, sampling)
        v = velocity(jit.interpolate(x, first, torch.tensor([0.4, 0.4])), 0.4)
        torch.testing.assert_close(v, x - first, atol=1e-4, rtol=0)
    else:
        torch.testing.assert_close(end, x, atol=1e-4, rtol=0)  # fp32 over 39 evaluations


def test_clip_leaves_noise_as_the_official_sampler():
    """FACTS: clipped at 0.05, Heun-50 leaves 1.7% of the noise even for a perfect network; --t-clip mends it."""
    for clip, left in ((None, 0.017), (1e-6, 0.0)):
        path = list(jit.denoise(blank([]), torch.tensor([0]), small(), jit.Sampling(t_clip=clip, cfg=1.0)))
        ratio = path[-1][1].norm() / path[0][1].norm()  # the image is 0
        assert math.isclose(ratio, left, abs_tol=5e-4)


def test_image_depends_on_its_number_and_seed_only():
    """Image i is the same whatever the batch size and the number of images; another seed gives another."""
    s = small()
    net, y = filled(s), torch.arange(7) % 5

    def draw(n, **options):
        return torch.cat(list(jit.sample_images(net, y[:n], s, jit.Sampling(steps=3, **options)))).int()

    together, apart, fewer = draw(7, batch_size=7), draw(7, batch_size=3), draw(4, batch_size=2)
    assert together.shape == (7, 3, 16, 16)
    assert (together - apart).abs().max() <= 1  # a sum in another order may round to the next grey level
    assert (together[:4] - fewer).abs().max() <= 1
    assert (draw(1, batch_size=1, seed=1) - together[:1]).abs().float().mean() > 5
    noise = [z for t, z, _ in jit.denoise(net, y, s, jit.Sampling(steps=1)) if t == 0][0]
    later = [z for t, z, _ in jit.denoise(net, y[4:], s, jit.Sampling(steps=1), first=4) if t == 0][0]
    assert torch.equal(noise[4:], later)
    assert not any(torch.equal(noise[i], noise[j]) for i in range(7) for j in range(i))
    assert math.isclose(noise.std(), s.noise_scale, rel_tol=0.05)


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
    s = small(label_drop=0.0, depth=2, context_start=1)
    net, x = jit.JiT(s).train(), normal(1, 3, 16, 16).clamp(-1, 1).expand(16, -1, -1, -1)
    optimizer, losses = torch.optim.AdamW(net.parameters(), 5e-3), []
    for _ in range(60):
        loss = jit.training_loss(net, x, torch.zeros(16, dtype=torch.long), s)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
