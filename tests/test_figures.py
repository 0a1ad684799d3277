"""figures/: what is measured, kept and drawn is so; and the networks of variants.py."""

import inspect
import json
import math
import re
import runpy
import subprocess
import sys
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

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
import toy_dimension
import toy_manifold
import toy_why
import torch
import variants
from common import version_of
from conftest import ROOT, normal, save
from PIL import Image
from studies import FLOW, PREDS, SAMPLE, SHOWN, STUDIES, TIMES, Cell, Study, digest, settings

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


def test_grain_by_hand():
    """Of white noise sqrt(1 - 1/9), of a slope 0, whatever its colour."""
    assert run.grain(normal(50, 3, 16, 16)) == pytest.approx(math.sqrt(8 / 9), rel=0.02)
    slope = torch.linspace(-1, 1, 16).expand(2, 3, 16, 16)
    assert run.grain(slope) == pytest.approx(0, abs=1e-6)


def test_variance_outside_a_subspace():
    """Patches in five of twelve directions of equal variance: four leave out a fifth, five none."""
    basis = torch.linalg.qr(normal(12, 5))[0]
    patches = normal(40, 16, 5, seed=1) @ basis.T  # (n, patches, numbers)
    images = torch.nn.functional.fold(patches.transpose(1, 2), 8, 2, stride=2)
    found = manifold.outside(images, 2)
    assert found[4] == pytest.approx(0.2, abs=0.03) and found[6] < 1e-6 and found[12] < 1e-6
    assert found[1] == pytest.approx(0.8, abs=0.03)
    measured = json.loads(manifold.KEPT.read_text())
    found = {name: dict(zip(map(float, points), points.values()))[0.16667]
             for name, points in measured.items() if name != "digits"}  # fmt: skip
    assert found["shapes"] < 0.01 < found["photos"] < 0.1  # manifold.png: 0.48 and 5.1%
    labels = [text.get_text() for text in manifold.draw_manifold(measured).axes[-1].texts]
    assert labels[0] == "noise: 83%" and len(labels) == 4


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
    assert draw.mean_loss(t) == pytest.approx(0.327, abs=0.005)  # E[t], logit t ~ N(-.8, .8^2)
    assert draw.bound("v", 128 / 768, 0.5) == pytest.approx(0.833, abs=1e-3)  # FACTS: 1 - 128/768
    assert draw.bound("eps", 0.5, 0.25) == pytest.approx(0.5 * 16)


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


def test_another_start_and_limits():
    """From t = 0.02 the noise is not yet touched; the last x_pred is the sample, within limits."""
    seen = []

    def velocity(z, t):
        seen.append(t)
        return (3.0 - z) / (1 - t)  # all that it sees is 3

    changed = run.clipped_velocity(velocity, start=0.02, limit=1.0)
    *_, (_, z, _) = jit.integrate(changed, normal(4, 3, 8, 8), steps=7, solver="euler")
    assert torch.allclose(z, torch.ones(()), atol=1e-5)
    assert seen == pytest.approx([0.02 + 0.98 * i / 7 for i in range(7)])
    same = run.clipped_velocity(velocity, start=0.0, limit=math.inf)
    z = normal(4, 3, 8, 8)
    torch.testing.assert_close(same(z, 0.3), velocity(z, 0.3))


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
        assert draw.mean_loss(np.array(found)) == pytest.approx(draw.burden(cell), rel=0.03)


# ---- What is kept ----


def test_keys_know_what_was_chosen():
    """Whatever changes a number changes the key; whatever changes the weights, the network's."""
    cell = Cell(dict(pred="x"), NET)
    others = [replace(cell, **{part: value}) for part, value in dict(
        net=NET | dict(width=32), flow=dict(mu=0.0), train=dict(lr=1.0), variant="Gated").items()]
    changes = dict(sample=dict(cfg=1.0)), dict(n=50), dict(score_size=8)
    samples = [replace(cell, **change) for change in changes]
    network = {run.network_key(c, 0, "shapes", False) for c in [cell, *others]}
    network |= {run.network_key(cell, 1, "shapes", False), run.network_key(cell, 0, "shapes", True)}
    assert len(network) == 7
    assert {run.network_key(c, 0, "shapes", False) for c in samples} <= network
    assert len({run.record_key(c, 0, "shapes", False) for c in [cell, *others, *samples]}) == 8
    assert settings(cell) == settings(replace(cell, at={}, flow=dict(pred="x"), paper=1.0))


@pytest.mark.parametrize("name", STUDIES)
def test_study_is_valid(name):
    """Every cell has a place of its own, arguments that exist and a network that can be built."""
    study = STUDIES[name]
    cells = list(study.cells())
    parts = (study.row, study.panel, study.column)
    places = {tuple(cell.at.get(part) for part in parts) for cell in cells}
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
        assert sampled.keys() - {"n", "score_size", "start", "limit"} <= known


def test_what_studies_share():
    """One network where settings are equal: Table 2's are those of ratio 1 and 4. At ratio 1 the
    network is as wide as a patch has numbers: nothing there follows from the theorem."""
    assert FLOW == jit.Flow().__dict__
    cells = {name: list(STUDIES[name].cells()) for name in STUDIES}
    keys = {name: {run.network_key(cell, 0, "shapes", False) for cell in cells[name]}
            for name in cells}  # fmt: skip
    names = ("nine", "predictions", "leftover", "tuned", "shift", "gate", "bottleneck", "length")
    assert [len(keys["ratio"] & keys[name]) for name in names] == [6, 6, 3, 3, 3, 3, 3, 3]
    ratios = {cell.at["ratio"]: cell.net["width"] for cell in cells["ratio"]}
    assert ratios == {1 / 4: 48, 1 / 2: 96, 3 / 4: 144, 1: 192, 3 / 2: 288, 2: 384, 4: 192}
    for cell in sum((cells[name] for name in names[3:]), []):
        assert cell.net["width"] == 3 * cell.net["patch"] ** 2


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
    monkeypatch.setattr(judge, "load_judge", lambda *given: judge.build(10).eval())
    words = ["trial", "--tiny", "--runs", "n", "--out", "o"]
    return lambda *more: run.main([*words, *more])


def test_a_study_is_trained_and_kept(two_cells, monkeypatch):
    """Records, tiles of the right network; a second call does nothing, more seeds are added."""
    assert two_cells() == 0
    _, real, records, tiles = run.read_results(Path("o/trial.json"))
    assert len(records) == 3 and len(real) == 1
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
        assert {"recognised", "noise_left", "grain", "rfd"} < record.keys()
        assert len(record["loss_over_t"]) == 20
        assert ("gate" in record) == (cell.variant == "Gated")
    monkeypatch.setattr(run, "work", refuse)
    before = Path("o/trial.json").read_bytes()
    assert two_cells() == 0 and Path("o/trial.json").read_bytes() == before
    monkeypatch.setattr(run, "work", lambda cells, seed, *given: [
        (dict(key=f"{seed}{i}", at=c.at, seed=seed), np.zeros(1)) for i, c in enumerate(cells)])
    assert two_cells("--seeds", "2") == 0
    more = run.read_results(Path("o/trial.json"))[2]
    assert list(more)[:3] == list(records) and [r["seed"] for r in more.values()] == [0, 0, 0, 1, 1]


def test_a_record_replaces_that_of_its_place():
    """When data or settings have changed, the old record and its tiles go."""
    path = Path("a.json")
    for key, w, colour in (("a", 1.0, 1), ("b", 2.0, 2), ("c", 1.0, 3)):
        record = dict(key=key, at=dict(w=w), seed=0)
        run.keep(path, {}, [], [(record, np.full(2, colour))])
    _, _, records, tiles = run.read_results(path)
    assert [(key, tiles[key][0]) for key in records] == [("b", 2), ("c", 3)] and len(tiles) == 2


def test_own_pictures(monkeypatch):
    """Of any folder, with classes or none, under a name of its own; what does not fit is told."""
    for i in range(8):
        save(f"flat/{i}.png", (30 * i, 255 - 30 * i, 90))
    monkeypatch.setattr(run, "ProcessPoolExecutor", Here)
    words = ["predictions", "--data", "flat", "--tiny", "--out", "o", "--runs", "n"]
    assert run.main([*words, "--size", "16", "--patches", "8", "4"]) == 0
    draw.main(["predictions_flat", "--out", "o"])
    text = Path("o/predictions_flat.md").read_text()
    assert "patches of 192 numbers" in text and "rfd" in text and "recognised" not in text
    assert "FID" not in text and "--patches 8 4" in text
    assert run.main([*words, "--size", "16", "--patches", "7", "4"]) == 2
    assert run.main(["ratio", *words[1:], "--patches", "8", "4"]) == 2
    grey = [*words, "--size", "16", "--patches", "8", "4", "--channels", "1", "--out", "g"]
    assert run.main(grey) == 0 and draw.main(["predictions_flat", "--out", "g"]) is None
    text = Path("g/predictions_flat.md").read_text()
    assert "patches of 64 numbers" in text and "--channels 1" in text


def test_a_network_that_failed_does_not_lose_the_others(two_cells, monkeypatch):
    """It is told at the end; what was done is kept."""
    done = []

    class Pool(Here):
        def submit(self, work, cells, *given):
            if not done:
                record = dict(key="a", at={}, seed=0)
                return super().submit(lambda: done.append(1) or [(record, np.zeros(1))])
            failed = Future()
            failed.set_exception(jit.Stop("at step 1 the loss is nan.", 1))
            return failed

    monkeypatch.setattr(run, "ProcessPoolExecutor", Pool)
    assert two_cells() == 1
    assert list(run.read_results(Path("o/trial.json"))[2]) == ["a"]


# ---- What is drawn ----


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """Results of every study as they would be: each cell has tiles of a colour of its own."""
    folder = tmp_path_factory.mktemp("figures")
    for name, study in STUDIES.items():
        records = []
        for i, cell in enumerate(study.cells()):
            for seed in range(2 if cell.repeat else 1):
                known = dict(recognised=0.5 + 0.01 * i, noise_left=0.1 + i, grain=0.2, rfd=0.3 + i)
                known |= dict(loss_over_t=[0.1 + 0.01 * i] * 20, log=[(1, 1.0), (100, 0.2)])
                known |= dict(late_loss_by_t=[None, *[0.1] * 9])
                known |= dict(hardware="H", torch="T", commit="C")
                known |= dict(left_by_length=[(0.9, 0.1), (1.1, 4.0)])
                known |= dict(gate=[0.1] * 20) if cell.variant == "Gated" else {}
                known |= dict(at=cell.at, seed=seed, real="R", key=f"{i}-{seed}", seconds=60)
                known |= dict(settings=digest(*settings(cell)))
                shape = (6, 3, cell.net["size"], cell.net["size"])
                records.append((known, np.full(shape, 4 * (3 * i + seed), np.uint8)))
        real = dict(key="R", size=32, patch=16, grain=0.1, rfd=0.1, recognised=0.99)
        header = dict(study=name, command=f"python figures/run.py {name}", data="shapes",
                      arguments={}, tiny=False)  # fmt: skip
        tiles = np.full((18, 3, 32, 32), 255, np.uint8)
        run.keep(folder / f"{name}.json", header, [(real, tiles)], records)
    return folder


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_is_drawn(name, made_up):
    """A picture that says how it was made, with something in it; a table with every cell's numbers,
    around which what is written by hand stays."""
    page = made_up / f"{name}.md"
    page.write_text("Above.\n\n" + "\n".join(draw.MARKS) + "\n\nBelow.\n")
    draw.main([name, "--out", str(made_up)])
    picture = Image.open(made_up / f"{name}.png")
    assert f"run.py {name}" in picture.text["Description"]
    assert np.asarray(picture.convert("L")).std() > 10
    text = page.read_text()
    assert text.startswith("Above.") and text.endswith("Below.\n")
    assert not re.search(r"^\|.*[^|\n]$", text, re.M)  # a row of the table is one line
    draw.write_table(draw.Results(name, made_up), page)
    assert page.read_text() == text
    for i, cell in enumerate(STUDIES[name].cells()):
        spread = " ± 0" if cell.repeat else ""
        assert f"recognised {50 + i}{spread}%" in text


@pytest.mark.parametrize("name", ["nine", "shift", "gate", "guidance", "tuned"])
def test_every_cell_shows_its_own_pictures_and_numbers(name, made_up):
    """Of its first seed, in its row and column, under the name of its column."""
    results = draw.Results(name, made_up)
    study, cells = results.study, results.cells
    cells = [cell for cell in cells if cell.at.get(study.panel) == cells[0].at.get(study.panel)]
    axes = draw.draw_grid(draw.Figure(), results, cells, [0, 1, 3, 4])
    rows, columns = (draw.distinct(cells, part) for part in (study.row, study.column))
    for i, cell in enumerate(cells):
        row, column = rows.index(cell.at[study.row]), columns.index(cell.at[study.column])
        ax = axes[row + study.real, column]
        assert set(np.unique(ax.images[0].get_array())) == {12 * i, 255}  # 255: the gaps
        assert f"recognised {50 + i}" in ax.get_xlabel()
        title = axes[int(study.real), column].get_title()
        assert title == draw.label(study.column, cell.at[study.column], cell)
    shown = [np.unique(ax.images[0].get_array()).tolist() for ax in axes.flat if ax.images]
    assert ([252, 255] in shown) == study.real  # real images are white here


def test_records_of_other_settings_are_not_drawn(made_up):
    results = draw.Results("gate", made_up)
    changed, ax = replace(results.cells[0], train=dict(steps=1)), draw.Figure().subplots()
    assert len(results.of(results.cells[0])) == 2 and results.of(changed) == []
    draw.draw_cell(ax, results, changed, [0, 1, 3, 4])
    assert not ax.images and ax.texts[0].get_text() == "not run here"


def test_points_of_the_ratio_are_its_numbers(made_up):
    ax = draw.Figure().subplots()
    draw.plot_noise_left(ax, draw.Results("ratio", made_up))
    assert len(ax.containers) == 3
    for line in ax.containers:
        x, y = line[0].get_data()
        k = PREDS.index({"x": "x", "ε": "eps", "v": "v"}[line.get_label()[0]])
        assert np.allclose(x, [1 / 4, 1 / 2, 3 / 4, 1, 3 / 2, 2, 4])
        assert np.allclose(y, [0.1 + 3 * i + k for i in range(7)])


def test_laws_of_what_does_not_get_in_and_of_what_is_forgotten(made_up):
    """Written down before training: noise left for bottlenecks of 4, 32 and 128 of 192 numbers; and
    of patches whose noise is longer and shorter than a sphere's radius."""
    ax = draw.Figure().subplots()
    draw.plot_shut_out(ax, draw.Results("bottleneck", made_up))
    eps, v = (line.get_ydata() for line in ax.lines if line.get_linestyle() == "--")
    assert np.allclose(eps[:3], [48.0, 40.9, 16.3], atol=0.05) and np.isnan([eps[3], v[3]]).all()
    assert np.allclose(v[:3], [0.979, 0.833, 0.333], atol=0.001)
    ax = draw.Figure().subplots()
    draw.plot_left_by_length(ax, draw.Results("length", made_up))
    length, law = next(line.get_data() for line in ax.lines if line.get_linestyle() == "--")
    assert law[0] == 0 and length[-1] == 1.1 and law[-1] == pytest.approx(5.9025 / 1.1)
    assert law[length.searchsorted(1)] == pytest.approx(1, abs=1e-3)
    assert [0.1, 4.0] in [list(line.get_ydata()) for line in ax.lines]


@pytest.mark.parametrize("kept, ending", [
    ([(0, 0)], " (one seed)"), ([(0, 0), (1, 0), (0, 1)], " (one seed where no ± stands)"),
    ([(0, 0), (1, 0), (0, 1), (1, 1)], "")])  # fmt: skip
def test_a_title_says_how_many_seeds(made_up, tmp_path, monkeypatch, kept, ending):
    """kept: (seed, cell). Of the cells that are trained again for each seed."""
    header, real, records, tiles = run.read_results(made_up / "length.json")
    cells = [cell.at for cell in list(STUDIES["length"].cells())[:2]]
    found = [(r, tiles[r["key"]]) for r in records.values()
             if (r["seed"], r["at"]) in [(seed, cells[i]) for seed, i in kept]]  # fmt: skip
    cells = [cell for cell in STUDIES["length"].cells() if cell.at in [r["at"] for r, _ in found]]
    monkeypatch.setitem(STUDIES, "length", replace(STUDIES["length"], cells=lambda: cells))
    run.keep(tmp_path / "length.json", header, [(r, tiles[r["key"]]) for r in real.values()], found)
    assert draw.Results("length", tmp_path).title == draw.FINDINGS["length"] + ending


def test_distance_is_to_the_finest_of_the_same_seed(made_up):
    """Cells are 12 grey levels apart, of both seeds; the finest, the last of 11, has no point."""
    ax = draw.Figure().subplots()
    draw.plot_distance(ax, draw.Results("solver", made_up))
    heun, euler = (container[0].get_data() for container in ax.containers)
    assert heun[0].tolist() == [7, 15, 31, 63, 127] and euler[0].tolist() == [4, 8, 16, 32, 64]
    assert np.allclose(heun[1] * 127.5, [120, 108, 96, 84, 72])
    assert np.allclose(euler[1] * 127.5, [60, 48, 36, 24, 12])


@pytest.mark.parametrize("kind", draw.LEFT)
def test_the_law_of_what_is_left(kind):
    """jit.py's sampler, with a network that puts out nothing of the noise, leaves what noise_kept
    says; for pre-conditioning by the coefficients that the networks use. With many steps that is
    the law, but for the clip: below 1 - t = .05 the sampler goes on."""
    def velocity(z, t):
        if kind in PREDS:
            return jit.convert(0 * z, z, torch.tensor([t]), kind)["v"]
        c_skip, _ = variants.coefficients(torch.tensor([t]), kind)
        return jit.convert(c_skip * z, z, torch.tensor([t]), "x")["v"]

    *_, (_, left, _) = jit.integrate(velocity, torch.ones(1, 1), steps=25)
    assert left.item() == pytest.approx(draw.LEFT[kind], rel=1e-3)
    law = dict(x=0, linear=1 / np.e, edm=0.5, v=1, eps=20 * np.e)[kind]
    clipped = 0.02 if kind in ("x", "linear", "edm") else 0
    assert draw.noise_kept(kind, 4000) == pytest.approx(law, rel=0.01, abs=clipped)


def test_a_sphere_keeps_noise_as_the_law_of_length_says():
    """jit.py's sampler, with a network that puts out of every patch its direction, at length 1."""
    noise, flow = normal(100, 3, 8, 8), jit.Flow(pred="eps")

    def velocity(z, t):
        length = z.square().mean((1, 2, 3), keepdim=True).sqrt()
        return jit.convert(z / length, z, torch.full((len(z),), float(t)), "eps", flow.t_clip)["v"]

    left = run.follow(lambda y: velocity, noise, torch.zeros(100), "heun", 25, 100) / noise
    length = noise.square().mean((1, 2, 3)).sqrt()
    keeps = length > 0.99
    law = torch.from_numpy(draw.kept_by_sphere(length.numpy())).float()
    torch.testing.assert_close(left.mean((1, 2, 3))[keeps], law[keeps], rtol=1e-3, atol=1e-3)


def test_the_two_laws_together():
    """Of eps: what a narrow network cannot put out, and the lengths of the rest, as the slope of
    what they leave on drawn noise. Of x and v the first alone."""
    assert draw.predicted_left("v", 0.25, 192) == pytest.approx(0.75)
    assert draw.predicted_left("x", 0.25, 192) == pytest.approx(0.0066, abs=1e-4)
    length = normal(50000, 192).square().mean(1).sqrt()
    left = (1 + 49.025 * (length - 1)).clamp(min=0)
    slope = (left * length).sum() / length.square().sum()
    assert draw.predicted_left("eps", 1, 192) == pytest.approx(slope.item(), rel=0.02)
    inside = draw.predicted_left("eps", 1, 48) / 4
    assert draw.predicted_left("eps", 0.25, 192) == pytest.approx(0.75 * 49.025 + inside)


def test_points_of_leftover_are_its_numbers(made_up):
    results = draw.Results("leftover", made_up)
    ax = draw.Figure().subplots()
    draw.plot_law(ax, results)
    found = [line.get_xydata().tolist() for line in ax.lines if line.get_marker() == "o"]
    laws = [0.0066, 0.279, 0.371, 0.75, 37.4]  # those of leftover.md
    for i, (points, law) in enumerate(zip(found, laws, strict=True)):
        assert np.allclose(points, [[law, 0.1 + i]] * 2, rtol=5e-3)
    assert draw.TOY_STEPS == toy_manifold.SOLVER_STEPS
    toy = draw.toy_left(FIGURES)
    assert [round(np.mean(toy[kind]), 2) for kind in ("linear", "edm", "v")] == [0.35, 0.47, 0.91]


def test_drawing_needs_no_torch():
    code = "import draw, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=FIGURES).returncode == 0


def committed():
    """Names of committed results, and how their figure is made of them."""
    def points(name):
        return json.loads((FIGURES / f"{name}.json").read_text())

    yield "toy_dimension", lambda: toy_dimension.draw_dimension(points("toy_dimension"))
    yield "toy_why", lambda: toy_why.draw_why(points("toy_why"))
    planes = {k: v.astype(float) for k, v in np.load(FIGURES / "toy_manifold.npz").items()}
    yield "toy_manifold", lambda: toy_manifold.draw_samples(points("toy_manifold"), planes)
    for path in sorted(FIGURES.glob("*.json")):
        if path.stem.partition("_")[0] in STUDIES:
            results = draw.Results(path.stem, FIGURES)
            make = draw.FIGURES.get(results.header["study"], draw.draw_study)
            yield path.stem, partial(make, results)


@pytest.mark.parametrize("name, make", [pytest.param(*each, id=each[0]) for each in committed()])
def test_committed_picture_is_drawn_from_its_numbers(name, make, tmp_path):
    """Drawn again it is the same, but for another matplotlib's edges; so is its table."""
    old = Image.open(FIGURES / f"{name}.png").convert("RGB")
    usual = matplotlib.rcParamsDefault if name == "toy_manifold" else {}  # it has no style.py
    dpi = draw.DPI if name.partition("_")[0] in STUDIES else 120
    with matplotlib.rc_context(usual):
        make().savefig(tmp_path / "a.png", dpi=dpi)
    new = Image.open(tmp_path / "a.png").convert("RGB")
    assert new.size == old.size
    assert np.abs(np.asarray(new, float) - np.asarray(old, float)).mean() < 2
    if name.partition("_")[0] in STUDIES:
        table = "\n".join(draw.table(draw.Results(name, FIGURES)))
        assert table in (FIGURES / f"{name}.md").read_text()


def test_numbers_of_toy_md_are_those_of_the_json():
    """off_plane against D, three seeds."""
    records = json.loads((FIGURES / "toy_dimension.json").read_text())
    page = (FIGURES / "toy.md").read_text().partition("| off_plane, 3 seeds")[2]
    for pred in ("x", "eps", "v"):
        row = re.search(rf"^\| {pred} \|(.*)\|$", page, re.M)[1].split("|")
        for k, cell in enumerate(row, 2):
            text = cell.split("±")[0].strip()
            found = [r["off_plane"] for r in records if (r["D"], r["pred"]) == (2**k, pred)]
            unit = 10.0 ** -len(text.partition(".")[2])
            assert np.mean(found) == pytest.approx(float(text), abs=0.51 * unit), (pred, 2**k)


def test_missed_of_toy_md():
    """The table of data with and without shape, three seeds."""
    records = json.loads((FIGURES / "toy_why.json").read_text())["intrinsic"]
    page = (FIGURES / "toy.md").read_text().partition("| missed; d")[2]
    names = dict(gaussian="normal numbers", spirals="spirals")
    for pred, (data, name) in product("xv", names.items()):
        row = re.search(rf"^\| {pred}, {name} \|(.*)\|$", page, re.M)[1].split("|")
        for d, cell in zip((2, 8, 32, 128, 512), row, strict=True):
            text = cell.split("±")[0].strip()
            found = [r["missed"] for r in records
                     if (r["d"], r["pred"], r["data"]) == (d, pred, data)]  # fmt: skip
            unit = 10.0 ** -len(text.partition(".")[2])
            assert len(found) == 3 and np.mean(found) == pytest.approx(float(text), abs=0.51 * unit)


@pytest.mark.parametrize("data", ["gaussian", "spirals"])
def test_the_best_guess_is_missed_by_nobody(data):
    """What it leaves of x has nothing to do with z; a network that knows it misses nothing, one
    that says v = 0 misses about the noise."""
    torch.manual_seed(0)
    config = toy_manifold.Config(12, d=4, data=data, pred="v")
    P, t = toy_manifold.random_plane(12, 4), torch.full((4000,), 0.6)
    x = toy_manifold.draw_data(4000, P, data)
    z = jit.interpolate(x, torch.randn(4000, 12), t)
    guess = toy_why.best_guess(z, t, P, data)
    assert ((x - guess) * guess).sum(1).mean().abs() < 0.1 < (x - guess).square().sum(1).mean()

    def knows(z, t):
        return jit.convert(toy_why.best_guess(z, t, P, data), z, t, "x")["v"]

    assert toy_why.missed(knows, config, P) < 1e-6
    assert 0.5 < toy_why.missed(lambda z, t: 0 * z, config, P) < 1.5


# ---- The judge ----


def test_judge_depends_on_content_not_on_the_place(tmp_path, monkeypatch):
    """Other pictures under the same path get another judge; moved ones keep theirs."""
    monkeypatch.setattr(judge, "fit", lambda draw, classes, steps: judge.build(classes))
    for name in "ab":
        for i in range(2):
            save(f"d/{name}/{i}.png", 100 + i, (70 + i, 70))

    def files():
        for cached in (version_of, judge.images_of):
            cached.cache_clear()
        judge.load_judge("d", folder=tmp_path / "j")
        return len(list((tmp_path / "j").iterdir()))

    assert files() == 1
    Path("d").rename("e"), Path("e").rename("d")
    assert files() == 1
    save("d/a/2.png", 7)
    assert files() == 2
    Path("d/b").rename("d/c")
    assert files() == 3


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
    judge.images_of.cache_clear()
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


@pytest.mark.parametrize("mu", [0.0, -0.8, -1.2])
def test_density_is_that_of_the_training(mu):
    t, edges = jit.sample_t(200_000, mu).numpy(), np.linspace(0.005, 0.995, 34)
    counts, _ = np.histogram(t, edges)
    found = counts / len(t) / np.diff(edges)
    assert np.abs(found - draw.density((edges[1:] + edges[:-1]) / 2, mu)).max() < 0.06


def make_runs():
    """Folders "run", on the shapes, and "other", on cats, with a network that learned nothing."""
    net = jit.JiT(**NET, classes=10)
    for name, step, data in (("run", 10, "shapes"), ("other", 5, "cats")):
        config = dict(network=net.arguments, flow={}, names=jit.SHAPES, data=data)
        Path(name).mkdir()
        optimizer = torch.optim.Adam(net.parameters())
        networks = dict(model=net, model_ema1=net)
        jit.save_checkpoint(Path(name, jit.CHECKPOINT), networks, optimizer, step, config)


def test_pictures_of_a_run():
    """samples.png and the way there; a run on other data is refused."""
    make_runs()
    assert samples.main(["run", "--out", "o"]) == 0
    assert denoising.main(["run", "--out", "o"]) == 0
    assert sorted(path.name for path in Path("o").iterdir()) == \
        ["denoising.gif", "denoising.png", "samples.png"]  # fmt: skip
    assert Image.open("o/denoising.gif").n_frames == 31
    assert samples.main(["other"]) == 2


def test_handover(monkeypatch):
    """At t = 0 and 1 one network alone draws, as ever; between, the second from there on."""
    monkeypatch.setitem(handover.SAMPLE, "sampling_steps", 5)
    nets = [filled("plain", seed) for seed in (0, 50)]
    flows = jit.Flow(pred="x", noise_scale=2.0), jit.Flow(pred="v", noise_scale=2.0)
    parts, y = list(zip(nets, flows)), torch.arange(3)
    drawn = [handover.draw_samples(*parts, at, y) for at in (0, 0.3, 1)]
    for (net, flow), (found, noise) in zip(parts[::-1], drawn[::2]):
        assert torch.equal(found, run.draw_samples(net, flow, y, **SAMPLE)[0])
        assert torch.equal(noise, 2 * jit.image_noise(net.shape, 0, range(3)))
    assert not any(torch.equal(drawn[1][0], drawn[i][0]) for i in (0, 2))
    asked = handover.hand_over(lambda z, t: "first", lambda z, t: "second", 0.3)
    assert [asked(None, t) for t in (0, 0.29, 0.3, 1)] == ["first", "first", "second", "second"]
    monkeypatch.setattr(judge, "load_judge", lambda *given: judge.build(10).eval())
    make_runs()
    assert handover.main(["run", "run", "--n", "4", "--out", "o"]) == 0
    assert Path("o/handover.png").exists() and handover.main(["run", "other"]) == 2
    records = json.loads(Path("o/handover.json").read_text())["records"]
    assert len(records) == 14 and records[0].keys() > {"at", "recognised", "noise_left"}


def test_loss_of_a_run():
    """Even where a bin of t stayed empty; of a step that is there twice the last line counts."""
    Path("r").mkdir()
    lines = [dict(step=i, loss=1 / i, loss_by_t=[i / 10] * 9 + [None]) for i in (1, 2, 3, 2)]
    lines[3]["loss"] = 9
    Path("r/log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 4, "lo')
    left, right = loss.draw_loss(loss.read_log(Path("r"))).axes
    assert left.lines[0].get_ydata().tolist() == [1, 9, 1 / 3]
    assert right.lines[0].get_ydata()[:9].tolist() == pytest.approx([0.3] * 9)
    assert loss.main(["r"]) == 0 and Path("r/loss.png").exists() and loss.main(["nowhere"]) == 2


# ---- The networks of variants.py ----

NETWORKS = {"plain": lambda: jit.JiT(**NET, classes=10),
            "edm": lambda: variants.Preconditioned("edm", **NET, classes=10),
            "linear": lambda: variants.Preconditioned("linear", **NET, classes=10),
            "gated": lambda: variants.Gated(**NET, classes=10),
            "no last norm": lambda: variants.NoLastNorm(**NET, classes=10),
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
    linear: so the law of `length` holds of the one and not of the other."""
    tokens, c = normal(2, 5, 16), normal(2, 1, 16, seed=1)
    for name, same in (("plain", True), ("no last norm", False)):
        once, twice = (filled(name).final_layer(k * tokens, c) for k in (1, 2))
        assert torch.allclose(once, twice, atol=1e-4) == same


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
