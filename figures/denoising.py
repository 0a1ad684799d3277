"""denoising.png, .gif: the way of two samples of a run from noise to image, z above x_pred.

    python figures/denoising.py runs/shapes-Ti-16-x
"""

import functools
import math
import sys
from pathlib import Path

import torch
from common import classes_in_turn, finish, jit
from PIL import Image, ImageDraw, ImageOps
from style import INK, canvas, new_figure, save, script_to_out, show


def draw_strip(states):
    """z above x_pred at nine of the times 0, .1 ... 1, of two images."""
    note = "On top z, on its way to an image; under it x_pred, what the network takes it for."
    figure = new_figure(4.698, "The network sees the shape where the eye still sees noise", note)
    ax, step = canvas(figure), 0.862  # inches
    rows = [(image, part) for image in (0, 1) for part in ("z", "x_pred")]
    for column, i in enumerate((0, 1, 2, 3, 4, 5, 6, 8, 10)):
        t, z, x_pred = states[i]
        left = 0.5 + step * column
        ax.text(left + 0.427, 3.808, f"t = {t:.1f}", ha="center", fontsize=10, color=INK)
        for row, (image, part) in enumerate(rows):
            bottom = 2.886 - step * row - 0.1 * image
            ax.text(0.03, bottom + 0.427, part, va="center", fontsize=9, color=INK)
            if t < 1 or part == "z":  # at t = 1 there is nothing left to predict
                picture = {"z": z, "x_pred": x_pred}[part][image].cpu()
                show(ax, picture, left, bottom, 0.8533, "none")  # the side is 128 dots
    return figure


def draw_frame(t, z, x_pred):
    """All z at time t above their x_pred, enlarged to a side of 96 at least, as a PIL image."""
    top, bottom = (torch.cat(list(jit.to_uint8(images)), dim=2) for images in (z, x_pred))
    pixels = torch.cat([top, bottom], dim=1).expand(3, -1, -1)  # (3, 2 H, n W)
    zoom = math.ceil(96 / z.shape[-1])
    array = pixels.permute(1, 2, 0).cpu().numpy().repeat(zoom, 0).repeat(zoom, 1)
    frame = ImageOps.expand(Image.fromarray(array), (2, 18, 2, 2), fill="white")
    ImageDraw.Draw(frame).text((3, 3), f"t = {t:.2f}: z above x_pred", fill="black")
    return frame


def draw_animation(states, path):
    """A frame for each time, with colours of its own; the last one stays for two seconds."""
    frames = [draw_frame(*state).quantize(40, dither=Image.Dither.NONE) for state in states]
    pauses = [70] * (len(frames) - 1) + [2000]  # milliseconds
    settings = dict(format="GIF", save_all=True, append_images=frames[1:], duration=pauses, loop=0)
    jit.write_whole(path, functools.partial(frames[0].save, **settings))


def main(words=None):
    parser = script_to_out(__doc__)
    parser.add_argument("run", type=Path, help="folder of a run, or its checkpoint")
    args = parser.parse_args(words)
    return finish(lambda: draw(args))


def draw(args):
    net, flow, _ = jit.load_run(args.run, "ema1", jit.choose_device("auto"))
    y = classes_in_turn(6, net.classes)[4:].to(net.pos_embed.device)  # a star and a heart
    noise = flow.noise_scale * jit.image_noise(net.shape, 0, range(2)).to(y.device)
    states = []
    jit.integrate(jit.guided_velocity(net, y, flow), noise, steps=30,
                  watch=lambda *state: states.append(state))  # fmt: skip
    strip, command = draw_strip(states[::3]), f"python figures/denoising.py runs/{args.run.name}"
    save(strip, args.out / "denoising.png", command)
    draw_animation(states, args.out / "denoising.gif")


if __name__ == "__main__":
    sys.exit(main())
