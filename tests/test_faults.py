"""What people feed it: odd folders, files, flags and surroundings, found by trying others' public bug reports.

Nothing of it may end in a traceback, give a wrong result without a word, or lose finished work."""

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import jit
from test_runs import (ROOT, SMALL, TINY, call, colours, decode, filled, inputs, load,  # noqa: F401
                       official_checkpoint, open_data, own_folder, run, same, save, train)  # fmt: skip

def refused(capsys, *words, code=2):
    """What is said where a command ends with exit code 2, in one line."""
    capsys.readouterr()
    assert call(*words) == code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    (line,) = [line for line in re.split("[\r\n]", said) if "jit.py: " in line]  # \r: a bar
    assert len(line) < 400
    return line


class Mean:
    """In the place of Inception, which is large: 2048 features that are sums of pixels, and 1008 logits."""

    def __call__(self, images):
        pixels = images.flatten(1).float() / 255
        mix = torch.randn(pixels.shape[1], 2048, generator=torch.Generator().manual_seed(0))
        features = pixels @ mix / pixels.shape[1] ** 0.5
        return features, features[:, :1008]


@pytest.fixture
def mean_features(monkeypatch):
    monkeypatch.setattr(jit, "load_inception", lambda path, device: Mean())


@pytest.fixture
def quick_distance(monkeypatch):
    """Between the means alone: with 2048 features frechet_distance takes seconds."""
    monkeypatch.setattr(jit, "frechet_distance", lambda mu1, s1, mu2, s2: float(np.square(mu1 - mu2).sum()))


# ---- Silent wrong results (1 to 9 of FAULTS) -----------------------------------------------------


def statistics(mu=0.0, sigma=1.0):
    return dict(mu=np.full(2048, mu), sigma=np.diag(np.full(2048, sigma)))


BAD_STATISTICS = {
    "nan mean": lambda: statistics(mu=np.nan), "infinite mean": lambda: statistics(mu=np.inf),
    "nan covariance": lambda: statistics(sigma=np.nan), "infinite covariance": lambda: statistics(sigma=np.inf),
    "negative variance": lambda: statistics(sigma=-1.0),
    "not symmetric": lambda: dict(mu=np.zeros(2048), sigma=np.eye(2048) + np.eye(2048, k=1)),
    "another network": lambda: dict(mu=np.zeros(496), sigma=np.eye(496)),
    "a column": lambda: dict(mu=np.zeros((2048, 1)), sigma=np.eye(2048)),
    "no sigma": lambda: dict(mu=np.zeros(2048)), "images": lambda: dict(arr_0=np.zeros((2, 8, 8, 3), np.uint8)),
    "words": lambda: dict(mu=np.array(["a"]), sigma=np.eye(1)),
    "objects": lambda: dict(mu=np.array([None, 1], dtype=object), sigma=np.eye(1)),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_STATISTICS)
def test_impossible_statistics_are_refused_before_the_work(kind, run, mean_features, monkeypatch, capsys):
    """max(0, nan) is 0, the best FID there is; and a covariance below 0 subtracts what it should add. Drawing 50,000
    images comes after that."""
    np.savez("bad.npz", **BAD_STATISTICS[kind]())
    monkeypatch.setattr(jit, "integrate", None)  # would fail if anything were drawn
    assert "bad.npz" in refused(capsys, "eval", run, "--reference", "bad.npz")


@pytest.mark.parametrize("contents", [b"", b"<html>Not found</html>", b"PK\x03\x04 and no more"])
def test_files_that_are_no_statistics(contents, run, mean_features, capsys):
    Path("bad.npz").write_bytes(contents)
    assert "bad.npz" in refused(capsys, "eval", run, "--reference", "bad.npz")
    np.save("list.npy", np.zeros(3))
    assert "list.npy" in refused(capsys, "eval", run, "--reference", "list.npy")


def test_a_distance_from_what_is_not_finite_is_not_zero():
    """max(0, nan) is 0, and max(nan, 0) is nan: wrong numbers may not come out as the best one."""
    good, bad = (np.zeros(4), np.eye(4)), (np.array([0, np.nan, 0, 0]), np.eye(4))
    assert not np.isfinite(jit.frechet_distance(*good, *bad)) and not np.isfinite(jit.frechet_distance(*bad, *good))
    with pytest.raises(np.linalg.LinAlgError):
        jit.frechet_distance(*good, np.zeros(4), np.eye(4) * np.nan)


FLOATS = {"train": "mu sigma lr noise-scale label-drop t-clip cfg", "sample": "cfg t-clip"}
NUMBERS = [f"{command} --{name} {value}" for command, names in FLOATS.items() for name in names.split()
           for value in ("nan", "inf", "-inf", "1e999")]  # fmt: skip
NUMBERS += [f"train --{name} 0" for name in """sigma noise-scale lr t-clip steps accum size heads depth width
            batch-size log-every save-every sample-every""".split()]  # fmt: skip
NUMBERS += ["train --noise-scale -1", "train --label-drop 1.5", "train --label-drop -0.1", "train --t-clip 2",
            "train --seed 18446744073709551616", "train --seed -1", "train --context-tokens -1", "train --warmup -1",
            "train --steps 1e3", "train --model Ti/0", "train --model Ti/-8", "train --model Ti/", "train --model /8",
            "train --depth 99999999999999999999999", "sample --interval 1 0.1", "sample --interval nan 1",
            "sample --interval 0.1 nan", "sample --interval 0.5 0.5", "sample --interval 2 3",
            "sample --interval -1 0.5", "sample --t-clip 2", "sample --t-clip 0", "sample --n 0",
            "sample --seed 18446744073709551616", "sample --batch-size 0", "eval --n 0", "eval --size 0",
            "eval --interval 1 0", "eval --cfg nan"]  # fmt: skip


@pytest.mark.parametrize("words", NUMBERS)
def test_numbers_out_of_range_are_refused(words, run, capsys):
    """A clamp or a comparison passes what is not a number, and a range that is empty does nothing without a word."""
    command, *flags = words.split()
    said = refused(capsys, command, *([*TINY, "--steps", 1] if command == "train" else [run]), *flags)
    assert flags[0] in said and not Path("runs").exists()


def test_zero_is_right_where_it_means_something():
    """No bottleneck, no in-context tokens, all with their class, no warm-up, seed 0, sheets without class."""
    flags = "--bottleneck 0 --context-tokens 0 --label-drop 0 --warmup 0 --seed 0 --cfg 0 --mu 0 --steps 1".split()
    assert train(*flags, "--out", "r") == 0
    assert call("sample", "r", "--n", 1, "--sampling-steps", 1, "--interval", 0, 1, "--cfg", 0, "--t-clip", 1) == 0


def test_shapes_is_a_word_and_other_spellings_are_folders(mean_features, quick_distance, capsys):
    """--data ./shapes trained on the built-in shapes; the folder must be meant wherever a path is written."""
    for i, colour in enumerate(("red", "blue", "red", "blue")):
        save(f"shapes/{'ab'[i % 2]}/{i}.png", colour)
    for name in ("./shapes", "shapes/", str(Path("shapes").resolve())):
        assert open_data(name).names == ["a", "b"]
    assert open_data("shapes").names == jit.SHAPES
    assert train("--steps", 1) == 0  # both would be runs/shapes-Ti-8-x
    assert "classes ['disc'" in refused(capsys, "train", *TINY, "--data", "./shapes", "--steps", 1)
    assert call("eval", "shapes", "--size", 16, "--reference", "./shapes") == 0  # a run or a folder, never the word
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["fid_4"] < 1e-6


@pytest.mark.parametrize("words", ["train --data", "train --out", "sample", "eval", "sample RUN --png-dir",
                                   "eval RUN --reference", "eval RUN --inception", "eval RUN --stats"])  # fmt: skip
def test_empty_words_are_refused(words, run, monkeypatch, capsys):
    """What a variable that is not set leaves. As a path it is the current folder, with whatever lies there."""
    save("a/1.png", "red"), save("b/1.png", "red")
    Path("empty").mkdir()
    for folder in (".", "empty"):
        monkeypatch.chdir(folder)
        refused(capsys, *[str(run) if word == "RUN" else word for word in words.split()], "")
        assert sorted(path.name for path in Path().iterdir()) in (["a", "b", "empty"], [])


@pytest.mark.parametrize("names", ["train valid test", "Train Val", "training validation", "TRAIN", "dev test"])
def test_splits_are_no_classes(names, capsys):
    """ImageFolder learns to tell training from test images. One of the folders must be given."""
    for name in names.split():
        for i in range(2):
            save(f"d/{name}/cat/{i}.png", "red")
    assert names.split()[0] in refused(capsys, "train", *TINY, "--data", "d")
    assert open_data(f"d/{names.split()[0]}").names == ["cat"]


def test_train_is_also_a_vehicle():
    """Only where all names are splits can they be no classes."""
    save("d/train/1.png", "red"), save("d/car/1.png", "blue")
    assert open_data().names == ["car", "train"]


def test_links_in_a_circle(capsys):
    """Each image once, whether links lead up, to each other or to themselves; among the classes, one is refused."""
    save("d/a/1.png", "red"), save("d/b/2.png", "blue")
    Path("d/a/up").symlink_to("..")
    Path("d/a/other").symlink_to("../b"), Path("d/b/other").symlink_to("../a")
    Path("d/a/self").symlink_to("self"), Path("d/ring").symlink_to("gnir"), Path("d/gnir").symlink_to("ring")
    data = open_data()
    assert data.names == ["a", "b"] and colours(data.pixels) == [[255, 0, 0], [0, 0, 255]]
    assert "2 images" in capsys.readouterr().out
    for place in (".", "..", str(Path().resolve())):
        Path("d/all").symlink_to(place)
        assert "d/all" in refused(capsys, "train", *TINY, "--data", "d")
        Path("d/all").unlink()


def test_what_is_left_out_is_counted_by_kind(capsys):
    """Types that PIL cannot open, no suffix, links to what is gone, linked folders below a class: never silently."""
    save("d/a/1.png", "red"), save("d/b/2.PPM", "blue"), save("elsewhere/3.png", "green")
    Path("d/a/2.heic").write_bytes(b"?"), Path("d/a/README").write_text("?"), Path("d/b/4.heic").write_bytes(b"?")
    Path("d/a/more").symlink_to("../../elsewhere"), Path("d/b/gone.png").symlink_to("nowhere.png")
    data = open_data()
    assert data.names == ["a", "b"] and colours(data.pixels) == [[255, 0, 0], [0, 0, 255]]
    out, err = capsys.readouterr()
    assert "2 (.heic)" in out and "2 (no suffix)" in out  # README, and the linked folder
    assert "gone.png" in err and "1 of 3" in err


def test_a_class_that_is_only_links_to_what_is_gone(capsys):
    """The disk with the images is not mounted: not one class fewer."""
    save("d/a/1.png", "red")
    Path("d/b").mkdir()
    Path("d/b/1.png").symlink_to("/nowhere/1.png")
    assert "class b" in refused(capsys, "train", *TINY, "--data", "d")


def test_unreadable_folders_are_named(monkeypatch, capsys):
    """Python's rglob passes them by; the class would be gone. Root may read all, so the system's answer is feigned."""
    save("d/a/1.png", "red"), save("d/b/deep/1.png", "blue"), save("d/b/2.png", "blue")
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != Path("d/b") and access(path, mode))
    assert "d/b" in refused(capsys, "train", *TINY, "--data", "d")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != Path("d/b/deep") and access(path, mode))
    open_data()
    assert "left out 1 (no suffix)" in capsys.readouterr().out  # below a class it is counted


def test_pixels_of_unknown_range_are_left_out(capsys):
    """32 bits and floats may have any range: cast, they would wrap round. Left out, with the reason, and counted."""
    ramp = np.linspace(0, 1_000_000, 400).reshape(20, 20)
    save("d/a/1.png", "red")
    for name, array in (("int.tif", ramp.astype(np.int32)), ("float.tif", ramp.astype(np.float32)),
                        ("unit.tiff", (ramp / 1e6).astype(np.float32))):  # fmt: skip
        Image.fromarray(array).save(f"d/a/{name}")
    assert len(open_data().pixels) == 1
    said = capsys.readouterr().err
    assert all(f"{name}: pixels of mode" in said for name in ("int.tif", "float.tif", "unit.tiff")) and "3 of 4" in said


@pytest.mark.parametrize("top", [250, 300, 4095, 65535])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_by_their_mode(top, suffix):
    """Guessed from the largest value, a dark picture would be 256 times as bright as its neighbour."""
    Image.fromarray(np.full((16, 16), top, np.uint16)).save(f"1.{suffix}")
    assert (decode(f"1.{suffix}") == round(top / 257)).all()


def test_flags_that_would_do_nothing_are_refused(run, capsys):
    """Shapes are never mirrored, so --flip there is a mistake; a file that is no run has no --size to choose."""
    assert "--flip" in refused(capsys, "train", *TINY, "--flip", "--steps", 1)


@pytest.mark.parametrize("words", [[], ["--n", 2]])
def test_images_of_before_are_not_mixed_with_new_ones(words, run, capsys):
    """A program that measures the folder would take both."""
    few = ["sample", run, "--sampling-steps", 1, "--png-dir", "p"]
    assert call(*few, "--n", 5) == 0
    before = {path.name: path.read_bytes() for path in Path("p").iterdir()}
    assert "--png-dir p" in refused(capsys, *few, *words)
    assert {path.name: path.read_bytes() for path in Path("p").iterdir()} == before and len(before) == 5


# ---- Tracebacks and lost work (10 to 22) ---------------------------------------------------------


@pytest.mark.parametrize("error", [OSError("disk full"), torch.OutOfMemoryError("CUDA out of memory")])
def test_no_picture_stops_a_training(error, monkeypatch, capsys):
    """A sheet of 40 images may take more memory than training does; it is said, and the run goes on."""

    def draw_sheet(*args):
        raise error

    monkeypatch.setattr(jit, "draw_sheet", draw_sheet)
    assert train("--out", "r", "--steps", 3, "--sample-every", 1) == 0
    assert load("r")["step"] == 3 and capsys.readouterr().err.count(str(error)) == 3


def python(*words, **environment):
    """A process of its own: exit code, stdout, stderr."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, capture_output=True, env=os.environ | environment, timeout=60)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done.returncode, done.stdout, done.stderr


def test_surroundings_of_a_notebook_and_of_windows():
    """What `!python` in a notebook passes on as backend, a console of 256 characters, variables of torchrun that are
    empty, and class names in Cyrillic and in bytes that are no text."""
    for name in ("кот", "犬", os.fsdecode(b"caf\xe9")):
        save(Path("d", name, "1.png"), "red")
    odd = dict(MPLBACKEND="module://matplotlib_inline.backend_inline", PYTHONIOENCODING="cp1252")
    odd |= dict(RANK="", WORLD_SIZE="", LOCAL_RANK="")
    assert python(ROOT / "jit.py", "train", *TINY, "--data", "d", "--out", "кот", "--steps", "1", **odd)[0] == 0
    words = ["--n", 3, "--sampling-steps", 1, "--classes", "кот,犬"]
    code, out, _ = python(ROOT / "jit.py", "sample", "кот", *words, **odd)
    assert code == 0 and b"samples.png" in out
    assert len(load("кот")["config"]["names"]) == 3


def test_names_of_any_kind(capsys):
    """Of a thousand classes an error names a few; a name may be a number, hold a comma or a line break."""
    for i in range(300):
        save(f"d/{i:03d} of a long list of names/1.png", "red", (4, 4))
    save("d/7/1.png", "red"), save("d/a,b/1.png", "red"), save("d/a\nb/1.png", "red")
    assert train("--data", "d", "--out", "r", "--steps", 1) == 0
    assert "--classes cow" in refused(capsys, "sample", "r", "--classes", "cow")
    few = ["sample", "r", "--n", 1, "--sampling-steps", 1]
    assert call(*few, "--classes", "7", "--png-dir", "name") == 0
    number = load("r")["config"]["names"].index("7")
    assert call(*few, "--classes", number, "--png-dir", "number") == 0
    assert Path("name/000000.png").read_bytes() == Path("number/000000.png").read_bytes()
    Path("d/7").rename("d/8")
    assert "classes" in refused(capsys, "train", *TINY, "--data", "d", "--out", "r", "--steps", 2)


def test_disk_full_while_saving(capsys):
    """The half file goes, or the disk stays full; the old checkpoint stays. A limit on the size of a file is as good as
    a full disk: the system refuses to write on."""
    assert train("--out", "r", "--steps", 2) == 0
    before = load("r")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (Path("r/checkpoint-last.pth").stat().st_size // 2, limits[1]))
    try:
        capsys.readouterr()
        code = train("--out", "r", "--steps", 4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert code in (1, 2) and "jit.py: " in said and "Traceback" not in said
    assert same(load("r"), before) and not list(Path("r").glob(".*"))
    assert train("--out", "r", "--steps", 4) == 0


def test_torch_that_cannot_save(monkeypatch, capsys):
    """The same where the error comes as an OSError after some bytes."""
    assert train("--out", "r", "--steps", 1) == 0
    before = load("r")

    def half(checkpoint, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        assert "No space left" in refused(capsys, "train", *TINY, "--out", "r", "--steps", 2)
    assert same(load("r"), before) and not list(Path("r").glob(".*"))


def test_where_the_result_goes_is_looked_at_first(run, monkeypatch, mean_features, capsys):
    """A read-only folder is found before 50,000 images are drawn."""
    monkeypatch.setattr(jit, "integrate", None)  # would fail if anything were drawn
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # as on a disk that is read-only
    for words in (["sample", run], ["sample", run, "--png-dir", "p"], ["eval", run, "--stats", "s/x.npz"],
                  ["train", *TINY, "--out", "r"]):  # fmt: skip
        assert "cannot be written to" in refused(capsys, *words)


@pytest.mark.parametrize("spoil", [b"\0" * 100, b'{"step": 1, "lo', b"\xff\xfe no text\n", b""])
def test_a_damaged_log_does_not_matter(spoil):
    """What counts is the checkpoint."""
    assert train("--out", "r", "--steps", 1) == 0
    Path("r/log.jsonl").write_bytes(spoil)
    assert train("--out", "r", "--steps", 2) == 0 and load("r")["step"] == 2
    Path("r/log.jsonl").unlink()
    assert train("--out", "r", "--steps", 3) == 0 and load("r")["step"] == 3


@pytest.mark.parametrize("where", ["cache", "flag"])
def test_a_damaged_download_is_found(where, run, monkeypatch, capsys):
    """A page that says the file is not there, under the name of the file; our message tells people to put it there."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(Path("hub").resolve()))
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)  # a call would fail
    path = Path("hub/checkpoints", Path(jit.INCEPTION_URL).name) if where == "cache" else Path("mine.pth")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"<html>Not Found</html>")
    said = refused(capsys, "eval", run, *(["--inception", path] if where == "flag" else []))
    assert path.name in said and "SHA-256" in said


def test_data_that_moved(capsys):
    """The same classes and number of images under another name, or given absolutely: the run goes on."""
    for name, colour in (("a", "red"), ("b", "blue")):
        save(f"d/{name}/1.png", colour)
    assert train("--data", "d", "--out", "r", "--steps", 1) == 0
    assert train("--data", Path("d").resolve(), "--out", "r", "--steps", 2) == 0
    Path("d").rename("moved")
    capsys.readouterr()
    assert train("--data", "moved", "--out", "r", "--steps", 3) == 0 and load("r")["step"] == 3
    assert load("r")["config"]["data"] == "moved"  # eval looks there from now on


def test_training_from_python():
    """As in a notebook or a web demo, in a thread or not."""

    def work(out):
        jit.train(jit.JiT(**SMALL, classes=10), jit.Flow(), jit.Shapes(16), out, 2, batch_size=4)

    work("main")
    thread = threading.Thread(target=work, args=("thread",))
    thread.start(), thread.join()
    assert same(load("main")["step"], 2) and load("thread")["step"] == 2


@pytest.mark.parametrize("environment", [dict(RANK="", WORLD_SIZE="", LOCAL_RANK=""), dict(RANK="0", WORLD_SIZE="1")])
def test_an_empty_environment_of_torchrun(environment, monkeypatch):
    """export RANK= is as good as none, and one process of torchrun is one process."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert train("--out", "r", "--steps", 1) == 0


@pytest.mark.parametrize("environment", [dict(WORLD_SIZE="two"), dict(RANK="0", WORLD_SIZE="2")])
def test_an_odd_environment_of_torchrun(environment, monkeypatch, capsys):
    """No numbers, or a number of processes without the others' address: one sentence."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    refused(capsys, "train", *TINY, "--steps", 1)


def test_torchrun_is_for_training(run, monkeypatch, capsys):
    """Each process would draw every image and write the same files."""
    monkeypatch.setenv("RANK", "1"), monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    for words in (["sample", run], ["eval", run]):
        assert "torchrun" in refused(capsys, *words)


# ---- Messages that help (23 to 25) ---------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["net.", "", "_orig_mod.", "module.", "net._orig_mod.", "module.net."])
def test_usual_prefixes_are_stripped(prefix):
    """torch.compile and DistributedDataParallel put their own before each name."""
    net = filled()
    official_checkpoint(net, "official.pth", prefix)
    assert torch.equal(jit.load_run("official.pth", "raw", "cpu")[0](*inputs()), net(*inputs()).detach())


def test_an_unusual_prefix_is_one_sentence(capsys):
    """Not a list of all names."""
    official_checkpoint(filled(), "official.pth", "denoiser.")
    assert "official.pth" in refused(capsys, "sample", "official.pth")


def test_only_raw_weights(capsys):
    """A file without averages says how to use it."""
    torch.save(dict(model={"net." + name: p for name, p in filled().state_dict().items()}), "only.pth")
    assert "--weights raw" in refused(capsys, "sample", "only.pth")
    assert call("sample", "only.pth", "--weights", "raw", "--n", 1, "--sampling-steps", 1) == 0


SPOILED = {
    "empty": b"", "page": b"<html>", "cut": None, "no model": dict(epoch=3), "no weights": dict(model={}),
    "weights alone": {"net.pos_embed": torch.zeros(1)}, "of another network": dict(model={"w": torch.zeros(1)}),
    "a tensor": torch.zeros(3), "none": dict(model=None), "nothing": None,
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOILED)
def test_files_that_are_no_checkpoints(kind, run, capsys):
    """One sentence with the name of the file, for sampling and for going on alike."""
    Path("r").mkdir()
    contents = SPOILED[kind]
    if kind == "cut":
        contents = (run / "checkpoint-last.pth").read_bytes()[:5000]
    if isinstance(contents, bytes):
        Path("r/checkpoint-last.pth").write_bytes(contents)
    else:
        torch.save(contents, "r/checkpoint-last.pth")
    for words in (["sample", "r", "--weights", "raw"], ["eval", "r"], ["train", *TINY, "--out", "r"]):
        said = refused(capsys, *words)
        assert "r/checkpoint-last.pth" in said and "weights_only" not in said  # torch advises to run whatever is in it


@pytest.mark.parametrize("key", ["optimizer", "model_ema2", "config", "step"])
def test_a_checkpoint_made_smaller_cannot_go_on(key, capsys):
    """Who takes the optimizer out to save room can still draw, and is told why training ends."""
    assert train("--out", "r", "--steps", 1) == 0
    checkpoint = load("r")
    del checkpoint[key]
    torch.save(checkpoint, "r/checkpoint-last.pth")
    assert "r/checkpoint-last.pth" in refused(capsys, "train", *TINY, "--out", "r", "--steps", 2)
    assert call("sample", "r", "--n", 1, "--sampling-steps", 1) == 0


def test_one_block(capsys):
    """The preset's in-context tokens would join after the last block, and never; a depth alone says what to add."""
    said = refused(capsys, "train", *TINY, "--depth", 1, "--steps", 1)
    assert "context_start 1" in said and "depth 1" in said
    assert train("--depth", 1, "--context-start", 0, "--steps", 1, "--out", "r") == 0
    assert train("--depth", 1, "--context-tokens", 0, "--steps", 1, "--out", "s") == 0
    with pytest.raises(ValueError, match="context_start"):
        jit.JiT(**SMALL | dict(context_start=4), classes=10)


UNFIT = [("--size 20", "size 20"), ("--size 20 --patch 16", "patch 16"), ("--width 100 --heads 3", "width 100"),
         ("--heads 5", "heads 5")]  # fmt: skip


@pytest.mark.parametrize("words, phrase", UNFIT)
def test_sizes_that_do_not_fit(words, phrase, capsys):
    """A sentence with the numbers, not where in the network they failed."""
    assert phrase in refused(capsys, "train", *TINY, "--steps", 1, *words.split())


LACKS = {
    "memory of a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nMore"),
    "memory": MemoryError(),
    "memory of a CPU": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte"),
}


@pytest.mark.parametrize("error", LACKS.values(), ids=LACKS)
def test_what_the_machine_lacks_is_one_sentence(error, run, monkeypatch, capsys):
    """Memory, which ends most runs on a GPU: a sentence, not a hundred lines."""

    def lack(*args, **kwargs):
        raise error

    monkeypatch.setattr(jit.JiT, "forward", lack)
    for words in (["train", *TINY, "--steps", 1], ["sample", run]):
        assert "out of memory" in refused(capsys, *words, code=1)
