"""What scripts that use jit.py share: jit.py itself, real images, samples, the version of data."""

import functools
import sys
from pathlib import Path

import torch
from studies import digest
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import jit  # noqa: E402


def finish(work):
    """Do the work of a script; what a user can mend is a sentence. Returns the exit code."""
    try:
        work()
    except (jit.Stop, OSError, KeyboardInterrupt) as error:
        stopped = isinstance(error, KeyboardInterrupt)
        print(f"{Path(sys.argv[0]).name}: {'stopped.' if stopped else error}", file=sys.stderr)
        return 130 if stopped else 2
    return 0


def real_images(data, n, seed):
    """n images, or as many as there are, as training gets them.

    data: of jit.open_data; returns uint8 (n, C, S, S), and the classes (n,).
    """
    n = n if isinstance(data, jit.Shapes) else min(n, len(data.labels))
    torch.manual_seed(seed)
    places = [range(i, min(i + 50, n)) for i in range(0, n, 50)]
    batches = list(jit.data_batches(data, places, seed, torch.device("cpu")))
    pixels = jit.to_uint8(torch.cat([x for x, _ in batches]))
    return pixels, torch.cat([y for _, y in batches])


def classes_in_turn(n, classes):
    """For n images the numbers of their classes, each in turn; NO_CLASS where there are none."""
    return torch.arange(n) % classes if classes else torch.full((n,), jit.NO_CLASS)


def unselected_samples(net, flow, n):
    """n samples of seed 0 with guidance 2, uint8 (n, C, S, S), and their classes, in turn (n,)."""
    y = classes_in_turn(n, net.classes)
    batches = jit.sample_images(net, y.to(net.pos_embed.device), flow, net.shape)
    return torch.cat([batch.cpu() for batch in tqdm(batches, "sampling", -(-n // 50))]), y


@functools.cache
def version_of(data):
    """Ten letters that change with the built-in shapes, or the names of a folder's files.

    What was learned from other data must not be used. data: shapes, or a folder.
    """
    if data != "shapes":
        images = jit.open_data(data, (3, 1, 1))
        files = [Path(path).relative_to(images.name).as_posix() for path in images.paths]
        return digest(images.names, files)
    # To a thousandth: the last digits differ from machine to machine.
    outlines = {name: [(torch.view_as_real(part) * 1000).round().int().tolist() for part in parts]
                for name, parts in jit.shape_outlines().items()}  # fmt: skip
    return digest(jit.FACTORS, outlines)


def hearts(count, size=32):
    """A heart, from one draw of its factors to another: (count, 3, size, size) in [-1, 1]."""
    torch.manual_seed(36)
    first, last = jit.random_factors(2)
    factors = torch.lerp(first, last, torch.linspace(0, 1, count)[:, None])
    return jit.render_shapes(torch.full((count,), jit.SHAPES.index("heart")), factors, size)


def noise_like(x):
    """The same normal noise for all pictures that need some, of x's shape."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
