"""How fast is jit.py? Training step and sampling: time, page faults, TFLOP/s and share of what this device can do.

    OMP_NUM_THREADS=1 python figures/speed.py --model Ti/16 --size 64 --batch 32    # one core of a CPU
    python figures/speed.py --model B/16 --size 256 --batch 128 --compile           # a GPU
    python figures/speed.py --model B/16 --size 64 --batch 8 --official ~/JiT       # beside the official code
    python figures/speed.py --model B/16 --size 256 --batch 128 --data PHOTOS       # does the input keep up?

Which number to believe: on a machine that does nothing else, the clock. Where other work runs too, the CPU time, with
OMP_NUM_THREADS=1, as threads that wait for each other count as busy. On a GPU the clock alone; CPU time is then what it
takes to start the kernels. Page faults tell of memory that is given back to the system and taken again, page by page:
a step that needs no fresh memory has next to none.

Each side, ours and the official code, runs in a process of its own, since memory that one network has freed changes
the faults of another. They take turns (ours, theirs, ours, ...) after a warm-up, --repeats rounds; printed are medians,
and for comparisons the median of the ratios within a round, and the ratio of the fastest of each side: others' work can
only slow a round down, also in CPU time, as it shares caches and cores.

--official is a clone of github.com/LTH14/JiT, whose JiT is built with the sizes of --model; where there is no GPU, its
.cuda() calls are made harmless and its torch.compile decorators are taken off. --profile says which operations the time
of a training step goes to, and --largest, on a GPU, which batch still fits. The peak is that of a large matrix product
in the same precision, measured in the same run. A multiply-add counts as two operations; a training step as three
forwards (forward, and twice that backward).
"""

import argparse
import functools
import gc
import itertools
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
import jit  # noqa: E402
import models  # noqa: E402

WORKS = ("training step", "sampling")


def usage():
    """(page faults, peak bytes) of this process so far."""
    if sys.platform == "win32":
        return 0, 0
    import resource  # not on Windows

    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_minflt, used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)  # bytes on a Mac, else kilobytes


def measure(work, device):
    """What a call costs: seconds by the clock and of the CPU, page faults; and the peak memory until now."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronise()
    faults, cpu, clock = usage()[0], time.process_time(), time.perf_counter()
    work()
    synchronise()
    clock, cpu, faults = time.perf_counter() - clock, time.process_time() - cpu, usage()[0] - faults
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else usage()[1]
    return dict(clock=clock, cpu=cpu, faults=faults, memory=memory)


def peak_flops(device, repeats=12):
    """Operations per second of a large square matrix product: bf16 on CUDA, fp32 elsewhere."""
    side = 8192 if device.type == "cuda" else 1536
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    seconds = [measure(lambda: a @ a, device)["clock"] for _ in range(repeats)]
    return 2 * side**3 / statistics.median(seconds[2:])


def our_works(args, device):
    """A training step and the drawing of a batch with jit.py, as functions without arguments."""
    net, flow = jit.JiT(**models.arguments(args.model, args.size, args.classes)).to(device), jit.Flow()
    parameters = list(net.parameters())
    averages = {key: [p.detach().clone() for p in parameters] for key in jit.AVERAGES}
    optimizer = torch.optim.AdamW(parameters, 1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    if args.compile:
        net.compile()
    x = torch.rand(args.batch, *net.shape, device=device) * 2 - 1
    y = torch.randint(args.classes, (args.batch,), device=device)

    def step():  # as in jit.train, and gradients are freed where they are freed there
        net.train()
        loss, _ = jit.training_loss(net, x, y, flow)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        for key, (decay, window) in jit.AVERAGES.items():
            jit.update_average(averages[key], parameters, decay, window, 100_000)

    def draw():
        net.eval()
        list(jit.sample_images(net, y, flow, net.shape, batch_size=args.batch, sampling_steps=args.steps))

    return dict(zip(WORKS, (step, draw)))


def official_works(args, device):
    """The same with the official code, on the same sizes; bf16 autocast on CUDA as in its engine."""
    if device.type != "cuda":
        torch.Tensor.cuda = lambda self: self
        torch.compile = lambda function: function
    sys.path.insert(0, str(args.official))
    import denoiser
    import model_jit

    network, flow = models.arguments(args.model, args.size, args.classes), jit.Flow()
    names = dict(depth="depth", width="hidden_size", heads="num_heads", bottleneck="bottleneck_dim", patch="patch_size",
                 context_tokens="in_context_len", context_start="in_context_start")  # fmt: skip
    sizes = {theirs: network[ours] for ours, theirs in names.items()}
    model_jit.JiT_models["ours"] = functools.partial(model_jit.JiT, **sizes)
    flags = argparse.Namespace(
        model="ours", img_size=args.size, class_num=args.classes, attn_dropout=0.0,
        proj_dropout=network.get("dropout", 0.0), label_drop_prob=flow.label_drop, P_mean=flow.mu, P_std=flow.sigma,
        t_eps=flow.t_clip, noise_scale=flow.noise_scale, ema_decay1=0.9999, ema_decay2=0.9996, cfg=2.0,
        sampling_method="heun", num_sampling_steps=args.steps, interval_min=0.1, interval_max=1.0)  # fmt: skip
    net = denoiser.Denoiser(flags).to(device)
    net.ema_params1 = [p.detach().clone() for p in net.parameters()]
    net.ema_params2 = [p.detach().clone() for p in net.parameters()]
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 1e-4, betas=(0.9, 0.95))
    x = torch.rand(args.batch, 3, args.size, args.size, device=device) * 2 - 1
    y = torch.randint(args.classes, (args.batch,), device=device)

    def step():
        net.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = net(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        net.update_ema()

    def draw():
        net.eval()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            net.generate(y)

    return dict(zip(WORKS, (step, draw)))


def serve(args, device):
    """One side, in a process of its own: do the work that a line of stdin names, answer with what it cost."""
    works = {"ours": our_works, "official": official_works}[args.side](args, device)
    for line in sys.stdin:
        print(json.dumps(measure(works[line.strip()], device)), flush=True)


def ask(process, work):
    """Have a side do a work; returns what it cost."""
    process.stdin.write(work + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        sys.exit("a side has ended; what it says stands above.")
    return json.loads(answer)


def compare(words, sides, repeats, warmup=2):
    """{work: {side: [cost of each round]}}, the sides taking turns."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), *words, "--side"]
    processes = {side: subprocess.Popen([*command, side], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                 for side in sides}  # fmt: skip
    costs = {work: {side: [] for side in sides} for work in WORKS}
    try:
        for work in WORKS:
            for _ in range(warmup + repeats):
                for side, process in processes.items():
                    costs[work][side].append(ask(process, work))
    finally:
        for process in processes.values():
            process.communicate()  # closes its stdin, at which it ends
    return {work: {side: rounds[warmup:] for side, rounds in found.items()} for work, found in costs.items()}


def count_forwards(steps, **options):
    """How many forwards of one image a sample takes: evaluations, and twice that many where guidance acts."""
    sizes = []

    def net(z, t, y):
        sizes.append(len(z))
        return torch.zeros_like(z)

    y = torch.zeros(1, dtype=torch.long)
    list(jit.sample_images(net, y, jit.Flow(), (3, 1, 1), sampling_steps=steps, **options))
    return sum(sizes)


def print_costs(work, rounds, operations, batch, peak):
    """A line for each side, medians; operations: those that are needed, whoever computes more."""
    for side, costs in rounds.items():
        clock, cpu, faults = (statistics.median(cost[key] for cost in costs) for key in ("clock", "cpu", "faults"))
        print(f"{work:14} {side:9} {1000 * clock:9.1f} ms {1000 * cpu:9.1f} ms CPU {faults:9.0f} page faults "
              f"{batch / clock:8.1f} images/s {operations / clock / 1e12:8.3f} TFLOP/s "
              f"{operations / clock / peak:6.1%} of peak")  # fmt: skip
    if len(rounds) > 1:
        for key, name in (("cpu", "by CPU time"), ("clock", "by the clock")):
            ours, theirs = ([cost[key] for cost in costs] for costs in rounds.values())
            ratios = [their / our for our, their in zip(ours, theirs)]
            print(f"{work:14} ours is {statistics.median(ratios):.2f} times as fast {name} ({len(ratios)} rounds: "
                  f"{min(ratios):.2f} to {max(ratios):.2f}; fastest against fastest {min(theirs) / min(ours):.2f})")


def largest_batch(args, device):
    """The largest batch, in doublings of this one, whose training step fits into the memory of the GPU."""
    while True:
        try:
            our_works(args, device)["training step"]()
        except torch.cuda.OutOfMemoryError:
            return args.batch // 2
        gc.collect()
        torch.cuda.empty_cache()
        args.batch *= 2


def print_input_speed(args, device, batches=20):
    """Images per second of the data alone: shapes, and a folder's images from memory and decoded each time."""
    shape, sources = (3, args.size, args.size), {"shapes, drawn": jit.Shapes(args.size)}
    if args.data:
        sources["folder, in memory"] = jit.open_data(str(args.data), shape)
        limit, jit.MEMORY_LIMIT = jit.MEMORY_LIMIT, 0
        sources["folder, decoded each time"] = jit.open_data(str(args.data), shape)
        jit.MEMORY_LIMIT = limit
    for name, data in sources.items():
        places = (range(i, i + args.batch) for i in itertools.count(0, args.batch))
        stream = jit.data_batches(data, places, 0, device)
        next(stream)  # the first one starts the threads
        seconds = measure(lambda: [next(stream) for _ in range(batches)], device)["clock"]
        print(f"input          {name:25} {batches * args.batch / seconds:9.1f} images/s")


def print_profile(step, rows=8):
    """The operations with the largest share of a training step's CPU time, or of the GPU's where there is one."""
    activities, by = [torch.profiler.ProfilerActivity.CPU], "self_cpu_time_total"
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        by = "self_device_time_total"
    step()
    with torch.profiler.profile(activities=activities) as profiler:
        step()
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, by))
    total = sum(getattr(event, by) for event in events)
    for event in events[:rows]:
        print(f"profile        {event.key[:60]:60} {getattr(event, by) / total:6.1%}")


def parse_flags(words):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Ti/16")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=10, help="sampling steps; the time is linear in them")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--official", type=Path, help="a clone of the official repository, to run beside ours")
    parser.add_argument("--data", type=Path, help="a folder of images, to time reading it")
    parser.add_argument("--profile", action="store_true", help="where the time of a training step goes")
    parser.add_argument("--largest", action="store_true", help="look for the largest batch that fits (GPU)")
    parser.add_argument("--side", choices=("ours", "official"), help=argparse.SUPPRESS)  # see serve
    return parser.parse_args(words)


def main(words=None):
    words = sys.argv[1:] if words is None else words
    args, device = parse_flags(words), jit.choose_device("auto")
    if args.side:
        return serve(args, device)
    needed = 2 * args.batch * models.count_cost(args.model, args.size, args.classes)[1]
    peak = peak_flops(device)
    print(f"{args.model} at {args.size} px, batch {args.batch}, {torch.get_num_threads()} threads, torch "
          f"{torch.__version__}, {torch.cuda.get_device_name() if device.type == 'cuda' else device}"
          f"{', compiled' if args.compile else ''}; peak {peak / 1e12:.3f} TFLOP/s")  # fmt: skip
    print("Believe the clock if nothing else runs here, or on a GPU; else the CPU time, with OMP_NUM_THREADS=1.")
    costs = compare(words, ["ours", "official"] if args.official else ["ours"], args.repeats)
    for work, count in zip(WORKS, (3, count_forwards(args.steps))):
        print_costs(work, costs[work], count * needed, args.batch, peak)
    for side, rounds in costs[WORKS[-1]].items():
        print(f"peak memory    {side:9} {rounds[-1]['memory'] / 1e9:9.1f} GB")
    if args.profile:
        print_profile(our_works(args, device)["training step"])
    print_input_speed(args, device)
    if args.largest and device.type == "cuda":
        gc.collect()
        print(f"largest batch  {largest_batch(args, device)}")


if __name__ == "__main__":
    main()
