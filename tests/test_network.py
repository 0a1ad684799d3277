"""Section 4 of jit.py: the network, against loops, complex numbers, the paper's costs and numbers
recorded from the official code; and what a GPU would show, without one."""

import contextlib
import math

import models
import numpy as np
import pytest
import torch
from conftest import fill, filled, normal, small
from torch.utils._python_dispatch import TorchDispatchMode

import jit

FLOW = jit.Flow(noise_scale=2.0)
UNTURNED = torch.ones(16, 1), torch.zeros(16, 1)  # cos and sin of no rotation
PLAIN = dict(rope=False, qk_norm=False, context_tokens=0)

# Its parts


def test_rope_by_complex_numbers():
    """As released weights need it: neighbours pair up, first half of a head rows, second columns,
    theta 10000. In-context tokens come first and do not turn."""
    x = normal(1, 1, 12, 8)
    cos, sin = jit.rope_table(3, 8, 3)
    found = jit.rotate(x, cos, sin)[0, 0]
    torch.testing.assert_close(found[:3], x[0, 0, :3], atol=0, rtol=0)
    for i, (row, column) in enumerate(np.ndindex(3, 3)):
        pairs = torch.view_as_complex(x[0, 0, 3 + i].view(4, 2))
        angles = torch.tensor([row, row / 100, column, column / 100])  # 10000 ** (-2/4) = 1 / 100
        turned = torch.view_as_real(pairs * torch.polar(torch.ones(4), angles)).flatten()
        torch.testing.assert_close(found[3 + i], turned, atol=1e-6, rtol=0)
    alone = jit.rotate(x[:, :, 3:], cos, sin)[0, 0]  # before they join
    assert torch.equal(alone, found[3:])
    assert torch.equal(jit.rotate(x, *jit.rope_table(3, 8, 3, on=False)), x)


@pytest.mark.parametrize("name, rate", [("B", 0.0), ("L", 0.0), ("H", 0.2), ("G", 0.2)])
def test_dropout_of_the_paper(name, rate):
    """Table 9: 0.2 for H and G, in the middle half of the blocks, none for B and L."""
    with torch.device("meta"):
        net = jit.JiT(**jit.MODELS[name], size=256, patch=16, classes=10)
    n = len(net.blocks)
    expected = [rate if n // 4 <= i < n // 4 * 3 else 0.0 for i in range(n)]
    assert [block.attn.dropout.p for block in net.blocks] == expected
    assert [block.mlp.dropout.p for block in net.blocks] == expected


def test_where_dropout_acts():
    """After the attention's projection and inside the MLP, before its bias; not in eval mode."""
    block, x = jit.Block(width=32, heads=2, dropout=1.0, qk_norm=True), normal(1, 16, 32)
    torch.nn.init.ones_(block.mlp.w3.bias)
    with torch.no_grad():
        assert torch.equal(block.attn(x, UNTURNED), torch.zeros(1, 16, 32))
        assert torch.equal(block.mlp(x), torch.ones(1, 16, 32))
        block.eval()
        assert block.attn(x, UNTURNED).abs().min() > 0 and (block.mlp(x) - 1).abs().min() > 0


# All of it


# Parameters (M) and multiply-adds (G) that fit Tables 5 and 6 of the paper.
PAPER_COSTS = """B/16 256 131.1 25.22, B/32 512 133.2 25.75, B/64 1024 141.5 27.87,
L/16 256 458.9 87.94, H/16 256 952.5 181.95, G/16 256 2007 383.74, G/32 512 2012 384.87"""


@pytest.mark.parametrize("row", PAPER_COSTS.replace("\n", " ").split(", "))
def test_models_cost_what_the_paper_says(row):
    """The real networks, counted by figures/models.py, to all digits given, one up or down in the
    last: a wrong depth, width or bottleneck shows."""
    model, size, *printed = row.split()
    for value, unit, text in zip(models.count_cost(model, int(size)), (1e6, 1e9), printed):
        assert abs(value / unit - float(text)) < 1.01 * 10 ** -len(text.partition(".")[2])


def test_state_dict_of_b16_is_that_of_released_checkpoints():
    """Names and shapes: 183 tensors and no buffers, or released weights would not load."""
    with torch.device("meta"):
        net = jit.JiT(**jit.MODELS["B"], size=256, patch=16, classes=1000)
    D, hidden = 768, 2048
    expected = {
        "pos_embed": (1, 256, D), "in_context_posemb": (1, 32, D),
        "y_embedder.embedding_table.weight": (1001, D),
        "t_embedder.mlp.0.weight": (D, 256), "t_embedder.mlp.0.bias": (D,),
        "t_embedder.mlp.2.weight": (D, D), "t_embedder.mlp.2.bias": (D,),
        "x_embedder.proj1.weight": (128, 3, 16, 16),
        "x_embedder.proj2.weight": (D, 128, 1, 1), "x_embedder.proj2.bias": (D,),
        "final_layer.norm_final.weight": (D,),
        "final_layer.linear.weight": (768, D), "final_layer.linear.bias": (768,),
        "final_layer.adaLN_modulation.1.weight": (2 * D, D),
        "final_layer.adaLN_modulation.1.bias": (2 * D,),
    }  # fmt: skip
    block = {
        "norm1.weight": (D,), "norm2.weight": (D,),
        "attn.q_norm.weight": (64,), "attn.k_norm.weight": (64,),
        "attn.qkv.weight": (3 * D, D), "attn.qkv.bias": (3 * D,),
        "attn.proj.weight": (D, D), "attn.proj.bias": (D,),
        "mlp.w12.weight": (2 * hidden, D), "mlp.w12.bias": (2 * hidden,),
        "mlp.w3.weight": (D, hidden), "mlp.w3.bias": (D,),
        "adaLN_modulation.1.weight": (6 * D, D), "adaLN_modulation.1.bias": (6 * D,),
    }  # fmt: skip
    expected |= {f"blocks.{i}.{name}": shape for i in range(12) for name, shape in block.items()}
    assert {name: tuple(value.shape) for name, value in net.state_dict().items()} == expected
    assert len(expected) == 183


def test_weights_start_as_the_official_ones():
    """Xavier's uniform law for matrices, a patch flattened to one row; N(0, 0.02) for embeddings;
    all else 0 or 1, so that a fresh network puts out 0. A uniform law with bound b has standard
    deviation b / sqrt(3). 5% are four sigma of 4,000 draws, 10% of 400."""
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
            tolerance = 0.05 if p.numel() > 4000 else 0.1  # convolutions of patches have 384, 512
            assert math.isclose(p.std(), bound / math.sqrt(3), rel_tol=tolerance), name
    output = net(normal(2, 3, 16, 16), torch.tensor([0.1, 0.9]), torch.tensor([0, jit.NO_CLASS]))
    assert torch.equal(output, torch.zeros(2, 3, 16, 16))


ABLATIONS = [
    ({}, {}), (PLAIN, {}), (dict(bottleneck=0, channels=1), {}), (dict(classes=0), {}),
    ({}, dict(pred="v", loss="eps")), ({}, dict(pred="eps", loss="x")),
]  # fmt: skip


@pytest.mark.parametrize("switches, flow", ABLATIONS)
def test_every_parameter_learns(switches, flow):
    """Whatever is switched off, nothing that remains is left out of the forward pass."""
    torch.manual_seed(0)
    net = filled(**switches)
    y = torch.arange(4) if net.classes else torch.full((4,), jit.NO_CLASS)
    flow = jit.Flow(**flow, label_drop=0.0)
    jit.training_loss(net, normal(4, *net.shape).clamp(-1, 1), y, flow)[0].mean().backward()
    for name, p in net.named_parameters():
        learns = p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0
        assert learns != (name == "pos_embed"), name


@pytest.mark.parametrize("switches", [{}, PLAIN | dict(bottleneck=0, channels=1, dropout=0.2)])
def test_arguments_build_the_network_again(switches):
    """A checkpoint holds net.arguments: with them and the weights comes the same network."""
    net = filled(**switches)
    again = jit.JiT(**net.arguments).eval()
    again.load_state_dict(net.state_dict())
    inputs = normal(2, *net.shape), torch.tensor([0.2, 0.7]), torch.tensor([0, jit.NO_CLASS])
    assert torch.equal(again(*inputs), net(*inputs))
    rates = [[m.p for m in each.modules() if isinstance(m, torch.nn.Dropout)]
             for each in (net, again)]  # fmt: skip
    assert rates[0] == rates[1]


@pytest.mark.parametrize("wrong", [dict(size=18), dict(width=36), dict(heads=3),
                                   dict(context_start=6)])  # fmt: skip
def test_sizes_that_cannot_work_are_refused(wrong):
    """Patches that do not fill the image, heads whose numbers do not pair up on two axes, tokens
    that would join after the last block: a sentence, at once."""
    with pytest.raises(ValueError, match=f"{[*wrong][0]} {[*wrong.values()][0]}"):
        small(**wrong)


# Numbers of the official code, made on a CPU: its JiT with the sizes of `small` and the weights of
# `fill`, in its Denoiser with noise_scale 2. Every 197th number of each answer.
OUTPUT = [-0.50932, 0.84732, -1.7288, -2.11181, 0.76596, 3.67145, 0.07892, 0.82199, 0.89227, 3.408,
          -0.2602, 0.09053]  # fmt: skip
LOSS = 1060.5224609375
GRADIENT = {  # norms of its parts
    "t_embedder": 18977.0449, "y_embedder": 1307.4434, "x_embedder": 849.3109,
    "in_context_posemb": 42.1669, "blocks.0.": 17326.4375, "blocks.3.": 2994.0066,
    "blocks.4.": 1774.3064, "blocks.5.": 1091.3398, "blocks.2.attn.q_norm": 1.61774,
    "blocks.2.attn.k_norm": 1.58201, "blocks.2.norm1": 39.2167, "blocks.2.attn.qkv.bias": 34.4324,
    "blocks.2.mlp.w12.bias": 106.669, "blocks.2.adaLN_modulation": 2548.1017,
    "final_layer": 2752.8455,
}  # fmt: skip
GENERATED = {  # lower end of the guidance interval, solver
    (0.1, "heun"): [-2.10228, -0.26641, 1.73578, -1.48315, -1.01613, 2.77421, -0.00307, -0.93908,
                    1.3224, 2.75768, 2.61619, -0.87556],
    (0.0, "heun"): [-1.7992, -0.08952, 0.88443, -1.88587, -0.89974, 2.77779, 0.21744, -0.87046,
                    1.23746, 2.92573, 2.63872, -0.84478],
    (0.1, "euler"): [-0.99265, 0.69532, -1.34639, -1.99454, -0.34026, 3.31613, 0.06704, 0.65919,
                     1.53513, 1.91678, 1.9682, -1.28075],
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
    """Recorded to 5 digits; torch's attention sums in another order: 1e-6 of numbers around 2."""
    found = found.flatten()[::197]
    torch.testing.assert_close(found, torch.tensor(recorded), atol=1e-4, rtol=1e-4)


def test_network_puts_out_what_the_official_one_does(official):
    """All of Figure 3 at once: attention over tokens, not heads, as a well-known re-implementation
    has it; order of modulation, SwiGLU halves, RoPE, class tokens, no class, patch layouts."""
    net, x, _ = official
    with torch.no_grad():
        t, y = torch.tensor([0.0, 0.3, 0.97]), torch.tensor([1, 4, jit.NO_CLASS])
        close_to_record(net(x, t, y), OUTPUT)


def test_loss_and_gradient_are_the_official_ones(official):
    """Algorithm 1, one time beyond the clip: the official Denoiser gave these for x, eps, t.

    1e-4: the gradient is a sum over 48 tokens in an order that differs; found are 3e-6."""
    net, x, noise = official
    t, eps = torch.tensor([0.0, 0.3, 0.97]), 2 * noise
    net.zero_grad()
    output = net(jit.interpolate(x, eps, t), t, torch.tensor([1, 4, 2]))
    loss = jit.flow_loss(output, x, eps, t, "x", "v").mean()
    assert math.isclose(loss.item(), LOSS, rel_tol=1e-5)
    loss.backward()
    for start, norm in GRADIENT.items():
        parts = [p.grad.flatten() for name, p in net.named_parameters() if name.startswith(start)]
        assert math.isclose(torch.cat(parts).norm(), norm, rel_tol=1e-4), start


@pytest.mark.parametrize("low, solver", GENERATED)
def test_samples_are_the_official_ones(official, low, solver):
    """Algorithm 2, guidance 2.9 inside (low, 0.7), six steps: what the official generate() gave."""
    net, _, noise = official
    y = torch.tensor([1, 4, 2])
    velocity = jit.guided_velocity(net, y, FLOW, cfg=2.9, interval=(low, 0.7))
    z = jit.integrate(velocity, 2 * noise, 6, solver)
    close_to_record(z, GENERATED[low, solver])


# What a GPU would show. torch's "meta" device has shapes and no numbers: like a GPU it refuses to
# mix its tensors with those of the CPU, and whatever would make a GPU wait, .item() or an `if` on a
# tensor, raises. autocast does not know this device, and is replaced by nothing.


@pytest.fixture
def meta(monkeypatch):
    """A network made on that device, as `with torch.device("cuda")` would, images and classes."""
    monkeypatch.setattr(torch, "autocast", lambda *given, **more: contextlib.nullcontext())
    with torch.device("meta"):
        net = small(dropout=0.1)
        return net, torch.empty(4, *net.shape), torch.zeros(4, dtype=torch.long)


def train_step(net, x, y, flow=FLOW):
    """Loss, gradient and average as in jit.train; the optimizer is torch's own."""
    loss, t = jit.training_loss(net, x, y, flow)
    loss.mean().backward()
    parameters = list(net.parameters())
    jit.update_average([torch.empty_like(p) for p in parameters], parameters, 0.9999, 9, 1)
    return loss, t


def draw(net, x, y, flow=FLOW):
    """Whole images, whose noise alone is drawn on the CPU, the same for every device."""
    images = jit.sample_images(net, y, flow, net.shape, batch_size=3, sampling_steps=3)
    return torch.cat(list(images))


@pytest.mark.parametrize("pred, loss", [("x", "v"), ("eps", "x"), ("v", "eps")])
def test_nothing_leaves_its_device_nor_waits(meta, pred, loss):
    """From images to averages, from noise to images."""
    found = train_step(*meta, jit.Flow(pred=pred, loss=loss))
    assert all(tensor.device.type == "meta" and tensor.shape == (4,) for tensor in found)
    images = draw(*meta, jit.Flow(pred=pred))
    assert images.device.type == "meta" and images.shape == (4, 3, 16, 16)
    jit.distance_fields.cache_clear()
    y, factors = torch.zeros(4, dtype=torch.long, device="meta"), jit.random_factors(4, "meta")
    images = jit.render_shapes(y, factors, 16)
    assert jit.resize_tf1(jit.resize_tf1(images, 3), 2).shape == (4, 3, 299, 299)


def test_shapes_copy_nothing_to_the_gpu(monkeypatch):
    """A copy from memory that is not pinned makes it wait: constants go there once."""
    labels = torch.zeros(4, dtype=torch.long, device="meta")
    jit.render_shapes(labels, jit.random_factors(4, "meta"), 16)
    monkeypatch.setattr(torch, "tensor", None)  # a call would fail
    jit.render_shapes(labels, jit.random_factors(4, "meta"), 16)


class CountWaits(TorchDispatchMode):
    """Counts the numbers that go from tensors to Python."""

    waits = 0

    def __torch_dispatch__(self, function, types, given=(), more=None):
        self.waits += function is torch.ops.aten._local_scalar_dense.default
        return function(*given, **more or {})


@pytest.mark.parametrize("looks", [0, 1])
def test_no_step_of_training_waits(looks, tmp_path, monkeypatch):
    """Numbers are read for a line of the log and nowhere else. A CPU can count them."""
    images = torch.zeros(40, 3, 16, 16, dtype=torch.uint8)
    monkeypatch.setattr(jit, "sample_images", lambda *given, **more: [images])
    monkeypatch.setattr(jit, "summarize", lambda *given: dict(loss=1.0, grad_norm=1.0))

    def looking(model, x, y, flow):
        loss, t = jit.training_loss(model, x, y, flow)
        return (loss, t) if not looks or loss.mean().isfinite() else None

    torch.manual_seed(0)
    with CountWaits() as counter:
        jit.train(small(classes=10), FLOW, jit.Shapes(16), tmp_path / "r", steps=6, batch_size=2,
                  loss_function=looking)  # fmt: skip
    assert counter.waits == 6 * looks


def test_bf16_costs_little(monkeypatch):
    """As near to CUDA as a CPU comes: products in bf16 wherever jit.py asks for autocast. Losses to
    1% image by image, the gradient to 3%, images to two grey levels on average (found: 0.2%, 0.3%,
    0.5). Attention gets bf16 (fast kernels need it); tokens, conversions and the loss are fp32."""
    torch.manual_seed(0)
    net, y, seen = small(classes=10, depth=4, context_start=2), torch.arange(8), {}
    x = jit.render_shapes(y, jit.random_factors(8), 16)
    for p in net.parameters():
        p.data += 0.1 * torch.randn_like(p) * p.requires_grad
    net.eval()

    def results():
        torch.manual_seed(1)
        net.zero_grad()
        loss, _ = jit.training_loss(net, x.repeat(8, 1, 1, 1), y.repeat(8), FLOW)
        loss.mean().backward()
        gradient = torch.cat([p.grad.flatten() for p in net.parameters() if p.requires_grad])
        velocity = jit.guided_velocity(net, y, FLOW)
        images = jit.integrate(velocity, 2 * jit.image_noise(net.shape, 0, range(8)), 10)
        return loss.detach(), gradient, images

    def spy(module, name):
        function = getattr(module, name)

        def spying(*given, **more):
            tensors = [value for value in given if torch.is_tensor(value)]
            autocast = torch.is_autocast_enabled("cpu")
            seen.setdefault(name, set()).update((tensor.dtype, autocast) for tensor in tensors)
            return function(*given, **more)

        monkeypatch.setattr(module, name, spying)

    loss, gradient, images = results()
    real = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype, enabled: real(kind, dtype))
    spy(torch.nn.functional, "scaled_dot_product_attention")
    for name in ("convert", "flow_loss", "rotate"):
        spy(jit, name)
    for block in net.blocks:
        spy(block, "forward")
    rounded, rounded_gradient, rounded_images = results()
    assert not torch.equal(rounded, loss)  # else it was not bf16
    torch.testing.assert_close(rounded, loss, rtol=0.01, atol=0)
    assert 0 < (rounded_gradient - gradient).norm() / gradient.norm() < 0.03
    assert 0 < (rounded_images - images).abs().mean() < 2 / 255
    assert seen == {
        "scaled_dot_product_attention": {(torch.bfloat16, True)}, "rotate": {(torch.float32, True)},
        "convert": {(torch.float32, False)}, "flow_loss": {(torch.float32, False)},
        "forward": {(torch.float32, True)},
    }  # fmt: skip


@pytest.mark.parametrize("switches", [{}, PLAIN])
def test_the_network_is_one_graph(switches):
    """torch.compile takes it in one piece (fullgraph refuses a break); the numbers are the plain
    ones. The generators of fast code are left out: they need a compiler and minutes."""
    net = filled(depth=2, **dict(context_start=1) | switches)
    inputs = normal(2, *net.shape), torch.tensor([0.2, 0.7]), torch.tensor([0, jit.NO_CLASS])
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), net(*inputs), atol=1e-5, rtol=1e-5)
