"""backwards.png: from a picture to its noise, forth again, and to another class.

    python jit.py train
    python figures/run.py ratio
    python figures/backwards.py runs/shapes-Ti-16-x RUN_V      RUN_V: v-prediction at ratio 4

dz/dt = v(z, t) can be followed in both directions, so each picture has a noise that leads to it.
Is it noise? Without guidance, 50 steps of Heun. Numbers stand in results/backwards.json, too.
"""

import json
import sys
from pathlib import Path

import torch
from common import finish, jit
from matplotlib.figure import Figure
from style import COLOURS, INK, save, script_to_out

STEPS = 50
CLASSES = [4, 5, 6, 7, 9]  # star, heart, cross, moon, gear
ROWS = ("picture", "its noise, × ½", "forth again", "another class")


def velocity_of(net, flow, y):
    return jit.guided_velocity(net, y, flow, cfg=1.0)


def backward(net, flow, x, y):
    """The noise z at t = 0 from which the way to x starts."""
    velocity = velocity_of(net, flow, y)
    return jit.integrate(lambda z, s: -velocity(z, 1 - s), x, STEPS)  # s = 1 - t runs from 0 to 1


def forward(net, flow, z, y):
    return jit.integrate(velocity_of(net, flow, y), z, STEPS)


def distance(a, b):
    """Root mean square, in grey levels of 255."""
    return 127.5 * (a - b).square().mean().sqrt().item()


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


@torch.no_grad()
def measure(net, flow):
    """Numbers of 20 renderings and of 20 samples, and the four rows of the picture."""
    torch.manual_seed(3)
    y = torch.arange(20) % 10
    x = jit.render_shapes(y, jit.random_factors(20), net.shape[-1])
    noise = flow.noise_scale * torch.randn(x.shape)
    z = backward(net, flow, x, y)
    again = forward(net, flow, z, y)
    other = forward(net, flow, z, (y + 4) % 10)
    sample = forward(net, flow, noise, y)
    found = backward(net, flow, sample, y)
    numbers = dict(
        pred=flow.pred,
        rendering_noise_deviation=z.std().item(),
        rendering_error=distance(again, x),
        rendering_noise_correlation=correlation(z, x),
        sample_noise_deviation=found.std().item(),
        sample_noise_correlation=correlation(found, noise),
        sample_error=distance(forward(net, flow, found, y), sample),
    )
    return numbers, [images[CLASSES] for images in (x, z / 2, again, other)]


def draw_figure(results):
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    figure.suptitle("Backwards a rendering leads to a “noise” that shows its outlines")
    for part, (numbers, rows) in zip(figure.subfigures(1, len(results)), results):
        name = f"{numbers['pred']}-prediction"
        part.suptitle(name, color=COLOURS[numbers["pred"]], fontsize=11)
        for label, images, axes in zip(ROWS, rows, part.subplots(len(rows), len(CLASSES))):
            axes[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9.5, color=INK)
            for image, ax in zip(jit.to_uint8(images), axes):
                ax.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
    return figure


def draw(args):
    results = [measure(*jit.load_run(run, "ema1", "cpu")[:2]) for run in (args.x, args.v)]
    command = f"python figures/backwards.py runs/{args.x.name} RUN_V"
    save(draw_figure(results), args.out / "backwards.png", command)
    records = [numbers for numbers, _ in results]
    for record in records:
        print(json.dumps(record))
    text = json.dumps(dict(command=command, steps=STEPS, records=records), indent=1) + "\n"
    path = args.out / "results" / "backwards.json"
    jit.write_whole(path, lambda part: part.write_text(text))


def main(words=None):
    parser = script_to_out(__doc__)
    parser.add_argument("x", type=Path, help="run on the shapes, of x-prediction")
    parser.add_argument("v", type=Path, help="another, of v-prediction")
    args = parser.parse_args(words)
    return finish(lambda: draw(args))


if __name__ == "__main__":
    sys.exit(main())
