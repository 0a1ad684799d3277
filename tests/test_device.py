"""What only a GPU would show, shown without one: no tensor is left on the CPU, no step waits, bf16 costs little.

torch's "meta" device has shapes and no numbers. Like a GPU it refuses to mix its tensors with those of the CPU; and as
it has no numbers it cannot hand one over, so that whatever would make a GPU wait for the CPU, `.item()` or an `if` on a
tensor, raises. autocast does not know this device, and is replaced by nothing.
"""

import contextlib
import functools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import jit

SMALL = dict(size=16, patch=4, classes=5, depth=4, width=32, heads=2, bottleneck=8, context_tokens=3, context_start=2)
FLOW = jit.Flow(noise_scale=2.0)
PAIRS = [("x", "v"), ("eps", "x"), ("v", "eps")]  # each prediction and each loss


@pytest.fixture
def meta(monkeypatch):
    """A network, images and classes without numbers."""
    monkeypatch.setattr(torch, "autocast", lambda *given, **more: contextlib.nullcontext())
    net = jit.JiT(**SMALL, dropout=0.1).to("meta")
    return net, torch.empty(4, *net.shape, device="meta"), torch.zeros(4, dtype=torch.long, device="meta")


def train_step(net, x, y, flow=FLOW):
    """Loss, gradient and average as in jit.train; the optimizer is torch's own."""
    loss, t = jit.training_loss(net, x, y, flow)
    loss.mean().backward()
    parameters = list(net.parameters())
    jit.update_average([torch.empty_like(p) for p in parameters], parameters, 0.9999, 9, 1)
    return loss, t


def sample(net, x, y, flow=FLOW):
    """Three Heun steps, of whose evaluations some have guidance."""
    *_, (_, image, _) = jit.integrate(jit.guided_velocity(net, y, flow, cfg=2.0), x, 3)
    return image


@pytest.mark.parametrize("pred, loss", PAIRS)
def test_training_step_stays_on_its_device(meta, pred, loss):
    """From the images to the averages: all of it where the network is."""
    net, x, y = meta
    found = train_step(net, x, y, jit.Flow(pred=pred, loss=loss))
    assert all(tensor.device.type == "meta" and tensor.shape == (4,) for tensor in found)
    assert all(p.grad.device.type == "meta" for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize("pred, loss", PAIRS)
def test_sampling_stays_on_its_device(meta, pred, loss):
    """Solver and guidance; and whole images, whose noise alone is drawn on the CPU, the same for every device."""
    net, x, y = meta
    assert sample(net, x, y, jit.Flow(pred=pred)).device.type == "meta"
    images = torch.cat(list(jit.sample_images(net, y, FLOW, net.shape, batch_size=3, sampling_steps=3)))
    assert images.device.type == "meta" and images.shape == (4, 3, 16, 16) and images.dtype == torch.uint8


@pytest.mark.parametrize("switches", [dict(rope=False, qk_norm=False, context_tokens=0), dict(bottleneck=0)])
def test_network_made_on_its_device_stays_there(switches, monkeypatch):
    """As `with torch.device("cuda")` would make it: tables of angles and positions too."""
    monkeypatch.setattr(torch, "autocast", lambda *given, **more: contextlib.nullcontext())
    with torch.device("meta"):
        net = jit.JiT(**SMALL | switches)
        x, y = torch.empty(2, *net.shape), torch.zeros(2, dtype=torch.long)
    train_step(net, x, y)
    assert sample(net, x, y).device.type == "meta"


def test_shapes_and_resize_stay_on_their_device():
    """The built-in data are drawn on the device, and Inception's input is resized there."""
    jit.distance_fields.cache_clear()
    images = jit.render_shapes(torch.zeros(4, dtype=torch.long, device="meta"), jit.random_factors(4, "meta"), 16)
    assert images.device.type == "meta"
    assert jit.resize_tf1(jit.resize_tf1(images, 3), 2).shape == (4, 3, 299, 299)


def on_cpu(function):
    """A mistake: it makes a new tensor on the CPU."""
    return lambda *given, **more: torch.ones(function(*given, **more).shape)


def waits(function):
    """Another: it looks at what it has computed, for which a GPU must finish first."""

    def looking(*given, **more):
        out = function(*given, **more)
        first = next(iter(out.values())) if isinstance(out, dict) else out
        return out if first.mean().item() > -1e9 else None

    return looking


def decides(function):
    """A third: the same, hidden in an if."""

    def deciding(*given, **more):
        out = function(*given, **more)
        return out if (out == out).all() else None

    return deciding


MISTAKES = [
    ("sample_t", on_cpu, train_step), ("sample_t", waits, train_step), ("interpolate", decides, train_step),
    ("flow_loss", waits, train_step), ("convert", waits, train_step), ("convert", waits, sample),
    ("time_features", on_cpu, sample), ("rotate", on_cpu, sample), ("rotate", decides, train_step),
]  # fmt: skip


@pytest.mark.parametrize("name, mistake, work", MISTAKES)
def test_these_tests_can_fail(meta, monkeypatch, name, mistake, work):
    """A tensor on the CPU and a look at a number, planted in functions of the method, are both seen."""
    work(*meta)
    monkeypatch.setattr(jit, name, mistake(getattr(jit, name)))
    with pytest.raises((RuntimeError, NotImplementedError), match="device|meta"):
        work(*meta)


class CountWaits(TorchDispatchMode):
    """Counts the numbers that go from tensors to Python."""

    waits = 0

    def __torch_dispatch__(self, function, types, given=(), more=None):
        self.waits += function is torch.ops.aten._local_scalar_dense.default
        return function(*given, **more or {})


def count_waits(out, loss_function):
    torch.manual_seed(0)
    net = jit.JiT(**SMALL | dict(classes=10))
    with CountWaits() as counter:
        jit.train(net, FLOW, jit.Shapes(16), out, steps=6, batch_size=2, loss_function=loss_function)
    return counter.waits


def test_no_step_of_training_waits(tmp_path, monkeypatch):
    """Numbers are read for a line of the log and nowhere else: not one in six steps. A CPU can count them."""
    monkeypatch.setattr(jit, "sample_images", lambda *given, **more: [torch.zeros(40, 3, 16, 16, dtype=torch.uint8)])
    monkeypatch.setattr(jit, "summarize", lambda *given: dict(loss=1.0, grad_norm=1.0))
    assert count_waits(tmp_path / "ours", jit.training_loss) == 0

    def looking(model, x, y, flow):
        loss, t = jit.training_loss(model, x, y, flow)
        return (loss, t) if loss.mean().isfinite() else None

    assert count_waits(tmp_path / "looking", looking) == 6


# bf16


@pytest.fixture
def bf16(monkeypatch):
    """As near to CUDA as a CPU comes: matrix products in bf16 wherever jit.py asks for autocast."""
    real = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype, enabled: real(kind, dtype, enabled=True))


@functools.cache
def trained():
    """A small network after 100 steps on eight pictures, in which its loss has fallen from 0.6 to 0.1; and these."""
    torch.manual_seed(0)
    net, y = jit.JiT(**SMALL | dict(classes=10)), torch.arange(8)
    x, optimizer = jit.render_shapes(y, jit.random_factors(8), 16), torch.optim.AdamW(net.parameters(), 4e-3)
    for _ in range(100):
        optimizer.zero_grad()
        loss, _ = jit.training_loss(net, x, y, FLOW)
        loss.mean().backward()
        optimizer.step()
    assert loss.mean() < 0.2
    return net.eval(), x, y


def losses(times=8):
    """The loss of 64 images, the same noise every time."""
    net, x, y = trained()
    torch.manual_seed(1)
    with torch.no_grad():
        return jit.training_loss(net, x.repeat(times, 1, 1, 1), y.repeat(times), FLOW)[0]


def test_bf16_loss_is_the_fp32_loss(request):
    """Image by image to 1%: a product's rounding in bf16 is 0.4% at most, and averages out. Found is 0.3%."""
    exact = losses()
    request.getfixturevalue("bf16")
    rounded = losses()
    assert not torch.equal(rounded, exact)  # else it was not bf16
    torch.testing.assert_close(rounded, exact, rtol=0.01, atol=0)


def test_bf16_gradient_is_the_fp32_gradient(request):
    """All of it together to 3%: each of some 20 products on the way back adds its 0.2%. Found is 0.8%."""
    net, x, y = trained()

    def gradient():
        torch.manual_seed(1)
        net.zero_grad()
        jit.training_loss(net, x, y, FLOW)[0].mean().backward()
        return torch.cat([p.grad.flatten() for p in net.parameters() if p.requires_grad])

    exact = gradient()
    request.getfixturevalue("bf16")
    assert 0 < (gradient() - exact).norm() / exact.norm() < 0.03


def test_bf16_samples_are_images(request):
    """Finite all the way, and at the end those of fp32 to a grey level on average. Found is 0.2 of one."""
    net, _, y = trained()

    def draw():
        return list(jit.integrate(jit.guided_velocity(net, y, FLOW), 2 * jit.image_noise(net.shape, 0, range(8)), 10))

    exact = draw()[-1][1]
    request.getfixturevalue("bf16")
    path = draw()
    assert all(z.isfinite().all() and x.isfinite().all() for _, z, x in path)
    assert 0 < (path[-1][1] - exact).abs().mean() < 2 / 255


def test_what_is_bf16_and_what_is_not(bf16, monkeypatch):
    """Attention gets bf16 (the fast kernels need it); tokens between blocks, conversions and the loss are fp32."""
    net, x, y = trained()
    seen = {}

    def spy(module, name):
        function = getattr(module, name)

        def spying(*given, **more):
            tensors = [value for value in given if torch.is_tensor(value)]
            autocast = torch.is_autocast_enabled("cpu")
            seen.setdefault(name, set()).update((tensor.dtype, autocast) for tensor in tensors)
            return function(*given, **more)

        monkeypatch.setattr(module, name, spying)

    spy(torch.nn.functional, "scaled_dot_product_attention")
    for name in ("convert", "flow_loss", "rotate"):
        spy(jit, name)
    handles = [block.register_forward_pre_hook(lambda _, given: seen.setdefault("block", set()).add(given[0].dtype))
               for block in [*net.blocks, net.final_layer]]  # fmt: skip
    losses(times=1)
    sample(net, x, y)
    for handle in handles:
        handle.remove()
    assert seen == {
        "scaled_dot_product_attention": {(torch.bfloat16, True)}, "rotate": {(torch.float32, True)},
        "block": {torch.float32}, "convert": {(torch.float32, False)}, "flow_loss": {(torch.float32, False)},
    }  # fmt: skip
