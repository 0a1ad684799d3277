"""Tests of toy_manifold.py; each says what it protects. About 20 seconds on one CPU core."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import toy_manifold as toy

PLAIN = tuple(toy.Run(2, pred=pred) for pred in toy.PREDS)


def at_dimension(D):
    return tuple(run._replace(D=D) for run in PLAIN)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """One thread, so that results do not depend on the machine's load; few samples, so that the file takes seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(toy, "SAMPLES", 200)
    yield
    torch.set_num_threads(before)


def errors(D, steps):
    records, _ = toy.run_bank(at_dimension(D), seed=0, steps=steps)
    return {record["pred"]: record for record in records}


@pytest.mark.parametrize("D, d", [(2, 2), (16, 2), (512, 8)])
def test_plane_is_orthonormal(D, d):
    """P^T P = I: otherwise P^T x is not the point that was embedded, and every error is wrong."""
    _, P = toy.train((toy.Run(D, d),), seed=3, steps=0)
    assert P.shape == (D, d)
    torch.testing.assert_close(P.T @ P, torch.eye(d), atol=1e-5, rtol=0)


def test_spiral_has_unit_variance_and_even_spacing():
    """The signal-to-noise ratio must not depend on D: data has variance 1 in the plane, whatever the space around it."""
    points = toy.spiral(toy.quantiles(100_000))
    torch.testing.assert_close(points.mean(0), torch.zeros(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(points.std(0), torch.ones(2), atol=1e-3, rtol=0)
    coarse = toy.spiral(toy.quantiles(1000))[50:]  # the innermost 5% is a straight start
    gaps = (coarse[1:] - coarse[:-1]).norm(dim=1)
    assert gaps.max() < 1.6 * gaps.min()


def test_data_norm_is_sqrt_d():
    """off_plane divides by sqrt(d), the data's root-mean-square norm."""
    rng = torch.Generator().manual_seed(0)
    P = torch.linalg.qr(torch.randn(32, 8, generator=rng)).Q
    x = toy.draw_data(20_000, P, rng)
    assert math.isclose(x.square().sum(1).mean().sqrt().item(), math.sqrt(8), rel_tol=0.02)


def test_errors_by_hand():
    """True data has no error; a step of length 3 out of the plane is an off_plane of 3 / sqrt(2), and nothing else."""
    P = torch.eye(4)[:, :2]
    x = toy.spiral(toy.quantiles(1000)) @ P.T
    on = toy.measure(x, P)
    off = toy.measure(x + 3 * torch.eye(4)[3], P)
    assert on["off_plane"] < 1e-6 and on["off_curve"] < 2e-3 and on["sliced_w1"] < 1e-6
    assert math.isclose(off["off_plane"], 3 / math.sqrt(2), rel_tol=1e-5)
    assert off["off_curve"] == on["off_curve"] and off["sliced_w1"] == on["sliced_w1"]


def test_shift_moves_sliced_w1_by_its_mean_projection():
    """A shift by b moves each projection by |b . direction|: 2 |b| / pi on average over directions."""
    P = torch.eye(2)
    x = toy.spiral(toy.quantiles(1000)) + torch.tensor([0.5, 0.0])
    assert math.isclose(toy.measure(x, P)["sliced_w1"], 2 * 0.5 / math.pi, rel_tol=1e-2)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
def test_posterior_mean_of_two_points(t):
    """Two points +-a: by hand E[x | z] = a tanh(t a . z / (1 - t)^2); noise off the plane must not matter."""
    rng = torch.Generator().manual_seed(0)
    P = torch.linalg.qr(torch.randn(6, 2, generator=rng)).Q
    a = torch.tensor([0.8, -0.6])
    z = torch.randn(5, 6, generator=rng)
    by_hand = torch.tanh(t * (z @ P @ a) / (1 - t) ** 2)[:, None] * (P @ a)
    torch.testing.assert_close(toy.posterior_mean(z, t, P, torch.stack([a, -a])), by_hand, atol=1e-5, rtol=1e-5)


def test_only_x_prediction_finds_the_plane_at_512_dimensions():
    """The point of the toy. Measured at 100 steps: x 0.03, v 15, eps 800."""
    error = errors(512, steps=100)
    assert error["x"]["off_plane"] < 0.2
    assert error["v"]["off_plane"] > 5
    assert error["eps"]["off_plane"] > 5
    assert error["oracle"]["off_plane"] < 1e-5 and error["oracle"]["off_curve"] < 0.01


def test_every_prediction_works_at_2_dimensions():
    """So that eps and v do not fail at D = 512 for the wrong reason, such as a flipped sign in their conversion."""
    error = errors(2, steps=300)
    noise = toy.measure(torch.randn(200, 2, generator=torch.Generator().manual_seed(0)), torch.eye(2))
    for pred in toy.PREDS:
        assert error[pred]["off_curve"] < 0.8 * noise["off_curve"], pred


def test_bank_equals_loop():
    """Networks trained side by side end where each ends alone, up to the rounding of a differently blocked product."""
    bank, _ = toy.train(at_dimension(16), seed=1, steps=20)
    for i, run in enumerate(at_dimension(16)):
        alone, _ = toy.train((run,), seed=1, steps=20)
        for together, single in zip(bank.parameters(), alone.parameters()):
            torch.testing.assert_close(together[i], single[0], atol=2e-4, rtol=1e-3)


def test_bank_is_a_plain_perceptron():
    """The batched products are the five layers Linear - ReLU - ... - Linear of each network, with t as last input."""
    bank, _ = toy.train(PLAIN, seed=0, steps=3)
    z, t = torch.randn(3, 7, 2), torch.rand(7, 1)
    for i in range(3):
        h = torch.cat([z[i], t], 1)
        for layer in range(5):
            h = torch.nn.functional.linear(h, bank.weights[layer][i].T, bank.biases[layer][i, 0])
            h = h.relu() if layer < 4 else h
        torch.testing.assert_close(bank(z, t)[i], h, atol=1e-5, rtol=1e-4)


def test_same_seed_same_result():
    first, second, other = (toy.run_bank(PLAIN, seed=seed, steps=5)[0] for seed in (0, 0, 1))
    assert first == second
    assert first != other


@pytest.mark.parametrize("skip", ["linear", "EDM", "gate"])
def test_skip_is_exact_for_a_perfect_network(skip):
    """The network output that each skip asks for exists, and gives back x (or v): nothing is lost on the way around."""
    t = torch.linspace(0.1, 0.9, 9)[:, None]
    x, eps = torch.randn(9, 4), torch.randn(9, 4)
    z = t * x + (1 - t) * eps
    zero = toy.lead_around(skip, torch.zeros(9, 5 if skip == "gate" else 4), z, t)
    if skip == "gate":  # output 0, gate 1 / (1 - t): the rest of v is x / (1 - t), on the manifold
        net = torch.cat([x / (1 - t), 1 / (1 - t)], 1)
        torch.testing.assert_close(toy.lead_around(skip, net, z, t), x - eps, atol=1e-4, rtol=1e-4)
        return
    one = toy.lead_around(skip, torch.ones(9, 4), z, t)
    net = (x - zero) / (one - zero)
    torch.testing.assert_close(toy.lead_around(skip, net, z, t), x, atol=1e-5, rtol=1e-5)


def test_edm_skip_is_the_papers_formula():
    """Table 10: sigma_t = (1 - t) / t, sigma_d = 0.5, c_skip and c_out in the paper's form, against ours without 1 / t."""
    t = torch.linspace(0.05, 0.95, 10)[:, None]
    z, net = torch.randn(10, 3), torch.randn(10, 3)
    sigma = (1 - t) / t
    c_skip = 0.25 / (0.25 + sigma**2) / t
    c_out = 0.5 * sigma / (0.25 + sigma**2).sqrt()
    torch.testing.assert_close(toy.lead_around("EDM", net, z, t), c_skip * z + c_out * net, atol=1e-5, rtol=1e-5)


def test_every_study_names_its_networks():
    """All nine combinations at both D, a network for each prediction elsewhere, and one shape in each bank."""
    assert sum(len(runs) for runs in toy.study("combos", [])) == 18
    assert [runs[0].width for runs in toy.study("width", [])] == [64, 128, 256, 512, 1024, 2048]
    assert [runs[0].d for runs in toy.study("intrinsic", [])] == [2, 8, 32, 128, 512]
    for name in ("samples", "dimension", "width", "intrinsic", "combos", "skip"):
        for runs in toy.study(name, [2, 8]):
            assert len({run[:4] for run in runs}) == 1


def test_command_leaves_figure_and_numbers(tmp_path, capsys):
    toy.main(["--dims", "2", "8", "--steps", "2", "--seeds", "2", "--out", str(tmp_path)])
    stored = json.loads((tmp_path / "toy_manifold.json").read_text())
    assert len(stored["samples"]) == 2 * 2 * 5
    assert (tmp_path / "toy_manifold.png").stat().st_size < 300_000
    assert " +- " in capsys.readouterr().out


def test_sweeps_share_a_file(tmp_path, monkeypatch):
    """The four studies of Figure 3 are run one by one: a later one must keep what an earlier one wrote."""
    small = tuple(toy.Run(4, pred=pred, width=8) for pred in toy.PREDS)
    monkeypatch.setattr(toy, "study", lambda name, dims: [small])
    for name in ("combos", "skip"):
        toy.main(["--sweep", name, "--steps", "1", "--out", str(tmp_path)])
    assert set(json.loads((tmp_path / "toy_why.json").read_text())) == {"combos", "skip"}


@pytest.mark.parametrize(
    "arguments",
    [["--dims", "1"], ["--dims", "two"], ["--seeds", "0"], ["--steps", "0"], ["--seed", "-1"], ["--sweep", "depth"],
     ["--device", "tpu"], ["--out", str(Path(__file__) / "below_a_file")], ["--flag"]],
)  # fmt: skip
def test_bad_input_is_one_sentence(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        toy.main(arguments)
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert message.count("\n") == 1 and message.startswith("toy_manifold.py: ")
