"""Data, runs and commands of jit.py, as a user meets them: files in and out, exit codes, one sentence per error."""

import argparse
import io
import json
import math
import os
import signal
import subprocess
import sys
import tarfile
import time
import tokenize
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import jit
from test_method import cost_by_hand, filled, normal, small

ROOT = Path(__file__).resolve().parents[1]
TINY = "--model Ti/8 --size 16 --depth 4 --width 16 --heads 2 --bottleneck 4 --batch-size 4 --workers 2".split()
TINY += ["--device", "cpu"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Each test in a folder of its own, without pictures during training; train's signal handlers do not outlive it."""
    monkeypatch.chdir(tmp_path)
    for name in ("draw_preview", "plot_loss"):  # half of the time; the fixture `run` has them
        monkeypatch.setattr(jit, name, lambda *args: None)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def call(*words):
    """The exit code of a command, run in this process: Python with torch takes seconds to start."""
    try:
        return jit.main(jit.parse_flags([str(word) for word in words]))
    except SystemExit as end:
        return end.code


def train(*words):
    return call("train", *TINY, *words)


def settings(data="shapes", **changes):
    base = dict(model="Ti/8", size=16, depth=4, width=16, heads=2, bottleneck=4, batch_size=4, workers=2)
    return jit.resolve(jit.Settings(data=str(data), **(base | changes)))


def save(path, colour, size=(20, 20)):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def colours(pixels):
    """The mean colour of each image."""
    return pixels.float().mean((2, 3)).round().int().tolist()


# Data


def test_folder_of_classes(capsys):
    """The first folder level is the class, in sorted order, however deep the images lie; hidden files are no images."""
    save("d/b/deep/er/1.png", (0, 0, 255)), save("d/a/2.PNG", (0, 255, 0)), save("d/a/1.png", (255, 0, 0))
    save("d/loose.png", (9, 9, 9)), save("d/a/._1.png", (9, 9, 9)), Path("d/a/notes.txt").write_text("no image")
    data = jit.open_data(settings("d"))
    assert data.names == ["a", "b"] and data.labels.tolist() == [0, 0, 1]
    assert colours(data.pixels) == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert "1 images in d itself" in capsys.readouterr().err


def test_flat_folder_is_unconditional():
    """No class folders, no classes: guidance is off and the network learns one field."""
    save("d/1.png", "red"), save("d/2.png", "blue")
    data = jit.open_data(settings("d"))
    assert data.names == [] and len(data.pixels) == 2
    assert train("--data", "d", "--out", "r", "--steps", 1) == 0
    assert jit.load_run("r", "raw", "cpu")[1].classes == 0
    assert call("sample", "r", "--n", 1, "--steps", 1) == 0


def test_class_folders_may_be_links():
    """Data on another disk is often linked in; Python's rglob passes such folders by."""
    save("disk/1.png", "red")
    Path("d").mkdir()
    Path("d/a").symlink_to("../disk")
    assert jit.open_data(settings("d")).names == ["a"]


def test_classes_can_be_ignored():
    """--classes 0 trains without class on data that has some; more classes than the data has stay unused."""
    write_npz()
    assert train("--data", "d.npz", "--classes", 0, "--steps", 1, "--out", "r") == 0
    assert load("r")["settings"]["classes"] == 0
    assert load("r")["model"]["net.y_embedder.embedding_table.weight"].shape == (1, 16)
    assert train("--data", "d.npz", "--classes", 7, "--steps", 1, "--out", "s") == 0
    assert call("sample", "s", "--n", 1, "--steps", 1, "--classes", 2) == 0
    assert train("--classes", 50, "--steps", 2, "--batch-size", 16, "--out", "t") == 0  # ten shapes


def quadrants():
    """Red, green over blue, white: seen at once if mirrored, turned or with colours exchanged."""
    image = Image.new("RGB", (32, 32), "white")
    for box, colour in (((0, 0, 16, 16), "red"), ((16, 0, 32, 16), (0, 255, 0)), ((0, 16, 16, 32), "blue")):
        image.paste(colour, box)
    return image


QUADRANTS = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]


def corners(pixels):
    """The mean colours of the four quarters of an image (C, 16, 16), their borders left out."""
    return [pixels[:, r : r + 6, c : c + 6].float().mean((1, 2)).tolist() for r in (1, 9) for c in (1, 9)]


def transparent():
    image = quadrants().convert("RGBA")
    image.paste((0, 0, 0, 0), (16, 16, 32, 32))  # black, but not to be seen: it stands on white
    return image


def keyed():
    image = quadrants().quantize(4)
    black = image.getpixel((31, 31))
    palette = image.getpalette()
    palette[3 * black : 3 * black + 3] = [0, 0, 0]
    image.putpalette(palette)
    image.info["transparency"] = black
    return image


FORMATS = {
    "colour.png": quadrants, "colour.webp": quadrants, "colour.bmp": quadrants, "colour.jpg": quadrants,
    "palette.png": lambda: quadrants().quantize(4), "palette.gif": lambda: quadrants().quantize(4), "key.png": keyed,
    "cmyk.tif": lambda: quadrants().convert("CMYK"), "alpha.png": transparent, "alpha.webp": transparent,
}  # fmt: skip


def test_every_kind_of_image_has_its_colours():
    """Palettes, transparency (on white), CMYK: a mode read wrongly gives a picture that is wrong but raises nothing."""
    for name, make in FORMATS.items():
        make().save(name, **({"lossless": True} if name.endswith("webp") else {}))
        found = torch.tensor(corners(jit.decode(Path(name), 16, 3)))
        error = (found - torch.tensor(QUADRANTS).float()).abs().max()
        assert error < (12 if name.endswith("jpg") else 4), name  # JPEG's chroma


def test_grey_and_16_bit_images():
    """Grey, grey with alpha, 1 and 16 bits: a 16-bit image must be scaled, not clipped or wrapped."""
    ramp = np.repeat(np.arange(32)[None] * 8, 32, 0)  # 0 ... 248 from left to right
    Image.fromarray(ramp.astype(np.uint8)).save("8.png")
    Image.fromarray((ramp * 256 + 77).astype(np.uint16)).save("16.png")
    Image.fromarray((ramp * 256 + 77).astype(np.int32)).save("32.tif")
    Image.fromarray(np.stack([ramp, np.full_like(ramp, 255)], -1).astype(np.uint8)).save("la.png")
    expected = torch.arange(16) * 16 + 4  # the mean of two neighbours
    for name in ("8.png", "16.png", "32.tif", "la.png"):
        for channels in (1, 3):
            found = jit.decode(Path(name), 16, channels)
            assert found.shape == (channels, 16, 16) and found.dtype == torch.uint8
            assert (found.int() - expected).abs().max() <= 1, name
    Image.fromarray(ramp > 100).save("1.png")
    assert sorted(set(jit.decode(Path("1.png"), 16, 1).flatten().tolist())) in ([0, 255], [0, 128, 255], [0, 127, 255])
    luma = corners(jit.crop(quadrants(), 16, 1))
    assert np.abs(np.ravel(luma) - [76, 150, 29, 255]).max() <= 1  # Rec. 601


TURNS = {2: lambda i: i.transpose(Image.FLIP_LEFT_RIGHT), 3: lambda i: i.rotate(180), 6: lambda i: i.rotate(90),
         8: lambda i: i.rotate(-90)}  # fmt: skip


@pytest.mark.parametrize("orientation, undo", TURNS.items())
def test_photographs_are_upright(orientation, undo):
    """Cameras store pictures as the sensor saw them; EXIF says how to turn them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo(quadrants()).save("photo.jpg", exif=exif, quality=95)
    error = torch.tensor(corners(jit.decode(Path("photo.jpg"), 16, 3))) - torch.tensor(QUADRANTS)
    assert error.abs().max() < 12


def adm_crop(image, size):
    """ADM's centre crop on an array, with the halvings as means of 2 x 2 pixels; bicubic is PIL's."""
    array = np.asarray(image).astype(np.float64)
    while min(array.shape[:2]) >= 2 * size:
        h, w = array.shape[0] // 2, array.shape[1] // 2
        array = np.floor(array.reshape(h, 2, w, 2, 3).mean((1, 3)) + 0.5)
    h, w = array.shape[:2]
    k = size / min(h, w)
    image = Image.fromarray(array.astype(np.uint8)).resize((round(w * k), round(h * k)), Image.BICUBIC)
    top, left = (image.height - size) // 2, (image.width - size) // 2
    return np.asarray(image)[top : top + size, left : left + size]


@pytest.mark.parametrize("w, h", [(96, 64), (64, 160), (16, 16), (31, 16), (20, 27), (9, 13), (36, 100)])
def test_crop_is_adms(w, h):
    """FID depends on how images are scaled: against a crop on arrays. Sizes that halve evenly or not, small ones."""
    rng = np.random.RandomState(w)
    image = Image.fromarray(rng.randint(0, 256, (h, w, 3), dtype=np.uint8)).resize((w, h), Image.BICUBIC)
    found = jit.crop(image, 16, 3).permute(1, 2, 0).numpy().astype(int)
    error = np.abs(found - adm_crop(image, 16))
    assert error.max() <= 3 and error.mean() < 1  # PIL rounds after each direction; without halvings the mean is 3


def test_broken_files_are_named_and_counted(capsys):
    """One bad file in a million must not end a run, nor go unseen, nor shift the labels."""
    save("d/a/1.png", "red"), save("d/b/2.png", "blue"), save("d/b/3.png", (0, 255, 0))
    Path("d/a/0.png").write_bytes(b"no image"), Path("d/b/25.jpg").write_bytes(b"")
    data = jit.open_data(settings("d"))
    assert data.labels.tolist() == [0, 1, 1] and colours(data.pixels) == [[255, 0, 0], [0, 0, 255], [0, 255, 0]]
    said = capsys.readouterr().err
    assert "0.png" in said and "25.jpg" in said and "2 of 5" in said


def write_npz(path="d.npz", n=6, shape=(16, 16, 3), labels=True):
    """Image i is all of value 10 i."""
    images = np.full((n, *shape), 10, np.uint8) * np.arange(n, dtype=np.uint8).reshape(n, *[1] * len(shape))
    np.savez(path, arr_0=images, **({"arr_1": np.arange(n) % 3} if labels else {}))
    return path


@pytest.mark.parametrize("shape, channels", [((16, 16, 3), 3), ((24, 40, 3), 3), ((16, 16), 3), ((16, 16), 1),
                                             ((16, 16, 1), 1), ((20, 20, 1), 3), ((8, 8, 3), 1)])  # fmt: skip
def test_npz(shape, channels):
    """ADM's format, of any size, grey or colour; with arr_1 the classes are numbered, without there are none."""
    data = jit.open_data(settings(write_npz(shape=shape), channels=channels))
    assert data.names == ["0", "1", "2"] and data.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.pixels.shape == (6, channels, 16, 16)
    assert torch.equal(data.pixels[:, 0, 0, 0], torch.arange(6, dtype=torch.uint8) * 10)
    assert jit.open_data(settings(write_npz(shape=shape, labels=False), channels=channels)).names == []


def test_npz_keeps_rows_columns_and_colours():
    """(n, H, W, C) becomes (n, C, H, W): a wrong transpose shows only in a picture."""
    np.savez("d.npz", arr_0=np.asarray(quadrants().resize((16, 16), Image.NEAREST))[None])
    assert corners(jit.open_data(settings("d.npz")).pixels[0]) == QUADRANTS


def batches(s, steps, parts=(0,)):
    torch.manual_seed(0)
    data = jit.open_data(s)
    s.classes = len(data.names)
    return list(jit.training_batches(data, s, steps, parts, torch.device("cpu")))


def test_every_image_once_in_each_epoch():
    """Batches of 4 from 6 images run across epochs; a resumed run meets the same images at the same step."""
    s = settings(write_npz(), flip=False)
    drawn = [round((x[0, 0, 0].item() + 1) * 12.75) for batch, _ in batches(s, range(9)) for x in batch]
    epochs = [drawn[i : i + 6] for i in range(0, 36, 6)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 3  # shuffled anew
    assert [x.tolist() for x, _ in batches(s, range(5, 7))] == [x.tolist() for x, _ in batches(s, range(9))[5:7]]
    for x, y in batches(s, range(9)):
        assert torch.equal(((x[:, 0, 0, 0] + 1) * 12.75).round().long() % 3, y)
        assert x.min() >= -1 and x.max() <= 1


def test_parts_share_out_the_batch():
    """--accum 2 and two processes compute the two halves of the same batch, none twice."""
    whole = batches(settings(write_npz(), flip=False), range(3))
    halves = batches(settings("d.npz", flip=False, accum=2), range(3), (0, 1))
    for i, (x, y) in enumerate(whole):
        assert torch.equal(x, torch.cat([halves[2 * i][0], halves[2 * i + 1][0]]))
        assert torch.equal(y, torch.cat([halves[2 * i][1], halves[2 * i + 1][1]]))


def test_streamed_images_are_those_in_memory(monkeypatch, capsys):
    """A set too large for memory is decoded as it goes: same images, classes, order and mirroring, no batch lost."""
    for i in range(7):
        image = np.random.RandomState(i).randint(0, 256, (20, 26, 3), dtype=np.uint8)
        Path(f"d/{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(f"d/{i % 2}/{i}.png")
    s = settings("d")
    inside = batches(s, range(9))
    monkeypatch.setattr(jit, "MEMORY_LIMIT", 0)
    data = jit.open_data(s)
    assert data.pixels is None and len(data.files) == 7
    outside = batches(s, range(9))
    assert len(outside) == len(inside) == 9
    assert all(torch.equal(a, b) for one, two in zip(inside, outside) for a, b in zip(one, two))
    Path("d/1/1.png").write_bytes(b"broken")
    later = batches(s, range(4))
    assert all(1 < len(x) <= 4 and len(x) == len(y) for x, y in later) and sum(len(x) for x, _ in later) < 16
    images = {x.tobytes(): y for xs, ys in inside for x, y in zip(xs.numpy(), ys.tolist())}
    images |= {x.flip(-1).numpy().tobytes(): y for xs, ys in inside for x, y in zip(xs, ys.tolist())}
    for xs, ys in later:  # the broken one is left out with its class
        assert all(images[x.tobytes()] == y for x, y in zip(xs.numpy(), ys.tolist()))
    assert "1.png" in capsys.readouterr().err


def test_half_of_the_images_are_mirrored():
    """Left and right, never top and bottom; --no-flip none; the default mirrors all data but shapes."""
    image = np.zeros((1, 16, 16, 3), np.uint8)
    image[:, :4, :4] = 255  # top left
    np.savez("d.npz", arr_0=image)
    s = settings("d.npz", batch_size=1000)
    assert s.flip and not settings().flip
    x, _ = batches(s, range(1))[0]
    mirrored = x[:, 0, 0, -1] == 1
    assert (mirrored | (x[:, 0, 0, 0] == 1)).all() and (x[:, 0, -1] == -1).all()
    assert math.isclose(mirrored.float().mean(), 0.5, abs_tol=0.064)  # 4 sigma of 1,000
    x, _ = batches(settings("d.npz", flip=False), range(1))[0]
    assert (x[:, 0, 0, 0] == 1).all()


def test_cifar10(monkeypatch, tmp_path, capsys):
    """A record is a label and 3 planes of 32 x 32; a file that is there is taken; no network, one sentence."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def fail(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    assert train("--data", "cifar10") == 2
    assert "no network" in capsys.readouterr().err
    plane = np.asarray(quadrants()).transpose(2, 0, 1).tobytes()
    Path("hub").mkdir(exist_ok=True)
    with tarfile.open("hub/cifar-10-binary.tar.gz", "w:gz") as archive:
        for i in range(1, 6):
            record = tarfile.TarInfo(f"cifar-10-batches-bin/data_batch_{i}.bin")
            record.size = 2 * 3073
            archive.addfile(record, io.BytesIO(bytes([i]) + plane + bytes([9]) + bytes(3072)))
    data = jit.open_data(settings("cifar10", size=32))
    assert data.labels.tolist() == [1, 9, 2, 9, 3, 9, 4, 9, 5, 9]
    assert len(data.names) == 10 and data.names[1] == "automobile" and data.names[9] == "truck"
    assert torch.equal(data.pixels[0], torch.from_numpy(np.asarray(quadrants()).transpose(2, 0, 1).copy()))
    assert corners(jit.open_data(settings("cifar10", size=16)).pixels[0]) == QUADRANTS


def test_shapes():
    """Ten classes, drawn alike often, in [-1, 1], all different; the factors act: a shift moves the picture."""
    x, y = batches(settings(batch_size=500), range(1))[0]
    assert x.shape == (500, 3, 16, 16) and x.abs().max() <= 1
    assert torch.bincount(y, minlength=10).min() > 25  # 50 expected, sd 6.7
    grey, _ = batches(settings(channels=1), range(1))[0]
    assert grey.shape == (4, 1, 16, 16)
    middle = torch.tensor(list(jit.FACTORS.values())).mean(1)
    middle[3] = 0.0
    moved = middle.clone()
    moved[0], moved[1] = middle[0] + 4 / 32, middle[1] - 8 / 32  # a picture of 64 pixels is 2 wide: 4 right, 8 up
    pictures = jit.render_shapes(torch.arange(10), middle.expand(10, 7), 64)
    shifted = jit.render_shapes(torch.arange(10), moved.expand(10, 7), 64)
    torch.testing.assert_close(shifted[:, :, 4:44, 12:52], pictures[:, :, 12:52, 8:48], atol=2e-3, rtol=0)
    for i in range(10):
        assert all((pictures[i] - pictures[j]).abs().max() > 0.5 for j in range(i))


# Runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of 4 steps on three classes: apple, bear, cat."""
    folder = tmp_path_factory.mktemp("run")
    for i, name in enumerate(["apple", "bear", "cat"]):
        save(folder / "data" / name / "1.png", (80 * i, 255 - 80 * i, 30))
        save(folder / "data" / name / "2.png", (255 - 80 * i, 30, 80 * i))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    words = ["--data", folder / "data", "--out", folder / "r", "--steps", 4, "--log-every", 2, "--save-every", 3]
    assert train(*words, "--warmup", 8, "--lr", 0.01) == 0
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return folder / "r"


def load(out):
    return torch.load(Path(out) / "checkpoint-last.pth", weights_only=True)


def read_log(out):
    """The log without what depends on the clock."""
    lines = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key not in ("images_per_s", "gpu_memory_gb")} for line in lines]


def same(a, b):
    """Equal to the last bit, tensors within dicts and lists."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_run_folder(run):
    """What a run leaves: settings, log, loss curves, pictures, checkpoint; nothing half-written."""
    assert sorted(path.name for path in run.iterdir() if path.name[0] != ".") == [
        "checkpoint-last.pth", "config.json", "log.jsonl", "loss.png", "samples-000004.png"]  # fmt: skip
    config = json.loads((run / "config.json").read_text())
    assert config["names"] == ["apple", "bear", "cat"] and config["lr"] == 0.01 and config["classes"] == 3
    log = read_log(run)
    assert [line["step"] for line in log] == [2, 3, 4]  # 3: a mean ends at each checkpoint
    assert [line["lr"] for line in log] == pytest.approx([0.01 * step / 8 for step in (2, 3, 4)])  # linear warm-up
    for line in log:
        assert line["loss"] > 0 and line["grad_norm"] > 0 and len(line["loss_by_t"]) == 10
    Image.open(run / "loss.png").verify(), Image.open(run / "samples-000004.png").verify()
    assert not list(run.glob("*.part")) + list(run.glob(".*.part"))


def test_checkpoint_has_the_official_layout(run):
    """Keys, prefix and optimiser groups of the official code, so that files can be exchanged; ours are plain data."""
    checkpoint = load(run)
    assert {"model", "model_ema1", "model_ema2", "optimizer", "epoch"} <= checkpoint.keys()
    net = jit.JiT(jit.Settings(**checkpoint["settings"]))
    expected = {"net." + name: value.shape for name, value in net.state_dict().items()}
    for key in ("model", "model_ema1", "model_ema2"):
        assert {name: value.shape for name, value in checkpoint[key].items()} == expected
    assert checkpoint["epoch"] == 2 and checkpoint["step"] == 4  # 16 of 6 images each
    groups = checkpoint["optimizer"]["param_groups"]
    assert [(group["betas"], group["weight_decay"]) for group in groups] == [((0.9, 0.95), 0)] * 2
    trained = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    plain = [p for name, p in trained if p.dim() == 1]  # timm's split, as there: vectors first, then matrices
    assert [len(group["params"]) for group in groups] == [len(plain), len(trained) - len(plain)]
    state = checkpoint["optimizer"]["state"]
    assert all(state[i]["exp_avg"].shape == p.shape for i, p in enumerate(plain))


LONG = "--data d.npz --out r --accum 2 --dropout 0.2 --cls-loss 10 --log-every 1 --save-every 2 --steps 1000000".split()


def start(lines, number):
    """Train by command line until the log has so many lines more, then send a signal: exit code and stderr."""
    log = Path("r/log.jsonl")
    count = lambda: len(log.read_text().splitlines()) if log.exists() else 0  # noqa: E731
    words = [sys.executable, str(ROOT / "jit.py"), "train", *TINY, *LONG, "--sample-every", "1000000"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        goal, deadline = count() + lines, time.time() + 60
        while count() < goal and process.poll() is None and time.time() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    return process.returncode, said


def test_interrupted_run_equals_an_uninterrupted_one():
    """kill -9, then Ctrl-C (130, saved), then SIGTERM (143, saved), then the rest: every bit as if nothing had been.

    Weights, averages, optimiser and log. With dropout, mirroring, label drop, two parts per step: all need their seeds.
    """
    write_npz()
    assert start(5, signal.SIGKILL)[0] == -signal.SIGKILL
    killed = load("r")["step"]
    assert 2 <= killed and killed % 2 == 0
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        before = load("r")["step"]
        returned, said = start(3, number)
        assert returned == code and "Traceback" not in said and "saved at step" in said
        assert load("r")["step"] == len(read_log("r")) > before  # saved at once, not at the next multiple of 2
    steps = load("r")["step"] + 3
    assert train(*LONG, "--steps", steps) == 0  # steps may change
    assert train(*LONG, "--steps", steps, "--out", "whole") == 0
    one, two = load("r"), load("whole")
    for key in ("model", "model_ema1", "model_ema2", "optimizer", "step", "epoch"):
        assert same(one[key], two[key]), key
    assert read_log("r") == read_log("whole") and len(read_log("r")) == steps
    assert not same(one["model"], one["model_ema1"])


def test_two_processes_equal_two_parts():
    """torchrun with 2 processes computes what one does with --accum 2: same global batch, same gradient.

    Sums of two numbers in another order: 1e-6, but Adam's first steps divide gradients by their own size.
    """
    write_npz(n=8)
    words = ["--data", "d.npz", "--steps", 3, "--log-every", 2, "--dropout", 0.2, "--lr", 1e-3, "--warmup", 0]
    launch = "-m torch.distributed.run --standalone --nproc-per-node 2".split()
    command = [sys.executable, *launch, str(ROOT / "jit.py"), "train", *TINY, *map(str, words), "--out", "ddp"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("done: look at ddp") == 1  # one of the two speaks
    assert train(*words, "--accum", 2, "--out", "one") == 0
    ddp, one = load("ddp"), load("one")
    for key in ("model", "model_ema1"):
        for name in one[key]:
            torch.testing.assert_close(ddp[key][name], one[key][name], atol=1e-5, rtol=1e-4)
    assert train(*words, "--out", "other") == 0  # one part of four images draws other noise: not equal
    assert not same(one["model"], load("other")["model"])
    assert [line["step"] for line in read_log("ddp")] == [2, 3]


def test_steps_may_be_raised_but_little_else(capsys):
    """A run goes on only as it began: other settings are named and refused; a finished run says so and stays."""
    words = ["--out", "r", "--steps", 2]
    assert train(*words) == 0
    first = (Path("r") / "checkpoint-last.pth").read_bytes()
    capsys.readouterr()
    assert train(*words) == 0
    assert "done" in "".join(capsys.readouterr()) and (Path("r") / "checkpoint-last.pth").read_bytes() == first
    assert train(*words, "--steps", 4, "--lr", 0.5, "--pred", "v", "--no-rope") == 2
    said = capsys.readouterr().err
    assert "--lr" in said and "--pred x" in said and "--rope," in said and "--steps" not in said
    assert train(*words, "--steps", 4, "--save-every", 1, "--log-every", 1, "--resume") == 0
    assert load("r")["step"] == 4


def test_where_a_run_does_not_start(capsys):
    """--resume without a checkpoint and --out in a stranger's folder are errors; a run killed early starts anew."""
    assert train("--out", "r", "--steps", 1, "--resume") == 2
    assert "--resume" in capsys.readouterr().err and not Path("r").exists()
    save("photos/mine.png", "red")
    assert train("--out", "photos", "--steps", 1) == 2
    assert "photos" in capsys.readouterr().err and [path.name for path in Path("photos").iterdir()] == ["mine.png"]
    Path("early").mkdir()
    (Path("early") / "config.json").write_text("{}")
    (Path("early") / "log.jsonl").write_text('{"step": 1, "loss": 1}\n{"step": 2, "lo')
    assert train("--out", "early", "--steps", 1) == 0
    assert [line["step"] for line in read_log("early")] == [1]


def test_a_run_keeps_its_classes(capsys):
    """Renamed folders would give other numbers to the classes that the network knows; FOLDER/ is FOLDER."""
    save("pets/cat/1.png", "red"), save("pets/dog/1.png", "blue")
    assert train("--data", "pets", "--out", "r", "--steps", 1) == 0
    assert train("--data", "pets/", "--out", "r", "--steps", 2) == 0
    Path("pets/dog").rename("pets/ant")
    capsys.readouterr()
    assert train("--data", "pets", "--out", "r", "--steps", 3) == 2
    assert "cat, dog" in capsys.readouterr().err


def test_more_classes_than_names():
    """--classes may leave room for more; their pictures have no caption."""
    assert train("--classes", 12, "--out", "r", "--steps", 1) == 0
    assert call("sample", "r", "--n", 12, "--steps", 1, "--device", "cpu") == 0


def test_context_tokens_from_the_first_block():
    """An exercise of the README: they may join before block 0."""
    assert train("--context-start", 0, "--out", "r", "--steps", 1) == 0


def test_loss_that_is_not_finite_ends_the_run(monkeypatch, capsys):
    """Exit 1, and the last good checkpoint stays: not one of NaNs."""
    true_loss, calls = jit.flow_loss, []

    def flow_loss(*args):
        calls.append(1)
        return true_loss(*args) * (math.nan if len(calls) > 3 else 1)

    monkeypatch.setattr(jit, "flow_loss", flow_loss)
    assert train("--out", "r", "--steps", 9, "--save-every", 1) == 1
    said = capsys.readouterr().err
    assert "at step 4 the loss is nan" in said and "Traceback" not in said
    checkpoint = load("r")
    assert checkpoint["step"] == 3 and all(value.isfinite().all() for value in checkpoint["model"].values())


def test_gradient_that_is_not_finite_is_not_saved(monkeypatch, capsys):
    """The loss may be finite where its gradient is not; the weights after that step must not replace good ones."""
    true_loss, calls = jit.flow_loss, []

    def flow_loss(out, *args):
        calls.append(1)
        if len(calls) > 3:
            out.register_hook(lambda gradient: gradient * math.nan)
        return true_loss(out, *args)

    monkeypatch.setattr(jit, "flow_loss", flow_loss)
    assert train("--out", "r", "--steps", 9, "--save-every", 1) == 1
    checkpoint = load("r")
    assert checkpoint["step"] == 3 and all(value.isfinite().all() for value in checkpoint["model"].values())


def test_files_are_replaced_whole(tmp_path):
    """A crash while writing leaves the old file."""
    path = tmp_path / "checkpoint"
    jit.write_whole(path, lambda place: place.write_text("old"))

    def crash(place):
        place.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jit.write_whole(path, crash)
    assert path.read_text() == "old"


# Checkpoints and commands


def official_checkpoint(net, path):
    """As the official code writes it: names with prefix, flags as a Namespace, no settings of ours."""
    weights = {"net." + name: value for name, value in net.state_dict().items()}
    args = argparse.Namespace(model="JiT-B/16", img_size=16, class_num=5)
    halves = {name: value / 2 for name, value in weights.items()}
    contents = dict(model=weights, model_ema1=halves, model_ema2=weights, optimizer={}, epoch=3, args=args)
    torch.save(contents, path)
    return path


SHAPE = "size classes patch depth width heads bottleneck context_tokens context_start".split()


def test_official_checkpoint_loads():
    """Released files hold no settings: they follow from the shapes. Same network, same output, the right weights."""
    s = small()  # 6 blocks, the class joins at block 4, as in B
    net = filled(s)
    official_checkpoint(net, "official.pth")
    loaded, inferred, names = jit.load_run("official.pth", "raw", torch.device("cpu"))
    for key in (*SHAPE, "channels", "pred", "precond"):
        assert getattr(inferred, key) == getattr(s, key), key
    assert names == ["0", "1", "2", "3", "4"]
    inputs = normal(2, 3, 16, 16), torch.tensor([0.2, 0.7]), torch.tensor([1, 5])
    assert torch.equal(loaded(*inputs), net(*inputs).detach()) and not loaded.training
    averaged = jit.load_run("official.pth", "ema1", torch.device("cpu"))[0]
    assert torch.equal(averaged.final_layer.linear.weight, net.final_layer.linear.weight / 2)
    assert call("sample", "official.pth", "--n", 2, "--steps", 2, "--npz", "out.npz") == 0


def test_official_sizes_are_recognised():
    """B, L and H at 256 and 512: the class joins at another block in each, which no shape tells."""
    for model, size in (("B/16", 256), ("B/32", 512), ("L/16", 256), ("H/16", 256), ("H/32", 512)):
        s = jit.resolve(jit.Settings(model=model, size=size, classes=1000))
        with torch.device("meta"):
            weights = jit.JiT(jit.resolve(jit.Settings(model=model, size=size, classes=1000))).state_dict()
        inferred = jit.infer_settings(weights)
        for key in (*SHAPE, "model", "noise_scale"):
            assert getattr(inferred, key) == getattr(s, key), (model, key)


class Poison:
    def __reduce__(self):
        return os.mkdir, ("poisoned",)


def test_checkpoint_cannot_execute_code(capsys):
    """A pickle can run anything; such a file is refused before it does."""
    torch.save({"model": Poison()}, "evil.pth")
    assert call("sample", "evil.pth") == 2
    assert not Path("poisoned").exists() and "evil.pth" in capsys.readouterr().err


def test_sample_writes_sheet_files_and_array(run, capsys):
    """All ways out show the same images; classes take turns or are as asked; arr_1 says which."""
    few = ["--n", 5, "--steps", 2, "--batch-size", 2]
    assert call("sample", run, *few) == 0
    assert str(run / "samples.png") in capsys.readouterr().out
    assert Image.open(run / "samples.png").size[1] < 200  # one row
    assert call("sample", run, *few, "--npz", "a.npz", "--png-dir", "p") == 0
    file = np.load("a.npz")
    assert file["arr_0"].shape == (5, 16, 16, 3) and file["arr_0"].dtype == np.uint8
    assert file["arr_1"].tolist() == [0, 1, 2, 0, 1]
    names = sorted(path.name for path in Path("p").iterdir())
    assert names == [f"{i:06d}.png" for i in range(5)]
    assert all((np.asarray(Image.open(f"p/{name}")) == image).all() for name, image in zip(names, file["arr_0"]))
    assert call("sample", run, *few, "--npz", "b.npz", "--classes", "cat,0") == 0
    assert np.load("b.npz")["arr_1"].tolist() == [2, 0, 2, 0, 2]
    assert call("sample", run, *few, "--npz", "c.npz", "--weights", "raw") == 0
    assert not np.array_equal(np.load("c.npz")["arr_0"], file["arr_0"])


def test_sample_matches_the_library(run):
    """The command draws what denoise draws with the averaged weights of the checkpoint."""
    assert call("sample", run, "--n", 2, "--steps", 3, "--cfg", 1.5, "--seed", 7, "--npz", "a.npz") == 0
    checkpoint = load(run)
    s = jit.Settings(**checkpoint["settings"])
    net = jit.JiT(s).eval()
    net.load_state_dict({name[4:]: value for name, value in checkpoint["model_ema1"].items()})
    *_, (_, z, _) = jit.denoise(net, torch.tensor([0, 1]), s, jit.Sampling(steps=3, cfg=1.5, seed=7))
    pixels = ((z + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(np.load("a.npz")["arr_0"] - pixels).max() <= 0.51


def test_ctrl_c_while_sampling(run, monkeypatch, capsys):
    """Exit 130 and one line; only training has something to save."""

    def sample_images(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(jit, "sample_images", sample_images)
    assert call("sample", run) == 130
    assert capsys.readouterr().err.count("jit.py sample") == 1


def test_trajectory(run):
    """The strip has z above x_pred at ten times; the animation shows every step and the end."""
    assert call("sample", run, "--n", 2, "--steps", 12, "--trajectory") == 0
    animation = Image.open(run / "trajectory.gif")
    assert animation.n_frames > 5  # equal frames are joined by the format: at most 13
    strip = Image.open(run / "trajectory.png")
    assert strip.size == (10 * 100, 4 * 114)  # 96 pixels and a frame; two images, two rows each


def test_info_prints_the_papers_table(monkeypatch, capsys):
    """Each row of Tables 5 and 6 beside the paper's rounded numbers. Costs by hand: test_method checks the count."""
    monkeypatch.setattr(jit, "count_cost", cost_by_hand)
    assert call("info") == 0
    rows = {tuple(line.split()[:2]): line for line in capsys.readouterr().out.splitlines()}
    assert len(rows) > 9
    for row in ("B/16 256 131 25", "B/64 1024 141 30", "L/32 512 462 89", "H/16 256 953 182", "G/32 512 2012 385"):
        model, size, parameters, products = row.split()
        assert f"({parameters})" in rows[model, size] and f"({products})" in rows[model, size]
    assert "131.1" in rows["B/16", "256"] and "25.2" in rows["B/16", "256"] and "768" in rows["B/16", "256"]


ERRORS = [
    ("train --data nowhere", "nowhere"),
    ("train --data empty", "no images"),
    ("train --data broken", "none of the 1"),
    ("train --data split", "train"),
    ("train --data float.npz", "uint8"),
    ("train --data bad.npz", "bad.npz"),
    ("train --data other.npz", "arr_0"),
    ("train --data minus.npz", "arr_1"),
    ("train --data short.npz", "arr_1"),
    ("train --data words.npz", "arr_1"),
    ("train --model X/16", "--model X/16"),
    ("train --model B", "--model B"),
    ("train --size 20", "--size 20"),
    ("train --heads 3", "--heads"),
    ("train --steps 0", "--steps"),
    ("train --batch-size -1", "--batch-size"),
    ("train --lr nan", "--lr"),
    ("train --dropout 2", "--dropout"),
    ("train --workers 0 --data split/train", "--workers"),
    ("train --data flat --cls-loss 100", "--cls-loss"),
    ("train --data five.npz", "five.npz"),
    ("train --out file/deeper", "file"),
    ("train --context-start 9", "--context-start"),
    ("train --context-start 0 --cls-loss 1", "--cls-loss"),
    ("train --flip", "--flip"),
    ("train --pred v --precond edm", "--precond edm"),
    ("train --pred noise", "--pred"),
    ("train --steps many", "--steps"),
    ("train --stepz 3", "--stepz"),
    ("train --accum 3", "--batch-size"),
    ("train --classes 3", "--classes 3"),
    ("train --device cuda", "--device cuda"),
    ("train --out file", "file"),
    ("paint", "paint"),
    ("sample", "run"),
    ("sample nowhere", "nowhere"),
    ("sample empty", "checkpoint-last.pth"),
    ("sample file", "file"),
    ("sample list.pth", "list.pth"),
    ("sample RUN --classes bare", "Did you mean bear?"),
    ("sample RUN --classes 3", "--classes 3"),
    ("sample RUN --interval 0.1", "--interval"),
    ("sample RUN --interval a,b", "--interval"),
    ("sample RUN --steps 0", "--steps"),
    ("sample RUN --n -1", "--n"),
    ("sample half.pth", "half.pth"),
    ("sample RUN --trajectory --npz x.npz", "--trajectory"),
    ("stats RUN --features rfd --to x.npz --cfg 1,2", "--cfg"),
    ("eval shapes --size 16 --features rfd --cfg 1,2", "--cfg"),
    ("eval shapes --size -8 --features rfd", "--size"),
    ("eval shapes --size 4 --features rfd", "8 pixels"),
    ("eval empty --features rfd", "checkpoint-last.pth"),
    ("eval RUN --reference nowhere --features rfd", "nowhere"),
    ("eval RUN --inception nowhere", "nowhere"),
    ("sample RUN --steps 1 --png-dir file", "file"),
    ("sample RUN --steps 1 --npz file/x.npz", "file"),
]


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory, run):
    """A folder with all the files that the errors above need."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken/1.png").write_bytes(b"no image")
    save(folder / "split/train/a/1.png", "red"), save(folder / "split/val/a/1.png", "red")
    images = np.zeros((2, 16, 16, 3), np.uint8)
    np.savez(folder / "float.npz", arr_0=images.astype(np.float32))
    np.savez(folder / "five.npz", arr_0=np.zeros((2, 20, 20, 5), np.uint8))
    save(folder / "flat/1.png", "red")
    np.savez(folder / "other.npz", images=images)
    np.savez(folder / "minus.npz", arr_0=images, arr_1=np.array([0, -1]))
    np.savez(folder / "short.npz", arr_0=images, arr_1=np.array([0]))
    np.savez(folder / "words.npz", arr_0=images, arr_1=np.array(["a", "b"]))
    (folder / "bad.npz").write_bytes(b"no zip")
    (folder / "file").write_text("nothing")
    torch.save([1, 2], folder / "list.pth")
    checkpoint = load(run)
    checkpoint["model_ema1"].popitem()
    torch.save(checkpoint, folder / "half.pth")
    return folder


@pytest.mark.parametrize("command, phrase", ERRORS)
def test_errors_are_one_sentence(command, phrase, run, mistakes, monkeypatch, capsys):
    """A user's mistake ends with code 2 and one line that names what is wrong: no traceback."""
    monkeypatch.chdir(mistakes)
    words = [str(run) if word == "RUN" else word for word in command.split()]
    if words[0] == "train":
        words[1:1] = [*TINY, "--steps", "1"]
    assert call(*words) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("jit.py")]
    assert len(said) == 1 and phrase in said[0] and len(said[0]) < 400
    assert not (mistakes / "runs").exists()  # nothing began


def test_help_and_typos_need_no_torch(tmp_path):
    """torch takes seconds to import; --help and a wrong flag must answer at once. Here it cannot be imported at all."""
    for name in ("torch", "numpy", "PIL", "matplotlib", "tqdm"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    for words, code, phrase in ((["--help"], 0, "sample"), (["train", "--help"], 0, "--noise-scale"),
                                (["train", "--sied", "1"], 2, "--sied")):  # fmt: skip
        command = [sys.executable, ROOT / "jit.py", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == code and phrase in done.stdout + done.stderr
        assert "imported" not in done.stdout + done.stderr and "Traceback" not in done.stderr


# The files themselves


# jit.py aims at 1,000 lines, and the method (sections 1 to 5) takes 620. FID by the book, four kinds of data, runs that
# can be killed, and one sentence for each mistake take the rest: air rather than packing, but no line beyond this.
@pytest.mark.parametrize("name, budget", [("jit.py", 1560), ("toy_manifold.py", 300)])
def test_budget_of_lines(name, budget):
    """One file that can be read: so many lines at most, none over 120 wide, one statement on each."""
    text = (ROOT / name).read_text()
    assert len(text.splitlines()) <= budget
    assert max(map(len, text.splitlines())) <= 120
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    assert not [token.start for token in tokens if token.type == tokenize.OP and token.string == ";"]
