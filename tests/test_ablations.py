"""Tests of figures/ablations.py and of the networks in figures/variants.py; each says what it protects."""

import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import SubFigure
from matplotlib.text import Text
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "figures")]
import ablations  # noqa: E402
import common  # noqa: E402
import studies  # noqa: E402
import study_figures  # noqa: E402
import variants  # noqa: E402

import jit  # noqa: E402

SMALL = dict(size=16, patch=4, classes=5, depth=3, width=32, heads=2, bottleneck=8, context_tokens=2, context_start=1)
NETWORKS = {
    "edm": lambda: variants.Preconditioned("edm", **SMALL),
    "gated": lambda: variants.Gated(**SMALL),
    "layer norm": lambda: variants.LayerNormGelu(**SMALL),
    "classifying": lambda: variants.Classifying(**SMALL),
}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(net, seed=0):
    """The network with nothing left at 0, so that each part has a say."""
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        if p.requires_grad:
            p.data += 0.2 * torch.randn(p.shape, generator=generator)
    return net.eval()


def flags(tmp_path, *words):
    return ablations.parse_flags([*words, "--runs", str(tmp_path), "--figures", str(tmp_path)])


# ---- The networks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "edm"])
def test_preconditioning_is_the_formula_of_table_10(kind):
    """c_skip z + c_out net with the paper's coefficients, where they can be computed as printed: 0 < t < 1."""
    net = filled(variants.Preconditioned(kind, **SMALL))
    z, y = normal(5, 3, 16, 16), torch.arange(5)
    t = torch.tensor([0.01, 0.3, 0.5, 0.9, 0.99])
    with torch.no_grad():
        out, found = jit.JiT.forward(net, z, t, y), net(z, t, y)
    for i, time in enumerate(t.tolist()):
        sigma_t, sigma_d = (1 - time) / time, 0.5
        c_skip = time if kind == "linear" else 1 / time * sigma_d**2 / (sigma_d**2 + sigma_t**2)
        c_out = 1 - time if kind == "linear" else sigma_d * sigma_t / math.sqrt(sigma_d**2 + sigma_t**2)
        torch.testing.assert_close(found[i], c_skip * z[i] + c_out * out[i], atol=1e-5, rtol=1e-5)


def test_preconditioning_at_both_ends():
    """At t = 1 the input is the image: c_skip 1, c_out 0. At t = 0 it is all noise: no 0 / 0."""
    zero, one = torch.zeros(1), torch.ones(1)
    for kind in ("linear", "edm"):
        torch.testing.assert_close(variants.coefficients(one, kind), (one, zero))
    torch.testing.assert_close(variants.coefficients(zero, "linear"), (zero, one))
    torch.testing.assert_close(variants.coefficients(zero, "edm"), (zero, 0.5 * one))  # sigma_d


def test_a_preconditioned_network_samples_the_image_it_predicts(monkeypatch):
    """The sampler needs no switch: a network whose c_skip z + c_out net is one image x draws x from any noise."""
    x = normal(1, 3, 16, 16, seed=5).clamp(-1, 1)
    net = variants.Preconditioned("edm", **SMALL)

    def needed(self, z, t, y):
        c_skip, c_out = variants.coefficients(t.view(-1, 1, 1, 1), "edm")
        return (x - c_skip * z) / c_out

    monkeypatch.setattr(jit.JiT, "forward", needed)
    velocity = jit.guided_velocity(net, torch.tensor([0, 1]), jit.Flow(t_clip=1e-6))
    *_, (_, end, _) = jit.integrate(velocity, normal(2, 3, 16, 16), steps=20)
    torch.testing.assert_close(end, x.expand(2, -1, -1, -1), atol=1e-4, rtol=0)  # fp32 over 39 evaluations


class ExactGate(torch.nn.Module):
    """1 / (1 - t), from the first of the 128 cosines and sines, those of t itself."""

    def forward(self, features):
        t = torch.atan2(features[:, 128], features[:, 0])
        return (1 / (1 - t))[:, None]


def test_gate_of_1_over_1_minus_t_leaves_x_to_the_network(monkeypatch):
    """With that g, and x / (1 - t) as the network's part, v = x - eps comes out; a gated eps has the other sign."""
    x, eps, t = normal(4, 3, 16, 16, seed=1), normal(4, 3, 16, 16, seed=2), torch.tensor([0.0, 0.2, 0.5, 0.9])
    z, y = jit.interpolate(x, eps, t), torch.zeros(4, dtype=torch.long)
    net = variants.Gated(**SMALL)
    net.gate = ExactGate()
    monkeypatch.setattr(jit.JiT, "forward", lambda self, z, t, y: x / (1 - t.view(-1, 1, 1, 1)))
    torch.testing.assert_close(net(z, t, y), x - eps, atol=1e-4, rtol=0)  # fp32, divided by .1
    torch.testing.assert_close(net.g(t), 1 / (1 - t))


def test_gate_starts_shut():
    """At first there is none: the output is the plain network's."""
    net = variants.Gated(**SMALL)
    z, t, y = normal(3, 3, 16, 16), torch.tensor([0.1, 0.5, 0.9]), torch.arange(3)
    assert net.g(t).tolist() == [0, 0, 0]
    net.final_layer.linear.weight.data.normal_()
    assert torch.equal(net(z, t, y), jit.JiT.forward(net, z, t, y))


def test_what_is_added_to_z_is_not_rounded():
    """Under the bf16 of a GPU coefficients, gate and sum stay in fp32: an error of .4% of z would be seen as noise."""
    z, t, y = normal(3, 3, 16, 16), torch.tensor([0.1, 0.5, 0.9]), torch.arange(3)
    for net in (variants.Preconditioned("edm", **SMALL), filled(variants.Gated(**SMALL))):
        torch.nn.init.zeros_(net.final_layer.linear.weight)  # what the network itself puts out is 0
        torch.nn.init.zeros_(net.final_layer.linear.bias)
        with torch.no_grad():
            exact = net(z, t, y)
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(net(z, t, y), exact)
        assert exact.abs().max() > 0.1


def test_layer_norm_and_gelu_are_everywhere():
    """Table 4's first row: no SwiGLU, RMSNorm for qk-norm only; LayerNorms have no weights of their own."""
    net = variants.LayerNormGelu(**SMALL | dict(dropout=0.2, depth=4))
    kinds = [type(module).__name__ for module in net.modules()]
    assert "SwiGLU" not in kinds and kinds.count("GELU") == 4 and kinds.count("LayerNorm") == 9
    assert kinds.count("RMSNorm") == 8  # of queries and keys
    assert [block.mlp[2].p for block in net.blocks] == [0, 0.2, 0.2, 0]
    norm = net.blocks[0].norm1
    assert not list(norm.parameters())
    x = norm(3 + 2 * normal(4, 32))
    torch.testing.assert_close(x.mean(-1), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.var(-1, correction=0), torch.ones(4), atol=1e-4, rtol=0)


def test_classification_loss_of_table_11():
    """The blocks before the head must find the class, not be told it; the loss gains lambda / (numbers) * CE."""
    net = filled(variants.Classifying(**SMALL))
    z, t = normal(3, 3, 16, 16), torch.tensor([0.2, 0.5, 0.8])
    with torch.no_grad():
        out1, logits1 = net(z, t, torch.tensor([0, 1, 2]), return_logits=True)
        out2, logits2 = net(z, t, torch.tensor([3, 4, -1]), return_logits=True)
    assert torch.equal(logits1, logits2) and logits1.shape == (3, 5)
    assert (out1 - out2).abs().amax((1, 2, 3)).min() > 1e-2
    y, kept, flow = torch.tensor([0, 3, 1]), [], jit.Flow(label_drop=0.5)
    net.head.register_forward_hook(lambda module, inputs, output: kept.append(output))
    torch.manual_seed(3)
    plain, _ = jit.training_loss(net, z, y, flow)
    torch.manual_seed(3)
    loss, _ = variants.classifying_loss(100)(net, z, y, flow)
    entropy = [-kept[1][i].log_softmax(0)[y[i]] for i in range(3)]  # of the true class, dropped or not
    torch.testing.assert_close(loss, plain + 100 / 768 * torch.stack(entropy))


def test_head_apart_from_its_blocks_changes_nothing():
    """All other blocks do what jit.JiT's do: with equal embeddings of all classes the pictures are the same."""
    net = filled(variants.Classifying(**SMALL))
    table = net.y_embedder["embedding_table"].weight.data
    table.zero_()
    z, t, y = normal(3, 3, 16, 16), torch.tensor([0.2, 0.5, 0.8]), torch.arange(3)
    with torch.no_grad():
        torch.testing.assert_close(net(z, t, y), jit.JiT.forward(net, z, t, y), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_learns(name):
    """Nothing of a network is left out of its forward pass."""
    net = filled(NETWORKS[name]())
    loss_function = variants.classifying_loss() if name == "classifying" else jit.training_loss
    loss, _ = loss_function(net, normal(5, 3, 16, 16).clamp(-1, 1), torch.arange(5), jit.Flow(label_drop=0.0))
    loss.mean().backward()
    for parameter, p in net.named_parameters():
        learns = p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0
        assert learns != (parameter == "pos_embed"), parameter


@pytest.mark.parametrize("name", NETWORKS)
def test_a_run_of_such_a_network(name, tmp_path, monkeypatch):
    """jit.train takes it as it is, goes on where it stopped; jit.py refuses to read it as a plain JiT."""
    monkeypatch.setattr(jit, "draw_sheet", lambda *args: None)
    monkeypatch.setattr(jit, "sample_images", lambda *args, **settings: [torch.zeros(1)])
    loss_function = variants.classifying_loss() if name == "classifying" else jit.training_loss
    monkeypatch.setitem(SMALL, "classes", 10)
    data, settings = jit.Shapes(16), dict(batch_size=4, loss_function=loss_function)
    for steps in (1, 2):
        jit.train(NETWORKS[name](), jit.Flow(), data, tmp_path, steps=steps, **settings)
    net, flow, _ = jit.load_run(tmp_path, "raw", "cpu", type(NETWORKS[name]()))
    assert flow == jit.Flow() and net.shape == (3, 16, 16)
    assert [line["step"] for line in common.read_log(tmp_path)] == [1, 2]
    with pytest.raises(jit.Stop, match="does not fit a JiT"):
        jit.load_run(tmp_path, "raw", "cpu")


# ---- The studies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", studies.SCALES)
@pytest.mark.parametrize("name", studies.STUDIES)
def test_studies_are_valid(name, scale, tmp_path):
    """A typo in a table must not show after an hour of training: all arguments are accepted, no cell is there twice."""
    args, cells = flags(tmp_path, name, "--scale", scale), studies.STUDIES[name](studies.SCALES[scale]).cells
    assert len({(cell.panel, cell.row, cell.column) for cell in cells}) == len(cells)
    runs = [studies.run_of(cell, 0, args) for cell in cells]
    assert len({f"{run.out} {studies.key_of(cell, args)}" for run, cell in zip(runs, cells)}) == len(cells)
    trains, samples = (studies.inspect.signature(function) for function in (jit.train, jit.sample_images))
    for run, cell in zip(runs, cells):
        jit.Flow(**run.flow)
        trains.bind(None, None, None, run.out, **run.recipe)
        samples.bind(None, None, None, None, **studies.sampling_of(cell, args))


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_networks_build(scale, tmp_path):
    """Every kind of network takes the images of its study; only as deep here as in-context tokens need."""
    runs = {}
    for name in studies.STUDIES:
        for run, _ in studies.runs_of(name, flags(tmp_path, name, "--scale", scale)).values():
            runs[run.variant, json.dumps(run.network)] = run
    for run in runs.values():
        net = run.variant(**run.network | dict(depth=2, context_start=1), classes=10)
        x = torch.zeros(2, *run.shape)
        with torch.no_grad():
            assert net(x, torch.zeros(2), torch.zeros(2, dtype=torch.long)).shape == x.shape


def test_settings_are_those_of_the_paper(tmp_path):
    """Tables 2, 3, 10: no RoPE, qk-norm, in-context tokens, bottleneck; (a) has 768 numbers a patch, (b) 48."""
    for name in ("nine", "shift", "precond", "gate"):
        for run, cells in studies.runs_of(name, flags(tmp_path, name)).values():
            network = run.network
            assert network["size"] == 32  # the same pictures
            parts = [network[part] for part in ("rope", "qk_norm", "context_tokens", "bottleneck")]
            assert parts == [False, False, 0, 0]
            assert 3 * network["patch"] ** 2 == (48 if "(b)" in cells[0].panel else 768)
            assert 48 < network["width"] < 768
    names = ("nine", "shift", "precond", "bottleneck", "gate")
    shared = [set(studies.runs_of(name, flags(tmp_path, name))) for name in names]
    assert [len(shared[0] & other) for other in shared[1:]] == [3, 3, 1, 3]  # trained once, shown twice


def test_folders_know_what_was_chosen(tmp_path, monkeypatch):
    """Other seeds, steps, data and shapes are other networks; how often a run is saved is not."""
    cell, *_ = studies.nine(studies.SCALES["cpu"]).cells
    args, other = flags(tmp_path, "nine"), flags(tmp_path, "nine", "--data", str(tmp_path))
    outs = {studies.run_of(cell, seed, args).out for seed in range(3)}
    outs.add(studies.run_of(dataclasses.replace(cell, recipe=dict(steps=7)), 0, args).out)
    outs.add(studies.run_of(dataclasses.replace(cell, variant=variants.Gated), 0, args).out)
    outs.add(studies.run_of(cell, 0, other).out)
    saved_often = dataclasses.replace(cell, recipe=dict(save_every=7), flow=cell.flow | dict(mu=-0.8))
    assert studies.run_of(saved_often, 0, args).out in outs
    monkeypatch.setitem(jit.FACTORS, "size", (0.1, 0.2))
    common.version_of_shapes.cache_clear()
    outs.add(studies.run_of(cell, 0, args).out)
    assert len(outs) == 7
    monkeypatch.undo()
    common.version_of_shapes.cache_clear()


def test_scores_in_words():
    """Two digits; over several seeds mean and standard deviation (n - 1), with as many decimals as the mean."""
    assert studies.in_words("rfd", [0.4249]) == "rfd 0.42"
    assert studies.in_words("rfd", [51.6]) == "rfd 52"
    assert studies.in_words("rfd", [0.083]) == "rfd 0.083"
    assert studies.in_words("rfd", [1.0, 2.0, 3.0]) == "rfd 2.0 ± 1.0"
    assert studies.in_words("agreement", [0.5, 0.6]) == "agreement 55 ± 7%"
    assert studies.in_words("agreement", [0.0]) == "agreement 0%"


@pytest.fixture
def same_signals():
    """The script sets handlers, which the next test must not inherit."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_stopped_network_goes_on_and_is_drawn(tmp_path, monkeypatch, same_signals):
    """A study that was stopped repeats no step, and trains or draws nothing twice."""
    args = flags(tmp_path / "a", "shift", "--scale", "toy")
    (run, cells), *_ = studies.runs_of("shift", args).values()
    original, calls = jit.update_average, []

    def stop_in_third_step(*inputs):
        calls.append(1)
        if len(calls) == 5:  # there are two averages
            raise KeyboardInterrupt
        return original(*inputs)

    monkeypatch.setattr(jit, "update_average", stop_in_third_step)
    with pytest.raises(KeyboardInterrupt):
        ablations.work(run, cells, args)
    monkeypatch.setattr(jit, "update_average", original)
    assert ablations.steps_done(run, cells, args) == 2  # saved every second step
    ablations.work(run, cells, args)
    assert [line["step"] for line in common.read_log(run.out)] == [1, 2, 3, 4, 5, 6]
    assert ablations.steps_done(run, cells, args) == ablations.steps_to_do(run, cells)

    def refuse(*inputs):
        raise AssertionError("done before")

    monkeypatch.setattr(jit, "sample_images", refuse)
    monkeypatch.setattr(jit, "update_average", refuse)
    ablations.work(run, cells, args)

    table, words = tmp_path / "a" / "shift_toy.md", ["shift", "--scale", "toy", "--draw-only"]
    words += ["--runs", str(args.runs), "--figures", str(args.figures)]
    assert ablations.main(words) == 0
    assert "not run" in table.read_text() and "14.44" in table.read_text()
    table.write_text(table.read_text() + "Why it differs.\n")
    assert ablations.main(words) == 0
    assert table.read_text().count("Why it differs.") == 1  # notes written by hand survive
    assert (tmp_path / "a" / "shift_toy.png").stat().st_size > 10_000


def pretend(name, args, score):
    """Results of all cells and seeds, as if they had been trained; score: a function of cell and seed."""
    for cell in studies.STUDIES[name](studies.SCALES[args.scale]).cells:
        for seed in range(args.seeds):
            run = studies.run_of(cell, seed, args)
            run.out.mkdir(parents=True, exist_ok=True)
            pixels = torch.zeros(9, *run.shape, dtype=torch.uint8).numpy()
            studies.np.save(run.out / f"{studies.key_of(cell, args)}.npy", pixels)
            (run.out / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
            results = studies.read_results(run.out) or dict(
                network=run.network, flow=dataclasses.asdict(jit.Flow(**run.flow)), recipe=run.recipe, commit="c",
                train_seconds=60, hardware="h", loss_over_t=[0.1] * 20, gate=[1.0 + seed] * 20)  # fmt: skip
            result = dict(scores=dict(rfd=score(cell, seed), agreement=0.5), floor=dict(rfd=0.1), seconds=1)
            studies.save_results(run.out, results | {studies.key_of(cell, args): result})


@pytest.mark.parametrize("name", studies.STUDIES)
def test_every_kind_of_figure(name, tmp_path):
    """Tables and figures of several seeds: mean and deviation, and no error after hours of training."""
    args = flags(tmp_path, name, "--scale", "toy", "--seeds", "3", "--draw-only")
    pretend(name, args, lambda cell, seed: 1.0 + seed)
    ablations.run_studies(args)
    table = (tmp_path / f"{name}_toy.md").read_text()
    assert "3 training seeds" in table
    assert ("0.500 ± 0.000" if name == "lossbyt" else "rfd 2.0 ± 1.0, agreement 50 ± 0%") in table
    assert (tmp_path / f"{name}_toy.png").stat().st_size > 5_000
    assert not list(tmp_path.glob(".part-*"))


def test_curves_have_error_bars_and_gates_a_line_a_seed(tmp_path):
    """What is drawn are the numbers: means at their columns; g of v, and -g of eps."""
    args = flags(tmp_path, "guidance", "--scale", "toy", "--seeds", "3")
    pretend("guidance", args, lambda cell, seed: float(cell.column) + seed)
    ax = study_figures.Figure().subplots()
    study_figures.draw_score(ax, studies.guidance(studies.SCALES["toy"]), args, "rfd")
    assert len(ax.containers) == 2  # lines with error bars
    line, _, (bars,) = ax.containers[0].lines
    assert list(line.get_ydata()) == [2.0, 2.5, 3.0, 4.0, 5.0, 7.0]
    assert [segment[1][1] - segment[0][1] for segment in bars.get_segments()] == pytest.approx([2] * 6)
    pretend("gate", args, lambda cell, seed: 1.0)
    ax = study_figures.Figure().subplots()
    study = studies.gate(studies.SCALES["toy"])
    study.cells = [cell for cell in study.cells if cell.variant is variants.Gated]
    study_figures.draw_gates(ax, study, args)
    curves = {(line.get_color(), line.get_ydata()[0]) for line in ax.get_lines()[1:]}
    assert curves == {(common.V, 1 + seed) for seed in range(3)} | {(common.EPS, -1 - seed) for seed in range(3)}


def test_a_study_runs_in_processes_of_its_own(tmp_path, same_signals):
    """The way a user takes, processes included: here one network for the twelve cells of a study, each scored once."""
    args = flags(tmp_path, "guidance", "--scale", "toy", "--jobs", "1")
    ablations.train_all("guidance", args)
    (run,) = studies.runs_of("guidance", args)
    results = json.loads((Path(run) / "results.json").read_text())
    assert len([key for key in results if key.startswith("heun")]) == 12


@pytest.mark.parametrize("name", ["bottleneck", "shift", "nine"])
def test_figures_of_own_pictures(name, tmp_path):
    """Without the paper's FID, which is of ImageNet; and whatever classes there are."""
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    for i in range(5):
        Image.new("RGB", (20, 20), (50 * i, 0, 0)).save(tmp_path / "pets" / "cat" / f"{i}.png")
    args = flags(tmp_path, name, "--scale", "toy", "--data", str(tmp_path / "pets"), "--draw-only")
    pretend(name, args, lambda cell, seed: 1.0)
    ablations.run_studies(args)
    assert (tmp_path / f"{name}_toy_pets.png").stat().st_size > 5_000
    table = (tmp_path / f"{name}_toy_pets.md").read_text()
    assert "rfd 1.0, agreement 50% |" in table and "FID" not in table


def test_own_pictures(tmp_path, same_signals):
    """--data FOLDER, here without classes: nothing is guided, no agreement is asked for, flips are on."""
    (tmp_path / "pictures").mkdir()
    for i in range(25):
        pixels = torch.randint(256, (20, 20, 3), generator=torch.Generator().manual_seed(i)).byte().numpy()
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
    args = flags(tmp_path, "gate", "--scale", "toy", "--data", str(tmp_path / "pictures"))
    (run, cells), *_ = studies.runs_of("gate", args).values()
    ablations.work(run, cells, args)
    results = studies.read_results(run.out)
    assert results["recipe"]["flip"] and set(results[studies.key_of(cells[0], args)]["scores"]) == {"rfd"}


def without_agreement(cell, args):
    """Take the agreement of a cell away."""
    (out, results, result), *_ = studies.look_up(cell, args)
    del result["scores"]["agreement"]
    studies.save_results(out, results)


def test_agreement_is_added_once(tmp_path, monkeypatch):
    """To what is there and has none, from the pictures that were drawn; without a classifier nothing happens."""
    args = flags(tmp_path, "gate", "--scale", "toy")
    pretend("gate", args, lambda cell, seed: 1.0)
    study = studies.gate(studies.SCALES["toy"])
    agreement = ablations.agreement
    monkeypatch.setattr(agreement, "ROOT", tmp_path)
    monkeypatch.setattr(agreement, "load_classifier", lambda data: agreement.make_classifier(10))
    monkeypatch.setattr(agreement, "classify", lambda images, net: torch.ones(len(images)))  # all rings
    without_agreement(study.cells[0], args)
    ablations.add_agreement(study, args)
    assert "agreement" not in studies.scores_of(study.cells[0], args)
    agreement.weights_path("shapes").parent.mkdir(parents=True)
    agreement.weights_path("shapes").touch()
    ablations.add_agreement(study, args)
    assert studies.scores_of(study.cells[0], args)["agreement"] == [1 / 9]
    assert studies.scores_of(study.cells[1], args)["agreement"] == [0.5]


def test_agreement_of_own_pictures(tmp_path, monkeypatch):
    """Samples are asked about as many classes as the folder has; the floor is that of pictures that were held out."""
    for name, n in (("dark", 2), ("light", 12)):  # of which one and two are held out
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(n):
            Image.new("L", (16, 16), 255 * (name == "light")).save(tmp_path / "pictures" / name / f"{i:02d}.png")
    args = flags(tmp_path, "gate", "--scale", "toy", "--data", str(tmp_path / "pictures"))
    pretend("gate", args, lambda cell, seed: 1.0)
    cell, *_ = studies.gate(studies.SCALES["toy"]).cells
    without_agreement(cell, args)
    agreement = ablations.agreement
    monkeypatch.setattr(agreement, "ROOT", tmp_path)
    monkeypatch.setattr(agreement, "train", lambda draw, classes: agreement.make_classifier(classes))
    monkeypatch.setattr(agreement, "classify", lambda images, net: torch.zeros(len(images)))  # all dark
    agreement.load_classifier(args.data)
    ablations.add_agreement(studies.gate(studies.SCALES["toy"]), args)
    ((_, _, result),) = studies.look_up(cell, args)
    assert result["scores"]["agreement"] == 5 / 9 and result["floor"]["agreement"] == pytest.approx(1 / 3)
    torch.save(agreement.make_classifier(3).state_dict(), agreement.weights_path(args.data))
    with pytest.raises(jit.Stop, match="knows other classes"):  # as when a folder has lost a class since
        ablations.add_agreement(studies.gate(studies.SCALES["toy"]), args)


@pytest.mark.parametrize("words, trained", [
    (["--scale", "cpu"], ["classifier", "networks"]),
    (["--scale", "toy"], ["networks"]),
    (["--scale", "cpu", "--data", "plain"], ["networks"]),
    (["--scale", "cpu", "--draw-only"], []),
])  # fmt: skip
def test_the_classifier_is_trained_first(words, trained, tmp_path, monkeypatch):
    """One command gives agreement, too: but not of toys, nor of pictures without classes, nor when only drawing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").mkdir()
    Image.new("L", (16, 16)).save(tmp_path / "plain" / "a.png")
    calls = []
    monkeypatch.setattr(ablations.agreement, "load_classifier", lambda data: calls.append("classifier"))
    monkeypatch.setattr(ablations, "train_all", lambda name, args: calls.append("networks"))
    for module, name in ((ablations, "add_agreement"), (ablations, "write_table"), (ablations.study_figures, "draw")):
        monkeypatch.setattr(module, name, lambda *inputs: None)
    ablations.show("gate", flags(tmp_path, "gate", *words))
    assert calls == trained


MISTAKES = [
    "ten", "nine --seeds 0", "nine --jobs 0", "nine --jobs -1", "nine --size 28", "nine --patches 5 3",
    "nine --patches 0 4", "nine --patches 4 -4", "nine --size 0 --patches 4 2", "nine --size -8 --patches 4 2",
    "nine --size 28 --patches 16 4", "solver --size 28 --patches 14 4", "nine resolution --patches 8 4",
    "nine --draw-only", "nine --data nowhere", "nine --data=", "nine --data three", "nine --data empty",
]  # fmt: skip


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_are_one_sentence(words, tmp_path, monkeypatch, capsys, same_signals):
    """Exit 2 before anything is trained, no traceback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablations, "train_all", None)
    for name, n in (("empty", 0), ("three", 3)):
        (tmp_path / name).mkdir()
        for i in range(n):
            Image.new("L", (16, 16)).save(tmp_path / name / f"{i}.png")
    try:
        code = ablations.main([*words.split(), "--scale", "toy", "--runs", "runs", "--figures", "figures"])
    except SystemExit as error:
        code = error.code
    assert code == 2 and capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.glob("figures/*"))


def test_a_network_that_failed_says_why(tmp_path, monkeypatch):
    """In one sentence, however many failed: the last line that the first of them has written."""

    def start(out, study, args):
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(f"{out}.txt").write_text("50%\rdone\nablations.py: the disk is full.\n")
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit(2)"])

    monkeypatch.setattr(ablations, "start_process", start)
    with pytest.raises(jit.Stop, match="6 of 6 networks failed; .*-seed0.txt ends with: the disk") as error:
        ablations.train_all("lossbyt", flags(tmp_path, "lossbyt", "--jobs", "6", "--patches", "16", "16"))
    assert error.value.code == 2


def test_title_of_a_figure_is_the_finding_in_the_notes(tmp_path):
    """And, where nobody has written one, what the study is about; the line survives a new table."""
    args = flags(tmp_path, "gate", "--scale", "toy", "--draw-only")
    pretend("gate", args, lambda cell, seed: 1.0)
    ablations.run_studies(args)
    study, path = studies.gate(studies.SCALES["toy"]), tmp_path / "gate_toy.md"
    assert ablations.title_of(study, path) == study.title
    path.write_text(path.read_text() + "\nFinding: A gate helps.\n\n- And so on.\n")
    ablations.run_studies(args)
    assert ablations.title_of(study, path) == "A gate helps."


def test_own_pictures_do_not_overwrite(tmp_path):
    """The tables and figures of the shapes stay; sizes and patches can be one's own."""
    words = ["predictions", "--size", "28", "--patches", "14", "4"]
    args = flags(tmp_path, *words, "--data", str(tmp_path / "digits"), "--no-flip")
    assert ablations.path_of("predictions", args) == tmp_path / "predictions_digits.png"
    assert ablations.path_of("predictions", flags(tmp_path, *words)) == tmp_path / "predictions_14_4.png"
    assert ablations.path_of("predictions", flags(tmp_path, "nine")) == tmp_path / "predictions.png"
    found = [(run.network["size"], run.network["patch"], run.recipe["flip"]) for run, _ in studies.runs_of(
        "predictions", args).values()]  # fmt: skip
    assert found == [(28, 14, False)] * 3 + [(28, 4, False)] * 3
    assert ablations.settings_in_words(args)[2:] == ["--data", str(tmp_path / "digits"), *words[1:], "--no-flip"]


@pytest.mark.parametrize("data, name", [(".", "pets"), ("../pets/", "pets"), ("../v1.5", "v1.5"), ("cat", "cat")])
def test_figure_of_a_folder_has_its_name(data, name, tmp_path, monkeypatch):
    """However the folder was written."""
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path / "pets")
    path = ablations.path_of("nine", flags(tmp_path, "nine", "--data", data))
    assert (path.name, path.with_suffix(".md").name) == (f"nine_{name}.png", f"nine_{name}.md")


def take_agreement(name, args):
    """Of all cells of a study, as without a classifier."""
    for cell in studies.study_of(name, args).cells:
        without_agreement(cell, args)


def words_of(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def test_figures_without_agreement(tmp_path):
    """They show rfd instead: no empty plot, no plot twice, no nan."""
    for name, plots in (("bottleneck", 3), ("guidance", 1), ("shift", 0)):
        args = flags(tmp_path, name, "--scale", "toy")
        pretend(name, args, lambda cell, seed: 2.0)
        take_agreement(name, args)
        figure = study_figures.draw_study(study_figures.LOOKS[name], studies.study_of(name, args), args, "")
        words = words_of(figure)
        assert "rfd 2.0" in words or "rfd 2.0\npaper: FID 8.62" in words
        assert not any("agreement" in word or "nan" in word for word in words)
        assert sum(bool(ax.lines) for ax in figure.axes) == plots
    assert any("v-prediction: rfd 2.0 at every μ" in word for word in words)  # of shift


def test_rows_in_a_line(tmp_path):
    """eps and v of shift, from the lowest score to the highest, and where they were run."""
    args = flags(tmp_path, "shift", "--scale", "toy")
    study = studies.study_of("shift", args)
    shifts = {"μ = 0.0": 2.0, "μ = -0.4": 3.0, "μ = -0.8": 4.0, "μ = -1.2": 5.0}
    pretend("shift", args, lambda cell, seed: shifts[cell.column])
    take_agreement("shift", args)
    lines = study_figures.other_rows(study, args).splitlines()
    assert lines[0] == "ε-prediction: rfd 2.0 to 5.0 at every μ (paper: FID 355 to 464)"
    missing = next(cell for cell in study.cells if cell.row == "v-prediction" and cell.column == "μ = -1.2")
    (studies.run_of(missing, 0, args).out / "results.json").unlink()
    lines = study_figures.other_rows(study, args).splitlines()
    assert lines[1] == "v-prediction: rfd 2.0 to 4.0 at μ = 0.0, -0.4, -0.8 (paper: FID 97 to 120)"


def test_rows_and_columns_have_names(tmp_path):
    """The row whose first place is free, too; and no bottleneck is not no pre-conditioning."""
    (tmp_path / "pets").mkdir()
    args = flags(tmp_path, "gate", "--scale", "toy", "--data", str(tmp_path / "pets"))
    figure = study_figures.draw_study(study_figures.LOOKS["gate"], studies.study_of("gate", args), args, "")
    assert {"network", "network − g(t) z"} <= {ax.get_ylabel() for ax in figure.axes if ax.axison}
    for name, title in (("bottleneck", "none"), ("precond", "none\nnet")):
        args = flags(tmp_path, name, "--scale", "toy")
        figure = study_figures.draw_study(study_figures.LOOKS[name], studies.study_of(name, args), args, "")
        assert title in {ax.get_title() for ax in figure.axes}


@pytest.mark.parametrize("name", [name for name in studies.STUDIES if name not in ("lossbyt", "resolution")])
def test_names_do_not_overlap(name, tmp_path):
    """Of plots, columns and panels; and none is cut off."""
    args = flags(tmp_path, name, "--scale", "toy")
    pretend(name, args, lambda cell, seed: 1.0)
    figure = study_figures.draw_study(study_figures.LOOKS[name], studies.study_of(name, args), args, "")
    FigureCanvasAgg(figure).draw()
    names = [ax.title for ax in figure.axes] + [part._suptitle for part in figure.findobj(SubFigure) if part._suptitle]
    boxes = [name.get_window_extent() for name in names if name.get_text()]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_sizes_that_were_not_run(tmp_path):
    """Each has its place and name."""
    args = flags(tmp_path, "resolution", "--scale", "toy")
    figure = study_figures.Figure()
    study_figures.draw_sizes(figure, studies.study_of("resolution", args), args)
    words = words_of(figure)
    assert words.count("not run here") == 2 and "32 px, patch 8: 192 numbers a patch (white lines), paper's 512 px: FID 4.64" in words


def test_spectrum_of_flat_patches(tmp_path):
    """All variance in one component: nothing is left outside, not -2e-14%; and patches may have 12 numbers only."""
    (tmp_path / "pets").mkdir()
    for i in range(5):
        Image.new("RGB", (20, 20), (50 * i, 0, 0)).save(tmp_path / "pets" / f"{i}.png")
    for patches, words in ((["16", "4"], ["0%"] * 3), (["2", "1"], [])):
        args = flags(tmp_path, "bottleneck", "--scale", "toy", "--data", str(tmp_path / "pets"), "--patches", *patches)
        ax = study_figures.Figure().subplots()
        study_figures.draw_spectrum(ax, studies.study_of("bottleneck", args), args)
        assert [text.get_text() for text in ax.texts] == words


def test_table_says_what_was_done(tmp_path):
    """As many seeds as there are; no guidance where there are no classes; a command that a shell understands."""
    (tmp_path / "my pets").mkdir()
    for i in range(4):
        Image.new("L", (16, 16), 50 * i).save(tmp_path / "my pets" / f"{i}.png")
    words = ["gate", "--scale", "toy", "--data", str(tmp_path / "my pets")]
    pretend("gate", flags(tmp_path, *words, "--seeds", "2"), lambda cell, seed: 1.0)
    ablations.run_studies(flags(tmp_path, *words, "--seeds", "3", "--draw-only"))
    table = (tmp_path / "gate_toy_my pets.md").read_text()
    assert "2 training seeds" in table and "cfg 1.0" in table and f"--data '{tmp_path}/my pets' --seeds 3`" in table


def test_half_a_training_is_not_in_the_table(tmp_path):
    """Its loss is not yet that of Figure 7."""
    args = flags(tmp_path, "lossbyt", "--scale", "toy")
    pretend("lossbyt", args, lambda cell, seed: 1.0)
    cell, *_ = studies.lossbyt(studies.SCALES["toy"]).cells
    assert ablations.v_loss(cell, args) == "0.500"
    (studies.run_of(cell, 0, args).out / "results.json").unlink()
    assert ablations.v_loss(cell, args) == "not run"


def test_seeds_where_the_claim_needs_them(tmp_path):
    """--seeds 3 trains the v-loss row of nine three times, the others once."""
    runs = studies.runs_of("nine", flags(tmp_path, "nine", "--seeds", "3")).values()
    seeds = [(cell.row, run.recipe["seed"]) for run, cells in runs for cell in cells]
    assert [seeds.count(("v-loss", seed)) for seed in range(3)] == [6, 6, 6]
    assert len(seeds) == 18 + 12


def test_distance_of_the_solvers(tmp_path):
    """Against evaluations, of which a step of Heun takes two, but for the last; 0 would be the finest solution."""
    args = flags(tmp_path, "solver", "--scale", "toy")
    pretend("solver", args, lambda cell, seed: 1.0)
    study = studies.solver(studies.SCALES["toy"])
    for cell in study.cells:
        (out, _, _), *_ = studies.look_up(cell, args)
        brightness = 0 if cell.column == "512" else 255 // int(cell.column)
        pixels = torch.full((9, 3, 16, 16), brightness, dtype=torch.uint8).numpy()
        studies.np.save(out / f"{studies.key_of(cell, args)}.npy", pixels)
    ax = study_figures.Figure().subplots()
    study_figures.draw_distance(ax, study, args)
    heun, _, euler, *_ = ax.get_lines()
    assert list(heun.get_xdata()) == [7, 15, 31, 63, 127] and list(euler.get_xdata()) == [4, 8, 16, 32, 64]
    assert list(heun.get_ydata()) == pytest.approx([255 // n / 127.5 for n in (4, 8, 16, 32, 64)])


def test_pictures_of_a_cell():
    """Second, fifth, sixth and eighth sample, two in a row; fewer samples are taken in turn."""
    pixels = torch.arange(9, dtype=torch.uint8).view(9, 1, 1, 1).expand(9, 1, 2, 2).numpy()
    image = study_figures.mosaic(pixels)
    assert image.shape == (5, 5, 3)
    assert [image[0, 0, 0], image[0, 4, 0], image[4, 0, 0], image[4, 4, 0]] == [1, 4, 5, 7]
    assert study_figures.mosaic(pixels[:3])[4, 0, 0] == 5 % 3
    assert study_figures.mosaic(pixels, study_figures.SHOWN_WIDE).shape == (5, 8, 3)
