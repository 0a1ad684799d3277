"""The built-in data set: a known manifold is worth something only if it is exactly what it is said to be."""

import math

import jit
import torch
import torch.nn.functional as F

CPU = torch.device("cpu")


def draw(n, size=64, seed=0):
    torch.manual_seed(seed)
    labels = torch.arange(n) % len(jit.SHAPES)
    factors = jit.random_factors(n)
    return jit.render_shapes(labels, factors, size), labels, factors


def test_factors_are_reproducible_and_fill_their_ranges():
    """The seed alone decides the data set; a factor that never varies would make the manifold smaller than stated."""
    torch.manual_seed(1)
    first = jit.random_factors(2000)
    torch.manual_seed(1)
    assert torch.equal(first, jit.random_factors(2000))
    for column, (low, high) in zip(first.unbind(1), jit.FACTORS.values(), strict=True):
        assert low <= column.min() < low + 0.01 * (high - low) and high - 0.01 * (high - low) < column.max() <= high


def test_pictures_are_in_range_at_every_size():
    """The model expects [-1, 1]; a silent clamp would also make the manifold flat where it bites."""
    for size in (16, 64, 100):
        images, _, _ = draw(200, size)
        assert images.shape == (200, 3, size, size) and images.isfinite().all()
        assert images.min() >= -1 and images.max() <= 1
        assert images.min() < -0.7 and images.max() > 0.7, "the pictures use the range"


def test_a_picture_depends_on_its_own_row_only():
    """Neither the neighbours in a batch nor their order may change a picture, or resumed runs see other data."""
    images, labels, factors = draw(30)
    order = torch.randperm(30)
    torch.testing.assert_close(jit.render_shapes(labels[order], factors[order], 64), images[order], atol=1e-6, rtol=0)
    torch.testing.assert_close(jit.render_shapes(labels[7:8], factors[7:8], 64), images[7:8], atol=1e-6, rtol=0)


def test_every_class_differs_from_every_other_even_at_16_pixels():
    """With the same factors, two classes must be far apart also when only the coarse outline is left."""
    factors = torch.tensor([0.0, 0.0, 0.68, 0.0, 0.0, 0.5, 0.7])
    labels = torch.arange(len(jit.SHAPES))
    images = jit.render_shapes(labels, factors.expand(len(labels), -1), 64)
    for size in (64, 16):
        small = F.interpolate(images, size=size, mode="area").flatten(1)
        distance = torch.cdist(small, small) / small[0].numel() ** 0.5  # RMS over pixels, range 2
        assert distance[~torch.eye(len(labels), dtype=torch.bool)].min() > 0.1


def test_the_same_picture_at_every_size():
    """Pixels are areas centred at (i + 1/2) / size: a half-pixel shift or a size-dependent bevel would show here."""
    big, labels, factors = draw(40, 128)
    small = jit.render_shapes(labels, factors, 64)
    error = (F.avg_pool2d(big, 2) - small).square().mean().sqrt()
    assert error < 0.015  # measured 0.009; a shift by half a pixel gives 0.033


def test_smooth_in_every_factor():
    """A manifold has tangents: halving a small step halves the change, for all seven factors, and none is idle."""
    base, labels, factors = draw(20)
    for column, (low, high) in enumerate(jit.FACTORS.values()):
        step = torch.zeros(len(jit.FACTORS))
        step[column] = 0.005 * (high - low)
        full = jit.render_shapes(labels, factors + step, 64) - base
        half = jit.render_shapes(labels, factors + step / 2, 64) - base
        round_classes = (labels == 0) | (labels == 1) if column == list(jit.FACTORS).index("angle") else labels < 0
        ratio = (full.flatten(1).norm(dim=1) / half.flatten(1).norm(dim=1))[~round_classes]
        assert ((ratio - 2).abs() < 0.2).all(), (column, ratio)


def test_hues_are_circles():
    """Hue 0 and hue 1 are one colour, so the manifold has no seam there."""
    _, labels, factors = draw(10)
    for column in ("hue", "background_hue"):
        start, end = factors.clone(), factors.clone()
        start[:, list(jit.FACTORS).index(column)] = 0.0
        end[:, list(jit.FACTORS).index(column)] = 1.0
        torch.testing.assert_close(*(jit.render_shapes(labels, f, 32) for f in (start, end)), atol=1e-5, rtol=0)


def test_distance_fields_are_distances():
    """Disc and ring have closed forms; everywhere else a distance has slope 1, and no shape leaves its field."""
    fields = jit.distance_fields(CPU)[:, 0]
    axis = torch.linspace(-1.5, 1.5, 128)
    radius = torch.hypot(axis[:, None], axis[None, :])
    by_name = dict(zip(jit.SHAPES, fields))
    assert (by_name["disc"] - (radius - 0.88)).abs().max() < 0.002  # a 120-gon is within 0.0004 of its circle
    assert (by_name["ring"] - ((radius - 0.7).abs() - 0.26)).abs().max() < 0.002
    slope = torch.stack(torch.gradient(fields, spacing=3 / 127, dim=(1, 2))).norm(dim=0)
    assert 0.99 < slope.median() < 1.01 and slope.max() < 1.01 * math.sqrt(2)
    border = torch.cat([fields[:, 0], fields[:, -1], fields[:, :, 0], fields[:, :, -1]], 1)
    assert border.min() > 0.2
    assert list(jit.shape_outlines()) == jit.SHAPES
