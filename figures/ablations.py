"""The tables of the JiT paper in miniature: each study trains a few small networks and shows them side by side.

    python figures/ablations.py nine                              Table 2: predict x, eps or v; loss on x, eps or v
    python figures/ablations.py nine --scale gpu --data PHOTOS    the same on photographs, PHOTOS/CLASS/*.jpg, on a GPU
    python figures/ablations.py shift bottleneck                  or ladder precond resolution solver guidance lossbyt
    python figures/ablations.py nine --draw-only                  table and figure again, from what is there

A study is a list of cells; a cell is a network to train, how to sample it, and its place in the figure. Cells that
need the same network share it, across studies too. All that is trained and drawn is kept in runs/ablations/SCALE, and a
study that was stopped, or killed, goes on there. It leaves figures/STUDY.png, the pictures (same seeds in every cell),
and figures/STUDY.md, the numbers.

Scores    rfd: Frechet distance on the features of a small fixed random network (jit.random_features). It needs no
          download, is not FID, and compares within one table only. Beside it the floor, what other real images score.
          FID, of as many images as the table says, if the Inception weights are there (`python jit.py eval` gets them).
          agreement, of shapes, if figures/agreement.py has trained its classifier: the share of samples that it takes
          for the shape that was asked for.
Settings  Tables 2, 3, 10 and Figure 4 are, as in the paper, without RoPE, qk-norm, in-context tokens, guidance
          interval and (but for Figure 4) bottleneck. The paper sweeps guidance and EMA for each entry; here both stay.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import jit  # noqa: E402

# ---------------------------------------------------------------------------------------------------------------------
# The studies
# ---------------------------------------------------------------------------------------------------------------------

# n samples are scored against `reference` real images. Image size and patch: large, small, such that a patch has 768 or
# 48 numbers; whole, for the studies of the whole network; sizes, the same number of tokens. On a CPU `large` is of four
# tokens: without RoPE and bottleneck a small network takes thousands of steps to learn where each of 16 patches stands.
# `small` are the same pictures drawn at 16 px.
SCALES = {
    "cpu": dict(  # the built-in shapes, network 128 wide
        train=dict(model="Ti/16", batch_size=32, steps=3000), draw=dict(cfg=1.5, steps=25, batch_size=50),
        n=300, reference=3000, large=(32, 16), small=(16, 4), whole=(64, 16), sizes=[(32, 8), (64, 16), (128, 32)]),
    "gpu": dict(  # photographs, network 384 wide
        train=dict(model="S/16", batch_size=128, steps=2500), draw=dict(cfg=2.0, steps=25, batch_size=500),
        n=2000, reference=20000, large=(64, 16), small=(64, 4), whole=(64, 16),
        sizes=[(64, 16), (128, 32), (256, 64)]),
    "toy": dict(  # seconds, to see that everything works
        train=dict(model="Ti/16", depth=2, width=32, heads=2, batch_size=4, steps=6, save_every=2, log_every=1),
        draw=dict(steps=2, batch_size=9), n=9, reference=30, large=(16, 16), small=(8, 4), whole=(16, 4),
        sizes=[(16, 4), (32, 8)]),
}  # fmt: skip
PLAIN = dict(rope=False, qk_norm=False, context_tokens=0)  # the network of Tables 2, 3, 10 and Figure 4
GUIDED = {"guidance at all t": dict(interval=(0.0, 1.0)), "for t > 0.1": dict(interval=(0.1, 1.0))}
ALWAYS, LATER = GUIDED.values()
PREDS = ("x", "eps", "v")
PREDICTION = dict(x="x-prediction", eps="ε-prediction", v="v-prediction")
LOSS = dict(x="x-loss", eps="ε-loss", v="v-loss")

# train: jit.Settings, draw: jit.Sampling, where they are not as in SCALES; paper: its FID-50K;
# score_size: the side that images are averaged down to before they are scored
Cell = namedtuple("Cell", "panel row column train draw paper score_size", defaults=(None, None))
# columns: what they are; curve: to plot the scores against the columns, the kind of axis ("log", "linear")
Study = namedtuple("Study", "title columns cells curve", defaults=(None,))

def nine(scale):
    paper = dict(large=[[10.14, 379.21, 107.55], [10.45, 394.58, 126.88], [8.62, 372.38, 96.53]],
                 small=[[5.76, 6.20, 6.12], [3.56, 4.02, 3.76], [3.55, 3.63, 3.46]])  # fmt: skip
    width = jit.MODELS[scale["train"]["model"].partition("/")[0]]["width"]
    panels = dict(large=f"(a) patches of 768 numbers, network {width} wide",
                  small=f"(b) patches of 48 numbers, network {width} wide")  # fmt: skip
    cells = []
    for kind, panel in panels.items():
        for i, loss in enumerate(PREDS):
            for j, pred in enumerate(PREDS):
                train = at(scale, kind, **PLAIN, bottleneck=0, pred=pred, loss=loss)
                cells.append(Cell(panel, LOSS[loss], PREDICTION[pred], train, ALWAYS, paper[kind][i][j]))
    return Study("Nine ways to denoise (Table 2)", "prediction", cells)

def at(scale, kind, **train):
    """Training settings at one of the scale's sizes and patches: large, small or whole."""
    size, patch = scale[kind]
    return dict(size=size, patch=patch) | train

def shift(scale):
    paper = {0.0: (14.44, 464.25, 120.03), -0.4: (9.79, 372.91, 109.93), -0.8: (8.62, 372.36, 96.53),
             -1.2: (8.99, 355.25, 106.85)}  # fmt: skip
    train = at(scale, "large", **PLAIN, bottleneck=0)
    cells = [Cell("", f"μ = {mu}", PREDICTION[pred], train | dict(pred=pred, mu=mu), ALWAYS, fid)
             for mu, fids in paper.items() for pred, fid in zip(PREDS, fids)]  # fmt: skip
    return Study("Which noise levels to train at: logit t ~ N(μ, 0.8²) (Table 3)", "prediction", cells)

def bottleneck(scale):
    paper = {0: 8.62, 16: 9.40, 128: 7.48}  # the others are 8.38, 8.15, 7.89 and 7.35; we do not know which is which
    cells = [Cell("", "x-prediction", f"{r or 'none'}", at(scale, "large", **PLAIN, bottleneck=r), ALWAYS, paper.get(r))
             for r in (0, 8, 16, 32, 64, 128, 256, 512)]  # fmt: skip
    return Study("A bottleneck of r numbers in the patch embedding (Figure 4)", "r", cells, "log")

def ladder(scale):
    rungs = {"LayerNorm, GELU": (PLAIN | dict(norm="layer", mlp="gelu"), 7.89, None),
             "RMSNorm, SwiGLU": (PLAIN, 7.48, 6.32),
             "+ RoPE, qk-norm": (dict(context_tokens=0), 6.69, 5.44),
             "+ in-context tokens": ({}, 5.49, 4.37)}  # fmt: skip
    cells = [Cell("", rung, name, at(scale, "whole", **train), draw, fid) for rung, (train, *fids) in rungs.items()
             for (name, draw), fid in zip(GUIDED.items(), fids)]  # fmt: skip
    return Study("The network, step by step (Table 4)", "guidance", cells)

def precond(scale):
    paper = dict(none=(10.14, 10.45, 8.62), linear=(39.50, 67.56, 46.25), edm=(28.94, 72.05, 35.49))
    cells = [Cell("", LOSS[loss], kind, at(scale, "large", **PLAIN, bottleneck=0, loss=loss, precond=kind),
                  ALWAYS, fids[i])
             for i, loss in enumerate(PREDS) for kind, fids in paper.items()]  # fmt: skip
    return Study("Pre-conditioned x-prediction, x = c_skip z + c_out net (Table 10)", "pre-conditioning", cells)

def resolution(scale):
    smallest = scale["sizes"][0][0]  # all are scored at this size, or the numbers would not compare
    cells = []
    for (size, patch), fid in zip(scale["sizes"], (4.37, 4.64, 4.82)):
        train = dict(size=size, patch=patch, noise_scale=size / 64)  # as in the paper, the noise grows with the image
        cells.append(Cell("", "x-prediction", f"{size} px, patch {patch}", train, LATER, fid, smallest))
    return Study("More pixels, the same number of tokens (Table 5)", "image", cells)

def solver(scale):
    cells = [Cell("", name, f"{steps}", at(scale, "whole"), LATER | dict(solver=name, steps=steps))
             for name in ("euler", "heun") for steps in (4, 8, 16, 32, 64)]  # fmt: skip
    return Study("Two solvers", "steps", cells, "log")

def guidance(scale):
    cells = [Cell("", name, f"{weight:g}", at(scale, "whole"), draw | dict(cfg=weight))
             for name, draw in GUIDED.items() for weight in (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)]  # fmt: skip
    return Study("Classifier-free guidance", "weight w", cells, "linear")

def lossbyt(scale):
    cells = [cell for cell in nine(scale).cells if cell.row == "v-loss"]
    return Study("The v-loss of three predictions (Figure 7)", "prediction", cells)

STUDIES = {f.__name__: f for f in (nine, shift, bottleneck, ladder, precond, resolution, solver, guidance, lossbyt)}

# ---------------------------------------------------------------------------------------------------------------------
# One network: train it, draw from it, score it
# ---------------------------------------------------------------------------------------------------------------------

TIMES = [(i + 0.5) / 20 for i in range(20)]  # where the loss over t is measured

def settings_of(cell, args):
    """jit.Settings of a cell; their folder is named by all in which they differ from those of `python jit.py train`."""
    common = dict(data=args.data, cfg=1.0, sample_every=10**9, device="auto" if args.scale == "gpu" else "cpu")
    s = jit.resolve(jit.Settings(**common | SCALES[args.scale]["train"] | cell.train))
    usual, ours = dataclasses.asdict(jit.resolve(jit.Settings())), dataclasses.asdict(s)
    special = {key: ours[key] for key in ours if ours[key] != usual[key] and key not in jit.CHANGEABLE}
    digest = hashlib.sha256(json.dumps(special | dict(steps=s.steps), sort_keys=True).encode()).hexdigest()[:6]
    return dataclasses.replace(s, out=str(args.runs / args.scale / f"{s.size}px-{s.pred}-{s.loss}-{digest}"))

def sampling_of(cell, args):
    scale = SCALES[args.scale]
    return jit.Sampling(n=scale["n"], **scale["draw"] | cell.draw)

def key_of(cell, args):
    """Under this name the folder of its network keeps the results of a cell."""
    s = sampling_of(cell, args)
    key = f"{s.solver}{s.steps}-cfg{s.cfg}-t{s.interval[0]}-{s.interval[1]}-n{s.n}"
    return key + (f"-at{cell.score_size}" if cell.score_size else "")

def real_images(s, n, seed):
    """n images, or as many as there are, as the training loop gets them: uint8 (n, C, S, S), and their classes (n,)."""
    data = jit.open_data(s)
    classes = len(data.names) if s.classes is None else s.classes
    s = dataclasses.replace(s, batch_size=10, accum=1, seed=seed, classes=classes)
    n = n if data.labels is None else min(n, len(data.labels))
    torch.manual_seed(seed)
    batches = list(jit.training_batches(data, s, range(n // 10), range(1), torch.device("cpu")))
    return jit.to_uint8(torch.cat([x for x, _ in batches])), torch.cat([y for _, y in batches])

def statistics(pixels, side, device):
    """{score: (mean, covariance)} of the features of uint8 images, averaged down to this side."""
    pixels = F.avg_pool2d(pixels.float(), pixels.shape[-1] // side).round().to(torch.uint8)
    extractors, folder = {"rfd": jit.random_features}, Path(torch.hub.get_dir()) / "checkpoints"
    if any((folder / name).exists() for name in jit.INCEPTION_FILES):
        network, _ = jit.load_inception(None, False, device)
        extractors["FID"] = lambda batch: jit.inception_features(network, batch)[0]
    result = {}
    for name, extract in extractors.items():
        features = torch.cat([extract(batch.to(device)).cpu() for batch in pixels.split(100)]).double()
        result[name] = features.mean(0), features.T.cov()
    return result

def distances(ours, real):
    """{score: number} between two results of statistics()."""
    return {name: jit.frechet_distance(*(part.numpy() for part in ours[name] + real[name])) for name in ours}

def references(s, side, args, device):
    """(statistics() of real images, the scores of other real images); computed once and kept in a file."""
    scale, path = SCALES[args.scale], Path(s.out).parent / f"real-{Path(s.data).stem}-{s.size}-{side}.pth"
    if not path.exists():
        pixels, _ = real_images(s, scale["n"] + scale["reference"], seed=2511)
        n = min(scale["n"], len(pixels) // 2)
        real = statistics(pixels[n:], side, device)
        floor = distances(statistics(pixels[:n], side, device), real)
        own = path.with_suffix(f".{os.getpid()}")  # two processes may get here together
        torch.save((real, floor), own)
        os.replace(own, path)
    return torch.load(path)

@torch.no_grad()
def loss_over_t(net, s, device):
    """v-loss at TIMES, of fixed images and noise. Shapes are new ones, photographs those the network was trained on."""
    pixels, y = (tensor.to(device) for tensor in real_images(s, 100, seed=7))
    x = pixels.float() / 127.5 - 1
    eps = s.noise_scale * torch.randn(x.shape, generator=torch.Generator().manual_seed(7)).to(device)
    losses = []
    for i in TIMES:
        t = torch.full((len(x),), i, device=device)
        z = jit.interpolate(x, eps, t)
        out = jit.precondition(net(z, t, y).float(), z, t, s.precond)
        losses.append(jit.flow_loss(out, x, eps, t, s.pred, "v", s.t_clip).mean().item())
    return losses

def facts(s, net, device):
    """What is to be known of a trained network, whatever is drawn from it."""
    git = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")] \
        if Path("/proc/cpuinfo").exists() else []
    hardware = (cpu or [f": {platform.machine()}"])[0].partition(": ")[2] + ", one core"
    log = jit.read_log(s.out)
    steps = np.diff([0] + [line["step"] for line in log])
    seconds = sum(n * s.batch_size / line["images_per_s"] for n, line in zip(steps, log))
    return dict(settings=dataclasses.asdict(s), train_seconds=round(seconds), commit=git.stdout.strip() or "unknown",
                hardware=torch.cuda.get_device_name() if device.type == "cuda" else hardware,
                loss_over_t=loss_over_t(net, s, device))  # fmt: skip

def work(s, cells, args):
    """Train a network, unless it is trained; draw and score its cells; all that is known of it goes to results.json."""
    out, device = Path(s.out), jit.choose_device(s.device)
    try:
        jit.train(s)
    except jit.Stop as stop:
        if stop.args[1]:  # 0: it had been trained before
            raise
    for number in (signal.SIGINT, signal.SIGTERM):  # jit.train leaves its own handlers behind
        signal.signal(number, signal.default_int_handler)
    net, s, names = jit.load_run(out, "ema1", device)
    results = read_results(out) or facts(s, net, device)
    for cell in cells:
        key, sampling, side, start = key_of(cell, args), sampling_of(cell, args), cell.score_size or s.size, time.time()
        if key not in results:
            y = jit.pick_classes(sampling.n, "", s, names).to(device)
            pixels = torch.cat([batch.cpu() for batch in jit.sample_images(net, y, s, sampling)])
            real, floor = references(s, side, args, device)
            scores = distances(statistics(pixels, side, device), real)
            np.save(out / f"{key}.npy", pixels.numpy())
            results[key] = dict(scores=scores, floor=floor, seconds=round(time.time() - start))
            save_results(out, results)

def add_agreement(study, args):
    """Score the pictures of shapes there are by figures/agreement.py's classifier, if that was trained."""
    import agreement

    weights = ROOT / agreement.WEIGHTS
    if args.data != "shapes" or not weights.exists():
        return
    classifier = agreement.make_classifier()
    classifier.load_state_dict(torch.load(weights, weights_only=True))
    classifier.eval()

    def share(pixels, y):
        return (agreement.classify(pixels / 127.5 - 1, classifier) == y).double().mean().item()

    for cell in study.cells:
        s, (run, result) = settings_of(cell, args), look_up(cell, args)
        if result and "agreement" not in result["scores"]:
            pixels = torch.from_numpy(np.load(Path(s.out) / f"{key_of(cell, args)}.npy"))
            result["scores"]["agreement"] = share(pixels, torch.arange(len(pixels)) % len(jit.SHAPES))
            result["floor"]["agreement"] = share(*real_images(s, 500, seed=3))
            save_results(s.out, run)

def save_results(out, results):
    text = json.dumps(results, indent=1)
    jit.write_whole(Path(out) / "results.json", lambda path: path.write_text(text))

def read_results(out):
    path = Path(out) / "results.json"
    return json.loads(path.read_text()) if path.exists() else {}

# ---------------------------------------------------------------------------------------------------------------------
# A study: all its networks, each in a process of its own
# ---------------------------------------------------------------------------------------------------------------------

SCORING = 300  # for the progress bar: drawing and scoring a cell takes about as long as this many training steps

def runs_of(study, args):
    """{run folder: (settings, its cells)}, each network once."""
    runs = {}
    for cell in STUDIES[study](SCALES[args.scale]).cells:
        s = settings_of(cell, args)
        runs.setdefault(s.out, (s, []))[1].append(cell)
    return runs

def steps_done(s, cells, args):
    """How far a network and its cells are, in training steps."""
    log, results = jit.read_log(s.out), read_results(s.out)
    return (log[-1]["step"] if log else 0) + SCORING * sum(key_of(cell, args) in results for cell in cells)

def start_process(out, study, args):
    """This script again, for one network; what it says goes to OUT.txt."""
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, study, "--scale", args.scale, "--data", args.data, "--runs", str(args.runs)]
    environment = os.environ | ({} if args.scale == "gpu" else dict(OMP_NUM_THREADS="1"))
    with open(f"{out}.txt", "a") as log:
        pipes = dict(stdin=subprocess.PIPE, stdout=log, stderr=log)
        return subprocess.Popen([*command, "--only", out], **pipes, env=environment)

def follow_parent():
    """In such a process: end it when the one that started it is gone; however it went, its end of the pipe closes."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)

def train_all(study, args):
    """Train, draw and score what is missing, --jobs networks at a time."""
    runs = runs_of(study, args)
    total = sum(s.steps + SCORING * len(cells) for s, cells in runs.values())
    waiting = [out for out, (s, cells) in runs.items() if steps_done(s, cells, args) < s.steps + SCORING * len(cells)]
    running, failed = {}, []
    bar = tqdm(desc=study, total=total, initial=sum(steps_done(*run, args) for run in runs.values()), unit="step",
               bar_format="{desc}{percentage:3.0f}% |{bar}| {elapsed}, {remaining} left, {postfix}")  # fmt: skip
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
    jit.need(not failed, f"failed: {', '.join(failed)}; see the .txt files of these names.")

# ---------------------------------------------------------------------------------------------------------------------
# Its table and its figure
# ---------------------------------------------------------------------------------------------------------------------

COLOUR = {"x-prediction": "#0072B2", "ε-prediction": "#D55E00", "v-prediction": "#E69F00"}  # as in toy_manifold.py
GREY = "#666666"
NOTES = "<!-- Below are notes written by hand; they stay when the table is written again. -->"

def look_up(cell, args):
    """(what is known of the cell's network, what is known of the cell); empty if not known."""
    run = read_results(settings_of(cell, args).out)
    return run, run.get(key_of(cell, args), {})

def short(number):
    """Two digits are what these scores are good for."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"

def distinct(cells, part):
    """The names of the panels, rows or columns of some cells, in order."""
    return list(dict.fromkeys(getattr(cell, part) for cell in cells))

def panels_of(study):
    return [[cell for cell in study.cells if cell.panel == panel] for panel in distinct(study.cells, "panel")]

def in_words(scores):
    show = {name: f"{score:.0%}" if name == "agreement" else short(score) for name, score in scores.items()}
    return ", ".join(f"{name} {text}" for name, text in show.items())

def caption(cell, args):
    """The scores of a cell in words."""
    result = look_up(cell, args)[1]
    return in_words(result["scores"]) if result else "not run"

def v_loss(cell, args):
    """Instead, for Figure 7: the v-loss in the last fifth of the training."""
    log = jit.read_log(settings_of(cell, args).out)
    return f"{np.mean([line['loss'] for line in log[-len(log) // 5 :]]):.3f}" if log else "not run"

def write_table(name, study, args):
    """figures/NAME.md: the scores of each panel, and how they came about."""
    known = [found for found in (look_up(cell, args) for cell in study.cells) if found[1]]
    jit.need(known, f"there is nothing of {name} in {args.runs / args.scale} yet.")
    lines, describe = [f"# {study.title}", ""], v_loss if name == "lossbyt" else caption
    for cells in panels_of(study):
        lines += [f"## {cells[0].panel}", ""] if cells[0].panel else []
        columns, floors = distinct(cells, "column"), []
        if describe is caption:
            floors = [result["floor"] for _, result in (look_up(cell, args) for cell in cells) if result]
        lines += [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for row in distinct(cells, "row"):
            ours = [describe(cell, args) + (f" ({cell.paper})" if cell.paper and describe is caption else "")
                    for cell in cells if cell.row == row]  # fmt: skip
            lines.append(f"| {row} | {' | '.join(ours)} |")
        lines += ["", *(f"Real images score {in_words(floor)}." for floor in floors[:1]), ""]
    run, draw = known[0][0], sampling_of(study.cells[0], args)
    first = run["settings"]
    seconds = {run["settings"]["out"]: run["train_seconds"] for run, _ in known}
    minutes = (sum(seconds.values()) + sum(result["seconds"] for _, result in known)) / 60
    kept = "data size patch depth width heads steps batch_size lr seed t_clip".split()
    commits = ", ".join(sorted({run["commit"] for run, _ in known}))
    kind = "In brackets the paper's FID-50K. " if any(cell.paper for cell in study.cells) else ""
    if describe is v_loss:
        kind = "Mean over the last fifth of the training. "
    lines += [f"{kind}{draw.n} samples a cell, one training seed. Lower is better (agreement: higher).", "",
              f"- Command: `python figures/ablations.py {name} --scale {args.scale}`",
              f"- Training of the first cell: {', '.join(f'{key} {first[key]}' for key in kept)}; "
              "the others differ in what the table says.",
              f"- Its sampling: {draw.solver}, {draw.steps} steps, guidance {draw.cfg} for t in {draw.interval}, "
              f"weights {draw.weights}, seed {draw.seed}.",
              f"- Time: {minutes:.0f} minutes for {len(seconds)} network{'s' * (len(seconds) > 1)}, "
              "one after the other; studies share some.",
              f"- Hardware: {run['hardware']}; PyTorch {torch.__version__}; commit {commits}.", ""]  # fmt: skip
    path = args.figures / f"{name}.md"
    notes = path.read_text().partition(NOTES)[2] if path.exists() else "\n"
    path.write_text("\n".join(lines) + f"\n{NOTES}{notes}")

def mosaic(pixels):
    """The first nine images of (n, C, S, S) as one, three by three with white gaps: uint8 (H, W, 3)."""
    images = np.broadcast_to(pixels[:9].transpose(0, 2, 3, 1), (9, *pixels.shape[2:], 3))
    gap = max(1, pixels.shape[-1] // 16)
    images = np.pad(images, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    return np.vstack([np.hstack(images[i : i + 3]) for i in (0, 3, 6)])[:-gap, :-gap]

def draw_pictures(figure, cells, args):
    """One panel: nine pictures of every cell, with its scores under them."""
    rows, columns = distinct(cells, "row"), distinct(cells, "column")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    figure.suptitle(cells[0].panel or None, fontsize=11, fontweight="bold")
    for cell in cells:
        ax, colour = axes[rows.index(cell.row), columns.index(cell.column)], COLOUR.get(cell.column)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(visible=colour is not None, color=colour, linewidth=2)
        if cell.row == rows[0]:
            ax.set_title(cell.column, color=colour or "black", fontsize=10, fontweight="bold")
        if cell.column == columns[0]:
            ax.set_ylabel(cell.row, fontsize=10)
        if look_up(cell, args)[1]:
            pixels = np.load(Path(settings_of(cell, args).out) / f"{key_of(cell, args)}.npy")
            ax.imshow(mosaic(pixels), interpolation="nearest")
        paper = f"\npaper: FID {cell.paper:.3g}" if cell.paper else ""
        ax.set_xlabel(caption(cell, args).partition(", agreement")[0] + paper, fontsize=9)

def draw_curve(ax, study, args):
    """The first score against the columns, a line for each row."""
    for row, marker in zip(distinct(study.cells, "row"), "os"):
        found = [(cell.column, look_up(cell, args)[1]) for cell in study.cells if cell.row == row]
        scores = {column: next(iter(result["scores"].items())) for column, result in found if result}
        _, without = scores.pop("none", (None, None))
        if without:
            ax.axhline(without, color=GREY, linestyle="--", label="no bottleneck")
        ax.plot([float(column) for column in scores], [score for _, score in scores.values()], marker=marker, label=row)
    floor, columns = [next(iter(result["floor"].values())) for _, result in found if result][0], list(scores)
    ax.axhline(floor, color=GREY, linestyle=":", label="real images")
    ax.set(xlabel=study.columns, ylabel=next(iter(scores.values()))[0], xscale=study.curve)
    high = ax.get_ylim()[1]
    if high > 10 * floor:
        ax.set_yscale("log")
    else:
        ax.set_ylim(0, high)
    ax.set_xticks([float(column) for column in columns], columns)
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=8)

def draw_spectrum(ax, s):
    """How much of the variance of the data's patches is outside their first r principal components."""
    pixels, _ = real_images(s, 1000, seed=11)
    patches = F.unfold(pixels.double(), s.patch, stride=s.patch).transpose(1, 2).flatten(0, 1)  # (n N, C p p)
    variance = torch.linalg.eigvalsh(patches.T.cov()).flip(0)
    ax.plot(range(1, len(variance)), 1 - (variance.cumsum(0) / variance.sum())[:-1], color="black")
    ax.set(xlabel="r", xscale="log", yscale="log", ylim=(1e-5, 1))
    ax.set_title("variance of patches outside r principal components", fontsize=10)
    ax.axvline(s.width, color=GREY, linestyle="--")
    ax.text(s.width, 2e-5, "width of the network ", color=GREY, fontsize=8, horizontalalignment="right")

def draw_losses(figure, study, args):
    """The v-loss in training, and, of the finished network, against t; a row for each panel."""
    for part, cells in zip(figure.subfigures(2, 1), panels_of(study)):
        part.suptitle(cells[0].panel, fontsize=11, fontweight="bold")
        left, right = part.subplots(1, 2, sharey=True)
        for cell in cells:
            run, _ = look_up(cell, args)
            log = jit.read_log(settings_of(cell, args).out) if run else []
            left.plot([line["step"] for line in log], [line["loss"] for line in log], color=COLOUR[cell.column])
            over_t = run.get("loss_over_t", [np.nan] * len(TIMES))
            right.plot(TIMES, over_t, color=COLOUR[cell.column], label=cell.column)
        left.set(xlabel="training step", ylabel="v-loss", yscale="log")
        right.set(xlabel="t (0 noise, 1 data), finished network", xlim=(0, 1))
        right.legend(frameon=False)

def draw(name, study, args):
    """figures/NAME.png."""
    import matplotlib.pyplot as plt

    panels = panels_of(study)
    columns = sum(len(distinct(cells, "column")) for cells in panels)
    side = min(1.8, 8.4 / columns)  # of the pictures of a cell, in inches
    pictures = len(distinct(study.cells, "row")) * (side + (0.4 if study.cells[0].paper else 0.25)) + 0.4
    if name == "lossbyt":
        figure = plt.figure(figsize=(9, 5.5), layout="constrained", dpi=140)
        draw_losses(figure, study, args)
    else:
        heights = [2.6, pictures] if study.curve else [pictures]
        figure = plt.figure(figsize=(0.6 + side * columns, sum(heights)), layout="constrained", dpi=140)
        *top, bottom = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        if top:
            left, *right = np.ravel(top[0].subplots(1, 1 + (name == "bottleneck")))
            draw_curve(left, study, args)
            for ax in right:
                draw_spectrum(ax, settings_of(study.cells[0], args))
        for part, cells in zip(np.ravel(bottom.subfigures(1, len(panels))), panels):
            draw_pictures(part, cells, args)
    path = args.figures / f"{name}.png"
    figure.savefig(path)
    if path.stat().st_size > 500_000:  # a repository is cloned whole: smaller ones then
        figure.savefig(path, dpi=0.7 * figure.dpi)
    plt.close(figure)

def parse_flags(words=None):
    parser = argparse.ArgumentParser(description="The tables of the JiT paper in miniature.", allow_abbrev=False)
    parser.add_argument("studies", nargs="+", choices=STUDIES, help="what to train and show")
    parser.add_argument("--scale", default="cpu", choices=SCALES, help="size of networks and data (default: cpu)")
    parser.add_argument("--data", default="shapes", help="as of jit.py train (default: shapes); for gpu photographs")
    parser.add_argument("--jobs", type=int, help="networks at a time (default: one for each core; on a GPU 2)")
    parser.add_argument("--draw-only", action="store_true", help="train nothing, but write table and figure again")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "ablations", help="folder of all that is trained")
    parser.add_argument("--figures", type=Path, default=ROOT / "figures", help="folder of tables and figures")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # the folder of one network: how this script calls itself
    args = parser.parse_args(words)
    args.runs, args.jobs = args.runs.resolve(), args.jobs or (2 if args.scale == "gpu" else os.cpu_count())
    return args

def main(args):
    """Run the studies; returns the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if args.only:
            threading.Thread(target=follow_parent, daemon=True).start()
            work(*runs_of(args.studies[0], args)[args.only], args)
            return 0
        for name in args.studies:
            if not args.draw_only:
                train_all(name, args)
            study = STUDIES[name](SCALES[args.scale])
            add_agreement(study, args)
            write_table(name, study, args)
            draw(name, study, args)
            print(f"{args.figures / name}.png and {args.figures / name}.md")
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    except jit.Stop as error:
        print(f"ablations.py: {error.args[0]}", file=sys.stderr)
        return error.args[1]
    return 0

if __name__ == "__main__":
    sys.exit(main(parse_flags()))
