"""Faults of a hundred public bug reports: how a run gets lost, and how a wrong result comes without a word."""

import argparse
import errno
import gc
import inspect
import json
import os
import signal
import subprocess
import sys
import time
import unicodedata
import weakref
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import jit
from test_runs import (ROOT, SMALL, TINY, call, decode, filled, load, official_checkpoint, own_folder,  # noqa: F401
                       run, same, save, train)  # fmt: skip
from test_faults import Mean, refused

SHORT = ["--log-every", "1", "--sample-every", "1000", "--lr", "1e-3"]


def command(*words):
    return [sys.executable, str(ROOT / "jit.py"), "train", *TINY, *SHORT, *map(str, words)]


def log_of(out):
    return [json.loads(line) for line in Path(out, "log.jsonl").read_text().splitlines()]


def streamed(monkeypatch):
    """Folders are read anew in every epoch, as if they were large."""
    monkeypatch.setattr(jit, "MEMORY_LIMIT", 0)


# ---- Lost work -----------------------------------------------------------------------------------


def test_no_handlers_and_no_worker_processes(monkeypatch):
    """A SIGTERM to the whole group killed the workers first, and torch's handler then broke the save."""
    streamed(monkeypatch)
    for i in range(130):
        save(f"d/{'ab'[i % 2]}/{i}.png", "red", (16, 16))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)}
    monkeypatch.setattr(torch.utils.data, "DataLoader", None)
    monkeypatch.setattr(os, "fork", None)
    assert train("--data", "d", "--out", "r", "--steps", 2) == 0
    assert handlers == {number: signal.getsignal(number) for number in handlers}


def test_files_open_at_once_do_not_grow_with_the_folder():
    """One descriptor for each batch of labels: 64,000 small images were too many for the usual 1,024."""
    for i in range(300):
        save(f"d/a/{i}.png", "red", (4, 4))
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)); import sys; sys.path.insert(0, sys.argv.pop(1)); import jit; "
    code = limit + "jit.MEMORY_LIMIT = int(sys.argv.pop(1)); sys.exit(jit.main(sys.argv[1:]))"
    for memory in (0, 2**30):
        words = ["train", *TINY, "--data", "d", "--out", f"r{memory}", "--steps", "80"]
        done = subprocess.run([sys.executable, "-c", code, ROOT, str(memory), *words], capture_output=True, text=True)
        assert done.returncode == 0 and "left out" not in done.stderr, done.stderr


@pytest.mark.parametrize("shell", ["2>&1 | head -c 300 > /dev/null", ">&- 2>/dev/null", ">/dev/null 2>&-",
                                   "> /dev/full 2> /dev/full"])  # fmt: skip
def test_output_that_nobody_takes(shell):
    """A tee that was killed ended the run, unsaved."""
    words = " ".join(command("--out", "r", "--steps", 30))
    done = subprocess.run(["bash", "-o", "pipefail", "-c", f"{words} {shell}"], capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert load("r")["step"] == 30


def test_a_log_that_cannot_be_written(capsys):
    Path("r/log.jsonl").mkdir(parents=True)
    assert train("--out", "r", "--steps", 3, "--log-every", 1) == 0
    assert load("r")["step"] == 3 and capsys.readouterr().err.count("no line of step") == 3


def test_statistics_into_a_folder_are_refused_before_the_work(run, monkeypatch, capsys):
    monkeypatch.setattr(jit, "load_inception", lambda path, device: None)
    Path("s.npz").mkdir()
    assert "--stats s.npz" in refused(capsys, "eval", run, "--reference", "shapes", "--stats", "s.npz")


@pytest.mark.parametrize("accum", [1, 4])
def test_a_broken_file_of_a_streamed_folder(accum, monkeypatch, capsys):
    """Alone in its part of a batch, it ended the run, and the same command ended there again."""
    streamed(monkeypatch)
    for i in range(5):
        save(f"d/a/{i}.png", "red", (16, 16))
    Path("d/a/9.png").write_bytes(b"no image")
    assert train("--data", "d", "--out", "r", "--steps", 12, "--accum", accum) == 0
    assert "left out d/a/9.png" in capsys.readouterr().err


def test_where_all_files_of_a_class_are_broken(monkeypatch, capsys):
    """Its samples came from a row of weights that was never trained."""
    save("d/a/1.png", "red")
    Path("d/b").mkdir()
    Path("d/b/1.png").write_bytes(b"no image")
    for limit in (jit.MEMORY_LIMIT, 0):
        monkeypatch.setattr(jit, "MEMORY_LIMIT", limit)
        assert "class b" in refused(capsys, "train", *TINY, "--data", "d")
    Path("d/b/1.png").unlink()
    jit.open_data("d", (3, 16, 16))
    assert "no images in b" in capsys.readouterr().out


def test_saved_by_the_clock(monkeypatch):
    """Ten minutes at most are lost, however slow a step; and saving does not touch the random numbers."""
    assert jit.SAVE_SECONDS == 600
    assert train(*SHORT, "--out", "whole", "--steps", 4) == 0
    monkeypatch.setattr(jit, "SAVE_SECONDS", 0)
    saved, save_checkpoint = [], jit.save_checkpoint
    monkeypatch.setattr(jit, "save_checkpoint", lambda *a: (saved.append(a[3]), save_checkpoint(*a)))
    assert train(*SHORT, "--out", "r", "--steps", 4) == 0
    assert saved == [1, 2, 3, 4] and same(load("r")["model"], load("whole")["model"])


# ---- Silent wrong results ------------------------------------------------------------------------


def test_other_pictures_are_another_run(capsys):
    """Two folders of the same name, with as many images and the same classes; moved, a folder stays the same."""
    save("cats/train/a/1.png", "red"), save("dogs/train/a/1.png", "red", (30, 30))
    assert train("--data", "cats/train", "--steps", 1) == 0
    assert "files" in refused(capsys, "train", *TINY, "--data", "dogs/train", "--steps", 2)
    Path("cats/train").rename("moved")
    assert train("--data", "moved", "--out", "runs/train-Ti-8-x", "--steps", 2) == 0


def test_a_run_inside_its_data(monkeypatch, capsys):
    """Its sheets became training data."""
    save("d/a/1.png", "red")
    assert "--out d/run" in refused(capsys, "train", *TINY, "--data", "d", "--out", "d/run")
    monkeypatch.chdir("d")
    assert "--out runs" in refused(capsys, "train", *TINY, "--data", ".")
    assert [path.name for path in Path().iterdir()] == ["a"]


def test_rank_without_other_processes(run, monkeypatch):
    """RANK=1 alone: all steps were trained and nothing was written; RANK=0: sample was refused."""
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert train("--out", f"r{rank}", "--steps", 1) == 0 and load(f"r{rank}")["step"] == 1
        assert call("sample", run, "--n", 1, "--sampling-steps", 1) == 0


def test_words_that_python_does_not_check():
    """An else branch took pred="X" for v, and solver="Heun" for Euler."""
    z, t = torch.zeros(1, 3, 8, 8), torch.zeros(1)
    with pytest.raises(ValueError, match="pred 'X'"):
        jit.convert(z, z, t, "X")
    with pytest.raises(ValueError, match="solver 'Heun'"):
        list(jit.integrate(lambda z, t: z, z, 2, "Heun"))


def test_checks_stay_under_python_o(run):
    """assert vanishes there: a negative covariance scored 0, weights that are NaN were drawn."""
    np.savez("bad.npz", mu=np.zeros(2048), sigma=-np.eye(2048))
    checkpoint = load(run)
    checkpoint["model_ema1"]["net.pos_embed"].fill_(torch.nan)
    Path("nan").mkdir(), torch.save(checkpoint, "nan/checkpoint-last.pth")
    code = f"""import sys; sys.path.insert(0, {str(ROOT)!r}); import jit, torch
for work in (lambda: jit.load_statistics("bad.npz"), lambda: jit.load_run("nan", "ema1", "cpu"),
             lambda: jit.Inception({{}})(torch.zeros(1, 3, 8, 8))):
    try: work()
    except (jit.Stop, ValueError) as error: print("refused:", error)"""
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)
    assert done.stdout.count("refused:") == 3, done.stderr


def test_a_covariance_with_a_negative_eigenvalue(capsys):
    """Symmetric, with a positive diagonal, and still none: x^2 + y^2 - 4 x y is negative where x = y."""
    sigma = np.eye(2048)
    sigma[0, 1] = sigma[1, 0] = 2
    np.savez("bad.npz", mu=np.zeros(2048), sigma=sigma)
    with pytest.raises(jit.Stop, match="negative eigenvalue"):
        jit.load_statistics("bad.npz")
    sigma[0, 1] = sigma[1, 0] = 1  # singular, which is right
    np.savez("good.npz", mu=np.zeros(2048), sigma=sigma)
    assert jit.load_statistics("good.npz")[1][0, 1] == 1


def tiff_of_12_bits(path, value):
    """A strip of 16 x 16 grey pixels, two in three bytes; Pillow reads such files and writes none."""
    data = bytes([value >> 4, (value & 15) << 4 | value >> 8, value & 255]) * 128
    tags = {256: 16, 257: 16, 258: 12, 259: 1, 262: 1, 273: 8 + 2 + 9 * 12 + 4, 277: 1, 278: 16, 279: len(data)}
    header = b"II*\0" + (8).to_bytes(4, "little") + len(tags).to_bytes(2, "little")
    for tag, number in tags.items():
        header += tag.to_bytes(2, "little") + (4).to_bytes(2, "little") + (1).to_bytes(4, "little")
        header += number.to_bytes(4, "little")
    Path(path).write_bytes(header + bytes(4) + data)


def test_12_bits_are_scaled_by_their_number():
    """4095 is white; as if it were of 16 bits, it was 16 times too dark."""
    for value, wanted in ((4095, 255), (2048, 128), (0, 0)):
        tiff_of_12_bits("1.tif", value)
        assert (decode("1.tif") == wanted).all(), value


def test_16_bits_with_a_transparent_grey():
    """tRNS names the grey that is transparent: it is put on white, as transparency is elsewhere."""
    pixels = np.full((16, 16), 1000, np.uint16)
    pixels[:8] = 30000
    Image.fromarray(pixels).save("1.png", transparency=1000)
    if not Image.open("1.png").info.get("transparency"):  # this Pillow does not write it at 16 bits
        data = Path("1.png").read_bytes()
        chunk = b"tRNS" + (1000).to_bytes(2, "big")
        crc = zlib.crc32(chunk).to_bytes(4, "big")
        Path("1.png").write_bytes(data[:33] + (2).to_bytes(4, "big") + chunk + crc + data[33:])
    decoded = decode("1.png")
    assert (decoded[:, 9:] == 255).all() and (decoded[:, :7] == round(30000 / 257)).all()


def test_fewer_steps_than_the_run_has(capsys):
    """It named a sheet that was never drawn."""
    assert train("--out", "r", "--steps", 4) == 0
    capsys.readouterr()
    assert train("--out", "r", "--steps", 2) == 0
    said = capsys.readouterr().out
    assert "samples-000002" not in said and "4 steps" in said


def test_images_a_second_are_those_of_training(monkeypatch):
    """Saving and drawing took half of what was counted."""
    monkeypatch.setattr(jit, "draw_samples", lambda *a: time.sleep(0.5))
    words = ["--out", "r", "--steps", 4, "--log-every", 1, "--sample-every", 1]
    assert train(*words) == 0
    assert all(line["images_per_s"] > 4 / 0.4 for line in log_of("r")[1:])


def test_guidance_needs_both_sides(capsys):
    """--label-drop 0 leaves "no class" untrained, 1 the classes; guidance followed them without a word."""
    net = jit.JiT(**SMALL, classes=10)
    for label_drop, wanted in ((0.0, 1.0), (0.1, 3.0), (1.0, 1.0)):
        assert jit.guidance_weight(3.0, net, jit.Flow(label_drop=label_drop)) == wanted
    assert jit.guidance_weight(3.0, jit.JiT(**SMALL, classes=1), jit.Flow()) == 1.0
    assert train("--label-drop", 0, "--out", "r0", "--steps", 1) == 0
    assert train("--label-drop", 1, "--out", "r1", "--steps", 1) == 0
    few = ["--n", 2, "--sampling-steps", 1]
    assert call("sample", "r0", *few) == 0 and "no guidance" in capsys.readouterr().err
    assert "--label-drop 1" in refused(capsys, "sample", "r1", *few, "--classes", "star")
    assert call("sample", "r1", *few) == 0


# ---- Memory --------------------------------------------------------------------------------------


def test_steps_of_the_sampler_are_not_kept(monkeypatch):
    """101 images instead of a few: 50 GB for a sheet of 1,024 px."""
    alive, most = [], 0
    integrate = jit.integrate

    def watched(*args, **kwargs):
        nonlocal most
        for t, z, x in integrate(*args, **kwargs):
            alive.extend([weakref.ref(z), weakref.ref(x)])
            gc.collect()
            most = max(most, sum(reference() is not None for reference in alive))
            yield t, z, x
            del z, x

    monkeypatch.setattr(jit, "integrate", watched)
    net = lambda z, t, y: torch.zeros_like(z)  # noqa: E731
    list(jit.sample_images(net, torch.zeros(2, dtype=torch.long), jit.Flow(), (3, 8, 8), sampling_steps=30))
    assert most <= 6


def test_a_checkpoint_is_read_where_it_is_used(run, monkeypatch):
    """sample read the optimizer's numbers, twice the network, and each process of torchrun all of it."""
    seen, torch_load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: seen.append(k.get("mmap")) or torch_load(*a, **k))
    jit.load_checkpoint(run / jit.CHECKPOINT)
    assert seen == [True]


def test_a_line_of_pixels_is_not_enlarged(capsys):
    """60,000 x 1 pixels at --size 64 became 64 x 3,840,000: 1.4 GB."""
    image = Image.new("RGB", (60_000, 1))
    with pytest.raises(ValueError, match="60000 x 1"):
        jit.crop(image, 64, 3)
    assert jit.crop(Image.new("RGB", (500, 10)), 64, 3).shape == (3, 64, 64)


def test_threads_and_memory_are_shared_by_processes(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    monkeypatch.setenv("WORLD_SIZE", "4"), monkeypatch.setenv("RANK", "2"), monkeypatch.setenv("MASTER_ADDR", "x")
    jit.decoders.cache_clear()
    try:
        assert jit.decoders()._max_workers == 3 and jit.processes() == (2, 4)
    finally:
        jit.decoders.cache_clear()


# ---- Messages ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("no"), TypeError("no"), KeyError("no")])
def test_a_bug_keeps_its_traceback(error, run, monkeypatch):
    """Whoever changes jit.py, its main use, must see where it fails."""

    def forward(*args, **kwargs):
        raise error

    monkeypatch.setattr(jit.JiT, "forward", forward)
    with pytest.raises(type(error)):
        train("--out", "r", "--steps", 1)
    with pytest.raises(type(error)):
        call("sample", run, "--n", 1)


def test_stop_says_its_sentence():
    assert str(jit.Stop("a sentence.")) == "a sentence." and jit.Stop("x").code == 2 and jit.Stop("x", 1).code == 1


def test_ctrl_c_names_the_last_saved_step(monkeypatch, capsys):
    """At once, with 130, and the same command goes on."""
    steps = []

    def loss(net, x, y, flow):
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return jit.training_loss(net, x, y, flow)

    monkeypatch.setattr(jit.train, "__defaults__", (*jit.train.__defaults__[:-1], loss))
    words = ["--out", "r", "--steps", 8, "--save-every", 2]
    assert "saved at step 4" in refused(capsys, "train", *TINY, *words, code=130)
    assert train(*words) == 0 and load("r")["step"] == 8


def test_rates_and_other_numbers_of_the_paper():
    """2e-4 at 1,024 images for B to G (official: 5e-5 * batch / 256); dropout of H and G; averages; guidance."""
    for model in "BLHG":
        assert jit.default_recipe(model, 1024) == dict(lr=2e-4, cooldown=0.0)
        assert jit.default_recipe(model, 64)["lr"] == pytest.approx(5e-5)  # a quarter for a sixteenth
        assert jit.MODELS[model].get("dropout", 0) == (0.2 if model in "HG" else 0)
    assert {key: decay for key, (decay, _) in jit.AVERAGES.items()} == dict(model_ema1=0.9999, model_ema2=0.9996)
    for function in (jit.sample_images, jit.guided_velocity, jit.train):
        assert inspect.signature(function).parameters["cfg"].default == 2.0


def test_the_log_by_hand():
    """Losses 1, 2, 6 at t = .05, .05, .95, and a gradient of (3, 4)."""
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([3.0, 4.0])
    line = jit.summarize([(torch.tensor([1.0, 2.0]), torch.tensor([0.05, 0.05])),
                          (torch.tensor([6.0]), torch.tensor([0.95]))], [p])  # fmt: skip
    assert line == dict(loss=3.0, loss_by_t=[1.5] + [None] * 8 + [6.0], grad_norm=5.0)


def test_sheets_are_drawn_by_averages_in_eval_mode(monkeypatch):
    """Of averaged weights, without dropout."""
    seen = []
    monkeypatch.setattr(jit, "draw_samples", lambda path, net, *rest: seen.append(net))
    net = jit.JiT(**SMALL, dropout=0.2, classes=10)
    jit.train(net, jit.Flow(), jit.Shapes(16), "r", 2, batch_size=4, lr=0.1, warmup=0)
    (drawn,) = seen
    assert drawn is not net and not drawn.training and net.training
    assert same({f"net.{k}": v for k, v in drawn.state_dict().items()}, load("r")["model_ema1"])


def test_streams_of_a_notebook(monkeypatch):
    """sys.stdout is any object there, without reconfigure or encoding."""

    class Stream:
        text = ""

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    stream = Stream()
    print("caf\udce9 кот", file=jit.Output(stream))
    assert "кот" in stream.text


def test_a_folder_that_cannot_be_written_is_found_before_the_images(monkeypatch, capsys):
    save("d/a/1.png", "red"), Path("file").write_text("")
    monkeypatch.setattr(jit, "open_data", None)
    assert "file/r cannot be written to" in refused(capsys, "train", *TINY, "--data", "d", "--out", "file/r")


def test_one_image_has_no_covariance(run, monkeypatch, capsys):
    monkeypatch.setattr(jit, "load_inception", lambda path, device: Mean())
    monkeypatch.setattr(jit, "moments", None)
    assert "--n" in refused(capsys, "eval", run, "--n", 1)
    save("one/1.png", "red"), save("two/1.png", "red"), save("two/2.png", "red")
    assert "one image" in refused(capsys, "eval", "one", "--size", 16, "--reference", "two")


def test_accents_and_commas_in_class_names(capsys):
    """macOS splits an accented letter in two, and a comma stands between names."""
    names = [unicodedata.normalize("NFD", "café"), "a, b", "star"]
    for wanted, label in ((unicodedata.normalize("NFC", "café"), 0), (names[0], 0), ("a, b", 1), ("2", 2)):
        assert jit.pick_classes(1, 3, names, wanted)[0].tolist() == [label]


def test_captions_stay_over_their_image():
    """Of more than 16 letters they ran into each other."""
    images = torch.zeros(2, 3, 96, 96, dtype=torch.uint8)
    jit.draw_sheet("1.png", images, ["W" * 60, ""])
    jit.draw_sheet("2.png", images, ["", ""])
    one, two = np.asarray(Image.open("1.png")), np.asarray(Image.open("2.png"))
    assert (one[:, 100:] == two[:, 100:]).all() and (one[:, :100] != two[:, :100]).any()


@pytest.mark.parametrize("flags", [dict(noise_scale=None, t_eps=0.1), {}])
def test_official_flags_as_a_dict(flags):
    checkpoint = torch.load(official_checkpoint(filled(), "o.pth"), weights_only=False) | dict(args=flags)
    torch.save(checkpoint, "o.pth")
    _, flow, _ = jit.load_run("o.pth", "ema1", "cpu")
    assert flow.noise_scale == 1.0 and flow.t_clip == flags.get("t_eps", 0.05)


def test_a_flag_that_no_function_takes_is_an_error():
    """Flags ride on the names of parameters: a name that is none did nothing, without a word."""
    with pytest.raises(KeyError):
        jit.add_flag(argparse.ArgumentParser(), "stpes", jit.train, int, "")


def test_a_batch_that_does_not_split(monkeypatch):
    """Asked from Python too: 5 images in 2 parts were 4."""
    with pytest.raises(jit.Stop, match="--accum 2"):
        jit.train(jit.JiT(**SMALL, classes=10), jit.Flow(), jit.Shapes(16), "r", 1, batch_size=5, accum=2)


def test_reference_shapes_is_the_word(run, monkeypatch, capsys):
    """And ./shapes a folder: a path forgets the dot."""
    opened = []
    monkeypatch.setattr(jit, "load_inception", lambda path, device: Mean())
    monkeypatch.setattr(jit, "open_data", lambda name, shape: opened.append(name) or jit.Shapes(shape[1]))
    monkeypatch.setattr(jit, "frechet_distance", lambda *moments: 0.0)
    for name in ("shapes", "./shapes"):
        assert call("eval", run, "--n", 2, "--sampling-steps", 1, "--reference", name) == 0
    assert opened == ["shapes", "./shapes"]


def test_a_result_that_could_not_be_written_is_no_success(run, monkeypatch, capsys):
    """eval > FILE on a full disk: the number is lost, and the exit code must say so."""
    monkeypatch.setattr(jit, "load_inception", lambda path, device: Mean())
    monkeypatch.setattr(jit, "frechet_distance", lambda *moments: 0.0)

    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self):
            pass

    monkeypatch.setattr(sys, "stdout", jit.Output(Full()))
    assert call("eval", run, "--n", 2, "--sampling-steps", 1, "--reference", "shapes") == 2
    assert "could not be written" in capsys.readouterr().err


def test_a_bug_in_the_sampler_is_no_missing_sheet(monkeypatch):
    """Only memory and disk may cost a sheet; a mistake in the code is told with its place."""
    monkeypatch.setattr(jit, "guided_velocity", None)
    with pytest.raises(TypeError):
        train("--out", "r", "--steps", 1)
    assert load("r")["step"] == 1  # saved before
