"""rfd, random-feature distance: how far samples are from real images, where there are no Inception weights.

    python figures/rfd.py runs/shapes-Ti-16-x                            1,000 samples, against the training data
    python figures/rfd.py SAMPLES --size 64 --reference PHOTOS           the images of one folder against another's

The Frechet distance on 496 features of a small fixed random network. It is not FID, no number of it compares with one,
and rfds compare for one size and one reference only. What it sees: python figures/metrics.py rfd. Out comes a line of
JSON: rfd_N of N samples, and, for the built-in shapes, the floor: what N other real images score.
"""

import functools
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import Parser, exit_code, jit


@functools.cache
def random_kernels(device):
    """Three 3 x 3 convolutions with He weights, always the same ones."""
    generator = np.random.RandomState(2511)  # the numbers of this old generator are frozen for ever
    widths = ((32, 3), (64, 32), (128, 64))
    kernels = [generator.standard_normal((n, m, 3, 3)) * (2 / (9 * m)) ** 0.5 for n, m in widths]
    kernels[0] -= kernels[0].mean((1, 2, 3), keepdims=True)  # the first looks for edges and colours, not brightness
    return [torch.tensor(kernel, dtype=torch.float32, device=device) for kernel in kernels]


@torch.no_grad()
def random_features(images):
    """uint8 images (B, 1 or 3, H, W), 8 pixels or more, to features (B, 496) of a fixed random network.

    Of each of three layers the mean and the spread of every channel over the image; and, since those do not know where
    things are, the mean colours of a 4 x 4 grid.
    """
    assert images.dtype == torch.uint8, "images in [-1, 1] would all look alike"
    jit.check(min(images.shape[-2:]) >= 8, "rfd needs images of 8 pixels or more.")
    if len(images) > 16:  # more would not fit into the cache of a CPU
        return torch.cat([random_features(part) for part in images.split(16)])
    x = images.expand(-1, 3, -1, -1).float() / 127.5 - 1
    features = [F.adaptive_avg_pool2d(x, 4).flatten(1)]  # (B, 48)
    for kernel in random_kernels(images.device):
        x = F.relu_(F.conv2d(x, kernel, padding=1))
        features += [x.mean((2, 3)), x.std((2, 3), correction=0)]
        x = F.avg_pool2d(x, 2)
    return torch.cat(features, 1)


def statistics(batches):
    """Mean and covariance of the features of uint8 images, in batches."""
    _, mean, covariance = jit.moments(random_features(batch) for batch in batches)
    return mean, covariance


def measure(args):
    """The line of JSON."""
    device, reference = jit.choose_device(args.device), args.reference
    if Path(args.run).is_dir() and not Path(args.run, jit.CHECKPOINT).exists():
        jit.check(args.size, f"{args.run} holds no {jit.CHECKPOINT}; if it holds images, give --size, their side.")
        shape = (3, args.size, args.size)
        n, samples = jit.read_images(args.run, shape, args, device)
    else:
        net, config, _, samples = jit.open_run(args)
        n, shape, reference = args.n, net.shape, reference or config["data"]
    jit.check(reference, "give --reference, a folder: what to compare with is not known.")
    _, real = jit.read_images(reference, shape, args, device)
    real = statistics(real)
    result = {f"rfd_{n}": jit.frechet_distance(*statistics(samples), *real)}
    if reference == "shapes":
        args.n, args.seed = n, args.seed + 1
        _, others = jit.read_images(reference, shape, args, device)
        result["floor"] = jit.frechet_distance(*statistics(others), *real)
    print(json.dumps(result | dict(run=args.run, reference=reference)))


def main(words=None):
    parser = Parser(__doc__, prog="rfd.py")
    parser.add_argument("run", help="a run, a checkpoint file, or a folder of images")
    parser.add_argument("--n", type=jit.positive_int, default=1000, help="number of samples, and of shapes (default: 1000)")
    parser.add_argument("--reference", help="a folder, or shapes (default: the training data of the run)")
    parser.add_argument("--size", type=jit.positive_int, help="side in pixels of the images of a folder")
    parser.add_argument("--cfg", type=jit.weight, default=2.0, help="weight of guidance (default: 2)")
    parser.add_argument("--sampling-steps", type=jit.positive_int, default=50, help="from noise to data (default: 50)")
    parser.add_argument("--weights", default="ema1", choices=jit.WEIGHTS, help="(default: ema1)")
    parser.add_argument("--seed", type=jit.natural, default=0, help="of all that is random (default: 0)")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"))
    parser.set_defaults(batch_size=50, interval=(0.1, 1.0), solver="heun", t_clip=None, compile=False)
    args = parser.parse_args(words)
    if args.n < 2 or (args.size or 8) < 8:
        parser.error("--n must be 2 at least, --size 8")
    return exit_code("rfd.py", lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
