"""The pictures of the lesson: the numbers in them are right, they can be read, and drawing them breaks nothing."""

import itertools
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgba_array
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

import jit

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "figures"))
import lesson  # noqa: E402


@pytest.fixture(scope="module")
def figures():
    """Each picture as a figure that has been laid out."""
    drawn = {name: draw() for name, draw in lesson.PICTURES.items()}
    for figure in drawn.values():
        FigureCanvasAgg(figure).draw()
    return drawn


def save_run(folder, step=4200, size=16, data="shapes"):
    """The run of a network that has learned nothing, after so many steps."""
    net = jit.JiT(size=size, patch=8, depth=1, width=16, heads=2, bottleneck=4, classes=10)
    config = dict(network=net.arguments, flow={}, names=jit.SHAPES, data=data)
    folder.mkdir()
    networks = {"model": net, "model_ema1": net}
    jit.save_checkpoint(folder / jit.CHECKPOINT, networks, torch.optim.Adam(net.parameters()), step, config)
    return folder


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """samples.png as a figure that has been laid out: of one run, and of two."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [lesson.load(save_run(folder / str(step), step)) for step in (42000, 4200)]
    drawn = {"one": lesson.draw_samples(runs[1:]), "two": lesson.draw_samples(runs)}
    for figure in drawn.values():
        FigureCanvasAgg(figure).draw()
    return drawn


def texts(figure):
    """All texts that are seen."""
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def colours(figure):
    """The colours of all that is drawn, as #RRGGBB."""
    found = set()
    for artist in figure.findobj():
        for part in ("color", "facecolor", "edgecolor", "markeredgecolor"):
            if hasattr(artist, f"get_{part}"):
                values = to_rgba_array(getattr(artist, f"get_{part}")())
                found |= {to_hex(value).upper() for value in values}
    return found


# ---- What they say is right ------------------------------------------------------------------------------------------


def test_spiral_has_mean_0_and_variance_1():
    points = lesson.spiral(2000)
    assert points.mean(0).abs().max() < 1e-9
    assert (points.var(0) - 1).abs().max() < 1e-9
    steps = (points[1:] - points[:-1]).norm(dim=1)[200:]  # at the very centre r = angle is not evenly filled
    assert steps.max() / steps.min() < 1.6


def test_mean_velocity_of_two_points():
    """For data at -a and a, E[x | z, t] = a tanh(t a z / (1 - t)^2), in closed form."""
    a, z = 1.3, torch.linspace(-2, 2, 9, dtype=torch.float64)
    data = torch.tensor([[-a, 0.0], [a, 0.0]], dtype=torch.float64)
    for t in (0.0, 0.2, 0.7, 0.95):
        v = lesson.mean_velocity(torch.stack([z, 0.5 * z], 1), t, data)
        x_mean = a * torch.tanh(t * a * z / (1 - t) ** 2)
        assert torch.allclose(v[:, 0], (x_mean - z) / (1 - t), rtol=1e-9, atol=1e-9)
        assert torch.allclose(v[:, 1], -0.5 * z / (1 - t), rtol=1e-9, atol=1e-9)


def test_mean_velocity_carries_noise_to_the_spiral():
    """All particles end on the curve, each quarter of which gets its share; on the way there they are not."""
    paths, data = lesson.flow_paths(n=256, steps=100), lesson.spiral(2000)
    distance, nearest = torch.cdist(paths[-1], data).min(1)
    assert distance.max() < 0.01  # the last step leaves E[x | z, t = .99], inside the arc by about .01^2
    shares = (nearest // 500).bincount(minlength=4) / 256
    assert (shares - 0.25).abs().max() < 0.06  # three standard deviations of a random draw are 0.08
    assert torch.cdist(paths[60], data).amin(1).mean() > 0.1


def test_particles_of_the_picture_start_as_noise_and_bend():
    paths = lesson.flow_paths()
    start, end = paths[0], paths[-1]
    assert start.abs().max() < 2.4  # inside the frame
    assert start.mean(0).abs().max() < 0.05 and (start.std(0) - 1).abs().max() < 0.05
    lengths = (paths[1:] - paths[:-1]).norm(dim=2).sum(0)
    assert (lengths / (end - start).norm(dim=1)).median() > 1.2  # a straight way would have 1


def test_shaded_region_of_noise_is_a_disc(figures):
    """At t = 0, 90% of a normal law in the plane lie within sqrt(2 ln 10) = 2.15."""
    ax = figures["flow"].axes[0]
    region = next(c for c in ax.collections if to_hex(c.get_facecolor()[0]).upper() == lesson.PALE)
    edge = torch.tensor(region.get_paths()[0].vertices).norm(dim=1)
    assert (edge[edge > 0] - math.sqrt(2 * math.log(10))).abs().max() < 0.05  # the grid has steps of .05


@pytest.mark.parametrize("mu", [0.0, -0.4, -0.8, -1.2])
def test_density_of_t(mu):
    """It integrates to 1, and half of it lies below the median, sigmoid(mu)."""
    t = torch.linspace(1e-4, 1 - 1e-4, 20001, dtype=torch.float64)
    density = lesson.density_of_t(t, mu)
    assert abs(torch.trapezoid(density, t) - 1) < 1e-4
    below = t <= 1 / (1 + math.exp(-mu))
    assert abs(torch.trapezoid(density[below], t[below]) - 0.5) < 1e-3


def test_weight_is_that_of_the_v_loss():
    """An error of x becomes, as jit converts it, an error of v whose square is `weight` times as large."""
    t = torch.tensor([0.0, 0.3, 0.9, 0.95, 0.99])
    x, z = torch.randn(2, 5, 3)
    error = jit.convert(x + 0.1, z, t, "x")["v"] - jit.convert(x, z, t, "x")["v"]
    assert torch.allclose(error.square().mean(1) / 0.01, lesson.weight_of_v_loss(t), rtol=1e-3)
    assert lesson.weight_of_v_loss(torch.ones(1)).item() == pytest.approx(400)


def test_what_counts_has_area_1(figures):
    curves = {line.get_label(): line for line in figures["t_distribution"].axes[0].get_lines()}
    t, counts = map(torch.as_tensor, curves["the paper's × weight,\nscaled to area 1"].get_data())
    assert abs(torch.trapezoid(counts, t) - 1) < 1e-3


def test_pictures_stand_under_their_t(figures):
    """The middle of each noised picture is at its t on the axis above."""
    figure = figures["t_distribution"]
    axis, canvas = figure.axes[1], figure.axes[2]
    for image, t in zip(canvas.images, lesson.TIMES, strict=True):
        left, right, _, _ = image.get_extent()
        on_axis = axis.transData.inverted().transform(canvas.transData.transform([(left + right) / 2, 1]))
        assert abs(on_axis[0] - t) < 1e-6


def test_hourglass_is_to_scale(figures):
    """The bars are as high as a token of Ti/16 has numbers: 768, 32, 128 before the blocks; 128, 768 after them."""
    bars = [patch for patch in figures["architecture"].findobj(Rectangle) if patch.get_width() == 0.12]
    heights = [bar.get_height() / lesson.HIGH for bar in sorted(bars, key=lambda bar: bar.get_x())]
    model = jit.MODELS["Ti"]
    assert heights == pytest.approx([768, model["bottleneck"], model["width"], model["width"], 768])
    words = [text.get_text() for text in texts(figures["architecture"])]
    assert [word for word in words if word.startswith("block ")] == [f"block {i}" for i in range(model["depth"])]


def test_x_lies_on_the_curve_and_v_does_not(figures):
    """The right half of manifold.png: many x, eps and v, by how far they lie from the manifold."""
    manifold = lesson.curve(torch.linspace(-1, 1, 2000))
    clouds = [torch.as_tensor(ax.get_lines()[0].get_xydata()).float() for ax in figures["manifold"].axes[1:]]
    x, eps, v = (torch.cdist(cloud, manifold).amin(1) for cloud in clouds)
    assert x.max() < 1e-2
    assert eps.mean() > 0.5 and v.mean() > 0.5


def test_samples_say_what_they_are(samples):
    """Each part has a label, which names the steps of its run; the default run's images are the smaller ones."""
    long = "long run: samples after 42,000 steps"
    default = "default run (python jit.py train): samples after 4,200 steps, from the same noise, half as large"
    for name, labels, images in (
        ("one", ["samples after 4,200 steps"], {0.8: 40}),
        ("two", [long, default], {0.8: 40, 0.4: 20}),
    ):
        words = [text.get_text() for text in texts(samples[name])]
        assert [word for word in words if "samples after" in word] == labels
        assert "real: the renderings that training sees" in words and set(jit.SHAPES) < set(words)
        extents = [image.get_extent() for image in samples[name].axes[0].images]
        assert Counter(round(right - left, 6) for left, right, _, _ in extents) == images
        assert len({round((left + right) / 2, 6) for left, right, _, _ in extents}) == 10  # a column for each class


def test_first_row_is_real(tmp_path):
    """In the file it shows renderings, one of each class in order; each pixel is a square of whole dots."""
    figure = lesson.draw_samples([lesson.load(save_run(tmp_path / "run"))])
    lesson.save_figure(figure, tmp_path / "samples.png", 160)
    dots = torch.tensor(np.array(Image.open(tmp_path / "samples.png").convert("RGB"))).permute(2, 0, 1)
    torch.manual_seed(0)
    real = jit.to_uint8(jit.render_shapes(torch.arange(10), jit.random_factors(10), 16))
    top = round(160 * (figure.get_figheight() - figure.axes[0].images[0].get_extent()[3]))
    for i, image in enumerate(real):
        shown = dots[:, top : top + 128, 6 + 132 * i : 134 + 132 * i]
        large = image.repeat_interleave(8, 1).repeat_interleave(8, 2)
        assert (shown.int() - large.int()).abs().max() <= 5, i  # 52 levels


# ---- They can be read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*lesson.PICTURES, "one", "two"])
def test_texts(figures, samples, name):
    """A sentence on top; letters of 10 points at least; no text over another or beyond the edge."""
    figure = (figures | samples)[name]
    assert len(figure.get_suptitle().split()) >= 6
    assert min(text.get_fontsize() for text in texts(figure)) >= 10
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    for word, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, word
    for (word, box), (other, place) in itertools.combinations(boxes, 2):
        assert not box.overlaps(place), (word, other)


def test_colours(figures, samples):
    """Blue, vermilion and orange mean x, eps and v in every picture, so where there is none of these, they are not."""
    assert (lesson.X, lesson.EPS, lesson.V) == ("#0072B2", "#D55E00", "#E69F00")
    meant = {"flow": {lesson.V}, "manifold": {lesson.X, lesson.EPS, lesson.V}, "architecture": {lesson.X},
             "t_distribution": set(), "one": set(), "two": set()}  # fmt: skip
    for name, figure in (figures | samples).items():
        assert colours(figure) & {lesson.X, lesson.EPS, lesson.V} == meant[name], name


# ---- The command -----------------------------------------------------------------------------------------------------


def test_without_a_run(tmp_path, capsys):
    """Four pictures, small and no wider than twice a README, and a word on how to draw the others."""
    lesson.main(["--out", str(tmp_path)])
    assert "figures/lesson.py runs/" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.png" for name in lesson.PICTURES)
    for path in tmp_path.iterdir():
        assert path.stat().st_size < 200_000, path
        assert Image.open(path).width <= 1660


def test_run_without_checkpoint(tmp_path, capsys):
    """One sentence, exit 2, and the folder stays as it was."""
    assert lesson.main([str(tmp_path), "--out", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "checkpoint-last.pth" in captured.err
    assert list(tmp_path.iterdir()) == []


def test_broken_checkpoint_overwrites_nothing(tmp_path):
    """The pictures of the run come first: what cannot be loaded leaves the others alone."""
    (tmp_path / "checkpoint-last.pth").write_bytes(b"no checkpoint")
    assert lesson.main([str(tmp_path), "--out", str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-last.pth"]


def test_strip_has_z_above_what_the_network_takes_it_for():
    """At nine times, of each image; at t = 1 there is nothing left to predict."""
    states = [(i / 10, torch.full((2, 1, 4, 4), i / 10), torch.full((2, 1, 4, 4), -i / 10)) for i in range(11)]
    figure = lesson.draw_strip(states)
    times = [text.get_text() for text in texts(figure) if text.get_text().startswith("t = ")]
    assert times == [f"t = {t}" for t in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)]
    rows = {}
    for image in figure.axes[0].images:
        left, _, bottom, _ = image.get_extent()
        rows.setdefault(round(bottom, 3), []).append((left, image.get_array().mean()))
    shown = [[2 * value - 1 for _, value in sorted(rows[bottom])] for bottom in sorted(rows, reverse=True)]
    z = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0]
    for row, expected in zip(shown, [z, [-t for t in z[:-1]]] * 2, strict=True):
        assert row == pytest.approx(expected, abs=1e-6)


def test_way_from_noise_is_that_of_the_longer_run(tmp_path, monkeypatch):
    """With two runs the strip and the animation come from the longer one, samples.png from both."""
    monkeypatch.setattr(lesson, "PICTURES", {})
    run, long, out = save_run(tmp_path / "run"), save_run(tmp_path / "long", 9000), tmp_path / "out"
    assert lesson.main([str(run), str(long), "--out", str(out)]) == 0
    assert lesson.main([str(long), "--out", str(tmp_path / "alone")]) == 0
    for name in ("denoising.png", "denoising.gif"):
        assert (out / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    heights = [Image.open(folder / "samples.png").height for folder in (out, tmp_path / "alone")]
    assert heights[0] > heights[1]


@pytest.mark.parametrize("other", [dict(step=4200), dict(step=9000, size=32), dict(step=9000, data="pets")])
def test_second_run_must_be_the_same_for_longer(tmp_path, capsys, other):
    """The labels say so: runs in the wrong order, of another network or data are refused before anything is drawn."""
    run, long = save_run(tmp_path / "run"), save_run(tmp_path / "long", **other)
    assert lesson.main([str(run), str(long), "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "longer" in captured.err
    assert not (tmp_path / "out").exists()
