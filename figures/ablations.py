"""The tables of the JiT paper in miniature: each study trains a few small networks and shows them side by side.

    python figures/ablations.py nine                              Table 2: predict x, eps or v; loss on x, eps or v
    python figures/ablations.py nine --seeds 3                    the same with three training seeds: mean +- sd
    python figures/ablations.py nine --data PHOTOS --scale gpu    the same on photographs, PHOTOS/CLASS/*.jpg, on a GPU
    python figures/ablations.py shift bottleneck                  or lossbyt ladder precond resolution solver guidance
    python figures/ablations.py gate                              what v-prediction lacks: one number, learned
    python figures/ablations.py nine --draw-only                  table and figure again, from what is there

A study is a list of cells; a cell is a network to train, how to sample it, and its place in the figure. Cells that
need the same network share it, across studies too. All that is trained and drawn is kept in runs/ablations/SCALE, and a
study that was stopped, or killed, goes on there. It leaves figures/STUDY.png, the pictures (same noise in every cell),
and figures/STUDY.md, the numbers.

Scores    rfd: Frechet distance on the features of a small fixed random network (figures/rfd.py). It needs no
          download, is not FID, and compares within one table only. Beside it the floor, what other real images score.
          FID, of as many images as the table says, if the Inception weights are there (`python jit.py eval` gets them).
          agreement, of shapes, if figures/agreement.py has trained its classifier: the share of samples that it takes
          for the shape that was asked for.
Settings  Tables 2, 3, 10 and Figure 4 are, as in the paper, without RoPE, qk-norm, in-context tokens, guidance
          interval and (but for Figure 4) bottleneck. The paper sweeps guidance and EMA for each entry; here both stay.
"""

import argparse
import dataclasses
import functools
import hashlib
import inspect
import json
import math
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import agreement
import common
import numpy as np
import rfd
import torch
import torch.nn.functional as F
import variants
from common import GREY, INK, ROOT, jit
from matplotlib.figure import Figure
from tqdm import tqdm

# ---- The studies -------------------------------------------------------------------------------------------------

# n samples are scored against `reference` real images. Image size and patch: large, small, such that a patch has 768 or
# 48 numbers; whole, for the studies of the whole network; sizes, the same number of tokens. On a CPU `large` is of four
# tokens: without RoPE and bottleneck a small network takes thousands of steps to learn where each of 16 patches stands.
# The recipe is that of jit.train, sampling that of jit.sample_images; recipes says what else `small` and `whole` need.
SCALES = {
    "cpu": dict(  # the built-in shapes, network 128 wide
        network=jit.MODELS["Ti"],
        recipe=dict(steps=5000, batch_size=32, lr=2e-3, decay=1.0),
        recipes=dict(small=dict(steps=2500, batch_size=16), whole=dict(steps=3000, batch_size=16)),
        sampling=dict(cfg=2.0, sampling_steps=25, batch_size=50),
        n=300,
        reference=3000,
        large=(32, 16),
        small=(32, 4),
        whole=(64, 16),
        sizes=[(32, 8), (64, 16), (128, 32)],
    ),
    "gpu": dict(  # photographs, network 384 wide
        network=jit.MODELS["S"],
        recipe=dict(steps=2500, batch_size=128, lr=5e-4, decay=1.0),
        recipes=dict(small={}, whole={}),
        sampling=dict(cfg=2.0, sampling_steps=25, batch_size=500),
        n=2000,
        reference=20000,
        large=(64, 16),
        small=(64, 4),
        whole=(64, 16),
        sizes=[(64, 16), (128, 32), (256, 64)],
    ),
    "toy": dict(  # seconds, to see that everything works
        network=jit.MODELS["Ti"] | dict(depth=2, width=32, heads=2),
        recipe=dict(steps=6, batch_size=4, lr=2e-3, decay=1.0, save_every=2, log_every=1),
        recipes=dict(small=dict(steps=4), whole={}),
        sampling=dict(cfg=1.5, sampling_steps=2, batch_size=9),
        n=9,
        reference=30,
        large=(16, 16),
        small=(16, 4),
        whole=(16, 4),
        sizes=[(16, 4), (32, 8)],
    ),
}
BARE = dict(rope=False, qk_norm=False, context_tokens=0)  # the network of Tables 2, 3, 10 and Figure 4, with ...
PLAIN = BARE | dict(bottleneck=0)
GUIDED = {"guidance at all t": dict(interval=(0.0, 1.0)), "for t > 0.1": dict(interval=(0.1, 1.0))}
ALWAYS, LATER = GUIDED.values()
PREDICTION = dict(x="x-prediction", eps="ε-prediction", v="v-prediction")
LOSS = dict(x="x-loss", eps="ε-loss", v="v-loss")
PREDS = tuple(PREDICTION)
COLOUR = {"x-prediction": common.X, "ε-prediction": common.EPS, "v-prediction": common.V}


@dataclass
class Cell:
    """A network, how to sample it, and its place. What is not given here is as the scale has it, or jit.py."""

    row: str
    column: str
    network: dict  # arguments of its class, with size and patch
    flow: dict = field(default_factory=dict)  # arguments of jit.Flow
    recipe: dict = field(default_factory=dict)  # arguments of jit.train
    sampling: dict = field(default_factory=dict)  # arguments of jit.sample_images
    variant: type = jit.JiT  # or a class of variants.py
    panel: str = ""
    paper: float = None  # its FID-50K
    score_size: int = None  # the side that images are averaged down to before they are scored
    repeated: bool = True  # trained --seeds times, not once


@dataclass
class Study:
    """Cells in rows and columns; above their pictures a few plots: functions (ax, study, args)."""

    title: str
    columns: str  # what they are
    cells: list
    plots: tuple = ()
    curve: str = None  # the kind of axis, "log" or "linear", of scores against columns


def at(scale, name, **network):
    """Network arguments at one of the scale's sizes and patches: large, small or whole."""
    size, patch = scale[name]
    return dict(size=size, patch=patch) | network


def predictions(scale):
    """The v-loss row of nine, its panels as rows."""
    cells = [cell for cell in nine(scale).cells if cell.row == "v-loss"]
    cells = [dataclasses.replace(cell, row=cell.panel.partition(",")[0], panel="") for cell in cells]
    return Study("Three predictions on patches of few and of many numbers (Table 2, v-loss)", "prediction", cells)


def nine(scale):
    paper = dict(
        large=[[10.14, 379.21, 107.55], [10.45, 394.58, 126.88], [8.62, 372.38, 96.53]],
        small=[[5.76, 6.20, 6.12], [3.56, 4.02, 3.76], [3.55, 3.63, 3.46]],
    )
    width = scale["network"]["width"]
    cells = []
    for name, letter in dict(large="a", small="b").items():
        panel = f"({letter}) patches of {3 * scale[name][1] ** 2} numbers, network {width} wide"
        for i, loss in enumerate(PREDS):
            for j, pred in enumerate(PREDS):
                network, flow = at(scale, name, **PLAIN), dict(pred=pred, loss=loss)
                settings = dict(recipe=scale["recipes"].get(name, {}), sampling=ALWAYS, repeated=loss == "v")
                settings |= dict(panel=panel, paper=paper[name][i][j])
                cells.append(Cell(LOSS[loss], PREDICTION[pred], network, flow, **settings))
    return Study("Nine ways to denoise (Table 2)", "prediction", cells)


def shift(scale):
    paper = {
        0.0: (14.44, 464.25, 120.03),
        -0.4: (9.79, 372.91, 109.93),
        -0.8: (8.62, 372.36, 96.53),
        -1.2: (8.99, 355.25, 106.85),
    }
    cells = []
    for mu, fids in paper.items():
        for pred, fid in zip(PREDS, fids):
            network, flow = at(scale, "large", **PLAIN), dict(pred=pred, mu=mu)
            cells.append(Cell(f"μ = {mu}", PREDICTION[pred], network, flow, sampling=ALWAYS, paper=fid))
    return Study("Which noise levels to train at: logit t ~ N(μ, 0.8²) (Table 3)", "prediction", cells)


def bottleneck(scale):
    paper = {0: 8.62, 16: 9.40, 128: 7.48}  # of its others, 8.38, 8.15, 7.89 and 7.35, we do not know which is which
    cells = []
    for r in (0, 4, 16, 128, 512):
        network = at(scale, "large", **BARE, bottleneck=r)
        cells.append(Cell("x-prediction", f"{r or 'none'}", network, sampling=ALWAYS, paper=paper.get(r)))
    title = "A bottleneck of r numbers in the patch embedding (Figure 4)"
    return Study(title, "r", cells, plots=(draw_curve, draw_spectrum), curve="log")


def ladder(scale):
    rungs = {
        "LayerNorm, GELU": (variants.LayerNormGelu, BARE, 7.89),
        "RMSNorm, SwiGLU": (jit.JiT, BARE, 7.48),
        "+ RoPE, qk-norm": (jit.JiT, dict(context_tokens=0), 6.69),
        "+ in-context tokens": (jit.JiT, {}, 5.49),
    }
    cells = []
    for rung, (variant, network, fid) in rungs.items():
        settings = dict(recipe=scale["recipes"]["whole"], sampling=ALWAYS, variant=variant, paper=fid)
        cells.append(Cell("x-prediction", rung, at(scale, "whole", **network), **settings))
    return Study("The network, step by step (Table 4)", "network", cells)


def precond(scale):
    paper = dict(none=(10.14, 10.45, 8.62), linear=(39.50, 67.56, 46.25), edm=(28.94, 72.05, 35.49))
    cells = []
    for i, loss in enumerate(PREDS):
        for kind, fids in paper.items():
            network, variant = at(scale, "large", **PLAIN), jit.JiT
            if kind != "none":
                network, variant = network | dict(kind=kind), variants.Preconditioned
            settings = dict(sampling=ALWAYS, variant=variant, paper=fids[i], repeated=loss == "v")
            cells.append(Cell(LOSS[loss], kind, network, dict(loss=loss), **settings))
    return Study("Pre-conditioned x-prediction, x = c_skip z + c_out net (Table 10)", "pre-conditioning", cells)


def resolution(scale):
    smallest = scale["sizes"][0][0]  # all are scored at this size, or the numbers would not compare
    cells = []
    for (size, patch), fid in zip(scale["sizes"], (4.37, 4.64, 4.82)):
        network = dict(size=size, patch=patch)
        flow = dict(noise_scale=size / 64)  # as in the paper, the noise grows with the image
        settings = dict(recipe=scale["recipes"]["whole"], sampling=LATER, paper=fid, score_size=smallest)
        cells.append(Cell("x-prediction", f"{size} px, patch {patch}", network, flow, **settings))
    return Study("More pixels, the same number of tokens (Table 5)", "image", cells)


def solver(scale):
    cells = []
    for name in ("euler", "heun"):
        for steps in (4, 8, 16, 32, 64):
            sampling = LATER | dict(solver=name, sampling_steps=steps)
            cells.append(Cell(name, f"{steps}", at(scale, "whole"), recipe=scale["recipes"]["whole"], sampling=sampling))
    return Study("Two solvers", "steps", cells, plots=(draw_curve,), curve="log")


def guidance(scale):
    cells = []
    for name, interval in GUIDED.items():
        for weight in (1.0, 1.5, 2.0, 3.0, 4.0, 6.0):
            settings = dict(recipe=scale["recipes"]["whole"], sampling=interval | dict(cfg=weight))
            cells.append(Cell(name, f"{weight:g}", at(scale, "whole"), **settings))
    return Study("Classifier-free guidance", "weight w", cells, plots=(draw_curve,), curve="linear")


def lossbyt(scale):
    cells = [cell for cell in nine(scale).cells if cell.row == "v-loss"]
    return Study("The v-loss of three predictions (Figure 7)", "prediction", cells)


def gate(scale):
    cells = []
    for row, variant in {"network": jit.JiT, "network − g(t) z": variants.Gated}.items():
        for pred in PREDS if variant is jit.JiT else ("eps", "v"):
            network, flow = at(scale, "large", **PLAIN), dict(pred=pred)
            cells.append(Cell(row, PREDICTION[pred], network, flow, sampling=ALWAYS, variant=variant))
    title = "A way around the network for the noise: one learned number g(t)"
    return Study(title, "prediction", cells, plots=(draw_gates, draw_loss_over_t))


FUNCTIONS = (nine, predictions, shift, bottleneck, ladder, precond, resolution, solver, guidance, lossbyt, gate)
STUDIES = {function.__name__: function for function in FUNCTIONS}

# ---- One network: train it, draw from it, score it ---------------------------------------------------------------

TIMES = [(i + 0.5) / 20 for i in range(20)]  # where the loss over t, and the gate, are measured


@dataclass
class Run:
    """A network to train, once, whatever cells show it."""

    variant: type
    network: dict
    flow: dict
    recipe: dict
    out: Path

    @property
    def shape(self):
        return 3, self.network["size"], self.network["size"]


def scale_of(args):
    """The scale, with image size and patches of --size and --patches."""
    scale = dict(SCALES[args.scale])
    for name, patch in zip(("large", "small"), args.patches or ()):
        scale[name] = (args.size or scale[name][0], patch)
    return scale


def seeds_of(cell, args):
    """The training seeds of a cell."""
    return range(args.seeds if cell.repeated else 1)


def unusual(function, arguments):
    """The arguments in which a call differs from the plainest one."""
    usual = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    return {name: value for name, value in arguments.items() if name not in usual or value != usual[name]}


def version_of(data):
    """Six letters that change with the data."""
    if data == "shapes":
        return common.version_of_shapes()
    return hashlib.sha256(str(Path(data).resolve()).encode()).hexdigest()[:6]


def run_of(cell, seed, args):
    """The network of a cell. Its folder is named by what was chosen, so that cells which chose the same share it."""
    scale = scale_of(args)
    network = scale["network"] | cell.network
    recipe = scale["recipe"] | dict(flip=args.flip) | cell.recipe | dict(seed=seed)
    chosen = dict(
        variant=cell.variant.__name__,
        network=unusual(jit.JiT, network),
        flow=unusual(jit.Flow, cell.flow),
        recipe={name: value for name, value in recipe.items() if name not in ("seed", "log_every", "save_every")},
        data=version_of(args.data),
    )
    digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:6]
    flow = jit.Flow(**cell.flow)
    name = f"{network['size']}px-{flow.pred}-{flow.loss}-{digest}-seed{seed}"
    return Run(cell.variant, network, cell.flow, recipe, args.runs / args.scale / name)


def sampling_of(cell, args):
    """Arguments of jit.sample_images: the same noise, that of seed 0, for all cells and training seeds."""
    return dict(solver="heun") | scale_of(args)["sampling"] | cell.sampling


def key_of(cell, args):
    """Under this name the folder of its network keeps the results of a cell."""
    s = sampling_of(cell, args)
    low, high = s["interval"]
    key = f"{s['solver']}{s['sampling_steps']}-cfg{s['cfg']}-t{low}-{high}-n{scale_of(args)['n']}"
    return key + (f"-at{cell.score_size}" if cell.score_size else "")


@functools.cache
def extractors(device):
    """{score: function from uint8 images to features}; FID if the weights of Inception are there."""
    found = {"rfd": rfd.random_features}
    if Path(torch.hub.get_dir(), "checkpoints", jit.INCEPTION_URL.rpartition("/")[2]).exists():
        inception = jit.load_inception(None, device)
        found["FID"] = lambda images: inception(images)[0]
    return found


def statistics(pixels, side, device):
    """{score: (mean, covariance)} of the features of uint8 images, averaged down to this side."""
    pixels = F.avg_pool2d(pixels.float(), pixels.shape[-1] // side).round().to(torch.uint8)
    result = {}
    for name, extract in extractors(device).items():
        _, mean, covariance = jit.moments(extract(batch.to(device)) for batch in pixels.split(100))
        result[name] = torch.from_numpy(mean), torch.from_numpy(covariance)
    return result


def distances(ours, real):
    """{score: number} between two results of statistics()."""
    return {name: jit.frechet_distance(*(part.numpy() for part in ours[name] + real[name])) for name in ours}


def references(data, run, side, args):
    """(statistics() of real images, the scores of other real images); computed once and kept in a file."""
    scale = scale_of(args)
    name = "-".join(["real", version_of(args.data), str(run.network["size"]), str(side), *extractors(args.device)])
    path = run.out.parent / f"{name}.pth"
    if not path.exists():
        pixels, _ = common.real_images(data, scale["n"] + scale["reference"], seed=2511)
        n = min(scale["n"], len(pixels) // 2)
        real = statistics(pixels[n:], side, args.device)
        floor = distances(statistics(pixels[:n], side, args.device), real)
        own = path.with_suffix(f".{os.getpid()}")  # two processes may get here together
        torch.save((real, floor), own)
        os.replace(own, path)
    return torch.load(path)


@torch.no_grad()
def loss_over_t(net, flow, data, device):
    """v-loss at TIMES, of fixed images and noise. Shapes are new ones, photographs those the network was trained on."""
    pixels, y = (tensor.to(device) for tensor in common.real_images(data, 100, seed=7))
    x = pixels.float() / 127.5 - 1
    eps = flow.noise_scale * torch.randn(x.shape, generator=torch.Generator().manual_seed(7)).to(device)
    losses = []
    for i in TIMES:
        t = torch.full((len(x),), i, device=device)
        out = net(jit.interpolate(x, eps, t), t, y)
        losses.append(jit.flow_loss(out, x, eps, t, flow.pred, "v", flow.t_clip).mean().item())
    return losses


def hardware(device):
    """What it ran on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{[*models, platform.machine()][0]}, one core"


def facts(run, net, flow, data, device):
    """What is to be known of a trained network, whatever is drawn from it."""
    git = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    log = common.read_log(run.out)
    steps = np.diff([0] + [line["step"] for line in log])
    seconds = sum(n * run.recipe["batch_size"] / line["images_per_s"] for n, line in zip(steps, log))
    found = dict(
        network=run.network,
        flow=dataclasses.asdict(flow),
        recipe=run.recipe,
        train_seconds=round(seconds),
        commit=git.stdout.strip() or "unknown",
        hardware=hardware(device),
        loss_over_t=loss_over_t(net, flow, data, device),
    )
    if run.variant is variants.Gated:
        with torch.no_grad():
            found["gate"] = net.g(torch.tensor(TIMES, device=device)).tolist()
    return found


def train(run, data, args):
    """Train a network, unless it is trained; Ctrl-C and SIGTERM stop it, saved."""
    caught = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: caught.append(number))
    torch.manual_seed(run.recipe["seed"])
    net = run.variant(**run.network, classes=len(data.names)).to(args.device)
    recipe = dict(cfg=1.0, sample_every=10**9, data_name=args.data, caught=caught) | run.recipe
    jit.train(net, jit.Flow(**run.flow), data, run.out, **recipe)
    if caught:  # while it drew its last sheet
        raise KeyboardInterrupt
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def draw_and_score(cell, run, net, flow, data, args):
    """The pictures of a cell go to a file; returns their scores, those of real images, and the seconds it took."""
    start, device, sampling = time.time(), args.device, sampling_of(cell, args)
    if net.classes < 2:
        sampling["cfg"] = 1.0  # there is nothing to guide towards
    y, _ = jit.pick_classes(scale_of(args)["n"], net.classes)
    batches = jit.sample_images(net, y.to(device), flow, net.shape, **sampling)
    pixels = torch.cat([batch.cpu() for batch in batches])
    side = cell.score_size or net.shape[1]
    real, floor = references(data, run, side, args)
    scores = distances(statistics(pixels, side, device), real)
    jit.write_whole(run.out / f"{key_of(cell, args)}.npy", functools.partial(np.save, arr=pixels.numpy()))
    return dict(scores=scores, floor=floor, seconds=round(time.time() - start))


def work(run, cells, args):
    """Train a network, draw and score its cells; all that is known of it goes to results.json."""
    data = jit.open_data(args.data, run.shape)
    train(run, data, args)
    net, flow, _ = jit.load_run(run.out, "ema1", args.device, run.variant)
    results = read_results(run.out) or facts(run, net, flow, data, args.device)
    for cell in cells:
        key = key_of(cell, args)
        if key not in results:
            results[key] = draw_and_score(cell, run, net, flow, data, args)
            save_results(run.out, results)


def judge(cell, run, classifier, args):
    """Add the agreement of figures/agreement.py's classifier to what is known of a cell, and that with real images."""
    results = read_results(run.out)
    result = results.get(key_of(cell, args))
    if not result or "agreement" in result["scores"]:
        return

    def share(pixels, y):
        return (agreement.classify(pixels / 127.5 - 1, classifier) == y).double().mean().item()

    pixels = torch.from_numpy(np.load(run.out / f"{key_of(cell, args)}.npy"))
    y, _ = jit.pick_classes(len(pixels), len(jit.SHAPES))
    result["scores"]["agreement"] = share(pixels, y)
    result["floor"]["agreement"] = share(*common.real_images(jit.Shapes(run.network["size"]), 500, seed=3))
    save_results(run.out, results)


def add_agreement(study, args):
    """Score the pictures of shapes there are by the classifier, if that was trained."""
    if args.data != "shapes" or not agreement.weights_path().exists():
        return
    classifier = agreement.load_classifier()
    for cell in study.cells:
        for seed in seeds_of(cell, args):
            judge(cell, run_of(cell, seed, args), classifier, args)


def save_results(out, results):
    text = json.dumps(results, indent=1)
    jit.write_whole(out / "results.json", lambda path: path.write_text(text))


def read_results(out):
    path = out / "results.json"
    return json.loads(path.read_text()) if path.exists() else {}


# ---- A study: all its networks, each in a process of its own -----------------------------------------------------

SCORING = 300  # for the progress bar: drawing and scoring a cell takes about as long as this many training steps


def runs_of(study, args):
    """{run folder: (Run, its cells)}, each network once; one seed after the other."""
    runs = {}
    cells = STUDIES[study](scale_of(args)).cells
    for seed in range(args.seeds):
        for cell in cells:
            if seed in seeds_of(cell, args):
                run = run_of(cell, seed, args)
                runs.setdefault(str(run.out), (run, []))[1].append(cell)
    return runs


def steps_done(run, cells, args):
    """How far a network and its cells are, in training steps."""
    log, results = common.read_log(run.out), read_results(run.out)
    return (log[-1]["step"] if log else 0) + SCORING * sum(key_of(cell, args) in results for cell in cells)


def steps_to_do(run, cells):
    """The same when all is done."""
    return run.recipe["steps"] + SCORING * len(cells)


def settings_in_words(args):
    """The flags that choose what is trained, as they were given."""
    words = ["--scale", args.scale] + (["--data", args.data] if args.data != "shapes" else [])
    words += ["--size", str(args.size)] if args.size else []
    words += ["--patches", *map(str, args.patches)] if args.patches else []
    words += ["--no-flip"] if args.no_flip else []
    return words + (["--seeds", str(args.seeds)] if args.seeds > 1 else [])


def start_process(out, study, args):
    """This script again, for one network; what it says goes to OUT.txt."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, study, *settings_in_words(args), "--runs", str(args.runs), "--only", out]
    environment = os.environ | ({} if args.scale == "gpu" else dict(OMP_NUM_THREADS="1"))
    with open(f"{out}.txt", "a") as log:
        pipes = dict(stdin=subprocess.PIPE, stdout=log, stderr=log)
        return subprocess.Popen(command, **pipes, env=environment)


def follow_parent():
    """In such a process: end it when the one that started it is gone; however it went, its end of the pipe closes."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def train_all(study, args):
    """Train, draw and score what is missing, --jobs networks at a time."""
    runs = runs_of(study, args)
    total = sum(steps_to_do(*run) for run in runs.values())
    waiting = [out for out, run in runs.items() if steps_done(*run, args) < steps_to_do(*run)]
    running, failed = {}, []
    style = "{desc}{percentage:3.0f}% |{bar}| {elapsed}, {remaining} left, {postfix}"
    initial = sum(steps_done(*run, args) for run in runs.values())
    bar = tqdm(desc=study, total=total, initial=initial, unit="step", bar_format=style)
    try:
        while waiting or running:
            while waiting and len(running) < args.jobs:
                out = waiting.pop(0)
                running[out] = start_process(out, study, args)
            time.sleep(0.5)
            for out in [out for out, process in running.items() if process.poll() is not None]:
                failed += [out] if running.pop(out).returncode else []
            bar.n = sum(steps_done(*run, args) for run in runs.values())
            bar.set_postfix_str(f"{len(runs) - len(waiting) - len(running)} of {len(runs)} networks")
    finally:
        for process in running.values():  # after Ctrl-C: they save, then end
            process.terminate()
        for process in running.values():
            process.wait()
        bar.close()
    jit.check(not failed, f"failed: {', '.join(failed)}; see the .txt files of these names.")


# ---- Its table ---------------------------------------------------------------------------------------------------

NOTES = "<!-- Below are notes written by hand; they stay when the table is written again. -->"


def look_up(cell, args):
    """Of each seed that is there: (run folder, what is known of the cell's network, what is known of the cell)."""
    found = []
    for seed in seeds_of(cell, args):
        out = run_of(cell, seed, args).out
        results = read_results(out)
        if key_of(cell, args) in results:
            found.append((out, results, results[key_of(cell, args)]))
    return found


def scores_of(cell, args):
    """{score: its value for each seed}; empty if nothing is known."""
    results = [result["scores"] for _, _, result in look_up(cell, args)]
    return {name: [scores[name] for scores in results if name in scores] for name in (results[0] if results else [])}


def deviation(values):
    """Standard deviation over the seeds."""
    return np.std(values, ddof=1) if len(values) > 1 else 0.0


def in_words(name, values):
    """A score of one seed, or mean and standard deviation over several; two digits are what they are good for."""
    mean, sd, unit = np.mean(values), deviation(values), ""
    if name == "agreement":
        mean, sd, unit = 100 * mean, 100 * sd, "%"
    decimals = max(0, 1 - math.floor(math.log10(mean))) if 0 < mean < 10 and not unit else 0
    spread = f" ± {sd:.{decimals}f}" if len(values) > 1 else ""
    return f"{name} {mean:.{decimals}f}{spread}{unit}"


def caption(cell, args):
    """The scores of a cell in words."""
    return ", ".join(in_words(*score) for score in scores_of(cell, args).items()) or "not run"


def v_loss(cell, args):
    """Instead, for Figure 7: the v-loss in the last fifth of the training."""
    logs = [common.read_log(run_of(cell, seed, args).out) for seed in seeds_of(cell, args)]
    means = [np.mean([line["loss"] for line in log[-len(log) // 5 :]]) for log in logs if log]
    spread = f" ± {deviation(means):.3f}" if len(means) > 1 else ""
    return f"{np.mean(means):.3f}{spread}" if means else "not run"


def distinct(cells, part):
    """The names of the panels, rows or columns of some cells, in order."""
    return list(dict.fromkeys(getattr(cell, part) for cell in cells))


def panels_of(study):
    return [[cell for cell in study.cells if cell.panel == panel] for panel in distinct(study.cells, "panel")]


def table_of(cells, describe, args):
    """The lines of a table; in brackets the paper's number, if there is one."""
    columns = distinct(cells, "column")
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row in distinct(cells, "row"):
        here = {cell.column: cell for cell in cells if cell.row == row}
        texts = []
        for column in columns:
            cell = here.get(column)
            text = describe(cell, args) if cell else ""
            texts.append(text + (f" ({cell.paper})" if cell and cell.paper and describe is caption else ""))
        lines.append(f"| {row} | {' | '.join(texts)} |")
    return [*lines, ""]


def footnotes(name, study, args):
    """How the numbers came about."""
    found = [known for cell in study.cells for known in look_up(cell, args)]
    networks = {out: results for out, results, _ in found}
    first = found[0][1]
    seconds = sum(results["train_seconds"] for results in networks.values())
    seconds += sum(result["seconds"] for _, _, result in found)
    settings = first["network"] | first["flow"] | first["recipe"]
    kept = "size patch depth width heads noise_scale t_clip steps batch_size lr decay".split()
    listed = ", ".join(f"{key} {settings[key]}" for key in kept if key in settings)
    sampling = ", ".join(f"{key} {value}" for key, value in sampling_of(study.cells[0], args).items())
    seeds = f"{args.seeds} training seeds: mean ± standard deviation" if args.seeds > 1 else "one training seed"
    commits = ", ".join(sorted({results["commit"] for results in networks.values()}))
    return [
        f"{scale_of(args)['n']} samples a cell, {seeds}. Lower is better (agreement: higher).",
        "",
        f"- Command: `python figures/ablations.py {' '.join([name, *settings_in_words(args)])}`",
        f"- Training of the first cell: {listed}; the others differ in what the table says.",
        f"- Its sampling: {sampling}, weights ema1, seed 0.",
        f"- Time: {seconds / 60:.0f} minutes for {len(networks)} network{'s' * (len(networks) > 1)}, "
        "one after the other; studies share some.",
        f"- Hardware: {first['hardware']}; PyTorch {torch.__version__}; commit {commits}.",
        "",
    ]


def write_table(name, study, args):
    """figures/NAME.md: the scores of each panel, and how they came about."""
    known = any(look_up(cell, args) for cell in study.cells)
    jit.check(known, f"there is nothing of {name} in {args.runs / args.scale} yet.")
    lines = [f"# {study.title}", ""]
    describe = v_loss if name == "lossbyt" else caption
    for cells in panels_of(study):
        lines += [f"## {cells[0].panel}", ""] if cells[0].panel else []
        lines += table_of(cells, describe, args)
        floors = [result["floor"] for cell in cells for _, _, result in look_up(cell, args)]
        if floors and describe is caption:
            floor = ", ".join(in_words(score, [value]) for score, value in floors[0].items())
            lines += [f"Real images score {floor}.", ""]
    if describe is v_loss:
        lines += ["Mean over the last fifth of the training.", ""]
    elif any(cell.paper for cell in study.cells):
        lines += ["In brackets the paper's FID-50K.", ""]
    lines += footnotes(name, study, args)
    path = args.figures / f"{name}.md"
    notes = path.read_text().partition(NOTES)[2] if path.exists() else "\n"
    text = "\n".join(lines) + f"\n{NOTES}{notes}"
    jit.write_whole(path, lambda path: path.write_text(text))


# ---- Its figure --------------------------------------------------------------------------------------------------


def mosaic(pixels):
    """The first nine images of (n, C, S, S) as one, three by three with white gaps: uint8 (H, W, 3)."""
    images = np.broadcast_to(pixels[:9].transpose(0, 2, 3, 1), (9, *pixels.shape[2:], 3))
    gap = max(1, pixels.shape[-1] // 16)
    images = np.pad(images, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    return np.vstack([np.hstack(images[i : i + 3]) for i in (0, 3, 6)])[:-gap, :-gap]


def draw_cell(ax, cell, args):
    """Nine pictures, those of the first seed there is, with the scores of the cell under them."""
    colour = COLOUR.get(cell.column)
    ax.spines[:].set(visible=colour is not None, color=colour, linewidth=2)
    for out, _, _ in look_up(cell, args)[:1]:
        pixels = np.load(out / f"{key_of(cell, args)}.npy")
        ax.imshow(mosaic(pixels), interpolation="nearest")
    paper = f"\npaper: FID {cell.paper:.3g}" if cell.paper else ""
    ax.set_xlabel(caption(cell, args).partition(", agreement")[0] + paper, fontsize=9)


def draw_pictures(figure, cells, args):
    """One panel: the pictures of every cell in its row and column."""
    rows, columns = distinct(cells, "row"), distinct(cells, "column")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    figure.suptitle(cells[0].panel or None, fontsize=11, fontweight="bold")
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for cell in cells:
        draw_cell(axes[rows.index(cell.row), columns.index(cell.column)], cell, args)
    for ax, column in zip(axes[0], columns):
        ax.set_title(column, color=COLOUR.get(column, "black"), fontsize=10, fontweight="bold")
    for ax, row in zip(axes[:, 0], rows):
        ax.set_ylabel(row, fontsize=10)


def draw_curve(ax, study, args):
    """The first score against the columns, a line for each row; bars: standard deviation over the seeds."""
    columns = [column for column in distinct(study.cells, "column") if column != "none"]
    for row, marker, colour in zip(distinct(study.cells, "row"), "os", (INK, common.GREEN)):
        points = []
        for cell in study.cells:
            scores = scores_of(cell, args)
            if cell.row != row or not scores:
                continue
            name, values = next(iter(scores.items()))
            if cell.column == "none":
                ax.axhline(np.mean(values), color=GREY, linestyle="--", label="no bottleneck")
            else:
                points.append((float(cell.column), np.mean(values), deviation(values)))
            ax.set_ylabel(name)
        if points:
            x, mean, sd = zip(*points)
            colour = COLOUR.get(row, colour)
            ax.errorbar(x, mean, sd if any(sd) else None, marker=marker, color=colour, label=row, capsize=3)
    floors = [next(iter(result["floor"].values())) for cell in study.cells for _, _, result in look_up(cell, args)]
    ax.axhline(floors[0], color=GREY, linestyle=":", label="real images")
    ax.set(xlabel=study.columns, xscale=study.curve)
    high = ax.get_ylim()[1]
    if high > 10 * floors[0]:
        ax.set_yscale("log")
    else:
        ax.set_ylim(0, high)
    ax.set_xticks([float(column) for column in columns], columns)
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=8)


def draw_spectrum(ax, study, args):
    """How much of the variance of the data's patches is outside their first r principal components."""
    run = run_of(study.cells[0], 0, args)
    pixels, _ = common.real_images(jit.open_data(args.data, run.shape), 1000, seed=11)
    patch, width = run.network["patch"], run.network["width"]
    patches = F.unfold(pixels.double(), patch, stride=patch).transpose(1, 2).flatten(0, 1)  # (n N, C p p)
    variance = torch.linalg.eigvalsh(patches.T.cov()).flip(0)
    ax.plot(range(1, len(variance)), 1 - (variance.cumsum(0) / variance.sum())[:-1], color=INK)
    ax.set(xlabel="r", xscale="log", yscale="log", ylim=(1e-5, 1))
    ax.set_title("variance of patches outside r principal components", fontsize=10)
    ax.axvline(width, color=GREY, linestyle="--")
    ax.text(width, 2e-5, "width of the network ", color=GREY, fontsize=8, horizontalalignment="right")


def draw_gates(ax, study, args):
    """The learned gates over 1 / (1 - t), a curve for each seed. That of eps = (z - t x) / (1 - t) has another sign."""
    t = np.linspace(0, 0.98, 99)
    ax.plot(t, 1 / (1 - t), color=INK, linestyle="--", label="1 / (1 − t)")
    for cell in study.cells:
        gates = [results["gate"] for _, results, _ in look_up(cell, args) if "gate" in results]
        sign, name = (-1, "−g(t)") if cell.flow["pred"] == "eps" else (1, "g(t)")
        for i, values in enumerate(gates):
            label = f"{name}, {cell.column}" if i == 0 else None
            ax.plot(TIMES, sign * np.array(values), color=COLOUR[cell.column], label=label)
    ax.set(xlabel="t (0 noise, 1 data)", xlim=(0, 1), ylim=(-2, 12), ylabel="gate")
    ax.legend(frameon=False, fontsize=8)


def draw_loss_over_t(ax, study, args):
    """The v-loss of finished networks, a colour for each column, a style for each row, a curve for each seed."""
    for row, style in zip(distinct(study.cells, "row"), ("-", "--")):
        ax.plot([], [], color=GREY, linestyle=style, label=row)
        for cell in study.cells:
            for _, results, _ in look_up(cell, args) if cell.row == row else []:
                ax.plot(TIMES, results["loss_over_t"], color=COLOUR[cell.column], linestyle=style)
    ax.set(xlabel="t (0 noise, 1 data)", xlim=(0, 1), yscale="log", ylabel="v-loss")
    ax.legend(frameon=False, fontsize=8)


def draw_losses(figure, study, args):
    """The v-loss in training, and, of the finished network, against t; a row for each panel, a line for each seed."""
    for part, cells in zip(figure.subfigures(2, 1), panels_of(study)):
        part.suptitle(cells[0].panel, fontsize=11, fontweight="bold")
        left, right = part.subplots(1, 2, sharey=True)
        for cell in cells:
            for i, (out, results, _) in enumerate(look_up(cell, args)):
                log, style = common.read_log(out), dict(color=COLOUR[cell.column], linewidth=1.2)
                left.plot([line["step"] for line in log], [line["loss"] for line in log], **style)
                right.plot(TIMES, results["loss_over_t"], label=cell.column if i == 0 else None, **style)
        left.set(xlabel="training step", ylabel="v-loss", yscale="log")
        right.set(xlabel="t (0 noise, 1 data), finished network", xlim=(0, 1))
        right.legend(frameon=False)


def draw_study(study, args):
    """Its plots above its pictures, as a figure."""
    panels = panels_of(study)
    columns = sum(len(distinct(cells, "column")) for cells in panels)
    rows = len(distinct(study.cells, "row"))
    side = min(1.8, 8.4 / columns)  # of the pictures of a cell, in inches
    pictures = rows * (side + (0.4 if study.cells[0].paper else 0.25)) + 0.4
    heights = [2.6, pictures] if study.plots else [pictures]
    figure = Figure(figsize=(0.6 + side * columns, sum(heights)), layout="constrained", dpi=140)
    *top, bottom = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part in top:
        for plot, ax in zip(study.plots, np.ravel(part.subplots(1, len(study.plots)))):
            plot(ax, study, args)
    for part, cells in zip(np.ravel(bottom.subfigures(1, len(panels))), panels):
        draw_pictures(part, cells, args)
    return figure


def draw(name, study, args):
    """figures/NAME.png."""
    if name == "lossbyt":
        figure = Figure(figsize=(9, 5.5), layout="constrained", dpi=140)
        draw_losses(figure, study, args)
    else:
        figure = draw_study(study, args)
    path = args.figures / f"{name}.png"
    common.save_figure(figure, path, figure.dpi)
    if path.stat().st_size > 500_000:  # a repository is cloned whole: smaller ones then
        common.save_figure(figure, path, 0.7 * figure.dpi)


# ---- The command -------------------------------------------------------------------------------------------------


def parse_flags(words=None):
    parser = common.Parser(__doc__, prog="ablations.py")
    parser.add_argument("studies", nargs="+", choices=STUDIES, help="what to train and show")
    parser.add_argument("--scale", default="cpu", choices=SCALES, help="size of networks and data (default: cpu)")
    parser.add_argument("--data", default="shapes", help="shapes, or a folder of images (default: shapes)")
    parser.add_argument("--size", type=int, help="side of the images, with --patches (default: the scale's)")
    parser.add_argument("--patches", type=int, nargs=2, help="side of large and of small patches, as in 16 4")
    parser.add_argument("--no-flip", action="store_true", help="mirror no pictures, where left and right matter")
    parser.add_argument("--seeds", type=int, default=1, help="how often a network is trained (default: 1)")
    parser.add_argument("--jobs", type=int, help="networks at a time (default: one for each core; on a GPU 2)")
    parser.add_argument("--draw-only", action="store_true", help="train nothing, but write table and figure again")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "ablations", help="folder of all that is trained")
    parser.add_argument("--figures", type=Path, default=ROOT / "figures", help="folder of tables and figures")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # the folder of one network: how this script calls itself
    args = parser.parse_args(words)
    args.runs, args.jobs = args.runs.resolve(), args.jobs or (2 if args.scale == "gpu" else os.cpu_count())
    if args.seeds < 1 or args.jobs < 1:
        parser.error("--seeds and --jobs must be 1 at least")
    args.flip = args.data != "shapes" and not args.no_flip
    args.device = jit.choose_device("auto" if args.scale == "gpu" else "cpu")
    return args


def show(name, args):
    """A study: train what is missing, then table and figure."""
    if not args.draw_only:
        train_all(name, args)
    study = STUDIES[name](scale_of(args))
    add_agreement(study, args)
    write_table(name, study, args)
    draw(name, study, args)
    print(f"{args.figures / name}.png and {args.figures / name}.md")


def run_studies(args):
    """All that was asked for; or, in a process that this script has started, one network."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if args.only:
        threading.Thread(target=follow_parent, daemon=True).start()
        work(*runs_of(args.studies[0], args)[args.only], args)
        return
    jit.check(args.data == "shapes" or Path(args.data).is_dir(), f"--data {args.data}: no folder, nor shapes.")
    jit.make_folder(args.figures)
    for name in args.studies:
        show(name, args)


def main(words=None):
    args = parse_flags(words)
    return common.exit_code("ablations.py", lambda: run_studies(args), "stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
