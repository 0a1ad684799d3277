"""How fast is jit.py? Training step and sampling: time, TFLOP/s, share of what this device can do.

    OMP_NUM_THREADS=1 python figures/speed.py --model Ti/16 --size 64 --batch 32    one core
    python figures/speed.py --model B/16 --size 256 --batch 128 --compile           a GPU

Printed are medians of --repeats rounds after a warm-up. On a machine that does nothing else, and on
a GPU, believe the clock; where other work runs, the CPU time, with OMP_NUM_THREADS=1. The peak is
that of a large matrix product in the same precision. A multiply-add counts as two operations; a
training step as three forwards.
"""

import statistics
import time

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


def count_forwards(steps, **options):
    """How many forwards of one image a sample takes; guidance makes two of one evaluation."""
    sizes = []

    def net(z, t, y):
        sizes.append(len(z))
        return torch.zeros_like(z)

    y = torch.zeros(1, dtype=torch.long)
    list(jit.sample_images(net, y, jit.Flow(), (3, 1, 1), sampling_steps=steps, **options))
    return sum(sizes)


def print_cost(name, costs, operations, batch, peak):
    """Medians. operations: those that are needed, whoever computes more."""
    clock, cpu = (statistics.median(cost[key] for cost in costs) for key in ("clock", "cpu"))
    speed = operations / clock
    print(f"{name:14} {1000 * clock:9.1f} ms {1000 * cpu:9.1f} ms CPU {batch / clock:8.1f} "
          f"images/s {speed / 1e12:8.3f} TFLOP/s {speed / peak:6.1%} of peak")


def parse_flags(words=None):
    parser = script(__doc__)
    add = parser.add_argument
    add("--model", default="Ti/16")
    for name, default in dict(size=64, batch=32, classes=1000, steps=10, repeats=10).items():
        add(f"--{name}", type=jit.positive_int, default=default)
    add("--compile", action="store_true")
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
    for work, run in works(args, device).items():
        costs = [measure(run, device) for _ in range(2 + args.repeats)][2:]
        print_cost(work, costs, forwards[work] * needed, args.batch, peak)


if __name__ == "__main__":
    main()
