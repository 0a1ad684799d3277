"""The tables of the JiT paper in miniature: each study trains a few small networks and shows them side by side.

    python figures/ablations.py nine                          Table 2: predict x, eps or v; loss on x, eps or v
    python figures/ablations.py nine --seeds 3                three training seeds where the claim needs them
    python figures/ablations.py predictions                   its v-loss row
    python figures/ablations.py predictions --data digits --size 28 --patches 14 4 --no-flip
                                                              the same on your pictures, here digits/0/*.png ...
    python figures/ablations.py nine --data PHOTOS --scale gpu    on photographs, PHOTOS/CLASS/*.jpg, on a GPU
    python figures/ablations.py shift bottleneck              or lossbyt ladder precond resolution solver guidance
    python figures/ablations.py gate                          what v-prediction lacks: one number, learned
    python figures/ablations.py nine --draw-only              table and figure again, from what is there

A study is a list of cells; a cell is a network to train, how to sample it, and its place in the figure. Cells that
need the same network share it, across studies too. All that is trained and drawn is kept in runs/ablations/SCALE, and a
study that was stopped, or killed, goes on there. It leaves figures/STUDY.png, the pictures (same noise in every cell),
and figures/STUDY.md, the numbers.

Scores    rfd: Frechet distance on the features of a small fixed random network (figures/rfd.py). It needs no
          download, is not FID, and compares within one table only. Beside it the floor, what other real images score.
          FID, of as many images as the table says, if the Inception weights are there (`python jit.py eval` gets them).
          agreement, if there are classes: the share of samples that the classifier of figures/agreement.py, trained
          on the same data, takes for what was asked for; its floor, that of real images that it has not seen.

figures/studies.py holds the studies and their settings, figures/study_figures.py draws them.
"""

import argparse
import dataclasses
import functools
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import agreement
import common
import numpy as np
import rfd
import study_figures
import torch
import torch.nn.functional as F
import variants
from common import ROOT, jit
from studies import (
    SCALES, STUDIES, TIMES, caption, deviation, distinct, in_words, key_of, look_up, number_of, panels_of,
    read_results, run_of, runs_of, sampling_of, save_results, scale_of, seeds_of, study_of,
)  # fmt: skip
from tqdm import tqdm

# ---- One network: train it, draw from it, score it ---------------------------------------------------------------


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
    sizes = str(run.network["size"]), str(side)
    name = "-".join(["real", common.version_of(args.data), *sizes, *extractors(args.device)])
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
    """Train a network, unless it is trained; stopped, it goes on where it was saved."""
    torch.manual_seed(run.recipe["seed"])
    net = run.variant(**run.network, classes=len(data.names)).to(args.device)
    recipe = dict(cfg=1.0, sample_every=10**9, data_name=args.data) | run.recipe
    jit.train(net, jit.Flow(**run.flow), data, run.out, **recipe)


def guided_sampling(cell, classes, args):
    """Arguments of jit.sample_images; without two classes there is nothing to guide towards."""
    return sampling_of(cell, args) | (dict(cfg=1.0) if classes < 2 else {})


def draw_and_score(cell, run, net, flow, data, args):
    """The pictures of a cell go to a file; returns their scores, those of real images, and the seconds it took."""
    start, device, sampling = time.time(), args.device, guided_sampling(cell, net.classes, args)
    y, _ = jit.pick_classes(number_of(cell, args), net.classes)
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
        found = torch.cat([agreement.classify(part / 127.5 - 1, classifier) for part in pixels.split(250)])
        return (found == y).double().mean().item()

    pixels = torch.from_numpy(np.load(run.out / f"{key_of(cell, args)}.npy"))
    y, _ = jit.pick_classes(len(pixels), agreement.classes_of(classifier))
    result["scores"]["agreement"] = share(pixels, y)
    result["floor"]["agreement"] = share(*agreement.real_images(args.data, run.network["size"]))
    save_results(run.out, results)


def add_agreement(study, args):
    """Score the pictures there are by the classifier of these data, if that was trained."""
    if not agreement.weights_path(args.data).exists():
        return
    classifier = agreement.load_classifier(args.data)
    for cell in study.cells:
        for seed in seeds_of(cell, args):
            judge(cell, run_of(cell, seed, args), classifier, args)


# ---- A study: all its networks, each in a process of its own -----------------------------------------------------

SCORING = 300  # for the progress bar: drawing and scoring a cell takes about as long as this many training steps


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
    if failed:
        last = Path(f"{failed[0]}.txt").read_text().strip().rpartition("\n")[2].removeprefix("ablations.py: ")
        raise jit.Stop(f"{len(failed)} of {len(runs)} networks failed; {failed[0]}.txt ends with: {last}")


# ---- Its table ---------------------------------------------------------------------------------------------------

NOTES = "<!-- Below are notes written by hand; they stay when the table is written again. -->"


def path_of(name, args):
    """The figure of a study; beside it the table. Only shapes at the default settings go where the committed ones are."""
    parts = [name] + ([args.scale] if args.scale != "cpu" else [])
    if args.data != "shapes":
        parts.append(Path(os.path.abspath(args.data)).name)  # of ".", too
    elif args.patches:
        parts += map(str, args.patches)
    return args.figures / f"{'_'.join(parts)}.png"


def notes_of(path):
    """What was written by hand into the table at this path."""
    return path.read_text().partition(NOTES)[2] if path.exists() else "\n"


def title_of(study, path):
    """What the notes in the table at this path call the finding, or the title of the study."""
    found = [line for line in notes_of(path).splitlines() if line.startswith("Finding: ")]
    return found[0].removeprefix("Finding: ") if found else study.title


def v_loss(cell, args):
    """Instead, for Figure 7: the v-loss in the last fifth of the training."""
    logs = [common.read_log(out) for out, _, _ in look_up(cell, args)]
    means = [np.mean([line["loss"] for line in log[-len(log) // 5 :]]) for log in logs]
    spread = f" ± {deviation(means):.3f}" if len(means) > 1 else ""
    return f"{np.mean(means):.3f}{spread}" if means else "not run"


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
    kept = "size patch depth width heads noise_scale t_clip steps batch_size lr cooldown".split()
    listed = ", ".join(f"{key} {settings[key]}" for key in kept if key in settings)
    sampling = guided_sampling(study.cells[0], len(agreement.names_of(args.data)), args)
    sampling = ", ".join(f"{key} {value}" for key, value in sampling.items())
    most = max(len(look_up(cell, args)) for cell in study.cells)
    seeds = f"{most} training seeds where ± stands: mean ± standard deviation" if most > 1 else "one training seed"
    commits = ", ".join(sorted({results["commit"] for results in networks.values()}))
    return [
        f"{scale_of(args)['n']} samples a cell, {seeds}; pictures: the first seed. Lower is better (agreement: higher). "
        "rfd compares within one table only.",
        "",
        f"- Command: `python figures/ablations.py {shlex.join([name, *settings_in_words(args)])}`",
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
    path = path_of(name, args).with_suffix(".md")
    text = "\n".join(lines) + f"\n{NOTES}{notes_of(path)}"
    jit.write_whole(path, lambda path: path.write_text(text))


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
    if args.jobs is None:
        args.jobs = 2 if args.scale == "gpu" else os.cpu_count()
    if args.seeds < 1 or args.jobs < 1:
        parser.error("--seeds and --jobs must be 1 at least")
    if args.size is not None and not args.patches:
        parser.error("--size goes with --patches")
    size = SCALES[args.scale]["large"][0] if args.size is None else args.size
    if size < 1 or any(patch < 1 or size % patch for patch in args.patches or ()):
        parser.error(f"--patches must divide the size, {size}")
    args.runs = args.runs.resolve()
    args.flip = args.data != "shapes" and not args.no_flip
    args.device = jit.choose_device("auto" if args.scale == "gpu" else "cpu")
    return args


def check_data(args):
    """Stop if there are too few images: to be known before any network is trained."""
    if args.data != "shapes":
        n = len(agreement.list_images(args.data).paths)
        jit.check(n >= 4, f"{args.data} needs four images or more: two to compare samples with, two for the floor.")


def check_patches(name, args):
    """Stop if --size and --patches are given, but change nothing in this study."""
    without = STUDIES[name](SCALES[args.scale] | dict(large=(0, 0), small=(0, 0)))
    cells = zip(without.cells, study_of(name, args).cells)
    used = any(one.network != other.network for one, other in cells)
    jit.check(used or not args.patches, f"{name} has its own sizes and patches: leave out --size and --patches.")


def show(name, args):
    """A study: train what is missing, then table and figure."""
    if not args.draw_only:
        if args.scale != "toy" and agreement.can_judge(args.data):
            agreement.load_classifier(args.data)  # trains it, if that was not done
        train_all(name, args)
    study = study_of(name, args)
    add_agreement(study, args)
    write_table(name, study, args)
    path = path_of(name, args)
    study_figures.draw(name, study, args, path, title_of(study, path.with_suffix(".md")))
    print(f"{path} and {path.with_suffix('.md')}")


def run_studies(args):
    """All that was asked for; or, in a process that this script has started, one network."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if args.only:
        threading.Thread(target=follow_parent, daemon=True).start()
        work(*runs_of(args.studies[0], args)[args.only], args)
        return
    check_data(args)
    for name in args.studies:
        check_patches(name, args)
    common.make_folder(args.figures)
    for name in args.studies:
        show(name, args)


def main(words=None):
    args = parse_flags(words)
    return common.exit_code("ablations.py", lambda: run_studies(args), "stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
