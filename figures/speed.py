"""How fast is jit.py? Training step and sampling: time, TFLOP/s, share of what this device can do.

    OMP_NUM_THREADS=1 python figures/speed.py --model Ti/16 --size 64 --batch 32    one core
    python figures/speed.py --model B/16 --size 256 --batch 128 --compile           a GPU
    python figures/speed.py --model B/16 --size 64 --batch 8 --official ~/JiT       beside theirs

--official is a clone of github.com/LTH14/JiT, which takes turns with ours; where there is no GPU,
its .cuda() calls are made harmless and its torch.compile is taken off.

Printed are medians of --repeats rounds after a warm-up. On a machine that does nothing else, and on
a GPU, believe the clock; where other work runs, the CPU time, with OMP_NUM_THREADS=1. The peak is
that of a large matrix product in the same precision. A multiply-add counts as two operations; a
training step as three forwards.
"""

import argparse
import functools
import statistics
import sys
import time
from pathlib import Path

import torch
from common import jit
from models import arguments, count_cost
from style import script


def measure(work, device):
    """Seconds of a call, by the clock and of the CPU."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronise()
    cpu, clock = time.process_time(), time.perf_counter()
    work()
    synchronise()
    return dict(clock=time.perf_counter() - clock, cpu=time.process_time() - cpu)


def peak_flops(device, repeats=12):
    """Operations per second of a large square matrix product: bf16 on CUDA, fp32 elsewhere."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1536, torch.float32)
    a = torch.randn(side, side, device=device, dtype=dtype)
    seconds = [measure(lambda: a @ a, device)["clock"] for _ in range(repeats)]
    return 2 * side**3 / statistics.median(seconds[2:])


def works(args, device):
    """{name: a training step, or the drawing of a batch, as a function without arguments}."""
    net = jit.JiT(**arguments(args.model, args.size, args.classes)).to(device)
    flow, parameters = jit.Flow(), list(net.parameters())
    averages = {name: [p.detach().clone() for p in parameters] for name in jit.AVERAGES}
    optimizer = torch.optim.AdamW(parameters, 1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    if args.compile:
        net.compile()
    x = torch.rand(args.batch, *net.shape, device=device) * 2 - 1
    y = torch.randint(args.classes, (args.batch,), device=device)

    def step():  # as in jit.train
        net.train()
        loss, _ = jit.training_loss(net, x, y, flow)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        for name, memory in jit.AVERAGES.items():
            jit.update_average(averages[name], parameters, *memory, 100_000)

    def draw():
        net.eval()
        sampling = dict(batch_size=args.batch, sampling_steps=args.steps)
        list(jit.sample_images(net, y, flow, net.shape, **sampling))

    return {"training step": step, "sampling": draw}


def official_works(args, device):
    """The same with the official code, on the same sizes; bf16 on CUDA as in its engine."""
    if device.type != "cuda":
        torch.Tensor.cuda = lambda self: self
        torch.compile = lambda function: function
    sys.path.insert(0, str(args.official))
    import denoiser
    import model_jit

    network, flow = arguments(args.model, args.size, args.classes), jit.Flow()
    names = dict(depth="depth", width="hidden_size", heads="num_heads", patch="patch_size",
                 bottleneck="bottleneck_dim", context_tokens="in_context_len",
                 context_start="in_context_start")  # fmt: skip
    sizes = {theirs: network[ours] for ours, theirs in names.items()}
    model_jit.JiT_models["ours"] = functools.partial(model_jit.JiT, **sizes)
    flags = dict(model="ours", img_size=args.size, class_num=args.classes, attn_dropout=0.0,
                 proj_dropout=network.get("dropout", 0.0), label_drop_prob=flow.label_drop,
                 P_mean=flow.mu, P_std=flow.sigma, t_eps=flow.t_clip, noise_scale=flow.noise_scale,
                 ema_decay1=0.9999, ema_decay2=0.9996, cfg=2.0, sampling_method="heun",
                 num_sampling_steps=args.steps, interval_min=0.1, interval_max=1.0)  # fmt: skip
    net = denoiser.Denoiser(argparse.Namespace(**flags)).to(device)
    net.ema_params1 = [p.detach().clone() for p in net.parameters()]
    net.ema_params2 = [p.detach().clone() for p in net.parameters()]
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4, betas=(0.9, 0.95))
    x = torch.rand(args.batch, 3, args.size, args.size, device=device) * 2 - 1
    y = torch.randint(args.classes, (args.batch,), device=device)

    def step():
        net.train()
        with jit.matrix_products_in_bf16(device):
            loss = net(x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        net.update_ema()

    def draw():
        net.eval()
        with jit.matrix_products_in_bf16(device):
            net.generate(y)

    return {"training step": step, "sampling": draw}


def count_forwards(steps, **options):
    """How many forwards of one image a sample takes; guidance makes two of one evaluation."""
    sizes = []

    def net(z, t, y):
        sizes.append(len(z))
        return torch.zeros_like(z)

    y = torch.zeros(1, dtype=torch.long)
    list(jit.sample_images(net, y, jit.Flow(), (3, 1, 1), sampling_steps=steps, **options))
    return sum(sizes)


def print_costs(name, sides, operations, batch, peak):
    """Medians of each side. operations: those that are needed, whoever computes more."""
    for side, costs in sides.items():
        clock, cpu = (statistics.median(cost[key] for cost in costs) for key in ("clock", "cpu"))
        speed = operations / clock
        print(f"{name:14} {side:9} {1000 * clock:9.1f} ms {1000 * cpu:9.1f} ms CPU "
              f"{batch / clock:8.1f} images/s {speed / 1e12:8.3f} TFLOP/s "
              f"{speed / peak:6.1%} of peak")  # fmt: skip
    for key in ("cpu", "clock") if len(sides) > 1 else ():
        ours, theirs = ([cost[key] for cost in costs] for costs in sides.values())
        ratios = [their / our for our, their in zip(ours, theirs)]
        print(f"{name:14} ours is {statistics.median(ratios):.2f} times as fast by {key} "
              f"({len(ratios)} rounds: {min(ratios):.2f} to {max(ratios):.2f})")


def parse_flags(words=None):
    parser = script(__doc__)
    add = parser.add_argument
    add("--model", default="Ti/16")
    for name, default in dict(size=64, batch=32, classes=1000, steps=10, repeats=10).items():
        add(f"--{name}", type=jit.positive_int, default=default)
    add("--compile", action="store_true")
    add("--official", type=Path, help="a clone of the official repository, to run beside ours")
    return parser.parse_args(words)


def main():
    args, device = parse_flags(), jit.choose_device("auto")
    _, products = count_cost(args.model, args.size, args.classes)
    needed, peak = 2 * args.batch * products, peak_flops(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else device
    print(f"{args.model} at {args.size} px, batch {args.batch}, {torch.get_num_threads()} threads, "
          f"torch {torch.__version__}, {name}{', compiled' if args.compile else ''}; "
          f"peak {peak / 1e12:.3f} TFLOP/s")  # fmt: skip
    forwards = {"training step": 3, "sampling": count_forwards(args.steps)}
    sides = dict(ours=works(args, device))
    if args.official:
        sides["official"] = official_works(args, device)
    for work, count in forwards.items():
        rounds = [{side: measure(runs[work], device) for side, runs in sides.items()}
                  for _ in range(2 + args.repeats)]  # fmt: skip
        costs = {side: [costs[side] for costs in rounds[2:]] for side in sides}  # after a warm-up
        print_costs(work, costs, count * needed, args.batch, peak)


if __name__ == "__main__":
    main()
