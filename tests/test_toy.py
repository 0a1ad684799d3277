"""toy_manifold.py and its studies: data, errors and networks are what findings.md says."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import style
import torch
import toy_manifold as toy
import toy_studies
import variants
from conftest import ROOT
from torch.nn import functional as F


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(toy, "SAMPLES", 200)


def errors(D, steps):
    """Errors of the three predictions and of the references: {prediction: record}."""
    configs = [toy.Config(D, pred=pred) for pred in toy.PREDS + toy.REFERENCES]
    return {config.pred: toy.run_network(config, 0, steps)[0] for config in configs}


# ---- Data and errors ----


@pytest.mark.parametrize("D, d", [(2, 2), (512, 8)])
def test_plane_is_orthonormal(D, d):
    """P^T P = I: otherwise P^T x is not the point that was put into R^D."""
    P = toy.random_plane(D, d)
    torch.testing.assert_close(P.T @ P, torch.eye(d), atol=1e-5, rtol=0)


def test_spiral_has_unit_variance_and_even_spacing():
    """The ratio of signal and noise must not depend on D; and the curve is evenly full."""
    points = toy.spiral(toy.quantiles(100_000))
    torch.testing.assert_close(points.mean(0), torch.zeros(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(points.std(0), torch.ones(2), atol=1e-3, rtol=0)
    coarse = toy.spiral(toy.quantiles(1000))[50:]  # the innermost 5% is a straight start
    gaps = (coarse[1:] - coarse[:-1]).norm(dim=1)
    assert gaps.max() < 1.6 * gaps.min()


def test_errors_by_hand():
    """A step of 3 out of the plane is an off_plane of 3 / sqrt(d), and nothing else; a shift in it
    moves each projection by |b . direction|, 2 |b| / pi on average."""
    P = torch.eye(4)[:, :2]
    x = toy.spiral(toy.quantiles(1000)) @ P.T
    on = toy.errors_of(x, P)
    off = toy.errors_of(x + 3 * torch.eye(4)[3], P)
    assert on["off_plane"] < 1e-6 and on["off_curve"] < 2e-3 and on["sliced_w1"] < 1e-6
    assert off == pytest.approx(on | {"off_plane": 3 / math.sqrt(2)}, rel=1e-5)
    shifted = toy.errors_of(x + torch.tensor([0.5, 0, 0, 0]), P)
    assert shifted["sliced_w1"] == pytest.approx(2 * 0.5 / math.pi, rel=1e-2)
    norm = toy.draw_data(20_000, toy.random_plane(32, 8)).square().sum(1).mean().sqrt()
    assert norm == pytest.approx(math.sqrt(8), rel=0.02)  # what off_plane divides by
    noise, _ = toy.run_network(toy.Config(512, pred="noise"), 0)
    assert noise["off_plane"] == pytest.approx(math.sqrt(510 / 2), rel=0.01)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
def test_posterior_mean_of_two_points(t):
    """By hand E[x | z] = a tanh(t a . z / (1 - t)^2); noise off the plane must not matter."""
    P, a, z = toy.random_plane(6, 2), torch.tensor([0.8, -0.6]), torch.randn(5, 6)
    by_hand = torch.tanh(t * (z @ P @ a) / (1 - t) ** 2)[:, None] * (P @ a)
    found = toy.posterior_mean(z, torch.full((5,), t), P, torch.stack([a, -a]))
    torch.testing.assert_close(found, by_hand, atol=1e-5, rtol=1e-5)


# ---- Training ----


def test_times_follow_their_law_one_from_each_part():
    """logit t ~ N(0.5, 1.5^2): undone by the normal law, each 1/128 holds one time."""
    u = torch.special.ndtr((torch.logit(toy.draw_times(128)) - 0.5) / 1.5)
    assert (u * 128).floor().long().tolist() == list(range(128))


def test_learning_rate_warms_up_stays_and_falls():
    """At four times the width a quarter of the rate: else wide networks learn less."""
    assert toy.learning_rate(100, 600, width=1024) == toy.LR / 4
    assert toy.learning_rate(100, 600, width=64) == toy.LR
    rates = [toy.learning_rate(step, 600) / toy.LR for step in (0, 49, 299, 450, 599)]
    assert rates == pytest.approx([1 / 50, 1, 1, 0.5, 2 / 600])


def test_perceptron_is_five_layers_and_sees_t():
    """By hand: Linear, ReLU, ..., Linear, t as last input, and no path around the layers."""
    net, z, t = toy.Perceptron(3, width=8), torch.randn(7, 3), torch.rand(7)
    h = torch.cat([z, t[:, None]], 1)
    for layer in range(5):
        weight, bias = list(net.parameters())[2 * layer : 2 * layer + 2]
        h = F.linear(h.relu() if layer else h, weight, bias)
    torch.testing.assert_close(net(z, t), h)
    assert len(list(net.parameters())) == 10


def test_only_x_prediction_finds_the_plane_at_512_dimensions():
    """The point of the toy. Measured at 100 steps: x 0.03, v 15, eps 800."""
    error = errors(512, steps=100)
    assert error["x"]["off_plane"] < 0.2
    assert error["v"]["off_plane"] > 5 and error["eps"]["off_plane"] > 5
    for reference in ("oracle", "data"):
        assert error[reference]["off_plane"] < 1e-5 and error[reference]["off_curve"] < 0.01


def test_every_prediction_works_at_2_dimensions():
    """So that eps and v do not fail at D = 512 for a flipped sign, say."""
    error = errors(2, steps=300)
    for pred in toy.PREDS:
        assert error[pred]["off_curve"] < 0.8 * error["noise"]["off_curve"], pred


def test_predictions_share_plane_batches_and_noise(monkeypatch):
    """A comparison of predictions must not be one of seeds; and a seed gives the same again."""
    seen = {pred: [] for pred in toy.PREDS}

    def interpolate(x, eps, t):
        seen[pred].append((x, eps, t))
        return t[:, None] * x + eps

    def sample(net, pred, noise):
        seen[pred].append((noise,))
        return noise

    monkeypatch.setattr(toy, "interpolate", interpolate)
    monkeypatch.setattr(toy, "sample", sample)
    for pred in toy.PREDS:
        toy.run_network(toy.Config(4, pred=pred), seed=0, steps=2)
    assert len(seen["x"]) == 3
    for others in zip(*seen.values()):
        for tensors in zip(*others):
            assert all(torch.equal(tensor, tensors[0]) for tensor in tensors)
    monkeypatch.undo()
    first, other, again = (toy.run_network(toy.Config(2), s, steps=5)[0] for s in (0, 1, 0))
    assert first == again and first["off_curve"] != other["off_curve"]


# ---- Ways around the layers ----


def constant(net, value):
    """The network with outputs of this value (B, n) in place of its layers'."""
    del net.layers
    net.layers = lambda inputs: value
    return net


@pytest.mark.parametrize("kind", ["linear", "edm"])
def test_fixed_paths_are_those_of_the_images(kind):
    """c_skip z + c_out net, with the coefficients of Table 10 that test_figures.py checks."""
    t, z, output = torch.linspace(0.1, 0.9, 9), torch.randn(9, 4), torch.randn(9, 4)
    c_skip, c_out = variants.coefficients(t[:, None], kind)
    net = constant(toy_studies.Fixed(4, 8, kind), output)
    torch.testing.assert_close(net(z, t), c_skip * z + c_out * output)


def test_gate_of_1_over_1_minus_t_leaves_x_to_the_network():
    """v = x / (1-t) - z / (1-t) and eps = -t x / (1-t) + z / (1-t): the rest lies in the plane."""
    t, x, eps = torch.linspace(0.1, 0.9, 9), torch.randn(9, 4), torch.randn(9, 4)
    z, gate = t[:, None] * x + (1 - t[:, None]) * eps, 1 / (1 - t[:, None])
    net = constant(toy_studies.Gated(4, 8), torch.cat([gate * x, gate], 1))
    torch.testing.assert_close(net(z, t), x - eps, atol=1e-4, rtol=1e-4)
    net = constant(net, torch.cat([-gate * t[:, None] * x, -gate], 1))
    torch.testing.assert_close(net(z, t), eps, atol=1e-4, rtol=1e-4)


# ---- Studies, files, pictures ----


def test_command_leaves_numbers_points_and_picture(capsys):
    """In runs/figures, so that a first try replaces nothing; again drawn from the numbers alone."""
    toy.main(["--dims", "2", "8", "--steps", "2", "--seeds", "2"])
    folder = Path("runs/figures")
    assert sorted(path.suffix for path in folder.rglob("*.*")) == [".json", ".npz", ".png"]
    records = json.loads((folder / "results" / "toy_manifold.json").read_text())
    assert len(records) == 2 * 2 * 6
    assert " +- " in capsys.readouterr().out
    picture = folder / "toy_manifold.png"
    before = picture.read_bytes()
    picture.unlink()
    toy.main(["--draw"])
    assert picture.read_bytes() == before
    for words in (["--draw", "--dims", "8"], ["--draw", "--seeds", "2"], ["--draw", "--out", "t"]):
        with pytest.raises(SystemExit):  # a sentence: of what is there, or there is nothing
            toy.main(words)
        assert "--draw" in capsys.readouterr().err.splitlines()[-1] and picture.exists()


def test_studies_share_a_file(tmp_path, monkeypatch):
    """A later study keeps what an earlier one wrote; and the picture has both."""
    configs = [toy.Config(8, width=8, skip="gate", pred=pred) for pred in ("eps", "v", "noise")]
    monkeypatch.setattr(toy_studies, "configs_of", lambda study: configs)
    for name in ("width", "path"):
        toy_studies.main([name, "--steps", "1", "--out", str(tmp_path)])
    stored = json.loads((tmp_path / "results" / "toy_studies.json").read_text())
    assert set(stored) == {"width", "path"} and len(stored["path"][0]["gate"]) == 10
    assert (tmp_path / "toy_studies.png").exists()


def test_panels_hold_the_numbers():
    """Off the plane at each D, the mean of the seeds; and a dot each."""
    records = [dict(D=D, pred=pred, off_plane=D / k + seed) for D in (4, 8) for k, pred in
               enumerate(("x", "v", "noise"), 1) for seed in (0, 2)]  # fmt: skip
    ax = toy.Figure().subplots()
    toy_studies.draw_panel(ax, "D", records)
    drawn = [list(line.get_ydata()) for line in ax.lines]
    assert sum(drawn, []) == pytest.approx([5, 9, 4, 6, 8, 10, 3, 5, 2, 4, 4, 6, 7 / 3, 11 / 3])


def test_picture_counts_what_lies_outside():
    """An empty panel must say why it is empty, with a number from the samples."""
    ax = toy.Figure().subplots()
    toy.draw_plane(ax, np.array([[9.0, 0], [0, -9], [9, 9], [0, 0]]), "black")
    assert [text.get_text() for text in ax.texts] == ["75.0% outside"]


def test_one_palette():
    """The toy needs nothing from figures/, and has its colours."""
    assert toy.COLOURS == style.COLOURS
    source = (ROOT / "toy_manifold.py").read_text()
    assert "import figures" not in source and "from figures" not in source
