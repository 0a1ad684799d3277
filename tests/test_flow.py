"""Section 1 and 2 of jit.py: the flow, its nine losses and the training step, against closed forms,
Table 1 and the numbers of the paper."""

import math

import pytest
import torch
from conftest import NINE, PREDS, blank, normal, small

import jit

# The flow


def test_training_times_follow_the_paper():
    """logit(t) ~ N(-0.8, 0.8): median 0.31, P(t < .1) = 4.0%. n = 100,000: 4 sigma are .003."""
    torch.manual_seed(0)
    t = jit.sample_t(100_000)
    assert math.isclose(t.median(), 1 / (1 + math.exp(0.8)), abs_tol=0.004)
    below = 0.5 * (1 + math.erf((math.log(1 / 9) + 0.8) / 0.8 / math.sqrt(2)))
    assert math.isclose(below, 0.0403, abs_tol=1e-4)
    assert math.isclose((t < 0.1).float().mean(), below, abs_tol=0.0025)
    assert (t > 0.95).sum() < 5
    other = jit.sample_t(100_000, mu=0.5, sigma=1.5).logit()
    assert math.isclose(other.mean(), 0.5, abs_tol=0.02)
    assert math.isclose(other.std(), 1.5, abs_tol=0.015)


def test_noise_at_0_data_at_1():
    """z_0 = eps, z_1 = x, v = dz/dt: a flow in the other direction would pass many other tests."""
    x, eps = normal(2, 3, 4, 4, seed=1), normal(2, 3, 4, 4, seed=2)
    assert torch.equal(jit.interpolate(x, eps, torch.zeros(2)), eps)
    assert torch.equal(jit.interpolate(x, eps, torch.ones(2)), x)
    t = torch.tensor([0.2, 0.7])
    slope = (jit.interpolate(x, eps, t + 0.01) - jit.interpolate(x, eps, t - 0.01)) / 0.02
    v = jit.convert(x, jit.interpolate(x, eps, t), t, "x")["v"]
    torch.testing.assert_close(slope, v, atol=1e-4, rtol=0)  # float32 differences over 0.02


@pytest.mark.parametrize("pred", PREDS)
def test_conversions_find_the_truth(pred):
    """Table 1: from any one of x, eps, v, and z, follow the other two, up to the clip."""
    x, eps = normal(5, 3, 4, 4, seed=1), normal(5, 3, 4, 4, seed=2)
    t = torch.tensor([0.05, 0.3, 0.5, 0.8, 0.95])
    truth = {"x": x, "eps": eps, "v": x - eps}
    found = jit.convert(truth[pred], jit.interpolate(x, eps, t), t, pred)
    for name in PREDS:
        torch.testing.assert_close(found[name], truth[name], atol=3e-5, rtol=0)  # fp32 / 0.05


def test_clip_acts_where_the_division_is():
    """Beyond it v = (x - z) / 0.05, as in the official code: the sampler leaves noise."""
    x, z, t = normal(2, 3, 2, 2, seed=1), normal(2, 3, 2, 2, seed=2), torch.tensor([0.99, 1.0])
    torch.testing.assert_close(jit.convert(x, z, t, "x")["v"], (x - z) / 0.05)
    torch.testing.assert_close(jit.convert(x, z, t, "x", clip=0.2)["v"], (x - z) / 0.2)
    torch.testing.assert_close(jit.convert(x, z, 1 - t, "eps")["v"], (z - x) / 0.05)
    for pred, t in (("v", torch.tensor([0.0, 1.0])), ("eps", torch.tensor([0.98, 1.0]))):
        truth = {"x": x, "eps": z, "v": x - z}  # no division here, so no clip: truths come back
        found = jit.convert(truth[pred], jit.interpolate(x, z, t), t, pred)
        for name in PREDS:
            torch.testing.assert_close(found[name], truth[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("wrong", ["X", "noise", "", None])
def test_a_wrong_prediction_is_an_error(wrong):
    """A typing error meant v, and trained something else without a word."""
    z = torch.zeros(1, 3, 2, 2)
    with pytest.raises(ValueError):
        jit.convert(z, z, torch.tensor([0.5]), wrong)


@pytest.mark.parametrize("pred, loss", NINE)
def test_both_ends_of_time(pred, loss):
    """At t = 0 and 1 too a perfect network has loss 0, and all others finite gradients: the target
    is clipped as the prediction is, and 1 / t and 1 / (1 - t) stand in six of the nine."""
    x, eps, output = (normal(6, 3, 4, 4, seed=seed) for seed in (1, 2, 3))
    t = torch.tensor([0.0, 1e-6, 0.3, 0.97, 1 - 1e-6, 1.0])
    perfect = {"x": x, "eps": eps, "v": x - eps}[pred]
    assert torch.equal(jit.flow_loss(perfect, x, eps, t, pred, loss), torch.zeros(6))
    value = jit.flow_loss(output.requires_grad_(), x, eps, t, pred, loss)
    value.sum().backward()
    assert value.isfinite().all() and output.grad.isfinite().all()


@pytest.mark.parametrize("t", [0.1, 0.4, 0.9])
def test_weight_of_an_error_in_all_nine_combinations(t):
    """What an error of 0.1 in the prediction costs, from Table 1 by hand."""
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


# The training step


def test_choices_of_the_paper():
    """x-prediction with the v-loss; logit-normal(-0.8, 0.8), a tenth of the labels, 1 - t >= 0.05;
    averages of 0.9999 and 0.9996. Shapes of 64 pixels have noise of standard deviation 1."""
    flow = jit.Flow()
    assert (flow.pred, flow.loss, flow.mu, flow.sigma) == ("x", "v", -0.8, 0.8)
    assert (flow.noise_scale, flow.label_drop, flow.t_clip) == (1.0, 0.1, 0.05)
    assert [decay for decay, _ in jit.AVERAGES.values()] == [0.9999, 0.9996]


def test_first_loss_is_2_96_times_the_mean_square():
    """E[1 / (1-t)^2] = E[(1 + e^u)^2], u ~ N(-0.8, 0.8), is 2.96: the law of t, the weight of the
    loss and the zero start. 20,000 draws with standard deviation 3.5: four errors are 0.1."""
    expected = 1 + 2 * math.exp(-0.8 + 0.32) + math.exp(-1.6 + 1.28)
    assert math.isclose(expected, 2.96, abs_tol=0.005)
    torch.manual_seed(0)
    net = small(size=8, patch=8, depth=2, context_start=1, width=16)
    x = 0.5 * normal(20_000, 3, 8, 8).sign()
    with torch.no_grad():
        loss, t = jit.training_loss(net, x, torch.zeros(len(x), dtype=torch.long), jit.Flow())
    assert loss.shape == t.shape == (20_000,)
    assert math.isclose(loss.mean() / 0.25, expected, abs_tol=0.1)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_share_of_the_labels_is_dropped(share):
    """Guidance needs a field without class: label_drop of the labels become NO_CLASS, as for files
    of the official code the last row of the table; the others stay."""
    record, y = [], torch.arange(20_000) % 5
    torch.manual_seed(0)
    x = torch.zeros(20_000, 3, 2, 2)
    jit.training_loss(blank(record), x, y, jit.Flow(label_drop=share))
    seen = record[0][2]
    dropped = seen == -1
    assert torch.equal(seen[~dropped], y[~dropped])
    assert math.isclose(dropped.float().mean(), share, abs_tol=0.009)  # 4 sigma


def test_each_field_of_flow_reaches_the_loss():
    """The network sees z, t and y; the error of zeros, read as eps, in the space of x, by hand."""
    flow = jit.Flow(pred="eps", loss="x", mu=0.5, sigma=0.3, noise_scale=3.0, t_clip=0.6)
    record, x = [], normal(4096, 1, 2, 2)
    torch.manual_seed(0)
    loss, t = jit.training_loss(blank(record), x, torch.zeros(4096, dtype=torch.long), flow)
    z, seen, _ = record[0]
    assert torch.equal(seen, t) and math.isclose(t.logit().mean(), 0.5, abs_tol=0.02)
    assert math.isclose(t.logit().std(), 0.3, abs_tol=0.015)
    assert t.min() < 0.6 < t.max()
    time = t.view(-1, 1, 1, 1)
    eps = (z - time * x) / (1 - time)
    assert math.isclose(eps.std(), 3, rel_tol=0.03)
    error = (1 - time) * eps / time.clamp_min(0.6)
    torch.testing.assert_close(loss, error.square().mean((1, 2, 3)), rtol=1e-3, atol=1e-3)


def test_average_of_weights():
    """Long after the ramp it is decay's geometric average; before, d = 1 - w / (w + step)."""
    average = [torch.zeros(2)]
    for step in range(1_000_001, 1_000_021):
        jit.update_average(average, [torch.ones(2)], 0.9, 9, step)
    torch.testing.assert_close(average[0], torch.full((2,), 1 - 0.9**20))
    average, plain = [torch.zeros(1, dtype=torch.float64)], 0.0
    for step in range(1, 101):
        now = torch.full((1,), float(step), dtype=torch.float64)
        jit.update_average(average, [now], 0.9999, 9, step)
        plain = plain * step / (9 + step) + step * 9 / (9 + step)
    assert math.isclose(average[0].item(), plain, rel_tol=1e-9)
    assert 8 < 100 - plain < 12  # its memory is the last 1 / (w + 1) of the run: it lags 10 steps
