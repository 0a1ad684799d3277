"""What the scripts beside this file share: jit.py on the path, colours, the log of a run, and how a script ends."""

import argparse
import functools
import hashlib
import importlib.util
import json
import math
import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import jit  # noqa: E402

if "inline" in os.environ.get("MPLBACKEND", "") and not importlib.util.find_spec("matplotlib_inline"):
    del os.environ["MPLBACKEND"]  # a notebook has set it for its own Python; here it stops `import matplotlib`

# Colour-blind safe (Okabe and Ito). The first three mean x, eps and v or their predictions, nothing else.
X, EPS, V = "#0072B2", "#D55E00", "#E69F00"
GREEN, SKY, PINK = "#009E73", "#56B4E9", "#CC79A7"
INK, GREY, PALE = "#222222", "#666666", "#F2F2F2"


class Parser(argparse.ArgumentParser):
    """The docstring of a script as its help; one sentence for a wrong flag."""

    def __init__(self, description, **settings):
        style = dict(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
        super().__init__(description=description, **style | settings)

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; --help lists what there is.\n")


def exit_code(script, work, interrupted="interrupted"):
    """Do the work of a script. What went wrong becomes a sentence, and the code: 2 for a mistake, 130 for Ctrl-C."""
    try:
        work()
    except KeyboardInterrupt:
        print(f"{script}: {interrupted}", file=sys.stderr)
        return 130
    except jit.Stop as stop:
        print(f"{script}: {stop}", file=sys.stderr)
        return stop.code
    except OSError as error:  # a full disk, a folder that cannot be written to
        print(f"{script}: {error}", file=sys.stderr)
        return 2
    return 0


def make_folder(path):
    """A folder that can be written to: to be known before the work, not after it."""
    jit.check_writable(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def save_figure(figure, path, dpi):
    """Draw to a file beside it, then rename: a picture is the old one or the new one."""
    jit.write_whole(path, functools.partial(figure.savefig, dpi=dpi))


def read_log(run):
    """log.jsonl of a run as a list of dicts, by step. A run that was killed may have left half a line; when it goes on
    it writes some steps again, and of these the last line counts."""
    path = Path(run, "log.jsonl")
    lines = {}
    for text in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
            lines[line["step"]] = line
        except (ValueError, TypeError, KeyError):
            continue
    return [lines[step] for step in sorted(lines)]


def real_images(data, n, seed):
    """n images, or as many as there are, as training gets them: uint8 (n, C, S, S), and their classes (n,)."""
    n = n if isinstance(data, jit.Shapes) else min(n, len(data.labels))
    torch.manual_seed(seed)
    places = [range(i, min(i + 50, n)) for i in range(0, n, 50)]
    batches = list(jit.data_batches(data, places, seed, torch.device("cpu")))
    return jit.to_uint8(torch.cat([x for x, _ in batches])), torch.cat([y for _, y in batches])


@functools.cache
def version_of_shapes():
    """Six letters that change with the built-in shapes: what has been learned from others must not be used."""
    digest = hashlib.sha256(json.dumps(jit.FACTORS).encode())
    for name, polygons in jit.shape_outlines().items():
        digest.update(name.encode())
        for polygon in polygons:  # to a thousandth: the last digits differ from machine to machine
            digest.update((torch.view_as_real(polygon) * 1000).round().int().numpy().tobytes())
    return digest.hexdigest()[:6]


@functools.cache
def version_of_folder(data):
    """Six letters that change with the names and sizes of the files in a folder."""
    try:
        return jit.find_images(data, (3, 1, 1)).fingerprint[:6]
    except jit.Stop:  # the pictures are gone, but not what was drawn of them
        return hashlib.sha256(str(Path(data).resolve()).encode()).hexdigest()[:6]


def version_of(data):
    """Six letters that change with the data: shapes, or a folder."""
    return version_of_shapes() if data == "shapes" else version_of_folder(data)


def density_of_t(t, mu, sigma=0.8):
    """p(t) of logit-normal t: the normal density of logit t, times d logit t / dt = 1 / (t (1 - t))."""
    normal = torch.exp(-(((t.logit() - mu) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))
    return normal / (t * (1 - t))
