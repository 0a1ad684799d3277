"""Data, runs and commands of jit.py, as a user meets them: files in and out, exit codes, one sentence per error."""

import argparse
import dataclasses
import functools
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tokenize
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import jit

ROOT = Path(__file__).resolve().parents[1]
SMALL = dict(size=16, patch=8, depth=4, width=16, heads=2, bottleneck=4, context_tokens=4, context_start=1)
TINY = "--model Ti/8 --size 16 --depth 4 --width 16 --heads 2 --bottleneck 4 --batch-size 4 --device cpu".split()


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Each test in a folder of its own, without network.

    Pictures during training take one step instead of 50, which would be half of the time; commands say how many.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jit, "sample_images", functools.partial(jit.sample_images, sampling_steps=1))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)

    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)


def call(*words):
    """The exit code of a command, run in this process: Python with torch takes seconds to start."""
    try:
        return jit.main([str(word) for word in words])
    except SystemExit as end:  # argparse
        return end.code


def train(*words):
    return call("train", *TINY, *words)


def save(path, colour, size=(20, 20)):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def open_data(name="d", channels=3, size=16):
    return jit.open_data(str(name), (channels, size, size))


def decode(path, channels=3):
    """The pixels of a file, as training sees them."""
    return jit.Images([], torch.zeros(1), [Path(path)], (channels, 16, 16)).read(0)


def colours(pixels):
    """The mean colour of each image."""
    return pixels.float().mean((2, 3)).round().int().tolist()


# ---- Data ----------------------------------------------------------------------------------------


def test_folder_of_classes(capsys):
    """The first folder level is the class, in sorted order, however deep the images lie; hidden files are no images.

    What was found is said, and so is what was left out.
    """
    save("d/b/deep/er/1.png", (0, 0, 255)), save("d/a/2.PNG", (0, 255, 0)), save("d/a/1.png", (255, 0, 0))
    save("d/loose.png", (9, 9, 9)), save("d/a/._1.png", (9, 9, 9)), Path("d/a/notes.txt").write_text("no image")
    save("d/a/.thumbnails/1.png", (9, 9, 9)), save("d/.cache/1.png", (9, 9, 9))
    data = open_data()
    assert data.names == ["a", "b"] and data.labels.tolist() == [0, 0, 1]
    assert colours(data.pixels) == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    said = capsys.readouterr().out
    assert "3 images, 2 classes: a, b" in said and "1 (.txt)" in said and "1 (beside the class folders)" in said


def test_flat_folder_is_unconditional(capsys):
    """No class folders, no classes: guidance is off and the network learns one field."""
    save("d/1.png", "red"), save("d/2.png", "blue")
    data = open_data()
    assert data.names == [] and len(data.pixels) == 2 and data.labels.tolist() == [jit.NO_CLASS] * 2
    assert "2 images, 0 classes" in capsys.readouterr().out
    assert train("--data", "d", "--out", "r", "--steps", 1) == 0
    assert jit.load_run("r", "raw", "cpu")[0].classes == 0
    for n, cfg in ((1, 1), (2, 9)):
        assert call("sample", "r", "--n", 1, "--sampling-steps", 2, "--cfg", cfg, "--png-dir", f"p{n}") == 0
    assert Path("p1/000000.png").read_bytes() == Path("p2/000000.png").read_bytes()


def test_class_folders_may_be_links():
    """Data on another disk is often linked in; Python's rglob passes such folders by."""
    save("disk/1.png", "red")
    Path("d").mkdir()
    Path("d/a").symlink_to("../disk")
    assert open_data().names == ["a"]


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
    "colour.ppm": quadrants, "colour.tga": quadrants, "colour.jp2": quadrants, "colour.pcx": quadrants,
    "palette.png": lambda: quadrants().quantize(4), "palette.gif": lambda: quadrants().quantize(4), "key.png": keyed,
    "cmyk.tif": lambda: quadrants().convert("CMYK"), "alpha.png": transparent, "alpha.webp": transparent,
}  # fmt: skip


def test_every_kind_of_image_has_its_colours():
    """Palettes, transparency (on white), CMYK: a mode read wrongly gives a picture that is wrong but raises nothing."""
    for name, make in FORMATS.items():
        make().save(name, **({"lossless": True} if name.endswith("webp") else {}))
        error = (torch.tensor(corners(decode(name))) - torch.tensor(QUADRANTS)).abs().max()
        assert error < (12 if name.endswith("jpg") else 4), name  # JPEG's chroma


def test_grey_and_16_bit_images():
    """Grey, grey with alpha, 1 and 16 bits: a 16-bit image must be scaled, not clipped or wrapped."""
    ramp = np.repeat(np.arange(32)[None] * 8, 32, 0)  # 0 ... 248 from left to right
    Image.fromarray(ramp.astype(np.uint8)).save("8.png")
    Image.fromarray((ramp * 257).astype(np.uint16)).save("16.png")
    Image.fromarray((ramp * 257).astype(np.uint16)).save("16.tif")
    Image.fromarray(np.stack([ramp, np.full_like(ramp, 255)], -1).astype(np.uint8)).save("la.png")
    expected = torch.arange(16) * 16 + 4  # the mean of two neighbours
    for name in ("8.png", "16.png", "16.tif", "la.png"):
        for channels in (1, 3):
            found = decode(name, channels)
            assert found.shape == (channels, 16, 16) and found.dtype == torch.uint8
            assert (found.int() - expected).abs().max() <= 1, name
    Image.fromarray(ramp > 100).save("1.png")
    assert sorted(set(decode("1.png", 1).flatten().tolist())) in ([0, 255], [0, 128, 255], [0, 127, 255])
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
    error = torch.tensor(corners(decode("photo.jpg"))) - torch.tensor(QUADRANTS)
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
    data = open_data()
    assert data.labels.tolist() == [0, 1, 1] and colours(data.pixels) == [[255, 0, 0], [0, 0, 255], [0, 255, 0]]
    said = capsys.readouterr().err
    assert "0.png" in said and "25.jpg" in said and "2 of 5" in said


def write_folder(n=6, classes=3):
    """Image i, of class i % classes, is all of value 10 i; sorted by name, they come as numbered."""
    for i in range(n):
        save(f"d/{i % classes}/{i}.png", (10 * i,) * 3, (16, 16))
    return open_data()


def batches(data, steps, out, **recipe):
    """What a training of a tiny network is fed, as pairs of images and classes: one for each part of a batch."""
    seen = []

    def watched(net, x, y, flow):
        seen.append((x.clone(), y.clone()))
        return jit.training_loss(net, x, y, flow)

    torch.manual_seed(0)
    net = jit.JiT(**SMALL, classes=len(data.names))
    jit.train(net, jit.Flow(), data, out, steps, **(dict(batch_size=4) | recipe), loss_function=watched)
    return seen


def numbers(x):
    """Which images of write_folder these are."""
    assert x.min() >= -1 and x.max() <= 1
    return ((x[:, 0, 0, 0] + 1) * 12.75).round().int().tolist()


def test_every_image_once_in_each_epoch():
    """Batches of 4 from 6 images run across epochs; a resumed run meets the same images at the same step."""
    data = write_folder()
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2] and numbers(data.pixels / 127.5 - 1) == [0, 3, 1, 4, 2, 5]
    whole = batches(data, 9, "whole")
    drawn = [number for x, _ in whole for number in numbers(x)]
    epochs = [drawn[i : i + 6] for i in range(0, 36, 6)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 3  # shuffled anew
    for x, y in whole:
        assert [number % 3 for number in numbers(x)] == y.tolist()
    in_two = batches(data, 5, "r") + batches(data, 9, "r")
    assert [numbers(x) for x, _ in in_two] == [numbers(x) for x, _ in whole]
    assert [numbers(x) for x, _ in batches(data, 9, "other", seed=1)] != [numbers(x) for x, _ in whole]


def test_parts_share_out_the_batch():
    """--accum 2 computes the two halves of the same batch, none twice; two processes do the same, see below."""
    data = write_folder()
    whole, halves = batches(data, 3, "one"), batches(data, 3, "two", accum=2)
    assert len(halves) == 2 * len(whole)
    for i, (x, y) in enumerate(whole):
        assert torch.equal(x, torch.cat([halves[2 * i][0], halves[2 * i + 1][0]]))
        assert torch.equal(y, torch.cat([halves[2 * i][1], halves[2 * i + 1][1]]))


def test_streamed_images_are_those_in_memory(monkeypatch, capsys):
    """A set too large for memory is decoded as it goes: same images, classes, order and mirroring, no batch lost."""
    for i in range(7):
        image = np.random.RandomState(i).randint(0, 256, (20, 26, 3), dtype=np.uint8)
        Path(f"d/{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(f"d/{i % 2}/{i}.png")
    inside = batches(open_data(), 9, "inside", flip=True)
    monkeypatch.setattr(jit, "MEMORY_LIMIT", 7 * 3 * 16 * 16 - 1)  # a byte less than they have
    data = open_data()
    assert data.pixels is None and len(data.paths) == 7
    outside = batches(data, 9, "outside", flip=True)
    assert len(outside) == len(inside) == 9
    assert all(torch.equal(a, b) for one, two in zip(inside, outside) for a, b in zip(one, two))
    Path("d/1/1.png").write_bytes(b"broken")
    later = batches(data, 4, "later", flip=True)
    assert all(1 < len(x) <= 4 and len(x) == len(y) for x, y in later) and sum(len(x) for x, _ in later) < 16
    images = {x.tobytes(): y for xs, ys in inside for x, y in zip(xs.numpy(), ys.tolist())}
    images |= {x.flip(-1).numpy().tobytes(): y for xs, ys in inside for x, y in zip(xs, ys.tolist())}
    for xs, ys in later:  # the broken one is left out with its class
        assert all(images[x.tobytes()] == y for x, y in zip(xs.numpy(), ys.tolist()))
    assert "1.png" in capsys.readouterr().err


def test_half_of_the_images_are_mirrored(monkeypatch):
    """Left and right, never top and bottom; --no-flip none; the default mirrors all data but shapes."""
    image = np.zeros((16, 16, 3), np.uint8)
    image[:4, :4] = 255  # top left
    Path("d").mkdir()
    Image.fromarray(image).save("d/1.png")
    (x, _), *_ = jit.data_batches(open_data(), [range(1000)], 0, torch.device("cpu"), flip=True)
    mirrored = x[:, 0, 0, -1] == 1
    assert (mirrored | (x[:, 0, 0, 0] == 1)).all() and (x[:, 0, -1] == -1).all()
    assert math.isclose(mirrored.float().mean(), 0.5, abs_tol=0.064)  # 4 sigma of 1,000
    (x, _), *_ = jit.data_batches(open_data(), [range(1000)], 0, torch.device("cpu"))
    assert (x[:, 0, 0, 0] == 1).all()
    chosen = []
    monkeypatch.setattr(jit, "train", functools.wraps(jit.train)(lambda *args, **flags: chosen.append(flags["flip"])))
    for words in ([], ["--data", "d"], ["--data", "d", "--no-flip"], ["--data", "d", "--flip"]):
        assert train(*words) == 0
    assert chosen == [False, True, False, True]


def test_two_workers_read_what_one_process_reads(monkeypatch):
    """From 64 images a file on, worker processes decode: in the same order, and their start takes no random number."""
    for i in range(130):
        save(f"d/{i % 3}/{i:03d}.png", (i, 2 * i, 255 - i), (16, 16))
    in_memory = open_data()
    monkeypatch.setattr(jit, "MEMORY_LIMIT", 0)
    streamed = open_data()
    assert in_memory.pixels.shape == (130, 3, 16, 16) and streamed.pixels is None
    places = [range(0, 64), range(64, 128), range(128, 192)]
    torch.manual_seed(0)
    one = list(jit.data_batches(in_memory, places, 0, torch.device("cpu"), flip=True))
    torch.manual_seed(0)
    two = list(jit.data_batches(streamed, places, 0, torch.device("cpu"), flip=True))
    assert all(torch.equal(a, b) for pair in zip(one, two) for a, b in zip(*pair))


def test_shapes():
    """Ten classes, drawn alike often, in [-1, 1], all different; the factors act: a shift moves the picture."""
    (x, y), *_ = jit.data_batches(jit.open_data("shapes", (3, 16, 16)), [range(500)], 0, torch.device("cpu"))
    assert x.shape == (500, 3, 16, 16) and x.abs().max() <= 1
    assert torch.bincount(y, minlength=10).min() > 25  # 50 expected, sd 6.7
    middle = torch.tensor(list(jit.FACTORS.values())).mean(1)
    middle[3] = 0.0
    moved = middle.clone()
    moved[0], moved[1] = middle[0] + 4 / 32, middle[1] - 8 / 32  # a picture of 64 pixels is 2 wide: 4 right, 8 up
    pictures = jit.render_shapes(torch.arange(10), middle.expand(10, 7), 64)
    shifted = jit.render_shapes(torch.arange(10), moved.expand(10, 7), 64)
    torch.testing.assert_close(shifted[:, :, 4:44, 12:52], pictures[:, :, 12:52, 8:48], atol=2e-3, rtol=0)
    for i in range(10):
        assert all((pictures[i] - pictures[j]).abs().max() > 0.5 for j in range(i))


# ---- Runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of 4 steps on three classes: apple, bear, cat."""
    folder = tmp_path_factory.mktemp("run")
    for i, name in enumerate(["apple", "bear", "cat"]):
        save(folder / "data" / name / "1.png", (80 * i, 255 - 80 * i, 30))
        save(folder / "data" / name / "2.png", (255 - 80 * i, 30, 80 * i))
    words = ["--data", folder / "data", "--out", folder / "r", "--steps", 4, "--log-every", 2, "--save-every", 3]
    assert train(*words, "--warmup", 8, "--lr", 0.01) == 0
    return folder / "r"


def load(out):
    return torch.load(Path(out) / "checkpoint-last.pth", weights_only=True)


def read_log(out):
    """The log without what depends on the clock; of a step that a resumed run wrote again, the last line."""
    lines = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    lines = [{key: line[key] for key in line if key not in ("images_per_s", "gpu_memory_gb")} for line in lines]
    return sorted({line["step"]: line for line in lines}.values(), key=lambda line: line["step"])


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
    """What a run leaves: checkpoint, log, picture; nothing half-written."""
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-last.pth", "log.jsonl", "samples-000004.png"]
    log = read_log(run)
    assert [line["step"] for line in log] == [2, 3, 4]  # 3: a mean ends at each checkpoint
    assert [line["lr"] for line in log] == pytest.approx([0.01 * step / 8 for step in (2, 3, 4)])  # linear warm-up
    for line in log:
        assert line["loss"] > 0 and line["grad_norm"] > 0 and len(line["loss_by_t"]) == 10
    Image.open(run / "samples-000004.png").verify()


def test_checkpoint_has_the_official_layout(run):
    """Keys and prefix of the official code, so that files can be exchanged; what is ours beside them is plain data."""
    checkpoint = load(run)
    assert {"model", "model_ema1", "model_ema2", "optimizer"} <= checkpoint.keys()
    config = checkpoint["config"]
    net = jit.JiT(**config["network"])
    expected = {"net." + name: value.shape for name, value in net.state_dict().items()}
    for key in ("model", "model_ema1", "model_ema2"):
        assert {name: value.shape for name, value in checkpoint[key].items()} == expected
    assert checkpoint["step"] == 4
    assert config["names"] == ["apple", "bear", "cat"] and config["images"] == 6 and net.classes == 3
    assert config["flow"] == dataclasses.asdict(jit.Flow()) and config["recipe"]["lr"] == 0.01
    (group,) = checkpoint["optimizer"]["param_groups"]
    assert group["betas"] == (0.9, 0.95) and group["weight_decay"] == 0
    state = checkpoint["optimizer"]["state"]
    assert all(state[i]["exp_avg"].shape == p.shape for i, p in enumerate(net.parameters()) if p.requires_grad)


# H has dropout; with mirroring, label drop and two parts per step, all need their seeds.
LONG = """--model H/8 --context-tokens 2 --context-start 1 --lr 1e-3 --data d --out r --accum 2 --log-every 1
--save-every 2 --sample-every 1000000 --steps 1000000""".split()


def start(lines, number):
    """Train by command line until the log has so many lines more, then send a signal: exit code and stderr."""
    log = Path("r/log.jsonl")
    count = lambda: len(log.read_text().splitlines()) if log.exists() else 0  # noqa: E731
    words = [sys.executable, str(ROOT / "jit.py"), "train", *TINY, *LONG]
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
    """kill -9, then Ctrl-C (130), then SIGTERM, then the rest: every bit as if nothing had been.

    Weights, averages, optimiser and log.
    """
    write_folder()
    assert start(5, signal.SIGKILL)[0] == -signal.SIGKILL
    killed = load("r")["step"]
    assert 2 <= killed and killed % 2 == 0
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)):
        before = load("r")["step"]
        returned, said = start(3, number)
        assert returned == code and "Traceback" not in said and load("r")["step"] > before
        if number == signal.SIGINT:
            assert f"saved at step {load('r')['step']}" in said
    steps = load("r")["step"] + 3
    assert train(*LONG, "--steps", steps) == 0  # steps may change
    assert train(*LONG, "--steps", steps, "--out", "whole") == 0
    one, two = load("r"), load("whole")
    assert one["config"]["network"]["dropout"] == 0.2 and one["config"]["recipe"]["flip"]
    for key in ("model", "model_ema1", "model_ema2", "optimizer", "step"):
        assert same(one[key], two[key]), key
    last = {line["step"]: line for line in read_log("r")}  # what was not saved is logged twice
    assert list(last.values()) == read_log("whole") and list(last) == list(range(1, steps + 1))
    assert not same(one["model"], one["model_ema1"])


def test_two_processes_equal_two_parts():
    """torchrun with 2 processes computes what one does with --accum 2: same global batch, same gradient.

    Sums of two numbers in another order: 1e-6, but Adam's first steps divide gradients by their own size.
    """
    write_folder(8)
    words = ["--data", "d", "--steps", 3, "--log-every", 2, "--lr", 1e-3, "--warmup", 0]
    launch = "-m torch.distributed.run --standalone --nproc-per-node 2".split()
    command = [sys.executable, *launch, str(ROOT / "jit.py"), "train", *TINY, *map(str, words), "--out", "ddp"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("ddp: x-prediction") == 1  # one of the two speaks
    assert train(*words, "--accum", 2, "--out", "one") == 0
    ddp, one = load("ddp"), load("one")
    for key in ("model", "model_ema1"):
        for name in one[key]:
            torch.testing.assert_close(ddp[key][name], one[key][name], atol=1e-5, rtol=1e-4)
    assert train(*words, "--out", "other") == 0  # one part of four images draws other noise: not equal
    assert not same(one["model"], load("other")["model"])
    assert [line["step"] for line in read_log("ddp")] == [2, 3]


def test_steps_may_be_raised_but_little_else(capsys):
    """A run goes on only as it began: other settings are named and refused; a finished run stays as it is."""
    words = ["--out", "r", "--steps", 2]
    assert train(*words) == 0
    first = load("r")
    capsys.readouterr()
    assert train(*words) == 0
    assert "goes on after step 2, to step 2" in capsys.readouterr().out and same(load("r"), first)
    assert train(*words, "--steps", 1) == 0 and same(load("r"), first)
    assert train(*words, "--steps", 4, "--lr", 0.5, "--pred", "v", "--no-rope") == 2
    said = capsys.readouterr().err
    assert "lr 0.004" in said and "pred x" in said and "rope True" in said and "steps" not in said
    assert same(load("r"), first)
    assert train(*words, "--steps", 4, "--save-every", 1, "--log-every", 1, "--sample-every", 1) == 0
    assert load("r")["step"] == 4 and Path("r/samples-000003.png").exists()


def test_where_a_run_does_not_start(capsys):
    """--out in a stranger's folder is an error and leaves it alone; a run killed before its first save starts anew."""
    save("photos/mine.png", "red")
    assert train("--out", "photos", "--steps", 1) == 2
    assert "photos" in capsys.readouterr().err and [path.name for path in Path("photos").iterdir()] == ["mine.png"]
    Path("early").mkdir()
    (Path("early") / "log.jsonl").write_text('{"step": 1, "loss": 1}\n')
    (Path("early") / ".part-checkpoint-last.pth").write_text("half")
    assert train("--out", "early", "--steps", 1) == 0
    assert load("early")["step"] == 1


def test_a_run_keeps_its_classes(capsys):
    """Renamed folders would give other numbers to the classes that the network knows; FOLDER/ is FOLDER."""
    save("pets/cat/1.png", "red"), save("pets/dog/1.png", "blue")
    assert train("--data", "pets", "--out", "r", "--steps", 1) == 0
    assert train("--data", "pets/", "--out", "r", "--steps", 2) == 0
    Path("pets/dog").rename("pets/ant")
    capsys.readouterr()
    assert train("--data", "pets", "--out", "r", "--steps", 3) == 2
    assert "'cat', 'dog'" in capsys.readouterr().err
    Path("pets/ant").rename("pets/dog"), save("pets/dog/2.png", "green")
    assert train("--data", "pets", "--out", "r", "--steps", 3) == 2
    assert "images 2" in capsys.readouterr().err  # another image would shift the order of all


def test_context_tokens_from_the_first_block():
    """An exercise of the README: they may join before block 0."""
    assert train("--context-start", 0, "--out", "r", "--steps", 1) == 0


def spoiled(after, spoil):
    """training_loss, whose result is spoiled after so many calls."""
    calls = []

    def loss_function(net, x, y, flow):
        calls.append(1)
        loss, t = jit.training_loss(net, x, y, flow)
        return (spoil(loss) if len(calls) > after else loss), t

    return loss_function


def no_gradient(loss):
    loss.register_hook(lambda gradient: gradient * math.nan)
    return loss


@pytest.mark.parametrize("spoil", [lambda loss: loss * math.nan, lambda loss: loss + math.inf, no_gradient])
def test_what_is_not_finite_ends_the_run(spoil, monkeypatch, capsys):
    """Exit 1, and the last good checkpoint stays, whether it is the loss or only its gradient: not one of NaNs."""
    monkeypatch.setattr(jit, "train", functools.partial(jit.train, loss_function=spoiled(3, spoil)))
    assert train("--out", "r", "--steps", 9, "--save-every", 1) == 1
    said = capsys.readouterr().err
    assert "at step 4 the loss is" in said and "Traceback" not in said
    checkpoint = load("r")
    assert checkpoint["step"] == 3 and all(value.isfinite().all() for value in checkpoint["model"].values())


def test_files_are_replaced_whole(tmp_path):
    """A crash while writing leaves the old file, and nothing beside it."""
    path = tmp_path / "checkpoint"
    jit.write_whole(path, lambda place: place.write_text("old"))

    def crash(place):
        place.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jit.write_whole(path, crash)
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


# ---- Checkpoints and commands --------------------------------------------------------------------


def filled(**changes):
    """A network of 16 tokens in which no weight is 0; 12 blocks, as B: no file tells where in-context tokens join."""
    shape = dict(size=32, patch=8, classes=5, depth=12, width=16, heads=2, bottleneck=4)
    shape |= dict(context_tokens=3, context_start=4)
    torch.manual_seed(0)
    net = jit.JiT(**(shape | changes)).eval()
    for name, p in net.named_parameters():
        if name != "pos_embed":
            torch.nn.init.normal_(p, mean="norm" in name, std=0.1)
    return net


def inputs():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 32, 32, generator=generator), torch.tensor([0.2, 0.7]), torch.tensor([1, jit.NO_CLASS])


def official_checkpoint(net, path, prefix="net.", **flags):
    """As the official code writes it: names with prefix, flags as a Namespace, no config of ours."""
    weights = {prefix + name: value for name, value in net.state_dict().items()}
    args = argparse.Namespace(model="JiT-B/16", img_size=32, class_num=5, **flags)
    halves = {name: value / 2 for name, value in weights.items()}
    contents = dict(model=weights, model_ema1=halves, model_ema2=weights, optimizer={}, epoch=3, args=args)
    torch.save(contents, path)
    return path


def test_official_checkpoint_loads():
    """Released files hold no config: it follows from the shapes. Same network, same output, the right weights."""
    net = filled()
    official_checkpoint(net, "official.pth", noise_scale=2.5, t_eps=0.01)
    loaded, flow, config = jit.load_run("official.pth", "raw", "cpu")
    assert loaded.arguments == net.arguments
    assert flow == jit.Flow(noise_scale=2.5, t_clip=0.01)  # its flags, not guesses
    assert torch.equal(loaded(*inputs()), net(*inputs()).detach()) and not loaded.training
    averaged = jit.load_run("official.pth", "ema1", "cpu")[0]
    assert torch.equal(averaged.final_layer.linear.weight, net.final_layer.linear.weight / 2)
    assert call("sample", "official.pth", "--n", 2, "--sampling-steps", 2, "--classes", "4,0") == 0
    assert Path("samples.png").exists()
    assert call("sample", "official.pth", "--classes", "cat") == 2


def test_official_checkpoint_without_flags_or_tokens(capsys):
    """Without flags the paper's noise scale is taken; without in-context tokens nothing is assumed about them."""
    net = filled(context_tokens=0, context_start=0, depth=3)
    torch.save(dict(model={"net." + name: value for name, value in net.state_dict().items()}), "bare.pth")
    loaded, flow, _ = jit.load_run("bare.pth", "raw", "cpu")
    assert torch.equal(loaded(*inputs()), net(*inputs()).detach()) and flow == jit.Flow()
    assert "assumed" not in capsys.readouterr().err
    official_checkpoint(filled(depth=6, context_start=2), "six.pth")
    assert jit.load_run("six.pth", "raw", "cpu")[0].context_start == 2
    assert "before block 2" in capsys.readouterr().err  # no shape tells, so it is said


def test_official_sizes_are_recognised():
    """B, L, H and G at 256 and 512: the class joins at another block in each, which no shape tells."""
    for model, patch, size in (("B", 16, 256), ("B", 32, 512), ("L", 16, 256), ("H", 16, 256), ("G", 32, 512)):
        network = dict(size=size, patch=patch, classes=1000, **jit.MODELS[model])
        with torch.device("meta"):
            weights = jit.JiT(**network).state_dict()
        config = jit.official_config(weights, {})
        assert dict(network, **config["network"]) == network | dict(channels=3), model
        assert config["flow"]["noise_scale"] == size / 256


class Poison:
    def __reduce__(self):
        return os.mkdir, ("poisoned",)


def test_checkpoint_cannot_execute_code(run, capsys):
    """A pickle can run anything; such a file is refused before it does, for sampling and for going on alike."""
    Path("evil").mkdir()
    torch.save({"model": Poison()}, "evil/checkpoint-last.pth")
    assert call("sample", "evil") == 2
    assert call("eval", "evil/checkpoint-last.pth") == 2
    assert train("--out", "evil") == 2
    assert not Path("poisoned").exists() and capsys.readouterr().err.count("evil/checkpoint-last.pth cannot") == 3


def test_runs_of_the_earlier_file_are_refused(capsys):
    """Their checkpoints have other settings and another optimiser: one sentence, not a key that is missing."""
    Path("old").mkdir()
    torch.save(dict(model={"net.w": torch.zeros(1)}, settings={"size": 16}), "old/checkpoint-last.pth")
    for words in (["sample", "old"], ["train", *TINY, "--out", "old"], ["eval", "old"]):
        assert call(*words) == 2
        assert "earlier jit.py" in capsys.readouterr().err


def read_pngs(folder):
    """All images of a folder, by name: uint8 (n, H, W, C)."""
    return np.stack([np.asarray(Image.open(path)) for path in sorted(Path(folder).iterdir())])


def test_sample_writes_sheet_or_files(run, capsys):
    """Both show the same images; classes take turns or are as asked, by name or number; seeds and weights act."""
    few = ["sample", run, "--n", 5, "--sampling-steps", 2, "--batch-size", 2]
    assert call(*few) == 0
    assert str(run / "samples.png") in capsys.readouterr().out
    sheet = np.asarray(Image.open(run / "samples.png"))
    assert call(*few, "--png-dir", "p") == 0
    assert sorted(path.name for path in Path("p").iterdir()) == [f"{i:06d}.png" for i in range(5)]
    images = read_pngs("p")
    assert images.shape == (5, 16, 16, 3)
    for i, image in enumerate(images):  # the sheet has them six times as large, ten in a row
        assert (sheet[16 + 3 : 16 + 96 : 6, 100 * i + 2 + 3 : 100 * i + 98 : 6] == image).all()
    for words, name in (("--classes bear", "bear"), ("--classes 1", "one"), ("--seed 1", "seed"),
                        ("--weights raw", "raw")):  # fmt: skip
        assert call(*few, *words.split(), "--png-dir", name) == 0
    assert (read_pngs("bear")[1] == images[1]).all() and (read_pngs("bear") == read_pngs("one")).all()
    for name in ("bear", "seed", "raw"):
        assert not (read_pngs(name) == images).all()


def test_an_image_does_not_depend_on_its_batch(run):
    """Number i has its own noise: one at a time, five at once, or among fewer, it is the same picture.

    Sums in another order may round a value to the neighbouring level: 1 of 255.
    """
    for name, n, size in (("one", 5, 1), ("all", 5, 5), ("few", 3, 2)):
        words = ["--n", n, "--batch-size", size, "--sampling-steps", 3, "--png-dir", name]
        assert call("sample", run, *words, "--classes", "apple") == 0
    one, every, few = (read_pngs(name).astype(int) for name in ("one", "all", "few"))
    assert np.abs(one - every).max() <= 1 and np.abs(few - every[:3]).max() <= 1
    assert np.abs(every[0] - every[1]).max() > 3


def test_sample_matches_the_library(run):
    """The command draws what the method draws with the averaged weights of the checkpoint."""
    words = ["--n", 2, "--sampling-steps", 3, "--cfg", 1.5, "--seed", 7, "--interval", 0, 0.8, "--solver", "euler"]
    assert call("sample", run, *words, "--png-dir", "p") == 0
    checkpoint = load(run)
    net = jit.JiT(**checkpoint["config"]["network"]).eval()
    net.load_state_dict({name.removeprefix("net."): value for name, value in checkpoint["model_ema1"].items()})
    velocity = jit.guided_velocity(net, torch.tensor([0, 1]), jit.Flow(), 1.5, (0.0, 0.8))
    *_, (_, z, _) = jit.integrate(velocity, jit.image_noise((3, 16, 16), 7, range(2)), 3, "euler")
    pixels = ((z + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1).numpy()
    assert np.abs(read_pngs("p") - pixels).max() <= 0.51


def test_ctrl_c_while_sampling(run, monkeypatch, capsys):
    """Exit 130 and one line; only training has something to save."""

    def draw_sheet(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(jit, "draw_sheet", draw_sheet)
    assert call("sample", run, "--n", 1, "--sampling-steps", 1) == 130
    assert capsys.readouterr().err.count("jit.py: ") == 1


ERRORS = [
    ("train --data nowhere", "nowhere"),
    ("train --data empty", "no images"),
    ("train --data broken", "none of the 1"),
    ("train --data split", "train"),
    ("train --data some.npz", "some.npz"),
    ("train --data cifar10", "cifar10"),
    ("train --model X/16", "--model X/16"),
    ("train --model B", "--model B"),
    ("train --size 20", "size 20"),
    ("train --heads 3", "heads 3"),
    ("train --steps 0", "--steps"),
    ("train --batch-size -1", "--batch-size"),
    ("train --lr nan", "--lr"),
    ("train --out file/deeper", "file"),
    ("train --out file", "file"),
    ("train --out empty/../split", "split"),
    ("train --context-start 9", "context_start 9"),
    ("train --flip", "--flip"),
    ("train --pred noise", "--pred"),
    ("train --steps many", "--steps"),
    ("train --stepz 3", "--stepz"),
    ("train --accum 3", "--batch-size"),
    ("train --device cuda", "--device cuda"),
    ("paint", "paint"),
    ("", "command"),
    ("sample", "run"),
    ("sample nowhere", "nowhere"),
    ("sample empty", "checkpoint-last.pth"),
    ("sample file", "file"),
    ("sample list.pth", "list.pth"),
    ("sample half.pth", "half.pth"),
    ("sample RUN --classes bare", "apple, bear, cat"),
    ("sample RUN --classes 3", "--classes 3"),
    ("sample RUN --interval 0.1", "--interval"),
    ("sample RUN --interval a b", "--interval"),
    ("sample RUN --sampling-steps 0", "--sampling-steps"),
    ("sample RUN --n -1", "--n"),
    ("sample RUN --png-dir file", "file"),
    ("eval nowhere", "nowhere"),
    ("eval empty", "checkpoint-last.pth"),
    ("eval empty --size -8", "--size"),
    ("eval flat --size 16", "--reference"),
    ("eval RUN --stats x.csv", ".npz"),
    ("eval RUN --stats file/x.npz", "file"),
]


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory, run):
    """A folder with all the files that the errors above need."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken/1.png").write_bytes(b"no image")
    save(folder / "split/train/a/1.png", "red"), save(folder / "split/val/a/1.png", "red")
    np.savez(folder / "some.npz", arr_0=np.zeros((2, 16, 16, 3), np.uint8))
    save(folder / "flat/1.png", "red")
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
    shutil.rmtree("runs", ignore_errors=True)  # of an error that went unseen
    words = [str(run) if word == "RUN" else word for word in command.split()]
    if words[:1] == ["train"]:
        words[1:1] = [*TINY, "--steps", "1"]
    assert call(*words) == 2
    said = [line for line in re.split("[\r\n]", capsys.readouterr().err) if "jit.py: " in line]  # \r: a bar
    assert len(said) == 1 and phrase in said[0] and len(said[0]) < 400
    assert not (mistakes / "runs").exists()  # nothing began


def test_help_names_every_command_and_flag(capsys):
    """--help needs no data, no device and no network, and each flag says what it is for."""
    assert call("--help") == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("train", "sample", "eval"))
    for name, flag in (("train", "--noise-scale"), ("sample", "--png-dir"), ("eval", "--stats")):
        assert call(name, "--help") == 0
        assert flag in capsys.readouterr().out


# ---- The files themselves ------------------------------------------------------------------------


def test_rate_rises_and_falls(capsys):
    """--warmup steps up, then level, then down to nearly 0 in the last share --cooldown of the run; 0: level to the end."""
    assert train("--out", "r", "--steps", 10, "--warmup", 2, "--cooldown", 0.5, "--lr", 1e-3, "--log-every", 1) == 0
    rates = [line["lr"] for line in read_log("r")]
    assert rates == pytest.approx([0.5e-3, *[1e-3] * 5, 0.8e-3, 0.6e-3, 0.4e-3, 0.2e-3])
    assert train("--out", "s", "--steps", 4, "--warmup", 0, "--cooldown", 0, "--lr", 1e-3, "--log-every", 1) == 0
    assert [line["lr"] for line in read_log("s")] == pytest.approx([1e-3] * 4)
    assert train("--cooldown", 1.5) == 2 and "--cooldown" in capsys.readouterr().err
