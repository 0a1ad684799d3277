"""rfd, random-feature distance: how far samples are from real images, without Inception weights.

    python figures/rfd.py runs/shapes-Ti-16-x                  1,000 samples, against the data
    python figures/rfd.py SAMPLES --size 64 --reference PHOTOS     one folder against another

The Frechet distance on 496 features of a small fixed random network. It is not FID, no number of it
compares with one, and rfds compare for one size and one reference only. What it sees: python
figures/metrics.py rfd. Out comes a line of JSON: rfd_N of N samples, and, for the built-in shapes,
the floor: what N other real images score.
"""

import functools
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import finish, jit
from style import script


@functools.cache
def random_kernels(device):
    """Three 3 x 3 convolutions with He weights, always the same ones."""
    generator = np.random.RandomState(2511)  # the numbers of this old generator never change
    widths = ((32, 3), (64, 32), (128, 64))
    kernels = [generator.standard_normal((n, m, 3, 3)) * (2 / (9 * m)) ** 0.5 for n, m in widths]
    kernels[0] -= kernels[0].mean((1, 2, 3), keepdims=True)  # edges and colours, not brightness
    return [torch.tensor(kernel, dtype=torch.float32, device=device) for kernel in kernels]


@torch.no_grad()
def random_features(images):
    """uint8 images (B, 1 or 3, H, W), 8 pixels or more, to features (B, 496).

    Of each of three layers the mean and the spread of every channel over the image; and, since
    those do not know where things are, the mean colours of a 4 x 4 grid.
    """
    if images.dtype != torch.uint8 or min(images.shape[-2:]) < 8:
        raise ValueError("images must be uint8, of 8 pixels or more")
    if len(images) > 16:  # more would not fit into the cache of a CPU
        return torch.cat([random_features(part) for part in images.split(16)])
    x = images.expand(-1, 3, -1, -1).float() / 127.5 - 1
    features = [F.adaptive_avg_pool2d(x, 4).flatten(1)]  # (B, 48)
    for kernel in random_kernels(images.device):
        x = F.relu_(F.conv2d(x, kernel, padding=1))
        features += [x.mean((2, 3)), x.std((2, 3), correction=0)]
        x = F.avg_pool2d(x, 2)
    return torch.cat(features, 1)


def feature_moments(batches):
    """Mean (496,) and covariance (496, 496) of the features of uint8 images, in batches."""
    _, mean, covariance = jit.moments(random_features(batch) for batch in batches)
    return mean, covariance


def report(args):
    """The line of JSON, as a dict."""
    device = jit.choose_device(args.device)
    (n, samples), shape, reference = jit.open_subject(args)
    _, real = jit.read_images(reference, shape, args, device)
    real = feature_moments(real)
    result = {f"rfd_{n}": jit.frechet_distance(*feature_moments(samples), *real)}
    if reference == "shapes":
        args.n, args.seed = n, args.seed + 1
        _, others = jit.read_images(reference, shape, args, device)
        result["floor"] = jit.frechet_distance(*feature_moments(others), *real)
    return result | dict(run=str(args.run), reference=reference)


def main(words=None):
    parser = script(__doc__)
    parser.add_argument("run", type=Path, help="a run, a checkpoint file, or a folder of images")
    parser.add_argument("--reference", help="a folder, or shapes; None: the run's training data")
    parser.add_argument("--size", type=jit.positive_int, help="side of the images of a folder")
    parser.add_argument("--seed", type=jit.natural, default=0, help="of all that is random")
    parser.add_argument("--device", default="auto", choices=("auto", *jit.DEVICES))
    parser.set_defaults(compile=False)
    jit.add_sampling_flags(parser, 1000, least=2)
    args = parser.parse_args(words)
    return finish(lambda: print(json.dumps(report(args))))


if __name__ == "__main__":
    sys.exit(main())
