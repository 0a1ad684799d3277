"""What can be said before anything is trained: where t is drawn, what is out of reach, what stays.

Numbers only, without torch; derived in findings.md, compared with what was measured in draw.py.
"""

import numpy as np
from scipy.stats import chi
from studies import FLOW, SAMPLE, TIMES, numbers_of

T_CLIP = FLOW["t_clip"]


def density(t, mu=FLOW["mu"], sigma=FLOW["sigma"]):
    """Where training draws t: the normal density of logit t, times 1 / (t (1 - t))."""
    logit = np.log(t / (1 - t))
    normal = np.exp(-(((logit - mu) / sigma) ** 2) / 2) / (sigma * np.sqrt(2 * np.pi))
    return normal / (t * (1 - t))


def mean_loss(losses):
    """A loss at TIMES, averaged as training draws t."""
    return float(np.average(losses, weights=density(np.array(TIMES))))


def skip(kind, t):
    """c_skip of x_pred = c_skip z + c_out net, with the clip: paper Table 10, and v and eps."""
    edm = 0.25 * t / (0.25 * t**2 + (1 - t) ** 2)
    return dict(x=0 * t, linear=t, edm=edm, v=1 + 0 * t, eps=1 / np.maximum(t, T_CLIP))[kind]


def bound(kind, ratio, t):
    """The v-loss at t that a network of this ratio has at least: the noise it cannot put out."""
    return max(0, 1 - ratio) * skip(kind, t) ** 2 * ((1 - t) / np.maximum(1 - t, T_CLIP)) ** 2


def noise_kept(kind, steps):
    """Factor by which steps of Heun change noise that is out of reach; 1: it stays.

    There x_pred = c_skip z, so dz/dt = -(1 - c_skip) / (1 - t) z; the last step is Euler's.
    """

    def slope(z, t):
        if kind == "eps":  # the same, but for the clip: v = (z - eps) / t
            return z / max(t, T_CLIP)
        return (skip(kind, t) - 1) / max(1 - t, T_CLIP) * z

    z = 1.0
    for i in range(steps):
        v = slope(z, i / steps)
        if i < steps - 1:
            v = (v + slope(z + v / steps, (i + 1) / steps)) / 2
        z = z + v / steps
    return z


LEFT = {kind: noise_kept(kind, SAMPLE["sampling_steps"])
        for kind in ("x", "eps", "v", "linear", "edm")}  # fmt: skip


def kept_by_sphere(length):
    """Noise left in a patch whose noise is this long, over √numbers, if eps_pred is 1 long always.

    Where eps_pred = z the velocity is 0, so a length of 1 stays; what it is more or less grows as
    all that is missed does; where it comes to 0 the image takes over.
    """
    return np.maximum(1 + LEFT["eps"] * (length - 1), 0) / length


def predicted_left(kind, ratio, numbers):
    """Noise left in patches of so many numbers: in directions out of reach at this ratio, and, for
    eps, in the others, of which the last norm forgets the length (study `length`)."""
    left = (1 - ratio) * LEFT[kind]
    if kind == "eps":
        inside = ratio * numbers
        length = chi.ppf((np.arange(500) + 0.5) / 500, inside) / inside**0.5
        left += ratio * (kept_by_sphere(length) * length**2).mean()
    return left


def burden(cell):
    """How much of z the best prediction of texture holds: the mean square of its factor, as v.

    In k directions E[u | z] = t s^2 z / (t^2 s^2 + (1 - t)^2), of which x-prediction's v is
    1 / (1 - t) times as much; in the others v-prediction still holds -z / (1 - t).
    """
    t, s = np.array(TIMES), cell.strength
    share = cell.texture / numbers_of(cell)
    both = (t * s) ** 2 + (1 - t) ** 2
    if cell.at["pred"] == "x":
        return mean_loss(share * (t * s**2 / both / np.maximum(1 - t, T_CLIP)) ** 2)
    return mean_loss(share * ((t * s**2 - (1 - t)) / both) ** 2 + (1 - share) / (1 - t) ** 2)
