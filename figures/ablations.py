"""The tables of the JiT paper in miniature: each study trains a few small networks, and shows them side by side.

    python figures/ablations.py nine                              Table 2: predict x, eps or v; loss on x, eps or v
    python figures/ablations.py nine --scale gpu --data PHOTOS    the same on photographs, PHOTOS/CLASS/*.jpg, on a GPU
    python figures/ablations.py all                               every study, one after the other
    python figures/ablations.py nine --draw-only                  table and figure again, from what is there

A study is a list of cells; a cell is a network to train, how to sample it, and a place in a figure. Cells that need the
same network share it, also across studies. Whatever is trained and scored is kept in runs/ablations/SCALE, and a study
that was stopped, or killed, goes on there. It leaves figures/STUDY.png, the pictures (same seeds in every cell), and
figures/STUDY.md, the numbers.

Scores    rfd: Frechet distance on the features of a small fixed random network (jit.random_features). It needs no
          download, and it is not FID: compare it within a table only. `floor` is what real images score.
          FID-n: n samples, if the Inception weights are there (jit.load_inception; python jit.py eval fetches them).
Settings  --scale cpu: the built-in shapes, 64 px, width 128. 768 numbers a patch is 16 px of 64; 48 is 4 px of the same
          pictures drawn at 16 px. --scale gpu: photographs, 64 px, width 384, patches of 16 and 4 px. --scale toy: seconds,
          to see that all works. As in the paper, Tables 2, 3, 10 and Figure 4 are without RoPE, qk-norm, in-context tokens,
          guidance interval and (but for Figure 4) bottleneck. The paper sweeps guidance for each entry, we do not.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import signal
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import jit  # noqa: E402

# ---------------------------------------------------------------------------------------------------------------------
# The studies
# ---------------------------------------------------------------------------------------------------------------------

# n: samples to score; reference: real images to compare with; large, small: size and patch of 768 and 48 numbers a patch;
# sizes: of the resolution study, all of 16 tokens.
SCALES = {
    "cpu": dict(train=dict(model="Ti/16", batch_size=32, steps=1500), draw=dict(cfg=1.5, steps=25, batch_size=50), n=300,
                reference=3000, large=(64, 16), small=(16, 4), sizes=[(32, 8), (64, 16), (128, 32)]),
    "gpu": dict(train=dict(model="S/16", batch_size=128, steps=2500), draw=dict(cfg=2.0, steps=25, batch_size=500), n=2000,
                reference=20000, large=(64, 16), small=(64, 4), sizes=[(64, 16), (128, 32), (256, 64)]),
    "toy": dict(train=dict(model="Ti/16", depth=2, width=32, heads=2, batch_size=4, steps=6, warmup=1, save_every=2,
                log_every=1), draw=dict(steps=2, batch_size=9), n=9, reference=30, large=(32, 16), small=(8, 4),
                sizes=[(16, 4), (32, 8)]),
}  # fmt: skip
PLAIN = dict(rope=False, qk_norm=False, context_tokens=0)  # the network of Tables 2, 3, 10 and Figure 4
EVERYWHERE = dict(interval=(0.0, 1.0))  # no guidance interval
PREDS = ("x", "eps", "v")
LOSS = dict(x="x-loss", eps="ε-loss", v="v-loss")
PREDICTION = dict(x="x-prediction", eps="ε-prediction", v="v-prediction")

# train: jit.Settings; draw: jit.Sampling; score_size: side that images are averaged down to before they are scored
Cell = namedtuple("Cell", "panel row column train draw paper score_size", defaults=(None, None))
# rows, columns: what the names in the figure's margins stand for; curve: also plot the score against the columns
Study = namedtuple("Study", "title rows columns cells curve", defaults=(False,))


def image(place):
    """Settings for images of this size and patch."""
    return dict(size=place[0], patch=place[1])


def nine(scale):
    paper = dict(large=[[10.14, 379.21, 107.55], [10.45, 394.58, 126.88], [8.62, 372.38, 96.53]],
                 small=[[5.76, 6.20, 6.12], [3.56, 4.02, 3.76], [3.55, 3.63, 3.46]])  # fmt: skip
    width = jit.MODELS[scale["train"]["model"].split("/")[0]]["width"]
    titles = dict(large=f"(a) patches of 768 numbers, network {width} wide", small="(b) patches of 48 numbers")
    cells = [Cell(titles[kind], LOSS[loss], PREDICTION[pred], image(scale[kind]) | PLAIN |
                  dict(bottleneck=0, pred=pred, loss=loss), EVERYWHERE, paper[kind][i][j])
             for kind in titles for i, loss in enumerate(PREDS) for j, pred in enumerate(PREDS)]  # fmt: skip
    return Study("Nine ways to denoise (Table 2)", "loss", "prediction", cells)


def shift(scale):
    paper = {0.0: [14.44, 464.25, 120.03], -0.4: [9.79, 372.91, 109.93], -0.8: [8.62, 372.36, 96.53],
             -1.2: [8.99, 355.25, 106.85]}  # fmt: skip
    base = image(scale["large"]) | PLAIN | dict(bottleneck=0)
    cells = [Cell("", f"μ = {mu}", PREDICTION[pred], base | dict(pred=pred, mu=mu), EVERYWHERE, fid)
             for mu, fids in paper.items() for pred, fid in zip(PREDS, fids)]  # fmt: skip
    return Study("The noise level to train at: logit t ~ N(μ, 0.8²) (Table 3)", "μ", "prediction", cells)


def bottleneck(scale):
    paper = {0: 8.62, 16: 9.40, 128: 7.48}  # we know the others, 8.38, 8.15, 7.89 and 7.35, but not which is which
    base = image(scale["large"]) | PLAIN
    cells = [Cell("", "x-prediction", str(rank or "none"), base | dict(bottleneck=rank), EVERYWHERE, paper.get(rank))
             for rank in (0, 8, 16, 32, 64, 128, 256, 512)]  # fmt: skip
    return Study("A bottleneck in the patch embedding (Figure 4)", "", "rank r", cells, "log")


def ladder(scale):
    modern = PLAIN | dict(norm="rms", mlp="swiglu")
    rungs = {"LayerNorm, GELU": (modern | dict(norm="layer", mlp="gelu"), 7.89, None),
             "RMSNorm, SwiGLU": (modern, 7.48, 6.32),
             "+ RoPE, qk-norm": (dict(context_tokens=0), 6.69, 5.44),
             "+ in-context tokens": ({}, 5.49, 4.37)}  # fmt: skip
    cells = [Cell("", rung, name, image(scale["large"]) | net, draw, fid) for rung, (net, *fids) in rungs.items()
             for (name, draw), fid in zip(GUIDED.items(), fids)]  # fmt: skip
    return Study("The network, step by step (Table 4)", "network", "guidance", cells)


def precond(scale):
    paper = dict(none=[10.14, 10.45, 8.62], linear=[39.50, 67.56, 46.25], edm=[28.94, 72.05, 35.49])
    base = image(scale["large"]) | PLAIN | dict(bottleneck=0)
    cells = [Cell("", LOSS[loss], kind, base | dict(loss=loss, precond=kind), EVERYWHERE, fids[i])
             for i, loss in enumerate(PREDS) for kind, fids in paper.items()]  # fmt: skip
    return Study("Pre-conditioned x-prediction, x = c_skip z + c_out net (Table 10)", "loss", "pre-conditioning", cells)


def resolution(scale):
    smallest = scale["sizes"][0][0]  # scored there, so that the numbers can be compared
    paper = [4.37, 4.64, 4.82]
    cells = [Cell("", "x-prediction", f"{size} px, patch {patch}", image((size, patch)) | dict(noise_scale=size / 64),
                  GUIDED["for t > 0.1"], fid, smallest) for (size, patch), fid in zip(scale["sizes"], paper)]  # fmt: skip
    return Study("More pixels, the same number of tokens (Table 5)", "", "image", cells)


def solver(scale):
    cells = [Cell("", f"{name}", str(steps), image(scale["large"]), GUIDED["for t > 0.1"] | dict(solver=name, steps=steps))
             for name in ("euler", "heun") for steps in (4, 8, 16, 32, 64)]  # fmt: skip
    return Study("Euler and Heun", "solver", "steps", cells, "log")


def guidance(scale):
    cells = [Cell("", name, str(weight), image(scale["large"]), draw | dict(cfg=weight))
             for name, draw in GUIDED.items() for weight in (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)]  # fmt: skip
    return Study("Classifier-free guidance", "guidance", "weight w", cells, "linear")


def lossbyt(scale):
    cells = [cell for cell in nine(scale).cells if cell.row == "v-loss"]
    return Study("The v-loss of three predictions (Figure 7)", "loss", "prediction", cells)


GUIDED = {"at all t": EVERYWHERE, "for t > 0.1": dict(interval=(0.1, 1.0))}
STUDIES = {f.__name__: f for f in (nine, shift, bottleneck, ladder, precond, resolution, solver, guidance, lossbyt)}

# ---------------------------------------------------------------------------------------------------------------------
# One network: train it, sample it, score it
# ---------------------------------------------------------------------------------------------------------------------

SCORING = 300  # for the progress bar: sampling and scoring a cell takes about as long as this many training steps
TIMES = [(i + 0.5) / 20 for i in range(20)]  # where the loss over t is measured


def settings_of(cell, args):
    """jit.Settings of a cell. All that is not as jit.py has it by default names the run folder."""
    common = dict(data=args.data, cfg=1.0, sample_every=10**9, device="auto" if args.scale == "gpu" else "cpu")
    s = jit.resolve(jit.Settings(**common | SCALES[args.scale]["train"] | cell.train))
    usual = dataclasses.asdict(jit.resolve(jit.Settings()))
    special = {key: value for key, value in dataclasses.asdict(s).items() if value != usual[key] and key not in jit.CHANGEABLE}
    digest = hashlib.sha256(json.dumps(special | dict(steps=s.steps), sort_keys=True).encode()).hexdigest()[:6]
    return dataclasses.replace(s, out=str(args.runs / args.scale / f"{s.size}px-{s.pred}-{s.loss}-{digest}"))


def sampling_of(cell, args):
    scale = SCALES[args.scale]
    return jit.Sampling(n=scale["n"], **scale["draw"] | cell.draw)


def key_of(cell, args):
    """The name of a cell's results within its run."""
    draw = sampling_of(cell, args)
    key = f"{draw.solver}{draw.steps}-cfg{draw.cfg}-t{draw.interval[0]}-{draw.interval[1]}-n{draw.n}"
    return key + (f"-at{cell.score_size}" if cell.score_size else "")


def runs_of(studies, args):
    """{run folder: (settings, its cells)}: each network once, whatever number of cells and studies need it."""
    runs = {}
    for study in studies:
        for cell in study.cells:
            s = settings_of(cell, args)
            runs.setdefault(s.out, (s, []))[1].append(cell)
    return runs


def real_images(s, n, seed):
    """n training images (fewer if there are fewer) as the training loop would see them: uint8 (n, C, S, S), (n,)."""
    s, data = dataclasses.replace(s, batch_size=10, accum=1, seed=seed), jit.open_data(s)
    n = n if data.labels is None else min(n, len(data.labels))
    torch.manual_seed(seed)
    batches = list(jit.training_batches(data, s, range(n // 10), range(1), torch.device("cpu")))
    return jit.to_uint8(torch.cat([x for x, _ in batches])), torch.cat([y for _, y in batches])


def shrink(pixels, side):
    """Average uint8 images down to this side, if there is one to average to."""
    factor = pixels.shape[-1] // (side or pixels.shape[-1])
    return torch.nn.functional.avg_pool2d(pixels.float(), factor).round().to(torch.uint8)


def load_fid(device):
    """FID's network, if its weights are there; nothing is downloaded."""
    there = any((Path(torch.hub.get_dir()) / "checkpoints" / name).exists() for name in jit.INCEPTION_FILES)
    return jit.load_inception(None, False, device)[0] if there else None


def statistics(pixels, device):
    """{score: (mean, covariance)} of uint8 images, for each score there is."""
    features, inception = {"rfd": jit.random_features}, load_fid(device)
    if inception:
        features["FID"] = lambda batch: jit.inception_features(inception, batch)[0]
    result = {}
    for name, extract in features.items():
        rows = torch.cat([extract(batch.to(device)).cpu() for batch in pixels.split(100)]).double()
        result[name] = rows.mean(0), rows.T.cov()
    return result


def distances(ours, real):
    """{score: number} from two of statistics()."""
    return {name: jit.frechet_distance(*(part.numpy() for part in ours[name] + real[name])) for name in ours}


def references(s, side, args, device):
    """statistics() of the real images, scored at this side, and the floor: what other real images score."""
    scale, path = SCALES[args.scale], Path(s.out).parent / f"real-{Path(s.data).stem}-{s.size}-{side}.pth"
    if not path.exists():
        pixels = shrink(real_images(s, scale["n"] + scale["reference"], seed=2511)[0], side)
        n = min(scale["n"], len(pixels) // 2)
        real = statistics(pixels[n:], device)
        floor = distances(statistics(pixels[:n], device), real)
        mine = path.with_suffix(f".{os.getpid()}")  # two processes may get here together
        torch.save((real, floor), mine)
        os.replace(mine, path)
    return torch.load(path)


@torch.no_grad()
def loss_over_t(net, s, device):
    """v-loss at fixed times, on fixed images and noise. Shapes are new ones; photographs are those of the training set."""
    pixels, y = (tensor.to(device) for tensor in real_images(s, 100, seed=7))
    x = pixels.float() / 127.5 - 1
    eps = s.noise_scale * torch.randn(x.shape, generator=torch.Generator().manual_seed(7)).to(device)
    losses = []
    for time_ in TIMES:
        t = torch.full((len(x),), time_, device=device)
        z = jit.interpolate(x, eps, t)
        out = jit.precondition(net(z, t, y).float(), z, t, s.precond)
        losses.append(jit.flow_loss(out, x, eps, t, s.pred, "v", s.t_clip).mean().item())
    return losses


def work(s, cells, args):
    """Train a network as far as it is not, then sample and score its cells; all that is known of it in results.json."""
    out = Path(s.out)
    jit.train(s)
    for number in (signal.SIGINT, signal.SIGTERM):  # jit.train leaves its own behind
        signal.signal(number, signal.default_int_handler)
    results = read_results(out)
    device = jit.choose_device(s.device)
    net, s, names = jit.load_run(out, "ema1", device)

    def keep(**more):
        results.update(more)
        jit.write_whole(out / "results.json", lambda temporary: temporary.write_text(json.dumps(results, indent=1)))

    if "settings" not in results:
        log = jit.read_log(out)
        steps = np.diff([0] + [line["step"] for line in log])
        seconds = sum(n * s.batch_size / line["images_per_s"] for n, line in zip(steps, log))
        keep(settings=dataclasses.asdict(s), commit=commit(), hardware=hardware(device), train_seconds=round(seconds),
             loss_over_t=loss_over_t(net, s, device))  # fmt: skip
    for cell in cells:
        if key_of(cell, args) in results:
            continue
        start, sampling = time.perf_counter(), sampling_of(cell, args)
        y = jit.pick_classes(sampling.n, "", s, names).to(device)
        pixels = torch.cat([batch.cpu() for batch in jit.sample_images(net, y, s, sampling)])
        real, floor = references(s, cell.score_size or s.size, args, device)
        scores = distances(statistics(shrink(pixels, cell.score_size), device), real)
        np.save(out / f"{key_of(cell, args)}.npy", pixels.numpy())
        keep(**{key_of(cell, args): dict(scores=scores, floor=floor, seconds=round(time.perf_counter() - start))})


def commit():
    """The git commit that this ran on, with -dirty if files were changed since."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def hardware(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return f"{(names or [platform.processor() or platform.machine()])[0]}, one core"


# ---------------------------------------------------------------------------------------------------------------------
# A study: its networks in processes of their own
# ---------------------------------------------------------------------------------------------------------------------


def read_results(out):
    path = Path(out) / "results.json"
    return json.loads(path.read_text()) if path.exists() else {}


def steps_done(s, cells, args):
    """How far a run is, in training steps; sampling and scoring a cell counts as SCORING of them."""
    log, results = jit.read_log(s.out), read_results(s.out)
    return (log[-1]["step"] if log else 0) + SCORING * sum(key_of(cell, args) in results for cell in cells)


def start(run, study, args):
    """A process that works on one network; its output goes to log.txt in the run's folder."""
    (args.runs / args.scale).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, study, "--scale", args.scale, "--data", args.data, "--runs", str(args.runs)]
    with open(args.runs / args.scale / f"{run}.txt", "a") as log:
        environment = os.environ | (dict(OMP_NUM_THREADS="1") if args.scale != "gpu" else {})
        return subprocess.Popen([*command, "--only", run], stdout=log, stderr=log, stdin=subprocess.PIPE, env=environment)


def supervise(name, args):
    """Train and score all that is missing, --jobs networks at a time. False if one of them failed."""
    runs = runs_of([STUDIES[name](SCALES[args.scale])], args)
    total = {out: s.steps + SCORING * len(cells) for out, (s, cells) in runs.items()}
    waiting = [out for out, run in runs.items() if steps_done(*run, args) < total[out]]
    running, failed = {}, []
    bar = tqdm(total=sum(total.values()), initial=sum(steps_done(*run, args) for run in runs.values()), unit="step",
               bar_format="{l_bar}{bar}| {elapsed} so far, {remaining} left, {rate_fmt}{postfix}")  # fmt: skip
    try:
        while waiting or running:
            while waiting and len(running) < args.jobs:
                out = waiting.pop(0)
                running[out] = start(Path(out).name, name, args)
            time.sleep(0.5)
            for out, process in list(running.items()):
                if process.poll() is not None:
                    del running[out]
                    if process.returncode:
                        failed.append(out)
                        tqdm.write(f"{Path(out).name} stopped with exit code {process.returncode}: see {out}.txt", file=sys.stderr)
            bar.n = sum(steps_done(*run, args) for run in runs.values())
            bar.set_postfix_str(f"{len(runs) - len(waiting) - len(running)} of {len(runs)} networks done")
    finally:
        for process in running.values():  # after Ctrl-C; they save and end
            process.terminate()
        for process in running.values():
            process.wait()
        bar.close()
    return not failed


def follow_parent():
    """End this process, saving, when the one that started it is gone, however it went: its end of the pipe closes."""
    os.read(0, 1)  # not sys.stdin, whose lock a thread must not hold at exit
    os.kill(os.getpid(), signal.SIGTERM)


def only(names, args):
    """In a process of its own: train and score the network args.only."""
    threading.Thread(target=follow_parent, daemon=True).start()
    torch.set_num_threads(1 if args.scale != "gpu" else torch.get_num_threads())
    runs = runs_of([STUDIES[name](SCALES[args.scale]) for name in names], args)
    work(*runs[str(args.runs / args.scale / args.only)], args)


# ---------------------------------------------------------------------------------------------------------------------
# Its table and its figure
# ---------------------------------------------------------------------------------------------------------------------

COLOUR = {"x-prediction": "#0072B2", "ε-prediction": "#D55E00", "v-prediction": "#E69F00"}  # Okabe and Ito's palette
GREY = "#666666"


def short(number):
    """Two digits are what these scores are good for."""
    return "" if number is None else f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def look_up(cell, args):
    """(results of a cell or None, results of its run)"""
    run = read_results(settings_of(cell, args).out)
    return run.get(key_of(cell, args)), run


def write_table(name, study, args):
    """figures/NAME.md; what stands below the line of NOTES there is written by hand and stays."""
    path, notes = args.figures / f"{name}.md", "<!-- Notes: written by hand, kept when the table is written again. -->"
    found = [(cell, *look_up(cell, args)) for cell in study.cells]
    done = [(cell, result, run) for cell, result, run in found if result]
    scores = {(cell.panel, cell.row, cell.column): result["scores"] for cell, result, run in done}
    lines = [f"# {study.title}", "", f"`python figures/ablations.py {name} --scale {args.scale}`", ""]
    for panel in dict.fromkeys(cell.panel for cell in study.cells):
        cells = [cell for cell in study.cells if cell.panel == panel]
        columns = list(dict.fromkeys(cell.column for cell in cells))
        if panel:
            lines += [f"## {panel}", ""]
        for score in done[0][1]["scores"]:
            lines += [f"| {score} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
            for row in dict.fromkeys(cell.row for cell in cells):
                entries = []
                for cell in (cell for cell in cells if cell.row == row):
                    mine = scores.get((cell.panel, cell.row, cell.column), {}).get(score)
                    entries.append((short(mine) or "not run") + (f" ({cell.paper})" if cell.paper else ""))
                lines.append(f"| {row} | " + " | ".join(entries) + " |")
            floors = sorted({short(result["floor"][score]) for cell, result, run in done if cell.panel == panel})
            lines += ["", f"Real images against real images: {', '.join(floors)}.", ""]
    cell, result, run = done[0]
    runs = {run["settings"]["out"]: run["train_seconds"] for _, _, run in done}
    seconds = sum(runs.values()) + sum(result["seconds"] for _, result, _ in done)
    rest = {key: value for key, value in run["settings"].items() if key in SCALES[args.scale]["train"] or key in ("lr", "seed", "t_clip")}
    lines += [f"In brackets the paper's FID-50K; {score}: {SCALES[args.scale]['n']} samples, seed {sampling_of(cell, args).seed}, lower is better."]
    lines += ["", f"- Training: {rest}, but for what rows and columns say.", f"- Sampling of the first cell: {key_of(cell, args)}."]
    lines += [f"- Time: {seconds / 60:.0f} minutes over all {len(runs)} networks, one after the other (some shared with other studies)."]
    lines += [f"- Hardware: {', '.join(sorted({run['hardware'] for _, _, run in done}))}."]
    lines += [f"- Commit: {', '.join(sorted({run['commit'] for _, _, run in done}))}; PyTorch {torch.__version__}.", ""]
    kept = path.read_text().partition(notes)[2] if path.exists() else "\n"
    path.write_text("\n".join(lines) + f"\n{notes}{kept}")


def mosaic(pixels):
    """The first nine images (9, C, S, S) as one, three by three with white gaps: uint8 (H, W, 3)."""
    pixels = pixels[:9]
    images = np.broadcast_to(pixels.transpose(0, 2, 3, 1), (len(pixels), *pixels.shape[2:], 3))
    gap = max(1, pixels.shape[-1] // 16)
    images = np.pad(images, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    return np.concatenate([np.concatenate(list(images[i : i + 3]), 1) for i in (0, 3, 6)], 0)[:-gap, :-gap]


def names_of(cells):
    """The rows and columns of some cells, in order, each once."""
    return list(dict.fromkeys(cell.row for cell in cells)), list(dict.fromkeys(cell.column for cell in cells))


def draw_grid(figure, study, cells, args):
    """Pictures of one panel, with the scores under them."""
    rows, columns = names_of(cells)
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    if cells[0].panel:
        figure.suptitle(cells[0].panel, fontsize=11, fontweight="bold")
    for cell in cells:
        ax, colour = axes[rows.index(cell.row), columns.index(cell.column)], COLOUR.get(cell.column)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(color=colour or "white", linewidth=2)
        if cell.row == rows[0]:
            ax.set_title(cell.column, color=colour or "black", fontsize=10, fontweight="bold")
        if cell.column == columns[0]:
            ax.set_ylabel(cell.row, fontsize=10)
        result, run = look_up(cell, args)
        if result:
            pixels = np.load(Path(run["settings"]["out"]) / f"{key_of(cell, args)}.npy")
            ax.imshow(mosaic(pixels), interpolation="nearest")
        scores = [f"{name} {short(value)}" for name, value in result["scores"].items()] if result else ["not run"]
        paper = f"\npaper: FID {short(cell.paper)}" if cell.paper else ""
        ax.set_xlabel("  ".join(scores) + paper, fontsize=9)


def draw_curve(figure, study, args):
    """The first score against the columns, a line for each row; for the bottleneck also the spectrum of the patches."""
    with_spectrum = study.columns == "rank r"
    axes = figure.subplots(1, 1 + with_spectrum, squeeze=False)[0]
    rows, columns = names_of(study.cells)
    for row, marker in zip(rows, "os^"):
        cells = [(cell, look_up(cell, args)[0]) for cell in study.cells if cell.row == row]
        points = [(float(cell.column), *result["scores"].values(), *result["floor"].values()) for cell, result in cells
                  if result and cell.column != "none"]  # fmt: skip
        name = list(cells[0][1]["scores"])[0]
        axes[0].plot([p[0] for p in points], [p[1] for p in points], marker=marker, label=row)
        for cell, result in cells:
            if result and cell.column == "none":
                axes[0].axhline(result["scores"][name], color=GREY, linestyle="--", label="no bottleneck")
    axes[0].axhline(points[0][-1], color=GREY, linestyle=":", label="real images")
    axes[0].set(xlabel=study.columns, ylabel=name, yscale="log", xscale=study.curve)
    if with_spectrum:
        s = settings_of(study.cells[0], args)
        pixels = real_images(s, 1000, seed=11)[0]
        patches = torch.nn.functional.unfold(pixels.double(), s.patch, stride=s.patch).transpose(1, 2).flatten(0, 1)
        variance = torch.linalg.eigvalsh(patches.T.cov()).flip(0).clamp_min(0)
        left_out = 1 - variance.cumsum(0) / variance.sum()
        axes[1].plot(range(1, len(left_out)), left_out[:-1], color="black")
        axes[1].set(xlabel="r", ylabel="variance of patches\noutside r components", xscale="log", yscale="log")
        axes[1].set(ylim=(1e-5, 1), xlim=(1, len(variance)))
        for r in (float(column) for column in columns if column != "none"):
            axes[1].axvline(r, color=GREY, linewidth=0.5)
    axes[0].set_xticks([float(column) for column in columns if column != "none"], [c for c in columns if c != "none"])
    axes[0].minorticks_off()
    axes[0].legend(frameon=False)


def draw_losses(figure, study, args):
    """Figure 7: the v-loss in training, and, of the finished network, against t; a row for each panel."""
    panels = list(dict.fromkeys(cell.panel for cell in study.cells))
    for parts, panel in zip(figure.subfigures(len(panels), 1), panels):
        parts.suptitle(panel, fontsize=11, fontweight="bold")
        left, right = parts.subplots(1, 2, sharey=True)
        for cell in (cell for cell in study.cells if cell.panel == panel):
            run = look_up(cell, args)[1]
            if run:
                log = jit.read_log(run["settings"]["out"])
                style = dict(color=COLOUR[cell.column], label=cell.column)
                left.plot([line["step"] for line in log], [line["loss"] for line in log], **style)
                right.plot(TIMES, run["loss_over_t"], **style)
        left.set(xlabel="training step", ylabel="v-loss", yscale="log")
        right.set(xlabel="t (0 noise, 1 data)", xlim=(0, 1))
        left.legend(frameon=False)


def draw(name, study, args):
    """figures/NAME.png."""
    import matplotlib.pyplot as plt

    plt.rcParams["axes.spines.top"] = plt.rcParams["axes.spines.right"] = name not in ("lossbyt",)
    panels = [[cell for cell in study.cells if cell.panel == panel] for panel in dict.fromkeys(c.panel for c in study.cells)]
    sizes = [[len(names) for names in names_of(cells)] for cells in panels]
    side = min(2.2, 8.4 / sum(columns for _, columns in sizes))  # inches
    heights = [2.6] * bool(study.curve) + [max(rows for rows, _ in sizes) * (side + 0.5) + 0.5]
    width = 9 if study.curve or name == "lossbyt" else 0.6 + side * sum(columns for _, columns in sizes)
    figure = plt.figure(figsize=(width, 5 if name == "lossbyt" else sum(heights)), layout="constrained", dpi=150)
    if name == "lossbyt":
        draw_losses(figure, study, args)
    else:
        *top, bottom = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        for part in top:
            draw_curve(part, study, args)
        for part, cells in zip(np.ravel(bottom.subfigures(1, len(panels), squeeze=False)), panels):
            draw_grid(part, study, cells, args)
    figure.savefig(args.figures / f"{name}.png")
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description="The tables of the JiT paper in miniature.")
    parser.add_argument("studies", nargs="+", choices=[*STUDIES, "all"], help="what to run; all: one after the other")
    parser.add_argument("--scale", default="cpu", choices=SCALES, help="size of networks and data (default: cpu)")
    parser.add_argument("--data", default="shapes", help="what jit.py train --data takes (default: shapes)")
    parser.add_argument("--jobs", type=int, help="networks to train at a time (default: one per core; on a GPU 2)")
    parser.add_argument("--draw-only", action="store_true", help="train nothing: table and figure from what is there")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "ablations", help="folder of the networks")
    parser.add_argument("--figures", type=Path, default=ROOT / "figures", help="folder of tables and figures")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # how this script calls itself
    args = parser.parse_args()
    args.runs, args.jobs = args.runs.resolve(), args.jobs or (2 if args.scale == "gpu" else os.cpu_count())
    names = list(STUDIES) if "all" in args.studies else args.studies
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if args.only:
            only(names, args)
            return 0
        for name in names:
            if not args.draw_only and not supervise(name, args):
                return 1
            study = STUDIES[name](SCALES[args.scale])
            write_table(name, study, args)
            draw(name, study, args)
            print(f"{args.figures / name}.png and .md")
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    except jit.Stop as error:
        print(f"ablations.py: {error.args[0]}", file=sys.stderr)
        return error.args[1]


if __name__ == "__main__":
    sys.exit(main())
