"""How fast is jit.py? Training step and sampling, in images/s, TFLOP/s and share of what this device can do.

    python figures/speed.py --model Ti/16 --size 64 --batch 32                      # a CPU
    python figures/speed.py --model B/16 --size 256 --batch 128 --compile           # a GPU
    python figures/speed.py --model B/16 --size 64 --batch 8 --official ~/JiT       # beside the official code
    python figures/speed.py --model B/16 --size 256 --batch 128 --data PHOTOS       # does the input keep up?

The peak is that of a large matrix product in the same precision, measured in the same run. Everything is timed after a
warm-up, --repeats times, in turn (ours, theirs, ours, ...), with the device synchronised; printed are medians, and for
comparisons the median of the ratios of neighbours. --official is a clone of github.com/LTH14/JiT; where there is no
GPU, its .cuda() calls are made harmless and its torch.compile decorators are taken off. --profile says which operations
the time of a training step goes to, and --largest, on a GPU, which batch still fits.
A multiply-add counts as two operations; a training step as three forwards (forward, and twice that backward).
"""

import argparse
import gc
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import jit  # noqa: E402


def timed(work, device):
    """Seconds that work() takes, the device synchronised before and after."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronise()
    start = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - start


def measure(works, device, repeats, warmup=2):
    """{name: seconds of each repeat}, the works taking turns."""
    for work in works.values():
        for _ in range(warmup):
            work()
    rounds = [{name: timed(work, device) for name, work in works.items()} for _ in range(repeats)]
    return {name: [seconds[name] for seconds in rounds] for name in works}


def peak_flops(device, repeats=10):
    """Operations per second of a large square matrix product: bf16 on CUDA, fp32 elsewhere."""
    side = 8192 if device.type == "cuda" else 1536
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    seconds = measure({"product": lambda: a @ a}, device, repeats)["product"]
    return 2 * side**3 / statistics.median(seconds)


def our_works(s, sampling, batch, device, compiled):
    """A training step and the drawing of a batch with jit.py, as functions without arguments."""
    net = jit.JiT(s).to(device)
    model = torch.compile(net) if compiled else net
    parameters = list(net.parameters())
    averages = {key: [p.detach().clone() for p in parameters] for key in jit.EMA_WINDOW}
    optimizer = jit.make_optimizer(net, s)
    x = torch.rand(batch, s.channels, s.size, s.size, device=device) * 2 - 1
    y = torch.randint(s.classes, (batch,), device=device)

    def step():
        total, _, _ = jit.training_loss(model, x, y, s)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        for key, window in jit.EMA_WINDOW.items():
            jit.update_average(averages[key], parameters, 0.9999, window, 100_000)

    def draw():
        net.eval()
        with torch.no_grad():
            for _ in jit.denoise(model, y, s, sampling):
                pass
        net.train()

    return step, draw


def official_works(folder, s, sampling, batch, device):
    """The same with the official code, on the same sizes; bf16 autocast on CUDA as in its engine."""
    if device.type != "cuda":
        torch.Tensor.cuda = lambda self: self
        torch.compile = lambda function: function
    sys.path.insert(0, str(folder))
    from denoiser import Denoiser

    args = argparse.Namespace(
        model=f"JiT-{s.model}", img_size=s.size, class_num=s.classes, attn_dropout=0.0, proj_dropout=s.dropout,
        label_drop_prob=s.label_drop, P_mean=s.mu, P_std=s.sigma, t_eps=s.t_clip, noise_scale=s.noise_scale,
        ema_decay1=0.9999, ema_decay2=0.9996, sampling_method=sampling.solver, num_sampling_steps=sampling.steps,
        cfg=sampling.cfg, interval_min=sampling.interval[0], interval_max=sampling.interval[1])  # fmt: skip
    net = Denoiser(args).to(device)
    net.ema_params1 = [p.detach().clone() for p in net.parameters()]
    net.ema_params2 = [p.detach().clone() for p in net.parameters()]
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], s.lr, betas=(0.9, 0.95))
    x = torch.rand(batch, s.channels, s.size, s.size, device=device) * 2 - 1
    y = torch.randint(s.classes, (batch,), device=device)

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

    return step, draw


def count_forwards(s, sampling):
    """How many forwards of one image a sample takes: evaluations, and twice that many where guidance acts."""
    sizes = []

    def net(z, t, y):
        sizes.append(len(z))
        return torch.zeros_like(z)

    for _ in jit.denoise(net, torch.zeros(1, dtype=torch.long), s, sampling):
        pass
    return sum(sizes)


def largest_batch(s, sampling, batch, device, compiled):
    """The largest batch, in doublings of this one, whose training step fits into the memory of the GPU."""
    while True:
        try:
            step, _ = our_works(s, sampling, batch, device, compiled)
            step()
        except torch.cuda.OutOfMemoryError:
            return batch // 2
        del step
        gc.collect()
        torch.cuda.empty_cache()
        batch *= 2


def print_input_speed(s, folder, batch, device, batches=20):
    """Images per second of the data alone: shapes, and a folder's images from memory and decoded each time."""
    sources = {"shapes, drawn": jit.Data(jit.SHAPES)}
    if folder:
        at_folder = jit.Settings(data=str(folder), size=s.size)
        sources["folder, in memory"] = jit.open_data(at_folder)
        limit, jit.MEMORY_LIMIT = jit.MEMORY_LIMIT, 0
        sources[f"folder, {s.workers} threads decode"] = jit.open_data(at_folder)
        jit.MEMORY_LIMIT = limit
    for name, data in sources.items():
        stream = jit.training_batches(data, s, range(10**6), range(1), device)
        next(stream)  # the first one fills the queue
        seconds = timed(lambda: [next(stream) for _ in range(batches)], device)
        print(f"input          {name:25} {batches * batch / seconds:9.1f} images/s")


def print_profile(step, rows=8):
    """The operations with the largest share of the CPU time of one training step, and of the GPU's where there is one."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    by = "self_cpu_time_total"
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
        by = "self_device_time_total"
    with torch.profiler.profile(activities=activities) as profiler:
        step()
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, by))
    total = sum(getattr(event, by) for event in events)
    for event in events[:rows]:
        print(f"profile        {event.key[:60]:60} {getattr(event, by) / total:6.1%}")


def main(words=None):
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
    args = parser.parse_args(words)
    device = jit.choose_device("auto")
    s = jit.resolve(jit.Settings(model=args.model, size=args.size, classes=args.classes, batch_size=args.batch))
    sampling = jit.Sampling(steps=args.steps)
    cost = 2 * jit.count_cost(s)[1]
    peak = peak_flops(device)
    print(f"{args.model} at {args.size} px, batch {args.batch}, {torch.get_num_threads()} threads, torch "
          f"{torch.__version__}, {torch.cuda.get_device_name() if device.type == 'cuda' else device}"
          f"{', compiled' if args.compile else ''}; peak {peak / 1e12:.3f} TFLOP/s")  # fmt: skip
    sides = {"ours": our_works(s, sampling, args.batch, device, args.compile)}
    if args.official:
        sides["official"] = official_works(args.official, s, sampling, args.batch, device)
    for i, (what, count) in enumerate((("training step", 3), ("sampling", count_forwards(s, sampling)))):
        seconds = measure({name: works[i] for name, works in sides.items()}, device, args.repeats)
        for name, values in seconds.items():
            median = statistics.median(values)
            speed = count * cost * args.batch / median  # the operations that are needed, whoever computes more
            print(f"{what:14} {name:9} {1000 * median:9.1f} ms {args.batch / median:9.1f} images/s "
                  f"{speed / 1e12:8.3f} TFLOP/s {speed / peak:6.1%} of peak")  # fmt: skip
        if args.official:
            ratios = [theirs / ours for theirs, ours in zip(seconds["official"], seconds["ours"])]
            print(f"{what:14} ours is {statistics.median(ratios):.2f} times as fast (all: {min(ratios):.2f} to "
                  f"{max(ratios):.2f})")  # fmt: skip
    if args.profile:
        print_profile(sides["ours"][0])
    print_input_speed(s, args.data, args.batch, device)
    if device.type == "cuda":
        print(f"peak memory    {torch.cuda.max_memory_allocated() / 1e9:.1f} GB of the GPU")
    elif not args.official and sys.platform != "win32":
        import resource  # not on Windows

        unit = 1 if sys.platform == "darwin" else 1024  # bytes on a Mac, kilobytes elsewhere
        print(f"peak memory    {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB")
    if args.largest and device.type == "cuda":
        sides.clear()
        gc.collect()
        print(f"largest batch  {largest_batch(s, sampling, args.batch, device, args.compile)}")


if __name__ == "__main__":
    main()
