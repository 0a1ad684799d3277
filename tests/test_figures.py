"""figures/: what is measured, kept and drawn is so; and the networks of variants.py."""

import inspect
import itertools
import json
import math
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

import backwards
import denoising
import draw
import flow
import handover
import judge
import loss
import manifold
import matplotlib
import numpy as np
import pytest
import run
import samples
import studies
import theory
import toy_manifold
import toy_studies
import torch
import variants
from common import version_of
from conftest import ROOT, normal, save
from PIL import Image
from studies import FLOW, PREDS, SAMPLE, SHOWN, STUDIES, TIMES, Cell, Study, settings

import jit

FIGURES = ROOT / "figures"
SCRIPTS = [path for path in sorted(FIGURES.glob("*.py")) if "__main__" in path.read_text()]
NET = dict(size=16, patch=8, depth=2, width=16, heads=2, bottleneck=4, context_tokens=2,
           context_start=1, dropout=0.0, rope=True, qk_norm=True, channels=3)  # fmt: skip


def refuse(*given, **more):
    raise AssertionError("this must not be started")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_help_starts_nothing(path, monkeypatch, capsys):
    for module, name in ((subprocess, "run"), (jit, "train"), (jit, "load_run")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code == 0 and f"{path.stem}.p" in capsys.readouterr().out


# ---- What is measured ----


@pytest.mark.parametrize("left", [0, 0.37, 1, 2.5, 54])
def test_noise_left_finds_planted_noise(left):
    """Also noise of another scale; and none in samples whose noise is that of others."""
    noise, clean = normal(100, 3, 16, 16, seed=1), 0.5 * normal(100, 3, 1, 1, seed=2)
    assert run.noise_left(clean + left * noise, noise) == pytest.approx(left, abs=0.01)
    assert run.noise_left(clean + left * noise, 2 * noise) == pytest.approx(left / 2, abs=0.01)
    shuffled = (clean + left * noise).roll(1, 0)
    assert run.noise_left(shuffled, noise) == pytest.approx(0, abs=0.02 * (1 + left))


def test_left_by_length_finds_the_patches_that_keep_noise():
    """Of each patch what is left of its own noise; the longest tenth last."""
    noise = normal(50, 3, 16, 16)
    noise[..., 8:, 8:] *= 2  # a quarter of the patches
    samples = 0.1 * noise
    samples[..., 8:, 8:] *= 30
    found = run.left_by_length(samples, noise, 8)
    assert [left for _, left in found[:7] + found[8:]] == pytest.approx([0.1] * 7 + [3] * 2)
    assert 0.1 < found[7][1] < 3 and [length for length, _ in found] == sorted(dict(found))
    assert found[3][0] == pytest.approx(1, abs=0.03) and found[9][0] == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("size, patch, width, bottleneck, share", [
    (16, 8, 64, 0, 1 / 3), (16, 4, 64, 8, 1 / 6), (16, 4, 64, 0, 1), (16, 8, 64, 128, 1 / 3)])
def test_noise_left_is_split_by_what_is_in_reach(size, patch, width, bottleneck, share):
    """A network puts something into every direction in reach, and nothing into the others; behind a
    bottleneck what it puts out depends on nothing that is out of reach."""
    torch.manual_seed(0)
    net = jit.JiT(size, patch, 2, depth=1, width=width, heads=2, bottleneck=bottleneck)
    net.final_layer.linear.weight.data.normal_()
    inside, outside = run.reach_of(net)
    numbers = 3 * patch**2
    assert inside.shape[1] == min(numbers, round(share * numbers)), "directions in reach"
    assert inside.shape[1] + outside.shape[1] == numbers
    z, y = normal(40, *net.shape), torch.zeros(40, dtype=torch.long)
    with torch.no_grad():
        x = net(z, torch.full((40,), 0.5), y)
        hidden = torch.nn.functional.fold(
            (run.patches_of(z.double(), patch) @ outside @ outside.T).view(40, -1, numbers).mT,
            size, patch, stride=patch).float()  # fmt: skip
        same = net(z - hidden, torch.full((40,), 0.5), y)
    x = run.patches_of((x - x.mean(0)).double(), patch)
    if bottleneck and bottleneck < width:
        same = run.patches_of((same - same.mean(0)).double(), patch)
        torch.testing.assert_close(same, x, atol=1e-4, rtol=1e-4)
    else:
        assert (x @ outside).square().sum() < 1e-9 * (x @ inside).square().sum()
    samples = 0.3 * z + 0.4 * hidden  # .7 of the noise out of reach, .3 of it in reach
    found = run.left_by_reach(samples, z, net)
    planted = dict(left_out=0.7, left_in=0.3) if outside.shape[1] else {}
    assert found == pytest.approx(planted, abs=0.01)


def test_variance_outside_a_sixth_of_the_directions():
    """Patches in five of twelve directions of equal variance: two leave out three fifths."""
    basis = torch.linalg.qr(normal(12, 5))[0]
    patches = normal(40, 16, 5, seed=1) @ basis.T  # (n, patches, numbers)
    images = torch.nn.functional.fold(patches.transpose(1, 2), 8, 2, stride=2)
    assert manifold.outside(images, 2) == pytest.approx(0.6, abs=0.05)


def test_loss_over_t_of_a_network_that_is_wrong_by_a_tenth(monkeypatch):
    """x + .1 has the v-loss .01 / max(1 - t, .05)^2: at t, not at 1 - t."""
    seen = []
    monkeypatch.setattr(run, "real_images", lambda data, n, seed: seen.append(n) or real)
    real = torch.full((100, 3, 8, 8), 200, dtype=torch.uint8), torch.zeros(100, dtype=torch.long)
    x = 200 / 127.5 - 1
    found = run.loss_over_t(lambda z, t, y: torch.full_like(z, x + 0.1), jit.Flow(), None)
    by_hand = [0.01 / max(1 - t, 0.05) ** 2 for t in TIMES]
    assert found == pytest.approx(by_hand, rel=1e-3) and seen == [100]
    t = np.array(TIMES)
    assert theory.mean_loss(t) == pytest.approx(0.327, abs=0.005)  # E[t], logit t ~ N(-.8, .8^2)
    assert theory.bound("v", 128 / 768, 0.5) == pytest.approx(0.833, abs=1e-3)  # FACTS: 1 - 128/768
    assert theory.bound("eps", 0.5, 0.25) == pytest.approx(0.5 * 16)


def test_samples_are_those_of_jit():
    """Only not yet clipped; and the noise is what they started from."""
    torch.manual_seed(0)
    net = jit.JiT(**NET, classes=10).eval()
    net.final_layer.linear.weight.data.normal_()
    y, chosen = torch.arange(7), dict(cfg=2.0, sampling_steps=3, batch_size=5, interval=(0.0, 1.0))
    made = jit.Flow(noise_scale=2.0)
    found, noise = run.draw_samples(net, made, y, solver="heun", **chosen)
    theirs = torch.cat(list(jit.sample_images(net, y, made, net.shape, **chosen)))
    assert torch.equal(jit.to_uint8(found), theirs) and found.abs().max() > 1.5
    assert torch.equal(noise, 2 * jit.image_noise(net.shape, 0, range(7)))


def test_distance_of_a_solver_is_to_512_steps_of_heun(monkeypatch):
    """Images a quarter apart, whose colours go from -1 to 1."""
    def drawn(net, flow, y, solver, sampling_steps, **how):
        value = {("euler", 4): 0.5, ("heun", 512): 0.25}[solver, sampling_steps]
        return torch.full((len(y), *net.shape), value), normal(len(y), *net.shape)

    monkeypatch.setattr(run, "draw_samples", drawn)
    sample = dict(solver="euler", sampling_steps=4)
    cell = Cell(dict(solver="euler", steps=4), NET, sample=sample, n=20)
    found, _ = run.measure_cell(cell, jit.JiT(**NET, classes=10), jit.Flow(), {})
    assert found["distance"] == pytest.approx(0.25, abs=1 / 127.5)


def test_texture_fills_k_directions_of_each_patch():
    """Variance strength^2 in each of k directions, none in others; and the loss trains on it."""
    torch.manual_seed(0)
    texture = variants.add_texture(torch.zeros(400, 3, 8, 8), 4, 5, 0.5)
    patches = torch.nn.functional.unfold(texture, 4, stride=4).transpose(1, 2).flatten(0, 1)
    variance = torch.linalg.eigvalsh(patches.T.cov()).flip(0)
    assert variance[:5].tolist() == pytest.approx([0.25] * 5, rel=0.15)
    assert variance[5:].max() < 1e-5
    seen = []
    net = lambda z, t, y: seen.append(z) or z  # noqa: E731
    x, y = torch.zeros(50, 3, 8, 8), torch.zeros(50)
    losses, _ = variants.textured_loss(4, 48, 0.5)(net, x, y, jit.Flow())
    assert losses.shape == (50,) and seen[0].std() > 0.6


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_burden_is_what_least_squares_finds(strength):
    """Data of two numbers, texture in the first: slopes of x and v on z, from samples."""
    eps, u = normal(100_000, 2), strength * normal(100_000, 2, seed=1)
    u[:, 1] = 0
    slopes = {"x": [], "v": []}
    for t in TIMES:
        z = t * u + (1 - t) * eps
        for pred, target in (("x", u / max(1 - t, 0.05)), ("v", u - eps)):
            slope = (target * z).sum(0) / z.square().sum(0)
            slopes[pred].append(slope.square().mean())
    for pred, found in slopes.items():
        cell = Cell(dict(pred=pred), dict(patch=8, channels=3), texture=96, strength=strength)
        assert theory.mean_loss(np.array(found)) == pytest.approx(theory.burden(cell), rel=0.03)


# ---- What is kept ----


def test_keys_know_what_was_chosen():
    """Whatever changes a number changes the key; whatever changes the weights, the network's."""
    cell = Cell(dict(pred="x"), NET)
    others = [replace(cell, **{part: value}) for part, value in dict(
        net=NET | dict(width=32), flow=dict(mu=0.0), train=dict(lr=1.0), variant="Gated").items()]
    changes = dict(sample=dict(cfg=1.0)), dict(n=50)
    samples = [replace(cell, **change) for change in changes]
    network = {run.network_key(c, 0, "shapes", False) for c in [cell, *others]}
    network |= {run.network_key(cell, 1, "shapes", False), run.network_key(cell, 0, "shapes", True)}
    assert len(network) == 7
    assert {run.network_key(c, 0, "shapes", False) for c in samples} <= network
    assert len({run.record_key(c, 0, "shapes", False) for c in [cell, *others, *samples]}) == 7
    assert settings(cell) == settings(replace(cell, at={}, flow=dict(pred="x"), paper=1.0))
    steps = [run.tiny(cell) for cell in STUDIES["solver"].cells()]  # still of different steps
    assert len({run.record_key(cell, 0, "shapes", False) for cell in steps}) == 10


@pytest.mark.parametrize("name", STUDIES)
def test_study_is_valid(name):
    """Every cell has a place of its own, arguments that exist and a network that can be built."""
    study = STUDIES[name]
    cells = list(study.cells())
    places = {(cell.at[study.row], cell.at[study.column]) for cell in cells}
    assert len(places) == len(cells)
    for cell in cells:
        network, sampled = settings(cell)
        kind = getattr(variants, cell.variant, jit.JiT)
        small = cell.net | dict(depth=2, width=32, heads=2)
        assert kind(**small, classes=10).shape == (3, cell.net["size"], cell.net["size"])
        assert cell.net["width"] % (4 * cell.net["heads"]) == 0
        jit.Flow(**network["flow"])
        assert network["train"].keys() <= inspect.signature(jit.train).parameters.keys()
        known = inspect.signature(jit.sample_images).parameters.keys()
        assert sampled.keys() - {"n"} <= known


def test_what_studies_share():
    """One network where settings are equal: Table 2's are those of ratio 1. At ratio 1 the network
    is as wide as a patch has numbers: no direction is out of reach."""
    assert FLOW == jit.Flow().__dict__
    cells = {name: list(STUDIES[name].cells()) for name in STUDIES}
    keys = {name: {run.network_key(cell, 0, "shapes", False) for cell in cells[name]}
            for name in cells}  # fmt: skip
    names = ("nine", "predictions", "reach", "slow", "form", "shift", "gate", "bottleneck",
             "length", "dimension")  # fmt: skip
    assert [len(keys["ratio"] & keys[name]) for name in names] == [3, 6, 9, 2, 2, 3, 3, 3, 3, 2]
    ratios = {cell.at["ratio"]: cell.net["width"] for cell in cells["ratio"]}
    assert ratios == {1 / 4: 48, 1 / 2: 96, 3 / 4: 144, 1: 192, 3 / 2: 288, 2: 384, 4: 192}
    at_one = ("slow", "shift", "gate", "bottleneck", "length")
    for cell in sum((cells[name] for name in at_one), []):
        assert cell.net["width"] == 3 * cell.net["patch"] ** 2


def test_networks_that_are_trained_are_found_again():
    """Recorded: the folders of runs do not change their names when studies.py is edited."""
    keys = {name: run.network_key(next(iter(STUDIES[name].cells())), 0, "shapes", False)
            for name in ("ratio", "nine", "dimension", "solver")}  # fmt: skip
    assert keys == dict(ratio="62df05ca9c", nine="6409f1cff9", dimension="0bd6ff8764",
                        solver="ebfae73e1f")  # fmt: skip


class Here:
    """A pool that works in this process."""

    def __init__(self, *given):
        pass

    def submit(self, work, *given):
        done = Future()
        done.set_result(work(*given))
        return done

    def shutdown(self, **given):
        pass


@pytest.fixture
def two_cells(monkeypatch, tmp_path):
    """A study of three cells, two of one network, that runs in this process; and how to run it."""
    cells = [Cell(dict(pred="x", w=1.0), NET, sample=dict(cfg=1.0)),
             Cell(dict(pred="x", w=2.0), NET),
             Cell(dict(pred="v", w=2.0), NET, dict(pred="v"), repeat=False, variant="Gated")]
    study = Study("A title", lambda: cells, row="pred", column="w", real="row")
    monkeypatch.setitem(STUDIES, "trial", study)
    monkeypatch.setattr(run, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(judge, "load_judge", lambda *given, **more: judge.build(10).eval())
    words = ["trial", "--tiny", "--runs", "n", "--out", "o"]
    return lambda *more: run.main([*words, *more])


def test_a_study_is_trained_and_kept(quick_sheets, two_cells, monkeypatch):
    """Records, tiles of the right network; a second call does nothing, more seeds are added."""
    assert two_cells() == 0
    path = Path("o/results/trial.json")
    header, records, tiles = run.read_results(path)
    assert len(records) == 3 and len(tiles) == 4 and tiles["real"].shape == (30, 3, 16, 16)
    assert header["command"] == "python figures/run.py trial --tiny"  # no folder of this machine
    assert len(list(Path("n").glob("*/checkpoint-last.pth"))) == 2  # one for two cells
    for cell in map(run.tiny, STUDIES["trial"].cells()):
        record = records[run.record_key(cell, 0, "shapes", False)]
        assert record["at"] == cell.at
        folder = Path("n", run.network_key(cell, 0, "shapes", False))
        kind = getattr(variants, cell.variant, jit.JiT)
        net, made, _ = jit.load_run(folder, "ema1", "cpu", kind)
        y, chosen = torch.arange(10), run.SAMPLE | cell.sample
        pixels = torch.cat(list(jit.sample_images(net, y, made, net.shape, **chosen)))
        assert np.array_equal(tiles[record["key"]], pixels[list(SHOWN)])
        assert {"recognised", "noise_left", "left_out", "left_in"} < record.keys()
        assert len(record["loss_over_t"]) == 20
        assert ("gate" in record) == (cell.variant == "Gated")
    assert sorted(SHOWN) == list(range(10))  # one of each class
    monkeypatch.setattr(run, "work", refuse)
    before = path.read_bytes()
    assert two_cells() == 0 and path.read_bytes() == before
    monkeypatch.setattr(run, "work", lambda cells, seed, *given: [
        (dict(key=f"{seed}{i}", at=c.at, seed=seed), np.zeros(1)) for i, c in enumerate(cells)])
    assert two_cells("--seeds", "2") == 0
    _, more, tiles = run.read_results(path)
    assert list(more)[:3] == list(records) and [r["seed"] for r in more.values()] == [0, 0, 0, 1, 1]
    assert len(tiles) == 4  # those of seed 0 are drawn


def test_a_finished_network_is_only_read(quick_sheets, two_cells, monkeypatch):
    """Even where its log is gone: what is measured anew needs no training."""
    assert two_cells() == 0
    Path("o/results/trial.json").unlink()
    monkeypatch.setattr(jit, "train", refuse)
    assert two_cells() == 0 and len(run.read_results(Path("o/results/trial.json"))[1]) == 3


def test_a_record_replaces_that_of_its_place():
    """When settings have changed, the old record and its tiles go."""
    path = Path("a.json")
    run.write_results(path, dict(study="s"), {}, dict(real=np.zeros(1)))
    for key, w, colour in (("a", 1.0, 1), ("b", 2.0, 2), ("c", 1.0, 3)):
        run.keep(path, [(dict(key=key, at=dict(w=w), seed=0), np.full(2, colour))])
    header, records, tiles = run.read_results(path)
    assert header == dict(study="s") and tiles.keys() == {"real", "b", "c"}
    assert [(key, tiles[key][0]) for key in records] == [("b", 2), ("c", 3)]


def test_own_pictures(monkeypatch, quick_sheets):
    """Of any folder, with classes or none, under a name of its own; what does not fit is told."""
    for i in range(8):
        save(f"far/flat/{i}.png", (30 * i, 255 - 30 * i, 90))
    monkeypatch.setattr(run, "ProcessPoolExecutor", Here)
    words = ["predictions", "--data", "far/flat", "--tiny", "--out", "o", "--runs", "n"]
    assert run.main([*words, "--size", "16", "--patches", "8", "4"]) == 0
    draw.main(["predictions_flat", "--out", "o"])
    text = Path("o/results/README.md").read_text().partition("## predictions_flat")[2]
    assert "patches of 192 numbers" in text and "recognised" not in text and "FID" not in text
    command = "python figures/run.py predictions --data flat --size 16 --patches 8 4 --tiny"
    assert f"`{command}`" in text and Image.open("o/predictions_flat.png").width > 600
    assert run.main([*words, "--size", "16", "--patches", "7", "4"]) == 2
    assert run.main(["ratio", *words[1:], "--patches", "8", "4"]) == 2
    grey = [*words, "--size", "16", "--patches", "8", "--channels", "1", "--flip", "--out", "g"]
    assert run.main(grey) == 0
    draw.main(["predictions_flat", "--out", "g"])
    text = Path("g/results/README.md").read_text()
    assert "patches of 64 numbers" in text and "--patches 8 --channels 1 --flip --tiny" in text


def test_a_network_that_failed_does_not_lose_the_others(two_cells, monkeypatch):
    """It is told at the end; what was done is kept."""
    done = []

    class Pool(Here):
        def submit(self, work, cells, *given):
            if not done:
                record = dict(key="a", at={}, seed=0)
                return super().submit(lambda: done.append(1) or [(record, np.zeros(1))])
            failed = Future()
            failed.set_exception(jit.Stop("at step 1 the loss is nan."))
            return failed

    monkeypatch.setattr(run, "ProcessPoolExecutor", Pool)
    assert two_cells() == 2
    assert list(run.read_results(Path("o/results/trial.json"))[1]) == ["a"]


# ---- What is drawn ----


def results_of(name):
    """The committed results of a study."""
    return draw.Results(name, FIGURES / "results")


@pytest.mark.parametrize("name", ["nine", "gate", "slow", "guidance", "predictions_digits"])
def test_every_cell_shows_its_own_pictures_and_numbers(name):
    """Of its first seed, in its row and column, under the name of its column."""
    results = results_of(name)
    study, cells = results.study, results.cells
    axes = draw.draw_grid(draw.Figure(), results, cells, 4)
    rows, columns = (draw.distinct(cells, part) for part in (study.row, study.column))
    for cell in cells:
        row, column = rows.index(cell.at[study.row]), columns.index(cell.at[study.column])
        ax, records = axes[row + results.shows_real, column], results.of(cell)
        title = axes[int(results.shows_real), column].get_title()
        assert title == draw.label(study.column, cell.at[study.column])
        if records:
            expected = draw.mosaic(results.tiles[records[0]["key"]][:4])
            assert np.array_equal(ax.images[0].get_array(), expected)
            share = 100 * np.mean([record["recognised"] for record in records])
            assert f"recognised {share:.0f}" in ax.get_xlabel()
        else:
            assert ax.texts[0].get_text() == "not run here"
    if results.shows_real:
        real = np.split(results.tiles["real"], 3)[1]
        assert np.array_equal(axes[0, 1].images[0].get_array(), draw.mosaic(real[:4]))


def test_records_of_other_settings_are_not_drawn():
    results = results_of("gate")
    changed, ax = replace(results.cells[0], train=dict(steps=1)), draw.Figure().subplots()
    assert len(results.of(results.cells[0])) == 3 and results.of(changed) == []
    draw.draw_cell(ax, results, changed, 4)
    assert not ax.images and ax.texts[0].get_text() == "not run here"


def test_own_results_come_first_and_nothing_committed_is_written_over(capsys, monkeypatch):
    """A reader in a fresh clone draws the committed numbers to runs/figures; run.py's come first,
    and their tables go on a page of their own."""
    before = {path: path.stat().st_mtime_ns for path in FIGURES.rglob("*")}
    monkeypatch.setattr(draw, "draw_study", lambda results: draw.Figure())
    draw.main(["gate", "--out", "fresh"])
    assert "figures/results" in capsys.readouterr().out and Path("fresh/gate.png").exists()
    assert not Path("fresh/results").exists()
    Path("own/results").mkdir(parents=True)
    for suffix in ("json", "npz"):
        shutil.copy(FIGURES / "results" / f"gate.{suffix}", "own/results")
    draw.main(["gate", "--out", "own"])
    assert "own/results" in capsys.readouterr().out
    assert Path("own/results/README.md").read_text().count("\n## ") == 1
    assert before == {path: path.stat().st_mtime_ns for path in FIGURES.rglob("*")}
    for name, words in dict(health="run.py makes it", solver="only the table").items():
        with pytest.raises(SystemExit, match=words):
            draw.main([name, "--out", "fresh"])


def test_points_of_the_ratio_are_its_numbers():
    ax, records = draw.Figure().subplots(), results_of("ratio").records
    draw.plot_noise_left(ax, results_of("ratio"))
    assert len(ax.containers) == 3
    for line in ax.containers:
        pred = {"x": "x", "ε": "eps", "v": "v"}[line.get_label()[0]]
        for ratio, left in zip(*line[0].get_data(), strict=True):
            found = [r["noise_left"] for r in records if r["at"] == dict(ratio=ratio, pred=pred)]
            assert left == pytest.approx(np.mean(found))
        assert list(line[0].get_xdata()) == [1 / 4, 1 / 2, 3 / 4, 1, 3 / 2, 2, 4]


def test_points_out_of_reach_and_in_reach():
    """Out of reach what the sampler must leave, to four digits; in reach the mean of the records,
    at ratio 1, where all is in reach, of noise_left."""
    ax, records = draw.Figure().subplots(), results_of("reach").records
    draw.plot_reach(ax, results_of("reach"))
    names = [text.get_text().split("\n") for text in ax.get_xticklabels()]
    points = [(line.get_xydata()[0], line.get_markerfacecolor())
              for line in ax.lines if len(line.get_xdata())]  # fmt: skip
    full = {names[int(x)][0]: y for (x, y), face in points if face != "white"}
    by_hand = dict(x=0.0088, linear=0.3722, EDM=0.4936, v=1, ε=49.025)
    assert full == pytest.approx(by_hand, rel=2e-3)
    bars = [each.get_segments()[0][0] for each in ax.collections if len(each.get_segments())]
    assert {names[round(x + 0.45)][0]: y for x, y in bars} == pytest.approx(by_hand, rel=2e-3)
    hollow = {tuple(names[int(x)]): y for (x, y), face in points if face == "white"}
    for name, way, score in [("v", "1/4", "left_in"), ("ε", "1/2", "left_in"),
                             ("v", "1", "noise_left"), ("ε", "1", "noise_left")]:  # fmt: skip
        at = dict(way=way, kind=dict(ε="eps").get(name, name))
        found = [r[score] for r in records if r["at"] == at and score in r]
        assert hollow[name, way] == pytest.approx(np.mean(found))


def test_lines_against_the_steps_of_training():
    """v at our rate after 4,000, 16,000 and 64,000 steps; at twice the rate after 4,000, 16,000."""
    ax, records = draw.Figure().subplots(), results_of("slow").records
    draw.plot_steps(ax, results_of("slow"), "recognised")
    lines = {each.get_label(): each[0].get_xydata() for each in ax.containers}
    for rate, recipes in {"": dict(ours=4000, long=16000, longest=64000),
                          ", rate × 2": dict(fast=4000, both=16000)}.items():  # fmt: skip
        by_hand = [(steps, np.mean([record["recognised"] for record in records
                                    if record["at"] == dict(pred="v", recipe=recipe)]))
                   for recipe, steps in recipes.items()]  # fmt: skip
        assert lines[f"v-prediction{rate}"] == pytest.approx(np.array(by_hand))


def test_lead_of_x_against_burden():
    """From the committed numbers: ahead by .032 without texture, level where it is strong."""
    ax = draw.Figure().subplots()
    draw.plot_lead(ax, results_of("dimension"))
    points = [line.get_xydata().mean(0) for line in ax.lines if line.get_marker() == "o"]
    found = {text.get_text(): point for text, point in zip(ax.texts, points, strict=True)}
    for name, burdens, lead in [("k = 0", 2.96, 0.032), ("k = 192, strength 1", -1.82, -0.0023)]:
        assert found[name][0] == pytest.approx(burdens, abs=0.005)
        assert found[name][1] == pytest.approx(lead, abs=5e-4)


@pytest.mark.parametrize("kept, ending", [
    ([(0, 0)], " (one seed)"), ([(0, 0), (1, 0), (0, 1)], " (one seed where no ± stands)"),
    ([(0, 0), (1, 0), (0, 1), (1, 1)], "")])  # fmt: skip
def test_a_title_says_how_many_seeds(tmp_path, kept, ending):
    """kept: (seed, cell)."""
    header, records, tiles = run.read_results(FIGURES / "results" / "length.json")
    places = [cell.at for cell in STUDIES["length"].cells()]
    records = {key: record for key, record in records.items()
               if (record["seed"], places.index(record["at"])) in kept}  # fmt: skip
    run.write_results(tmp_path / "length.json", header, records, tiles)
    assert draw.Results("length", tmp_path).title == draw.FINDINGS["length"] + ending


@pytest.mark.parametrize("kind", theory.LEFT)
def test_what_the_sampler_leaves_of_noise_out_of_reach(kind):
    """jit.py's sampler, with a network that puts out nothing of the noise, leaves what noise_kept
    says; for pre-conditioning by the coefficients that the networks use. With many steps that is
    the integral, but for the clip: below 1 - t = .05 the sampler goes on."""
    def velocity(z, t):
        if kind in PREDS:
            return jit.convert(0 * z, z, torch.tensor([t]), kind)["v"]
        c_skip, _ = variants.coefficients(torch.tensor([t]), kind)
        return jit.convert(c_skip * z, z, torch.tensor([t]), "x")["v"]

    left = jit.integrate(velocity, torch.ones(1, 1), steps=25)
    assert left.item() == pytest.approx(theory.LEFT[kind], rel=1e-3)
    exact = dict(x=0, linear=1 / np.e, edm=0.5, v=1, eps=20 * np.e)[kind]
    clipped = 0.02 if kind in ("x", "linear", "edm") else 0
    assert theory.noise_kept(kind, 4000) == pytest.approx(exact, rel=0.01, abs=clipped)


def test_what_a_sphere_keeps_of_noise_of_a_length():
    """jit.py's sampler, with a network that puts out of every patch its direction, at length 1."""
    noise, flow = normal(100, 3, 8, 8), jit.Flow(pred="eps")

    def velocity(z, t):
        length = z.square().mean((1, 2, 3), keepdim=True).sqrt()
        return jit.convert(z / length, z, torch.full((len(z),), float(t)), "eps", flow.t_clip)["v"]

    left = jit.integrate(velocity, noise, 25, "heun") / noise
    length = noise.square().mean((1, 2, 3)).sqrt()
    keeps = length > 0.99
    expected = torch.from_numpy(theory.kept_by_sphere(length.numpy())).float()
    torch.testing.assert_close(left.mean((1, 2, 3))[keeps], expected[keeps], rtol=1e-3, atol=1e-3)


def test_out_of_reach_and_length_together():
    """Of eps: what a narrow network cannot put out, and the lengths of the rest, as the slope of
    what they leave on drawn noise. Of x and v the first alone."""
    assert theory.predicted_left("v", 0.25, 192) == pytest.approx(0.75)
    length = normal(50000, 192).square().mean(1).sqrt()
    left = (1 + 49.025 * (length - 1)).clamp(min=0)
    slope = (left * length).sum() / length.square().sum()
    assert theory.predicted_left("eps", 1, 192) == pytest.approx(slope.item(), rel=0.02)
    inside = theory.predicted_left("eps", 1, 48) / 4
    assert theory.predicted_left("eps", 0.25, 192) == pytest.approx(0.75 * 49.025 + inside)


def test_drawing_needs_no_torch():
    code = "import draw, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=FIGURES).returncode == 0


def committed():
    """Names of committed results, and how their figure is made of them."""
    folder = FIGURES / "results"
    stored = json.loads((folder / "toy_studies.json").read_text())
    yield "toy_studies", 120, partial(toy_studies.draw_studies, stored)
    records = json.loads((folder / "toy_manifold.json").read_text())
    planes = {k: v.astype(float) for k, v in np.load(folder / "toy_manifold.npz").items()}
    yield "toy_manifold", 120, partial(toy_manifold.draw_samples, records, planes)
    for path in sorted(folder.glob("*.json")):
        if path.with_suffix(".npz").exists() and "study" in json.loads(path.read_text()):
            results = partial(draw.Results, path.stem, folder)
            yield path.stem, draw.DPI, lambda results=results: draw.draw_study(results())


@pytest.mark.parametrize("name, dpi, make", [pytest.param(*e, id=e[0]) for e in committed()])
def test_committed_picture_is_drawn_from_its_numbers(name, dpi, make, tmp_path):
    """Drawn again it is the same, but for another matplotlib's edges."""
    old = Image.open(FIGURES / f"{name}.png").convert("RGB")
    usual = matplotlib.rcParamsDefault if name == "toy_manifold" else {}  # it has no style.py
    with matplotlib.rc_context(usual):
        make().savefig(tmp_path / "a.png", dpi=dpi)
    new = Image.open(tmp_path / "a.png").convert("RGB")
    assert new.size == old.size
    assert np.abs(np.asarray(new, float) - np.asarray(old, float)).mean() < 2


def test_committed_tables_are_those_of_the_numbers():
    """And nothing that is committed tells of the machine it was made on."""
    folder = FIGURES / "results"
    assert (folder / "README.md").read_text() == draw.page(folder)
    for path in [*folder.iterdir(), *FIGURES.glob("*.png"), *FIGURES.glob("*.md")]:
        content = path.read_bytes()
        assert not [word for word in (b"/work/", b"/tmp/", b"/root/") if word in content], path


@pytest.mark.parametrize("data", ["gaussian", "spirals"])
def test_the_best_guess_is_missed_by_nobody(data):
    """What it leaves of x has nothing to do with z; a network that knows it misses nothing."""
    torch.manual_seed(0)
    config = toy_manifold.Config(12, d=4, data=data, pred="x")
    P, t = toy_manifold.random_plane(12, 4), torch.full((4000,), 0.6)
    x = toy_manifold.draw_data(4000, P, data)
    guess = toy_studies.best_guess(jit.interpolate(x, torch.randn(4000, 12), t), t, P, data)
    assert ((x - guess) * guess).sum(1).mean().abs() < 0.1 < (x - guess).square().sum(1).mean()
    knows = partial(toy_studies.best_guess, P=P, data=data)
    assert toy_studies.missed(knows, config, P) < 1e-6
    assert 0.5 < toy_studies.missed(lambda z, t: 0 * z, config._replace(pred="v"), P) < 1.5


# ---- The judge ----


def test_judge_depends_on_content_not_on_the_place(tmp_path, monkeypatch):
    """Other pictures under the same path get another judge; moved ones keep theirs."""
    monkeypatch.setattr(judge, "fit", lambda draw, classes, steps, seed: judge.build(classes))
    for name in "ab":
        for i in range(2):
            save(f"d/{name}/{i}.png", 100 + i, (70 + i, 70))

    def files(data):
        version_of.cache_clear()
        judge.load_judge(data, folder=tmp_path / "j")
        return len(list((tmp_path / "j").iterdir()))

    assert files("d") == 1
    Path("d").rename("e")
    assert files("e") == 1
    save("e/a/2.png", 7)
    assert files("e") == 2
    Path("e/b").rename("e/c")
    assert files("e") == 3


def test_recognised_is_without_the_answer_none(monkeypatch):
    """A judge that says none, but ring before all others: it recognises one of ten."""
    answer = torch.tensor([0.0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 5])
    pixels, y = torch.zeros(20, 3, 16, 16, dtype=torch.uint8), torch.arange(20) % 10
    assert judge.recognised(pixels, y, lambda x: answer.expand(len(x), -1)) == 0.1


def test_held_out_pictures_are_not_trained_on():
    """Every tenth of a class; the judge learns left from right in a few steps of the others."""
    for label, name in enumerate(("left", "right")):
        for i in range(20):
            image = np.zeros((20, 20, 3), np.uint8)
            image[:, 10 * label : 10 * label + 10] = 100 + i
            Path("d", name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(f"d/{name}/{i:02d}.png")
    judge.held_out_images.cache_clear()
    trained, labels = judge.read_folder("d", 20, held_out=False)
    held_out, y = judge.held_out_images("d", 20)
    assert sorted(held_out.amax((1, 2, 3)).tolist()) == [101, 101, 111, 111]
    assert not set(trained.amax((1, 2, 3)).tolist()) & {101, 111} and len(trained) == 36
    big, labels = judge.read_folder("d", 64, held_out=False)
    net = judge.fit(judge.drawer(big, labels), 2, steps=20, n=16)
    assert judge.recognised(held_out, y, net) == 1
    assert len(judge.broken(37, judge.drawer(big, labels), 2)) == 37


# ---- The pictures of the lesson ----


def test_mean_velocity_carries_noise_to_the_spiral():
    """For data at -a and a, E[x | z, t] = a tanh(t a z / (1 - t)^2); and all particles arrive."""
    a, z = 1.3, torch.linspace(-2, 2, 9, dtype=torch.float64)
    data = torch.tensor([[-a, 0.0], [a, 0.0]], dtype=torch.float64)
    for t in (0.0, 0.2, 0.7, 0.95):
        v = flow.mean_velocity(torch.stack([z, 0.5 * z], 1), t, data)
        x_mean = a * torch.tanh(t * a * z / (1 - t) ** 2)
        assert torch.allclose(v[:, 0], (x_mean - z) / (1 - t), rtol=1e-9, atol=1e-9)
    paths, data = flow.flow_paths(n=256, steps=100), flow.data_points(2000)
    distance, nearest = torch.cdist(paths[-1], data).min(1)
    assert distance.max() < 0.01
    assert ((nearest // 500).bincount(minlength=4) / 256 - 0.25).abs().max() < 0.06
    assert torch.cdist(paths[60], data).amin(1).mean() > 0.1
    assert paths[0].std().item() == pytest.approx(1, abs=0.05)  # they begin as noise


@pytest.mark.parametrize("mu", [0.0, -0.8, -1.2])
def test_density_is_that_of_the_training(mu):
    t, edges = jit.sample_t(200_000, mu).numpy(), np.linspace(0.005, 0.995, 34)
    counts, _ = np.histogram(t, edges)
    found = counts / len(t) / np.diff(edges)
    assert np.abs(found - theory.density((edges[1:] + edges[:-1]) / 2, mu)).max() < 0.06


def make_runs():
    """Folders "run", on the shapes, and "other", on cats, with a network that learned nothing."""
    net = jit.JiT(**NET, classes=10)
    for name, step, data in (("run", 10, "shapes"), ("other", 5, "cats")):
        config = dict(network=net.arguments, flow={}, names=jit.SHAPES, data=data, counts=[7])
        Path(name).mkdir()
        optimizer = torch.optim.Adam(net.parameters())
        networks = dict(model=net, model_ema1=net)
        jit.save_checkpoint(Path(name, jit.CHECKPOINT), networks, optimizer, step, config)


def test_pictures_of_a_run():
    """samples.png and the way there; of runs on folders another picture."""
    make_runs()
    assert samples.main(["run", "--out", "o"]) == 0
    assert denoising.main([str(Path("run").resolve()), "--out", "o"]) == 0
    assert samples.main(["other", "run", "--out", "o"]) == 0
    assert sorted(path.name for path in Path("o").iterdir()) == \
        ["denoising.gif", "denoising.png", "own_pictures.png", "samples.png"]  # fmt: skip
    assert Image.open("o/denoising.gif").n_frames == 31
    said = Image.open("o/denoising.png").text["Description"]
    assert said == "python figures/denoising.py runs/run"  # no folder of this machine
    assert samples.main(["nowhere"]) == 2


def exact(mean, deviation):
    """The velocity of data N(mean, deviation^2), whose samples are those of the data."""

    def velocity(z, t):
        variance = (t * deviation) ** 2 + (1 - t) ** 2
        return mean + (t * deviation**2 - (1 - t)) / variance * (z - t * mean)

    return velocity


def test_ways_of_handover(monkeypatch):
    """At t = 0 and 1 one network alone draws; between, the second from there on. What is given
    noise again goes on as the same data; a guess is where the tangent leads."""
    asked = handover.hand_over(lambda z, t: "first", lambda z, t: "second", 0.3)
    assert [asked(None, t) for t in (0, 0.29, 0.3, 1)] == ["first", "first", "second", "second"]
    velocity, z = exact(0.3, 0.4), normal(4000, 1)
    for share in (0, 0.1, 0.2):
        end = handover.churned(velocity, z, share)
        assert abs(end.mean() - 0.3) < 0.03 and abs(end.std() - 0.4) < 0.03, share
        assert torch.allclose(end, jit.integrate(velocity, z, 25), atol=1e-5) == (share == 0)
    once = handover.one_step(exact(0.3, 0.01), 0.3 + 0.01 * z, 0.8)
    assert abs(once - 0.3).max() < 0.06  # noise of .2 was added, and is gone
    guesses = handover.own_guesses(exact(0.3, 0), z[:3])
    assert guesses.shape == (3, 3, 1) and torch.allclose(guesses, torch.tensor(0.3))


def test_handover(monkeypatch):
    """Two networks, fifteen ways; those that run alone draw as ever."""
    monkeypatch.setitem(SAMPLE, "sampling_steps", 25)
    flows = {pred: jit.Flow(pred=pred, noise_scale=1.0) for pred in PREDS}
    nets = {pred: (filled("plain", seed), flows[pred]) for seed, pred in ((0, "x"), (50, "v"))}
    y, noise = torch.arange(3), jit.image_noise((3, 16, 16), 0, range(3))
    found = handover.draw_all(nets, y, noise)
    assert set(found) == {way for ways in handover.ROWS.values() for way in ways}
    for pred in ("x", "v"):
        assert torch.equal(found[pred], run.draw_samples(*nets[pred], y, **SAMPLE)[0])
    different = [found[way] for way in found if way not in ("own .6", "own .8", "own .92")]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(different, 2))
    monkeypatch.setattr(judge, "load_judge", lambda *given, **more: judge.build(10).eval())
    monkeypatch.setattr(handover, "load_networks", lambda seed, runs: nets)
    assert handover.main(["--seeds", "2", "--n", "3", "--out", "o"]) == 0
    records = json.loads(Path("o/results/handover.json").read_text())["records"]
    picture = Path("o/handover.png")
    drawn = picture.read_bytes()
    picture.unlink()
    monkeypatch.setattr(handover, "load_networks", refuse)
    assert handover.main(["--draw", "--out", "o"]) == 0 and picture.read_bytes() == drawn
    assert len(records) == 30
    assert records[0].keys() == {"seed", "way", "noise_left", "recognised", "second_judge",
                                 "distance"}  # fmt: skip
    assert all((record["distance"] == 0) == (record["way"] == "x") for record in records)


def test_three_predictions_in_one_picture(monkeypatch, tmp_path):
    """README's first picture is drawn from committed tiles: real ones, then x, v and eps."""
    shown, mosaic = [], draw.mosaic

    def seen(images, rows=None):
        shown.append(images)
        return mosaic(images, rows)

    monkeypatch.setattr(draw, "mosaic", seen)
    assert draw.main(["three", "--out", str(tmp_path)]) is None
    results = draw.Results("length", FIGURES / "results")
    cells = [Cell(dict(variant="JiT", pred=pred), studies.WIDE, dict(pred=pred))
             for pred in ("x", "v", "eps")]  # fmt: skip
    keys = [results.of(cell)[0]["key"] for cell in cells]
    for images, key in zip(shown, ["real", *keys]):
        assert np.array_equal(images, results.tiles[key][:10])
    assert len(shown) == 4 and (tmp_path / "three.png").exists()


def test_backwards(monkeypatch):
    """Of an exact velocity a sample comes back to its own noise, and forth to itself."""
    with monkeypatch.context() as patch:
        patch.setattr(backwards, "velocity_of", lambda net, flow, y: exact(0.1, 0.5))
        noise = normal(20, 3, 16, 16)
        end = backwards.forward(None, None, noise, None)
        assert torch.allclose(backwards.backward(None, None, end, None), noise, atol=0.02)
        assert abs(end.mean() - 0.1) < 0.02 and abs(end.std() - 0.5) < 0.01
    monkeypatch.setattr(backwards, "STEPS", 20)
    numbers, rows = backwards.measure(filled("plain"), jit.Flow(pred="v"))
    assert numbers["sample_noise_correlation"] > 0.999 and numbers["sample_error"] < 0.5
    assert len(rows) == 4 and all(len(row) == 5 for row in rows)
    make_runs()
    assert backwards.main(["run", "run", "--out", "o"]) == 0 and Path("o/backwards.png").exists()


def test_loss_of_a_run():
    """Even where a bin of t stayed empty; of a step that is there twice the last line counts; the
    first run lies behind the others."""
    lines = [dict(step=i, loss=1 / i, loss_by_t=[i / 10] * 9 + [None]) for i in (1, 2, 3, 2)]
    lines[3]["loss"] = 9
    for name in "rs":
        Path(name).mkdir()
        text = "\n".join(map(json.dumps, lines)) + '\n{"step": 4, "lo'
        Path(name, "log.jsonl").write_text(text)
    logs = dict(r=loss.read_log(Path("r")), s=loss.read_log(Path("s"))[:1])
    by_step, other, by_t, _ = loss.draw_loss(logs).axes
    assert by_step.lines[1].get_ydata().tolist() == [1, 9, 1 / 3]
    assert [line.get_ydata().tolist() for line in other.lines] == [[1, 9, 1 / 3], [1]]
    assert by_t.lines[1].get_ydata()[:9].tolist() == pytest.approx([0.3] * 9)
    assert loss.main(["r", "s"]) == 0 and Path("r/loss.png").exists()
    assert loss.main(["nowhere"]) == 2


# ---- The networks of variants.py ----

NETWORKS = {"plain": lambda: jit.JiT(**NET, classes=10),
            "edm": lambda: variants.Preconditioned("edm", **NET, classes=10),
            "linear": lambda: variants.Preconditioned("linear", **NET, classes=10),
            "gated": lambda: variants.Gated(**NET, classes=10),
            "no last norm": lambda: variants.NoLastNorm(**NET, classes=10),
            "learned length": lambda: variants.LearnedLength(**NET, classes=10),
            "layer norm": lambda: variants.LayerNormGelu(**NET, classes=10),
            "classifying": lambda: variants.Classifying(**NET, classes=10)}  # fmt: skip


def filled(name, seed=0):
    """A network with nothing left at 0, so that each part has a say."""
    net = NETWORKS[name]()
    for i, p in enumerate(net.parameters()):
        if p.requires_grad:
            p.data += 0.2 * normal(*p.shape, seed=seed + i)
    return net.eval()


@pytest.mark.parametrize("kind", ["linear", "edm"])
def test_preconditioning_is_the_formula_of_table_10(kind):
    """c_skip z + c_out net as printed, for 0 < t < 1; and not rounded by bf16."""
    net, z, y = filled(kind), normal(5, 3, 16, 16), torch.arange(5)
    t = torch.tensor([0.01, 0.3, 0.5, 0.9, 0.99])
    with torch.no_grad():
        out, found = jit.JiT.forward(net, z, t, y), net(z, t, y)
    for i, time in enumerate(t.tolist()):
        sigma, total = (1 - time) / time, 0.25 + ((1 - time) / time) ** 2
        c_skip = time if kind == "linear" else 0.25 / total / time
        c_out = 1 - time if kind == "linear" else 0.5 * sigma / math.sqrt(total)
        torch.testing.assert_close(found[i], c_skip * z[i] + c_out * out[i], atol=1e-5, rtol=1e-5)
    zero, one = torch.zeros(1), torch.ones(1)
    assert variants.coefficients(one, kind) == (one, zero)
    assert variants.coefficients(zero, kind)[0] == 0


def test_gate_starts_shut_and_1_over_1_minus_t_leaves_x_to_the_network(monkeypatch):
    net, x, eps = NETWORKS["gated"](), normal(4, 3, 16, 16), normal(4, 3, 16, 16, seed=2)
    t, y = torch.tensor([0.0, 0.2, 0.5, 0.9]), torch.zeros(4, dtype=torch.long)
    assert net.g(t).tolist() == [0] * 4
    monkeypatch.setattr(net, "g", lambda t: 1 / (1 - t))
    monkeypatch.setattr(jit.JiT, "forward", lambda self, z, t, y: x / (1 - t.view(-1, 1, 1, 1)))
    torch.testing.assert_close(net(jit.interpolate(x, eps, t), t, y), x - eps, atol=1e-4, rtol=0)


def test_the_last_norm_forgets_a_length():
    """Tokens of twice the length give the same patches, but for NoLastNorm, whose last layer is
    linear, and for LearnedLength, whose patches are then twice as long, too."""
    tokens, c = normal(2, 5, 16), normal(2, 1, 16, seed=1)
    for name, factor in (("plain", 1), ("no last norm", None), ("learned length", 2)):
        once, twice = (filled(name).final_layer(k * tokens, c) for k in (1, 2))
        same = [k for k in (1, 2) if torch.allclose(k * once, twice, atol=1e-4)]
        assert same == ([factor] if factor else [])


def test_layer_norm_and_gelu_are_everywhere():
    """Table 4's first row; LayerNorms have no weights of their own."""
    net = variants.LayerNormGelu(**NET | dict(dropout=0.2, depth=4), classes=10)
    kinds = [type(module).__name__ for module in net.modules()]
    assert "SwiGLU" not in kinds and kinds.count("GELU") == 4 and kinds.count("LayerNorm") == 9
    assert kinds.count("RMSNorm") == 8  # of queries and keys
    assert [block.mlp[2].p for block in net.blocks] == [0, 0.2, 0.2, 0]
    assert not list(net.blocks[0].norm1.parameters())


def test_classification_loss_of_table_11():
    """The blocks before the head are not told the class; the loss gains lambda / numbers * CE."""
    net, z, t = filled("classifying"), normal(3, 3, 16, 16), torch.tensor([0.2, 0.5, 0.8])
    with torch.no_grad():
        out1, logits1 = net(z, t, torch.tensor([0, 1, 2]), return_logits=True)
        out2, logits2 = net(z, t, torch.tensor([3, 4, -1]), return_logits=True)
    assert torch.equal(logits1, logits2) and (out1 - out2).abs().amax((1, 2, 3)).min() > 1e-2
    y, kept, flow = torch.tensor([0, 3, 1]), [], jit.Flow(label_drop=0.5)
    net.head.register_forward_hook(lambda module, inputs, output: kept.append(output))
    torch.manual_seed(3)
    plain, _ = jit.training_loss(net, z, y, flow)
    torch.manual_seed(3)
    loss, _ = variants.classifying_loss(100)(net, z, y, flow)
    entropy = [-kept[1][i].log_softmax(0)[y[i]] for i in range(3)]  # dropped or not
    torch.testing.assert_close(loss, plain + 100 / 768 * torch.stack(entropy))


@pytest.mark.usefixtures("quick_sheets")
@pytest.mark.parametrize("name", list(NETWORKS)[1:])
def test_every_parameter_learns_and_a_run_goes_on(name, tmp_path):
    """jit.train takes the network as it is; jit.py refuses to read it as a plain JiT."""
    net, run = filled(name), tmp_path / "run"
    of_class = name == "classifying"
    loss_function = variants.classifying_loss() if of_class else jit.training_loss
    x, y = normal(10, 3, 16, 16), torch.arange(10)
    losses, _ = loss_function(net, x, y, jit.Flow(label_drop=0.0))
    losses.mean().backward()
    for parameter, p in net.named_parameters():
        learns = p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0
        assert learns != (parameter == "pos_embed"), parameter
    chosen = dict(batch_size=4, loss_function=loss_function)
    for steps in (1, 2):
        jit.train(NETWORKS[name](), jit.Flow(), jit.Shapes(16), run, steps=steps, **chosen)
    assert jit.load_run(run, "raw", "cpu", type(net))[1] == jit.Flow()
    with pytest.raises(jit.Stop, match="does not fit a JiT"):
        jit.load_run(run, "raw", "cpu")
