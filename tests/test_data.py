"""Sections 5 and 6 of jit.py: the built-in shapes, which must be the manifold that they are said to
be, and folders of images as people have them, among them odd and broken ones."""

import math
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, TINY, open_data, refused, save, train
from PIL import Image

import jit

pytestmark = pytest.mark.usefixtures("quick_sheets")
CPU = torch.device("cpu")

# Shapes


def draw(n, size=64):
    torch.manual_seed(0)
    labels, factors = torch.arange(n) % len(jit.SHAPES), jit.random_factors(n)
    return jit.render_shapes(labels, factors, size), labels, factors


def test_pictures_at_every_size():
    """In [-1, 1], and using it. Pixels are areas centred at (i + 1/2) / size: a shift or a bevel
    that depends on the size would show (found 0.009; half a pixel gives 0.033)."""
    for size in (16, 64, 100):
        images, _, _ = draw(200, size)
        assert images.shape == (200, 3, size, size) and images.isfinite().all()
        assert -1 <= images.min() < -0.7 and 0.7 < images.max() <= 1
    error = F.avg_pool2d(draw(40, 128)[0], 2) - draw(40, 64)[0]
    assert error.square().mean().sqrt() < 0.015


def test_classes_differ_even_at_16_pixels():
    """Ten classes, drawn alike often; with the same factors any two are far apart."""
    factors = torch.tensor([0.0, 0.0, 0.68, 0.0, 0.0, 0.5, 0.7]).expand(10, -1)
    images = jit.render_shapes(torch.arange(10), factors, 64)
    for size in (64, 16):
        small = F.interpolate(images, size=size, mode="area").flatten(1)
        distance = torch.cdist(small, small) / small[0].numel() ** 0.5  # RMS, range 2
        assert distance[~torch.eye(10, dtype=torch.bool)].min() > 0.1
    torch.manual_seed(0)
    ((_, y),) = jit.data_batches(jit.open_data("shapes", (3, 8, 8)), [range(500)], 0, CPU)
    assert torch.bincount(y, minlength=10).min() > 25  # 50 expected, sd 6.7


def test_smooth_in_every_factor():
    """A manifold has tangents: half of a small step, half of the change, for all seven factors, and
    none is idle. Hue 0 and 1 are one colour, so it has no seam there."""
    base, labels, factors = draw(20)
    many = jit.random_factors(2000)
    for column, (name, (low, high)) in enumerate(jit.FACTORS.items()):
        ends = torch.tensor([many[:, column].min(), many[:, column].max()])
        torch.testing.assert_close(ends, torch.tensor([low, high]), rtol=0, atol=(high - low) / 99)
        step = torch.zeros(len(jit.FACTORS))
        step[column] = 0.005 * (high - low)
        full = jit.render_shapes(labels, factors + step, 64) - base
        half = jit.render_shapes(labels, factors + step / 2, 64) - base
        is_idle = (labels < 2) & (name == "angle")  # disc and ring
        ratio = (full.flatten(1).norm(dim=1) / half.flatten(1).norm(dim=1))[~is_idle]
        assert ((ratio - 2).abs() < 0.2).all(), (name, ratio)
        if "hue" in name:
            ends = (factors.index_fill(1, torch.tensor(column), hue) for hue in (0.0, 1.0))
            images = (jit.render_shapes(labels, each, 32) for each in ends)
            torch.testing.assert_close(*images, atol=1e-5, rtol=0)


def test_distance_fields_are_distances():
    """Disc and ring have closed forms; a distance has slope 1, and no shape leaves its field."""
    fields = jit.distance_fields(CPU)[:, 0]
    axis = torch.linspace(-1.5, 1.5, 128)
    radius = torch.hypot(axis[:, None], axis[None, :])
    by_name = dict(zip(jit.SHAPES, fields))
    assert (by_name["disc"] - (radius - 0.88)).abs().max() < 0.002  # a 120-gon: 0.0004
    assert (by_name["ring"] - ((radius - 0.7).abs() - 0.26)).abs().max() < 0.002
    slope = torch.stack(torch.gradient(fields, spacing=3 / 127, dim=(1, 2))).norm(dim=0)
    assert 0.99 < slope.median() < 1.01 and slope.max() < 1.01 * math.sqrt(2)
    assert fields[:, [0, -1]].min() > 0.2 and fields[:, :, [0, -1]].min() > 0.2
    assert list(jit.shape_outlines()) == jit.SHAPES


# Which files


def pixels_of(data):
    """All that can be read, sorted by name."""
    return data.batch(range(len(data.paths)))[0]


def colours(pixels):
    """The mean colour of each image."""
    return pixels.float().mean((2, 3)).round().int().tolist()


def test_folder_of_classes():
    """The first level is the class, sorted, however deep the images lie; hidden files are no
    images. What was found is said, and what was left out."""
    save("d/b/deep/er/1.png", "blue"), save("d/a/2.PNG", (0, 255, 0)), save("d/a/1.png", "red")
    save("d/a/._1.png", "white"), save("d/.cache/1.png", "white")
    save("d/a/.thumbnails/1.png", "white"), save("elsewhere/3.png", "green")
    for name in ("a/notes.txt", "a/2.heic", "b/4.heic", "b/README"):
        Path("d", name).write_text("?")
    Path("d/a/more").symlink_to("../../elsewhere"), Path("d/c").mkdir()
    data = open_data()
    assert data.names == ["a", "b"] and data.labels.tolist() == [0, 0, 1]
    assert colours(pixels_of(data)) == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert data.counts == [2, 1] and data.name == str(Path("d").resolve())
    others = "['.heic', '.txt', 'README']"
    assert data.summary == f"{data.name}: 3 images, 2 classes, left out: {others}"
    save("d/.hidden.png", "white"), os.chdir("d")
    assert open_data(".").names == ["a", "b"] and open_data(".").summary == data.summary


def test_flat_folder_has_no_classes(capsys):
    """The network learns one field."""
    save("d/1.png", "red"), save("d/2.png", "blue")
    data = open_data()
    assert data.names == [] and data.labels.tolist() == [jit.NO_CLASS] * 2 and data.counts == [2]
    assert train("--data", "d", "--out", "r", "--steps", 1) == 0
    assert "2 images, 0 classes" in capsys.readouterr().err
    assert jit.load_run("r", "raw", "cpu")[0].classes == 0


def test_links():
    """A class folder may be a link to another disk; below, links are not followed: they may lead
    back."""
    save("disk/1.png", "red"), save("d/b/2.png", "blue")
    Path("d/a").symlink_to("../disk")
    Path("disk/up").symlink_to("../d"), Path("d/b/self").symlink_to("self")
    Path("d/b/other").symlink_to("../a"), Path("d/ring").symlink_to("gnir")
    Path("d/gnir").symlink_to("ring")
    data = open_data()
    assert data.names == ["a", "b"] and colours(pixels_of(data)) == [[255, 0, 0], [0, 0, 255]]


@pytest.mark.parametrize("names", ["train valid test", "Train Val", "TRAIN", "dev test",
                                   "train2017 val2017", "trainA trainB"])  # fmt: skip
def test_splits_are_no_classes(names, capsys):
    """A network that learns to tell training from test images."""
    for name in names.split():
        save(f"d/{name}/cat/1.png", "red")
    assert names.split()[0] in refused(capsys, "train", *TINY, "--data", "d")
    assert open_data(f"d/{names.split()[0]}").names == ["cat"]


def test_splits_further_down(capsys):
    """CLASS/train and CLASS/test; but beside a car a train is a class, as is a train station."""
    for name in ("bottle/train/good", "bottle/test/good", "bottle/ground_truth/x"):
        save(f"d/{name}/1.png", "red")
    assert "one of test, train" in refused(capsys, "train", *TINY, "--data", "d")
    for name in ("train", "car", "valley", "train_station", "testudo", "trainer"):
        save(f"e/{name}/1.png", "blue")
    assert len(open_data("e").names) == 6


def test_images_beside_folders_of_images(run, capsys):
    """Nine pictures and one in "selected": it trained on the one. Or a run, whose sheets would be
    learnt."""
    save("d/1.png", "red"), save("d/selected/1.png", "red")
    assert "images and folders" in refused(capsys, "train", *TINY, "--data", "d")
    assert "holds a run" in refused(capsys, "train", *TINY, "--data", run.parent)
    with pytest.raises(jit.Stop, match="holds a run"):
        open_data(run)


# What is in them


def decode(path, channels=3, size=16):
    """The pixels of a file, as training sees them."""
    return jit.Images([], torch.zeros(1), [Path(path)], (channels, size, size)).read(0)


def quadrants():
    """Red, green over blue, white: seen if mirrored, turned or with colours exchanged."""
    image = Image.new("RGB", (32, 32), "white")
    boxes = ((0, 0, 16, 16), "red"), ((16, 0, 32, 16), (0, 255, 0)), ((0, 16, 16, 32), "blue")
    for box, colour in boxes:
        image.paste(colour, box)
    return image


QUADRANTS = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]


def corners(pixels):
    """The mean colours of the four quarters of an image (C, 16, 16), without their borders."""
    places = [(r, c) for r in (1, 9) for c in (1, 9)]
    return [pixels[:, r : r + 6, c : c + 6].float().mean((1, 2)).tolist() for r, c in places]


def transparent():
    image = quadrants().convert("RGBA")
    image.paste((0, 0, 0, 0), (16, 16, 32, 32))  # black, but not to be seen: it stands on white
    return image


def keyed():
    image = quadrants().quantize(4)
    black, palette = image.getpixel((31, 31)), image.getpalette()
    palette[3 * black : 3 * black + 3] = [0, 0, 0]
    image.putpalette(palette)
    image.info["transparency"] = black
    return image


FORMATS = dict.fromkeys("1.png 1.webp 1.bmp 1.jpg 1.ppm 1.tga 1.jp2 1.pcx".split(), quadrants) | {
    "palette.png": lambda: quadrants().quantize(4), "palette.gif": lambda: quadrants().quantize(4),
    "cmyk.tif": lambda: quadrants().convert("CMYK"), "key.png": keyed, "alpha.png": transparent,
    "alpha.webp": transparent}  # fmt: skip


def test_every_kind_of_image_has_its_colours():
    """Palettes, transparency, CMYK: a mode read wrongly raises nothing. Grey is Rec. 601's luma."""
    for name, make in FORMATS.items():
        make().save(name, **({"lossless": True} if name.endswith("webp") else {}))
        error = (torch.tensor(corners(decode(name))) - torch.tensor(QUADRANTS)).abs().max()
        assert error < (12 if name.endswith("jpg") else 4), name  # JPEG's chroma
    assert np.abs(np.ravel(corners(decode("1.png", 1))) - [76, 150, 29, 255]).max() <= 1


def test_grey_and_more_than_8_bits(capsys):
    """Grey of 1 and 8 bits is itself. Files of more bits do not say which value is white (12 bits
    in 16, floats): guessed, they would be wrong without a word; they are left out with a reason."""
    ramp = np.repeat(np.arange(32)[None] * 8, 32, 0)  # 0 ... 248 from left to right
    opaque = np.full_like(ramp, 255)
    Image.fromarray(ramp.astype(np.uint8)).save("8.png")
    Image.fromarray(np.stack([ramp, opaque], -1).astype(np.uint8)).save("la.png")
    expected = torch.arange(16) * 16 + 4  # the mean of two neighbours
    for name in ("8.png", "la.png"):
        for channels in (1, 3):
            found = decode(name, channels)
            assert found.shape == (channels, 16, 16) and found.dtype == torch.uint8
            assert (found.int() - expected).abs().max() <= 1, name
    Image.fromarray(ramp > 100).save("1.png")
    assert set(decode("1.png", 1).flatten().tolist()) <= {0, 127, 128, 255}
    for name, kind in (("16.png", np.uint16), ("16.tif", np.uint16), ("32.tif", np.int32),
                       ("float.tif", np.float32)):  # fmt: skip
        Image.fromarray(ramp.astype(kind)).save(name)
        with pytest.raises(jit.Stop):
            decode(name)
        assert f"left out {name}: its pixels have more than 8 bits" in capsys.readouterr().err


TURNS = {2: lambda i: i.transpose(Image.FLIP_LEFT_RIGHT), 3: lambda i: i.rotate(180),
         6: lambda i: i.rotate(90), 8: lambda i: i.rotate(-90)}  # fmt: skip


@pytest.mark.parametrize("orientation, undo", TURNS.items())
def test_photographs_are_upright(orientation, undo):
    """Cameras store pictures as the sensor saw them; EXIF says how to turn them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo(quadrants()).save("photo.jpg", exif=exif, quality=95)
    error = torch.tensor(corners(decode("photo.jpg"))) - torch.tensor(QUADRANTS)
    assert error.abs().max() < 12


def adm_crop(image, size):
    """ADM's centre crop on an array, halvings as means of 2 x 2 pixels; bicubic is PIL's."""
    array = np.asarray(image).astype(np.float64)
    while min(array.shape[:2]) >= 2 * size:
        h, w = array.shape[0] // 2, array.shape[1] // 2
        array = np.floor(array.reshape(h, 2, w, 2, 3).mean((1, 3)) + 0.5)
    h, w = array.shape[:2]
    k = size / min(h, w)
    image = Image.fromarray(array.astype(np.uint8))
    image = image.resize((round(w * k), round(h * k)), Image.BICUBIC)
    top, left = (image.height - size) // 2, (image.width - size) // 2
    return np.asarray(image)[top : top + size, left : left + size]


@pytest.mark.parametrize("w, h", [(96, 64), (64, 160), (16, 16), (31, 16), (9, 13), (36, 100)])
def test_crop_is_adms(w, h):
    """FID depends on how images are scaled: against a crop on arrays, small and large ones."""
    pixels = np.random.RandomState(w).randint(0, 256, (h, w, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((w, h), Image.BICUBIC)
    found = jit.crop(image, 16, 3).permute(1, 2, 0).numpy().astype(int)
    error = np.abs(found - adm_crop(image, 16))
    assert error.max() <= 3 and error.mean() < 1  # PIL rounds each direction; else the mean is 3


# Broken ones


def test_broken_files_are_named(monkeypatch, capsys):
    """One bad file in a million must not end a run, nor go unseen, nor shift the labels, nor change
    the size of a batch: it is named once, and the next file takes its place."""
    save("d/a/1.png", "red"), save("d/b/2.png", "blue"), save("d/b/3.png", (0, 255, 0))
    Path("d/a/0.png").write_bytes(b"no image"), Path("d/b/25.jpg").write_bytes(b"")
    Path("d/b/gone.png").symlink_to("nowhere.png")
    ramp = np.linspace(0, 1_000_000, 400).reshape(20, 20)
    Image.fromarray(ramp.astype(np.int32)).save("d/a/int.tif")
    Image.fromarray(ramp.astype(np.float32)).save("d/a/float.tif")
    red, blue, green = [255, 0, 0], [0, 0, 255], [0, 255, 0]
    names = ("0.png:", "25.jpg:", "gone.png:", "int.tif: its pixels", "float.tif: its pixels")
    for limit in (jit.MEMORY_LIMIT, 0):
        monkeypatch.setattr(jit, "MEMORY_LIMIT", limit)
        data = open_data()
        for again in (False, True):
            pixels, labels = data.batch(range(8))
            assert colours(pixels) == [red, red, blue, blue, blue, green, green, red]
            assert labels.tolist() == [0, 0, 1, 1, 1, 1, 1, 0]  # after the last comes the first
            said = capsys.readouterr().err
            assert all((name in said) != again for name in names), said


def test_only_broken_files(capsys):
    """Ten of them in a row, or none that is whole: there is nothing to learn."""
    save("d/1.png", "red").write_bytes(b"broken"), save("d/2.png", "red").write_bytes(b"broken")
    said = refused(capsys, "train", *TINY, "--data", "d", "--out", "r", "--steps", 1)
    assert "cannot be read" in said


@pytest.mark.parametrize("limit", [0, 2**30])
def test_a_broken_file_where_parts_have_one_image(limit, monkeypatch, capsys):
    """With --accum, or on eight GPUs: another image takes its place, and the run goes on."""
    monkeypatch.setattr(jit, "MEMORY_LIMIT", limit)
    for i in range(5):
        save(f"d/{i % 2}/{i}.png", "red")
    Path("d/1/1.png").write_bytes(b"broken")
    words = ["--data", "d", "--out", "r", "--accum", 4, "--steps", 3]
    assert train(*words) == 0
    assert "1.png" in capsys.readouterr().err
    x, _ = zip(*jit.data_batches(open_data(), [range(i, i + 1) for i in range(5)], 0, CPU))
    assert [len(part) for part in x] == [1] * 5


# In which order


def write_folder(n=6, classes=3):
    """Image i, of class i % classes, is all of value 10 i; sorted by name, they come as 0 3 1 4."""
    for i in range(n):
        save(f"d/{i % classes}/{i}.png", (10 * i,) * 3, (16, 16))
    return open_data()


def batches(data, steps, out, **recipe):
    """What a training is fed: images and classes of each part of a batch."""
    seen = []

    def watched(net, x, y, flow):
        seen.append((x.clone(), y.clone()))
        return jit.training_loss(net, x, y, flow)

    net = jit.JiT(**SMALL, classes=len(data.names))
    jit.train(net, jit.Flow(), data, out, steps, **dict(batch_size=4) | recipe,
              loss_function=watched)  # fmt: skip
    return seen


def numbers(x):
    """Which images of write_folder these are."""
    assert x.min() >= -1 and x.max() <= 1
    return ((x[:, 0, 0, 0] + 1) * 12.75).round().int().tolist()


def test_every_image_once_in_each_epoch():
    """Batches of 4 from 6 images run across epochs, shuffled anew; another seed, another order.
    --accum 2 computes the two halves of the same batch, none twice."""
    data = write_folder()
    whole, halves = batches(data, 9, "whole"), batches(data, 9, "halves", accum=2)
    drawn = [number for x, _ in whole for number in numbers(x)]
    epochs = [drawn[i : i + 6] for i in range(0, 36, 6)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 3
    other = [number for x, _ in batches(data, 9, "other", seed=1) for number in numbers(x)]
    assert other != drawn
    for i, (x, y) in enumerate(whole):
        assert [number % 3 for number in numbers(x)] == y.tolist()
        assert torch.equal(x, torch.cat([x for x, _ in halves[2 * i : 2 * i + 2]]))
        assert torch.equal(y, torch.cat([y for _, y in halves[2 * i : 2 * i + 2]]))


def test_streamed_images_are_those_in_memory(monkeypatch):
    """A set too large for memory is decoded in each epoch, one that fits but once: same images,
    classes, order, mirroring. 1,200 images need few file descriptors: once they ran out."""
    for i in range(1200):
        save(f"d/{i % 3}/{i:04d}.png", (i % 256, i // 8, 255 - i % 256), (8, 8))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 8, limit[1]))
    try:
        found = []
        for memory in (1200 * 3 * 8 * 8, 1200 * 3 * 8 * 8 - 1):
            monkeypatch.setattr(jit, "MEMORY_LIMIT", memory)
            data, places = open_data(size=8), [range(i, i + 64) for i in range(0, 1280, 64)]
            torch.manual_seed(0)
            found.append((data, list(jit.data_batches(data, places, 0, CPU, flip=True))))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    (inside, one), (outside, two) = found
    assert len(inside.kept) == 1200 and not outside.kept
    assert all(torch.equal(a, b) for pair in zip(one, two, strict=True) for a, b in zip(*pair))


def test_half_of_the_images_are_mirrored():
    """Left and right, never top and bottom."""
    image = np.zeros((16, 16, 3), np.uint8)
    image[:4, :4] = 255  # top left
    Path("d").mkdir()
    Image.fromarray(image).save("d/1.png")
    (x, _), *_ = jit.data_batches(open_data(), [range(1000)], 0, CPU, flip=True)
    mirrored = x[:, 0, 0, -1] == 1
    assert (mirrored | (x[:, 0, 0, 0] == 1)).all() and (x[:, 0, -1] == -1).all()
    assert math.isclose(mirrored.float().mean(), 0.5, abs_tol=0.064)  # 4 sigma of 1,000
    (x, _), *_ = jit.data_batches(open_data(), [range(1000)], 0, CPU)
    assert (x[:, 0, 0, 0] == 1).all()
