"""Tests of toy_manifold.py; each says what it protects. About 15 seconds on one CPU core."""

import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import toy_manifold as toy  # noqa: E402
from figures import toy_copy, toy_figures  # noqa: E402


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """One thread, so that results do not depend on the load; few samples, so that the file takes seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    monkeypatch.setattr(toy, "SAMPLES", 200)
    yield
    torch.set_num_threads(before)


def errors(D, steps):
    """Errors of the three predictions and of the references: {prediction: record}"""
    return {pred: toy.run(toy.Config(D, pred=pred), 0, steps)[0] for pred in toy.PREDS + toy.REFERENCES}


# ---- Data and metrics ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("D, d", [(2, 2), (16, 2), (512, 8)])
def test_plane_is_orthonormal(D, d):
    """P^T P = I: otherwise P^T x is not the point that was put into R^D, and every error is wrong."""
    P = toy.random_plane(D, d)
    assert P.shape == (D, d)
    torch.testing.assert_close(P.T @ P, torch.eye(d), atol=1e-5, rtol=0)


def test_spiral_has_unit_variance_and_even_spacing():
    """The signal-to-noise ratio must not depend on D: the data has variance 1 in the plane, whatever is around it."""
    points = toy.spiral(toy.quantiles(100_000))
    torch.testing.assert_close(points.mean(0), torch.zeros(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(points.std(0), torch.ones(2), atol=1e-3, rtol=0)
    coarse = toy.spiral(toy.quantiles(1000))[50:]  # the innermost 5% is a straight start
    gaps = (coarse[1:] - coarse[:-1]).norm(dim=1)
    assert gaps.max() < 1.6 * gaps.min()


def test_data_norm_is_sqrt_d():
    """off_plane divides by sqrt(d), the data's root-mean-square norm."""
    x = toy.draw_data(20_000, toy.random_plane(32, 8))
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
    x = toy.spiral(toy.quantiles(1000)) + torch.tensor([0.5, 0.0])
    assert math.isclose(toy.measure(x, torch.eye(2))["sliced_w1"], 2 * 0.5 / math.pi, rel_tol=1e-2)


def test_untouched_noise_is_where_its_law_says():
    """Noise has norm sqrt(D - 2) outside the plane: the level to hold eps and v against at D = 512."""
    record, _ = toy.run(toy.Config(512, pred="noise"), seed=0)
    assert math.isclose(record["off_plane"], math.sqrt(510 / 2), rel_tol=0.01)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
def test_posterior_mean_of_two_points(t):
    """Two points +-a: by hand E[x | z] = a tanh(t a . z / (1 - t)^2); noise off the plane must not matter."""
    P = toy.random_plane(6, 2)
    a = torch.tensor([0.8, -0.6])
    z = torch.randn(5, 6)
    by_hand = torch.tanh(t * (z @ P @ a) / (1 - t) ** 2)[:, None] * (P @ a)
    found = toy.posterior_mean(z, torch.full((5,), t), P, torch.stack([a, -a]))
    torch.testing.assert_close(found, by_hand, atol=1e-5, rtol=1e-5)


# ---- Training --------------------------------------------------------------------------------------------------------
def test_times_follow_their_law_one_from_each_part():
    """logit t ~ N(0.5, 1.5^2), stratified: undone by the normal distribution function, each 1/128 holds one time."""
    u = torch.special.ndtr((torch.logit(toy.sample_t(128)) - 0.5) / 1.5)
    assert (u * 128).floor().long().tolist() == list(range(128))


def test_learning_rate_warms_up_stays_and_falls():
    """At four times the width a quarter of the rate: at the full rate wide networks learn less than they can."""
    assert toy.learning_rate(100, 600, width=1024) == toy.LR / 4
    assert toy.learning_rate(100, 600, width=64) == toy.LR
    rates = [toy.learning_rate(step, 600) / toy.LR for step in (0, 49, 299, 450, 599)]
    assert rates == pytest.approx([1 / 50, 1, 1, 0.5, 2 / 600])


def test_perceptron_is_five_layers_and_sees_t():
    """By hand: Linear - ReLU - ... - Linear, t as last input, and no path around the layers unless asked for."""
    net = toy.Perceptron(3, width=8)
    z, t = torch.randn(7, 3), torch.rand(7)
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
    assert error["v"]["off_plane"] > 5
    assert error["eps"]["off_plane"] > 5
    assert error["oracle"]["off_plane"] < 1e-5 and error["oracle"]["off_curve"] < 0.01
    assert error["data"]["off_plane"] < 1e-5 and error["data"]["off_curve"] < 0.01


def test_every_prediction_works_at_2_dimensions():
    """So that eps and v do not fail at D = 512 for the wrong reason, such as a flipped sign in their conversion."""
    error = errors(2, steps=300)
    for pred in toy.PREDS:
        assert error[pred]["off_curve"] < 0.8 * error["noise"]["off_curve"], pred


def test_same_seed_same_result():
    """A run can be repeated, and no network's numbers depend on those that were trained before it."""
    first, other, second = (toy.run(toy.Config(2), seed, steps=5)[0] for seed in (0, 1, 0))
    assert first == second
    assert first["off_curve"] != other["off_curve"]


def test_predictions_share_plane_batches_and_noise(monkeypatch):
    """A comparison of predictions must not be one of seeds: all of a seed see the same data and start at one noise."""
    seen = {pred: [] for pred in toy.PREDS}
    monkeypatch.setattr(toy, "interpolate", lambda x, eps, t: seen[pred].append((x, eps, t)) or t[:, None] * x + eps)
    monkeypatch.setattr(toy, "sample", lambda net, pred, noise: seen[pred].append((noise, noise, noise)) or noise)
    for pred in toy.PREDS:
        toy.run(toy.Config(4, pred=pred), seed=0, steps=2)
    for others in zip(*seen.values()):
        for tensors in zip(*others):
            assert all(torch.equal(tensor, tensors[0]) for tensor in tensors)


def test_copying_gets_worse_with_dimension():
    """The explanation in figures/toy.md rests on it. Measured at 100 steps: 0.01 at D = 2, 0.46 at D = 64."""
    few, many = (toy_copy.copy_error(D, steps=100) for D in (2, 64))
    assert few < 0.1 and many > 0.25


# ---- Ways around the layers ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("skip", ["linear", "EDM"])
def test_fixed_skip_is_exact_for_a_perfect_network(skip):
    """The network output that each skip asks for exists, and gives back x: nothing is lost on the way around."""
    t = torch.linspace(0.1, 0.9, 9)[:, None]
    x, eps = torch.randn(9, 4), torch.randn(9, 4)
    z = t * x + (1 - t) * eps
    zero, one = (toy.add_skip(skip, torch.full((9, 4), value), z, t) for value in (0.0, 1.0))
    net = (x - zero) / (one - zero)
    torch.testing.assert_close(toy.add_skip(skip, net, z, t), x, atol=1e-5, rtol=1e-5)


def test_gate_of_1_over_1_minus_t_leaves_x_to_the_network():
    """v = x / (1-t) - z / (1-t) and eps = -t x / (1-t) + z / (1-t): what is left for the network lies in the plane."""
    t = torch.linspace(0.1, 0.9, 9)[:, None]
    x, eps = torch.randn(9, 4), torch.randn(9, 4)
    z, gate = t * x + (1 - t) * eps, 1 / (1 - t)
    v = toy.add_skip("gate", torch.cat([gate * x, gate], 1), z, t)
    torch.testing.assert_close(v, x - eps, atol=1e-4, rtol=1e-4)
    found = toy.add_skip("gate", torch.cat([-gate * t * x, -gate], 1), z, t)
    torch.testing.assert_close(found, eps, atol=1e-4, rtol=1e-4)


def test_edm_skip_is_the_papers_formula():
    """Table 10: sigma_t = (1 - t) / t, sigma_d = 0.5, c_skip and c_out as in the paper; ours does without 1 / t."""
    t = torch.linspace(0.05, 0.95, 10)[:, None]
    z, net = torch.randn(10, 3), torch.randn(10, 3)
    sigma = (1 - t) / t
    c_skip = 0.25 / (0.25 + sigma**2) / t
    c_out = 0.5 * sigma / (0.25 + sigma**2).sqrt()
    torch.testing.assert_close(toy.add_skip("EDM", net, z, t), c_skip * z + c_out * net, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pred, sign", [("v", 1), ("eps", -1)])
def test_gate_learns_to_carry_the_noise(pred, sign):
    """It finds +-1 / (1 - t) by itself. Measured at 200 steps, D = 64, two seeds: within 8% at t = 0.3 and 0.5."""
    gate = toy.run(toy.Config(64, skip="gate", pred=pred), seed=0, steps=200)[0]["gate"]
    for t in (0.3, 0.5):
        assert math.isclose(sign * gate[t], 1 / (1 - t), rel_tol=0.15), t


# ---- Studies, files, command line ------------------------------------------------------------------------------------
def test_every_study_names_its_networks():
    """All nine combinations at both D, both gates, a network for each prediction elsewhere; references but once."""
    networks = {name: [c for c in toy.study_configs(name, [2, 8]) if c.pred in toy.PREDS]
                for name in ("samples", "width", "intrinsic", "combos", "skip")}  # fmt: skip
    assert len({(c.D, c.pred, c.loss) for c in networks["combos"]}) == 18 == len(networks["combos"])
    assert {c.pred for c in networks["skip"] if c.skip == "gate"} == {"eps", "v"}
    assert sorted({c.width for c in networks["width"]}) == [64, 128, 256, 512, 1024, 2048]
    assert sorted({c.d for c in networks["intrinsic"]}) == [2, 8, 32, 128, 512]
    assert toy.study_configs("dimension", [2, 8]) == toy.study_configs("samples", [2, 8])
    for name in networks:
        configs = toy.study_configs(name, [2, 8])
        assert len(set(configs)) == len(configs)


def test_command_leaves_figure_and_numbers(tmp_path, capsys):
    toy.main(["--dims", "2", "8", "--steps", "2", "--seeds", "2", "--out", str(tmp_path)])
    stored = json.loads((tmp_path / "toy_manifold.json").read_text())
    assert len(stored["samples"]) == 2 * 2 * 6
    assert (tmp_path / "toy_manifold.png").stat().st_size < 300_000
    assert " +- " in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == 2  # nothing half-written is left


def test_sweeps_share_a_file(tmp_path, monkeypatch):
    """The four studies of toy_why.png are run one by one: a later one must keep what an earlier one wrote."""
    configs = [toy.Config(512, width=8, skip="gate", pred=pred) for pred in ("eps", "v", "noise")]
    monkeypatch.setattr(toy, "study_configs", lambda name, dims: configs)
    for name in ("combos", "skip"):
        toy.main(["--sweep", name, "--steps", "1", "--out", str(tmp_path)])
    stored = json.loads((tmp_path / "toy_why.json").read_text())
    assert set(stored) == {"combos", "skip"}
    assert len(stored["skip"][0]["gate"]) == 10  # the picture shows what the gate has learned


@pytest.mark.parametrize("dims", [[2], [2, 256]])
def test_dimension_picture_of_any_dims(dims):
    """D = 2 has no place on a logarithmic axis, and 256 has a mark."""
    records = [{"D": D, "d": 2, "pred": pred, "off_plane": 1.0} for D in dims for pred in ("x", "noise")]
    toy_figures.draw("dimension", {"dimension": records}, None, None)


def test_picture_counts_what_lies_outside():
    """An empty panel must say why it is empty, with a number from the samples."""
    ax = toy_figures.Figure().subplots()
    points = torch.tensor([[9.0, 0.0], [0.0, -9.0], [9.0, 9.0], [0.0, 0.0]])
    toy_figures.draw_plane(ax, points, torch.zeros(2, 2), "black")
    assert [text.get_text() for text in ax.texts] == ["75.0% outside"]


def test_cut_off_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "toy.json"
    path.write_text("old")

    def fail(beside):
        beside.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError):
        toy.write_whole(path, fail)
    assert path.read_text() == "old"


def test_a_notebooks_backend_does_not_matter():
    """MPLBACKEND as Jupyter sets it, where that package is not installed, stops even the import of matplotlib."""
    environment = os.environ | {"MPLBACKEND": "module://not_installed.backend_inline"}
    command = [sys.executable, "-c", "import figures.toy_figures"]
    assert subprocess.run(command, cwd=ROOT, env=environment).returncode == 0


def test_ctrl_c_is_exit_130(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("jit.flow_loss", interrupt)
    monkeypatch.setattr(sys, "argv", ["toy_manifold.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "toy_manifold.py"), run_name="__main__")
    assert stop.value.code == 130


def stops_with_one_sentence(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        toy.main(arguments)
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert message.count("\n") == 1 and message.startswith("toy_manifold.py: ")


@pytest.mark.parametrize(
    "arguments",
    [["--dims", "1"], ["--dims", "two"], ["--dims", "1000000000"], ["--seeds", "0"], ["--steps", "0"], ["--seed", "-1"],
     ["--seed", "nan"], ["--seed", "18446744073709551616"], ["--seed", "4294967295", "--seeds", "2"],
     ["--sweep", "depth"], ["--out", __file__], ["--out", str(Path(__file__) / "below_a_file")], ["--flag"]],
)  # fmt: skip
def test_bad_input_is_one_sentence(arguments, capsys):
    stops_with_one_sentence(arguments, capsys)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"samples": 3}', '{"samples": [{"D": 2}]}', "\udc80"])
def test_damaged_file_is_found_before_the_work(text, tmp_path, capsys):
    """And is left as it is."""
    path = tmp_path / "toy_manifold.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    stops_with_one_sentence(["--out", str(tmp_path)], capsys)
    assert path.read_bytes() == text.encode(errors="surrogateescape")
