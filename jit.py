"""JiT, "Just image Transformers", in one file: a plain Vision Transformer on pixels draws images.

After "Back to Basics: Let Denoising Generative Models Denoise" (Li & He 2025, arXiv 2511.13720).

Notation  t = 0 is noise, t = 1 is data. x image, eps noise, z = t x + (1 - t) eps what the network
          sees, v = x - eps the velocity at which z moves from noise to image.
The point A patch of 16 x 16 colour pixels has 768 numbers. Those of an image lie near a surface of
          few dimensions; those of noise fill all 768. A network that predicts x may drop the noise
          on the way. One that predicts eps, or v, which contains it, has to carry every number of
          the noise to its output, and fails. So let denoisers denoise: predict x.
Shapes    B batch, C channels, H W height and width, p side of a patch, N = (H/p)(W/p) tokens,
          D width, h heads, d = D/h, r bottleneck, K in-context tokens.

    python jit.py train                         ten built-in shapes; minutes on a laptop
    python jit.py train --pred eps              the same, predicting the noise: see it fail
    python jit.py sample runs/shapes-Ti-16-x    a sheet of images
    python jit.py eval runs/shapes-Ti-16-x      FID and Inception Score

Contents  The method: 1 flow (Table 1), 2 training step (Algorithm 1), 3 sampling (Algorithm 2),
          4 network (Figure 3). Engineering: 5 shapes, 6 data, 7 FID, 8 runs, 9 command line.

Differences from the paper and its official code, github.com/LTH14/JiT:
 1. All nine prediction/loss pairs; the official code has x-prediction under the v-loss only.
 2. On CUDA attention is in bf16 and tokens between blocks in fp32; there it is the other way round.
 3. Guidance is one batch with and without class; where its weight is 1, with class alone.
 4. The memory of the averaged weights (EMA) grows with the run, so that short runs can use them.
 5. Noise is seeded per step and image: a run resumes to the bit, an image ignores its batch.
"""

import argparse
import copy
import dataclasses
import functools
import hashlib
import inspect
import json
import math
import os
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageOps
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm

# ---- 1. The flow: from noise to data, and three things to predict (paper Section 3, Table 1) ----

# While t goes from 0 to 1, z = t x + (1 - t) eps goes from noise to image, and dz/dt = x - eps = v.
# Many pairs of image and noise pass through the same z, each with its own v. Least squares learns
# their mean, E[v | z, t], and that is enough: following it moves as much through every place as all
# pairs together do, so what starts out distributed as noise arrives distributed as images.


def interpolate(x, eps, t):
    """z = t x + (1 - t) eps (paper Eq. 1). x, eps, z: (B, ...); t: (B,) in [0, 1]."""
    t = t.view(-1, *[1] * (x.dim() - 1))  # (B, 1, ..., 1), to multiply x
    return t * x + (1 - t) * eps


T_CLIP = 0.05  # the official code's t_eps: with it, 1 / (1 - t) is 20 at most


def convert(out, z, t, pred, clip=T_CLIP):
    """Read a network's output as x, eps or v (pred); returns all three as a dict (paper Table 1).

    Two equations tie them, z = t x + (1 - t) eps and v = x - eps: one, and z, give the others.
    out, z: (B, ...); t: (B,).
    """
    t = t.view(-1, *[1] * (z.dim() - 1))  # (B, 1, ..., 1)
    noise_share = (1 - t).clamp_min(clip)  # at t = 1 z holds no noise: else a division by 0
    image_share = t.clamp_min(clip)  # at t = 0 no image; our choice, the paper is silent there
    if pred == "x":
        x = out
        eps = (z - t * x) / noise_share
        v = (x - z) / noise_share
    elif pred == "eps":
        eps = out
        x = (z - (1 - t) * eps) / image_share
        v = (z - eps) / image_share
    else:
        v = out
        x = z + (1 - t) * v
        eps = z - t * v
    return {"x": x, "eps": eps, "v": v}


def flow_loss(out, x, eps, t, pred, loss, clip=T_CLIP):
    """Mean squared error in the space `loss`, a number per sample (B,): all nine pairs of Table 1.

    The target, which a perfect network would put out, goes through the same conversion with the
    same clip as the prediction: a perfect network has loss 0 at every t.
    """
    z = interpolate(x, eps, t)
    perfect = {"x": x, "eps": eps, "v": x - eps}[pred]
    error = convert(out, z, t, pred, clip)[loss] - convert(perfect, z, t, pred, clip)[loss]
    return error.square().flatten(1).mean(1)  # (B,)


def sample_t(n, mu=-0.8, sigma=0.8, law="logit-normal", device=None):
    """Training times (n,) in (0, 1): logit(t) ~ N(mu, sigma^2), or t ~ U(0, 1) (Section 4.1).

    By default half of them are below 0.31: at much noise the layout of an image is decided.
    """
    if law == "uniform":
        return torch.rand(n, device=device)
    return torch.sigmoid(mu + sigma * torch.randn(n, device=device))


@dataclasses.dataclass
class Flow:
    """All choices about the flow, the same in training and in sampling."""

    pred: str = "x"  # what the network predicts: x, eps or v
    loss: str = "v"  # the space in which prediction and truth are compared: x, eps or v
    mu: float = -0.8  # mean of logit(t); lower is noisier (Table 3)
    sigma: float = 0.8  # standard deviation of logit(t)
    t_law: str = "logit-normal"  # or uniform
    noise_scale: float = 1.0  # standard deviation of eps; the paper: image size / 256
    label_drop: float = 0.1  # share of the images that are trained without their class
    t_clip: float = T_CLIP  # smallest 1 - t, and smallest t, in a division


# ---- 2. The training step (paper Algorithm 1) ----

# A network is a function net(z, t, y) -> out, with z and out (B, C, H, W), t (B,), and y (B,) the
# numbers of the classes. It also learns to do without the class, which guidance will need.
NO_CLASS = -1


def training_loss(net, x, y, flow):
    """Noise a batch, have the network denoise it, compare. x: (B, C, H, W) in [-1, 1]; y: (B,).

    Returns the loss of each image, whose mean is to be minimised, and its time t: (B,) and (B,).
    """
    t = sample_t(len(x), flow.mu, flow.sigma, flow.t_law, x.device)
    eps = flow.noise_scale * torch.randn_like(x)
    z = interpolate(x, eps, t)
    dropped = torch.rand(len(y), device=y.device) < flow.label_drop
    y = torch.where(dropped, NO_CLASS, y)
    kind = x.device.type  # on CUDA matrix products in bf16; conversion and loss are always in fp32
    with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
        out = net(z, t, y)
    return flow_loss(out.float(), x, eps, t, flow.pred, flow.loss, flow.t_clip), t


@torch.no_grad()
def update_average(average, parameters, decay, window, step):
    """average <- d average + (1 - d) parameters, in place, for lists of tensors.

    The weights still jump about from step to step; samples come from their average (EMA). The
    paper's d = 0.9999 remembers 10,000 steps, which at first is mostly the random start. Until
    then d = 1 - window / (window + step), which remembers the last 1 / window of the run.
    """
    decay = min(decay, 1 - window / (window + step))
    torch._foreach_lerp_(average, parameters, 1 - decay)


# ---- 3. Sampling (paper Algorithm 2) ----


@torch.no_grad()
def integrate(velocity, z, steps=50, solver="heun"):
    """Follow dz/dt = v(z, t) from noise to data; yields (t, z, x_pred) before steps and at the end.

    velocity: a function (z, t: float) -> v of z's shape. x_pred = z + (1 - t) v is where the
    tangent at z arrives at t = 1. "euler" follows the tangent for a step, "heun" the mean of the
    slopes at both ends. The last step is Euler's: at t = 1 v = (x - z) / (1 - t) would be 0 / 0.
    """
    for i in range(steps):
        t, t_next = i / steps, (i + 1) / steps
        v = velocity(z, t)
        yield t, z, z + (1 - t) * v
        if solver == "heun" and i < steps - 1:
            v = (v + velocity(z + (t_next - t) * v, t_next)) / 2
        z = z + (t_next - t) * v
    yield 1.0, z, z


def guided_velocity(net, y, flow, cfg=2.0, interval=(0.1, 1.0)):
    """The velocity (z, t) -> v for classes y (B,), with classifier-free guidance of weight cfg.

    v_none + cfg (v_class - v_none) exaggerates what the class adds: clearer images, less variety.
    Only inside the interval: in most of the noise, images of a class would all become alike.
    """
    low, high = interval

    def predict(z, t, y):
        t, kind = torch.full((len(z),), t, device=z.device), z.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            out = net(z, t, y)
        return convert(out.float(), z, t, flow.pred, flow.t_clip)["v"]

    def velocity(z, t):
        inside = (low < t or low == 0) and t < high  # from 0: t = 0 too; as in the official code
        if not inside or cfg == 1:
            return predict(z, t, y)
        both = torch.cat([y, torch.full_like(y, NO_CLASS)])
        v_class, v_none = predict(torch.cat([z, z]), t, both).chunk(2)
        return v_none + cfg * (v_class - v_none)

    return velocity


def mix_seed(*numbers):
    """One seed from several numbers, such that neighbouring ones have nothing in common."""
    sequence = np.random.SeedSequence([len(numbers), *numbers])  # else (1, 2) would equal (1, 2, 0)
    return int(sequence.generate_state(1)[0])


def image_noise(shape, seed, numbers):
    """Normal noise (B, *shape): that of image i depends on seed and i alone, not on its batch."""
    generators = [torch.Generator().manual_seed(mix_seed(seed, i)) for i in numbers]
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def to_uint8(x):
    """[-1, 1] to 0 ... 255, rounded, as in the official code; images are clipped here only."""
    return ((x.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)


def sample_images(net, y, flow, shape, seed=0, batch_size=50, cfg=2.0, interval=(0.1, 1.0),
                  sampling_steps=50, solver="heun"):  # fmt: skip
    """Draw an image of each class in y (n,), in batches: uint8 (B, *shape), one after the other.

    shape: (C, H, W), as in net.shape. 50 Heun steps are the paper's: 99 evaluations of the network.
    """
    for first in range(0, len(y), batch_size):
        labels = y[first : first + batch_size]
        noise = image_noise(shape, seed, range(first, first + len(labels))).to(y.device)
        velocity = guided_velocity(net, labels, flow, cfg, interval)
        *_, (_, x, _) = integrate(velocity, flow.noise_scale * noise, sampling_steps, solver)
        yield to_uint8(x)


# ---- 4. The network: a Vision Transformer (paper Figure 3), named as in released checkpoints ----

MODELS = {  # paper Table 9; Ti and S are ours, for a CPU and a small GPU
    "Ti": dict(depth=4, width=128, heads=4, bottleneck=32, context_tokens=4, context_start=1),
    "S": dict(depth=12, width=384, heads=6, bottleneck=64, context_tokens=16, context_start=4),
    "B": dict(depth=12, width=768, heads=12, bottleneck=128, context_tokens=32, context_start=4),
    "L": dict(depth=24, width=1024, heads=16, bottleneck=128, context_tokens=32, context_start=8),
    "H": dict(depth=32, width=1280, heads=16, bottleneck=256, context_tokens=32, context_start=10),
    "G": dict(depth=40, width=1664, heads=16, bottleneck=256, context_tokens=32, context_start=10),
}
MODELS["H"]["dropout"] = MODELS["G"]["dropout"] = 0.2


class PatchEmbed(nn.Module):
    """Patches to tokens through r numbers: enough for images (Figure 4). r = 0: directly."""
    def __init__(self, patch, channels, bottleneck, width):
        super().__init__()
        if bottleneck:
            self.proj1 = nn.Conv2d(channels, bottleneck, patch, stride=patch, bias=False)
            self.proj2 = nn.Conv2d(bottleneck, width, 1)
        else:
            self.proj1 = nn.Identity()
            self.proj2 = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, z):
        z = self.proj2(self.proj1(z))  # (B, D, H/p, W/p)
        return z.flatten(2).transpose(1, 2)  # (B, N, D)


def unpatchify(patches, p):
    """Patches (B, N, p*p*C), in the order row, column, channel, to an image (B, C, H, W)."""
    B, N, numbers = patches.shape
    side, C = math.isqrt(N), numbers // p**2
    x = patches.reshape(B, side, side, p, p, C).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(B, C, side * p, side * p)  # from (B, C, side, p, side, p)


def grid_angles(side, n):
    """Row and column of each token, times n frequencies from 1 down to 1 / 10000: (N, n) each."""
    frequency = 10000.0 ** -(torch.arange(n, dtype=torch.float64) / n)
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency  # (side, n)
    return angle.repeat_interleave(side, dim=0), angle.repeat(side, 1)


def position_embedding(side, width):
    """Where a token stands, added to it at the start: sines and cosines (1, N, D)."""
    row, column = grid_angles(side, width // 4)
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)[None].float()


def rope_table(side, head_dim, context_tokens, on=True):
    """Rotary position embedding (RoPE): cos and sin (K + N, d) of the angles by which the pairs of
    numbers in a query or key turn, half of them with the row of its token, half with the column.

    In-context tokens come first; they have no place in the image, and angle 0. Off: all angles 0.
    """
    angle = torch.cat(grid_angles(side, head_dim // 4), dim=1)  # (N, d/2): one for each pair
    angle = F.pad(angle.repeat_interleave(2, dim=1), (0, 0, context_tokens, 0)) * on  # (K + N, d)
    return angle.cos().float(), angle.sin().float()


def rotate(x, cos, sin):
    """Turn each pair (a, b) in x (B, h, tokens, d): then q . k depends on offsets only."""
    cos, sin = cos[-x.shape[2] :], sin[-x.shape[2] :]  # the last N before in-context tokens join
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack([-b, a], dim=-1).flatten(-2) * sin


class Attention(nn.Module):
    """Multi-head self-attention: each token gathers from all tokens what its query asks for."""
    def __init__(self, width, heads, dropout, qk_norm):
        super().__init__()
        self.heads = heads
        norm = nn.RMSNorm if qk_norm else nn.Identity  # the norm keeps the softmax from saturating
        self.q_norm = norm(width // heads, eps=1e-6)
        self.k_norm = norm(width // heads, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, rope):
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, N, 3, h, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, h, N, d) each: tokens attend, not heads
        q, k = self.q_norm(q.float()), self.k_norm(k.float())
        q, k = rotate(q, *rope), rotate(k, *rope)
        x = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)  # (B, h, N, d)
        x = x.transpose(1, 2).flatten(2)  # (B, N, D)
        return self.dropout(self.proj(x))


class SwiGLU(nn.Module):
    """A block's MLP: w3(silu(a) * b) with a, b = w12(x)."""
    def __init__(self, width, dropout):
        super().__init__()
        hidden = int(4 * width * 2 / 3)  # 2/3: three matrices for the price of an MLP's two
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        a, b = self.w12(x).chunk(2, dim=-1)
        return self.w3(self.dropout(F.silu(a) * b))


class Block(nn.Module):
    """A Transformer block. Time and class set shift, scale, gate (adaLN-Zero: gates start at 0)."""
    def __init__(self, width, heads, dropout, qk_norm):
        super().__init__()
        self.norm1 = nn.RMSNorm(width, eps=1e-6)
        self.attn = Attention(width, heads, dropout, qk_norm)
        self.norm2 = nn.RMSNorm(width, eps=1e-6)
        self.mlp = SwiGLU(width, dropout)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, c, rope):
        """x: (B, N, D) tokens; c: (B, 1, D) time and class; rope: cos and sin of RoPE."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1, rope)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class FinalLayer(nn.Module):
    """Tokens (B, N, D) to patches (B, N, p*p*C)."""
    def __init__(self, width, numbers):
        super().__init__()
        self.norm_final = nn.RMSNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, numbers)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


def time_features(t):
    """t (B,) in [0, 1], not scaled up, as 128 cosines and 128 sines (B, 256)."""
    angle = t[:, None] * 10000.0 ** -(torch.arange(128, device=t.device).float() / 128)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class JiT(nn.Module):
    """Just image Transformer: noisy image, time and class in, the prediction out (paper Figure 3).

    size, patch: pixels; bottleneck: r, 0 for none. Before block `context_start`, counted from 0, K
    in-context tokens that hold the class join those of the image, where attention can find it.
    Dropout acts in the middle half of the blocks. Raises ValueError for sizes that do not fit.
    """
    def __init__(self, size, patch, classes, depth, width, heads, bottleneck, context_tokens=0,
                 context_start=0, dropout=0.0, rope=True, qk_norm=True, channels=3):  # fmt: skip
        arguments = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        self.arguments = arguments  # saved with the weights, to build the network again
        fits = size % patch == 0 == width % (4 * heads)  # 4: pairs that turn, on two axes
        if not fits or context_tokens and context_start >= depth:
            raise ValueError(f"size {size} must be a multiple of patch {patch}, width {width} of 4 "
                             f"heads {heads}, context_start {context_start} below depth {depth}")
        side, self.shape = size // patch, (channels, size, size)
        self.patch, self.classes = patch, classes
        self.context_tokens, self.context_start = context_tokens, context_start
        time_mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.t_embedder = nn.ModuleDict({"mlp": time_mlp})
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(classes + 1, width)})
        self.x_embedder = PatchEmbed(patch, channels, bottleneck, width)
        self.pos_embed = nn.Parameter(position_embedding(side, width), requires_grad=False)
        if context_tokens:
            self.in_context_posemb = nn.Parameter(torch.empty(1, context_tokens, width))
        cos, sin = rope_table(side, width // heads, context_tokens, rope)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        middle = range(depth // 4, depth // 4 * 3)
        rates = [dropout if i in middle else 0.0 for i in range(depth)]
        self.blocks = nn.ModuleList(Block(width, heads, rate, qk_norm) for rate in rates)
        self.final_layer = FinalLayer(width, patch**2 * channels)
        self.initialize()

    def initialize(self):
        """Xavier-uniform matrices, small embeddings, zeros: blocks start as identity, output 0."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.data.flatten(1))  # a view: (out, all inputs)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        table, time_mlp = self.y_embedder["embedding_table"], self.t_embedder["mlp"]
        for module in [table, time_mlp[0], time_mlp[2]]:
            nn.init.normal_(module.weight, std=0.02)
        if self.context_tokens:
            nn.init.normal_(self.in_context_posemb, std=0.02)
        for module in [*self.blocks, self.final_layer]:
            nn.init.zeros_(module.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def forward(self, z, t, y):
        """z: (B, C, H, W); t: (B,); y: (B,) class numbers or NO_CLASS. Returns (B, C, H, W)."""
        time = self.t_embedder["mlp"](time_features(t))[:, None]  # (B, 1, D)
        y = torch.where(y == NO_CLASS, self.classes, y)  # the last row of the table
        label = self.y_embedder["embedding_table"](y)[:, None]  # (B, 1, D)
        c, rope = time + label, (self.cos, self.sin)
        tokens = self.x_embedder(z) + self.pos_embed  # (B, N, D)
        for i, block in enumerate(self.blocks):
            if self.context_tokens and i == self.context_start:
                context = label + self.in_context_posemb  # (B, K, D)
                tokens = torch.cat([context, tokens], dim=1)  # (B, K + N, D)
            tokens = block(tokens, c, rope)
        patches = self.final_layer(tokens[:, self.context_tokens :], c)  # (B, N, p*p*C)
        return unpatchify(patches, self.patch)  # (B, C, H, W)


# ---- That was the method. Engineering from here. ----


class Stop(Exception):
    """Ends the program with (a sentence, an exit code): 2 for a user's mistake, 1 for a failed run."""


def check(condition, sentence):
    """Stop with exit code 2 unless the condition holds."""
    if not condition:
        raise Stop(sentence, 2)


# ---- 5. Built-in data: ten shapes, drawn as they are needed ----

SHAPES = ["disc", "ring", "triangle", "square", "star", "heart", "cross", "moon", "flower", "gear"]
FACTORS = {  # all that varies within a class: a manifold of seven dimensions (disc and ring: six)
    "x": (-0.15, 0.15), "y": (-0.15, 0.15),  # the centre; an image is 2 wide, y points down
    "size": (0.58, 0.77), "angle": (-0.31, 0.31),  # half the width; 18 degrees either way
    "hue": (0.0, 1.0), "background_hue": (0.0, 1.0),  # hues are circles
    "background_brightness": (0.58, 0.82),
}  # fmt: skip


def random_factors(n, device=None):
    """Draw factors (n, 7), each uniform in its range."""
    low, high = torch.tensor(list(FACTORS.values()), device=device).unbind(1)
    return low + (high - low) * torch.rand(n, len(FACTORS), device=device)


def shape_outlines():
    """Each shape as polygons in the complex plane (x + iy, y down); one inside another is a hole."""
    angle = torch.arange(120) * (math.tau / 120)

    def around(radii):  # corners at these radii, evenly spaced in angle, clockwise from the top
        return torch.polar(torch.as_tensor(radii), torch.arange(len(radii)) * (math.tau / len(radii)) - math.tau / 4)

    heart_y = 5 * (2 * angle).cos() + 2 * (3 * angle).cos() - 13 * angle.cos() - 1
    arm = torch.tensor([0.32 - 0.9j, 0.32 - 0.32j, 0.9 - 0.32j])  # a quarter of the cross
    return {
        "disc": [around([0.82] * 120)],
        "ring": [around([0.9] * 120), around([0.5] * 120)],
        "triangle": [around([1.1] * 3) + 0.2j],
        "square": [around([1.12] * 4) * 1j**0.5],
        "star": [around([1.05, 0.5] * 5)],
        "heart": [torch.complex(16 * angle.sin() ** 3, heart_y) / 16],
        "cross": [torch.cat([arm * 1j**quarter for quarter in range(4)])],
        "moon": [torch.polar(0.6 + 0.34 * angle.sin() * angle.sin().abs(), math.pi + 2.3 * angle.cos())],
        "flower": [around(0.42 + 0.52 * (2.5 * angle).cos().abs()), around([0.25] * 120)],
        "gear": [around(0.77 + 0.18 * (3 * (6 * angle).cos()).clamp(-1, 1)), around([0.42] * 120)],
    }


@functools.cache
def distance_fields(device):
    """Distances to the outlines, negative inside, on a grid over [-1.5, 1.5]^2: (10, 1, 128, 128)."""
    axis = torch.linspace(-1.5, 1.5, 128)
    point = torch.complex(axis[None, :], axis[:, None])  # (128, 128)
    fields = []
    for polygons in shape_outlines().values():
        start = torch.cat(polygons)[:, None, None]  # of each edge: (E, 1, 1)
        end = torch.cat([polygon.roll(-1) for polygon in polygons])[:, None, None]
        along = ((point - start) / (end - start)).real.clamp(0, 1)  # the nearest place on the edge
        distance = (point - start - along * (end - start)).abs().amin(0)
        turns = ((end - point) / (start - point)).angle().sum(0) / math.tau  # odd inside
        fields.append(distance * (1 - 2 * (turns.round() % 2)) - 0.06)  # 0.06 rounds the corners
    return torch.stack(fields)[:, None].to(device)


def render_shapes(labels, factors, size):
    """Draw an image for each label (B,) and row of factors (B, 7): (B, 3, size, size) in [-1, 1]."""
    x, y, scale, angle, hue, back_hue, back_light = factors[..., None, None].unbind(1)  # (B, 1, 1)
    fields = distance_fields(factors.device)[labels]  # (B, 1, 128, 128)
    cos, sin = angle.cos() / (1.5 * scale), angle.sin() / (1.5 * scale)
    axis = (torch.arange(size, device=factors.device) + 0.5) * (2 / size) - 1

    def distance(shift):  # to the outline, from each pixel or from a place shifted along the diagonal
        right, down = axis[None, :] - x + shift, axis[:, None] - y + shift  # (B, 1, S), (B, S, 1)
        place = torch.stack([right * cos + down * sin, down * cos - right * sin], -1)  # (B, S, S, 2)
        return scale[:, None] * F.grid_sample(fields, place.clamp(-1, 1), align_corners=True)

    def rainbow(hue, saturation):  # RGB (B, 3, 1, 1), about equally light: hence green's small swing
        phase = torch.stack([hue, hue - 1 / 3, hue + 1 / 3], 1)
        centre, swing = torch.tensor([[0.58, 0.48, 0.55], [0.42, 0.32, 0.42]], device=hue.device).view(2, 3, 1, 1)
        return centre + saturation * swing * (math.tau * phase).cos()

    here, to_light = distance(0), distance(-0.07)  # (B, 1, S, S); the light stands at the top left
    slope = (to_light / 0.12).clamp(-1, 1) - (here / 0.12).clamp(-1, 1)  # of a bevel 0.12 wide
    face = torch.lerp(rainbow(hue, 1.0), (slope > 0).float(), 0.6 * slope.abs())  # to white or black
    shadow = 1 - 0.4 * torch.sigmoid(-22 * to_light)
    back = back_light[:, None] * (0.5 + rainbow(back_hue, 0.3)) * shadow
    paint = torch.sigmoid(-1.5 * size * here)  # an edge about 1.5 pixels wide at any size
    return torch.lerp(back, face, paint) * 2 - 1


@dataclasses.dataclass
class Shapes:
    """The built-in data: images (3, size, size) without end."""

    size: int
    names, labels = SHAPES, ()


# ---- 6. Data from a folder ----

SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
MEMORY_LIMIT = 4 * 2**30  # bytes; a folder with more pixels is read again in every epoch


def crop(image, size, channels):
    """PIL image to uint8 (C, size, size), upright, on white, by ADM's centre crop, as the official code's.
    Raises ValueError where the range of its pixels is not known."""
    if image.mode in ("I", "F") and image.format != "PNG":
        raise ValueError(f"pixels of mode {image.mode} may have any range")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits: 65535 is white
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB" if channels == 3 else "L")
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    pixels = np.array(image.crop((left, top, left + size, top + size)))  # (S, S, 3) or (S, S)
    return torch.from_numpy(pixels.reshape(size, size, channels)).permute(2, 0, 1)


@dataclasses.dataclass
class Images(Dataset):
    """Images of shape (C, S, S), in files or in memory; a DataLoader asks for a batch at a time."""

    names: list  # of the classes
    labels: torch.Tensor  # (n,) int64: the class of each image
    paths: list
    shape: tuple
    pixels: torch.Tensor = None  # (n, C, S, S) uint8, once in memory

    def __getitem__(self, i):
        """uint8 pixels (C, S, S) and class of an image; or None, and a line that says why."""
        if self.pixels is not None:
            return self.pixels[i], self.labels[i]
        try:
            with Image.open(self.paths[i]) as image:
                return crop(image, self.shape[1], self.shape[0]), self.labels[i]
        except Exception as error:  # broken files raise nearly anything
            tqdm.write(f"left out {self.paths[i]}: {error}", file=sys.stderr)

    @staticmethod
    def collate(items):
        """A batch of what could be read: pixels (B, C, S, S) and classes (B,)."""
        good = [item for item in items if item is not None]
        return default_collate(good) if good else (torch.empty(0, 1, 1, 1), torch.empty(0, dtype=torch.long))

    def batches(self, numbers):
        """A DataLoader over lists of image numbers; its own generator leaves the noise of a step alone."""
        workers = min(8, os.cpu_count() or 1, len(self.labels) // 64) if self.pixels is None else 0
        return DataLoader(self, batch_sampler=numbers, num_workers=workers, collate_fn=self.collate,
                          pin_memory=torch.cuda.is_available(), generator=torch.Generator())

    def load(self):
        """Read all images into memory, and leave out the broken ones."""
        n, done, labels = len(self.labels), 0, []
        pixels = torch.empty(n, *self.shape, dtype=torch.uint8)
        for batch, y in self.batches(tqdm(torch.arange(n).split(64), "reading images", leave=False)):
            pixels[done : done + len(y)] = batch
            labels.append(y)
            done += len(y)
        check(done, f"none of the {n} files can be read as an image.")
        if done < n:
            print(f"{n - done} of {n} files were left out", file=sys.stderr)
        self.pixels, self.labels = pixels[:done], torch.cat(labels)


def open_data(name, shape):
    """Shapes; or Images (C, S, S) in FOLDER/CLASS/**, or in FOLDER itself without classes, sorted."""
    if name == "shapes":
        return Shapes(shape[1])
    check(name and Path(name).is_dir(), f"'{name}' is no folder of images, nor shapes.")
    root = Path(name)
    Image.init()  # PIL then knows all types of files that it can open
    known = {suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN}
    tops = [path for path in root.iterdir() if path.name[0] != "."]
    files = [path for path in tops if not path.is_dir()]
    for top in set(tops) - set(files):  # may be links; links below are not followed: they may lead back
        there = os.access(top, os.R_OK | os.X_OK) and not root.resolve().is_relative_to(top.resolve())
        check(there, f"{top} cannot be read, or leads back.")
        files += [p for p in top.rglob("*") if p.is_symlink() or not p.is_dir() or not os.access(p, os.R_OK)]
    files = sorted(path for path in files if "/." not in path.relative_to(root.parent).as_posix())
    paths = [path for path in files if path.suffix.lower() in known]
    nested = [path for path in paths if path.parent != root]
    left_out = Counter(path.suffix or "no suffix" for path in files if path.suffix.lower() not in known)
    left_out["beside the class folders"] = len(paths) - len(nested or paths)
    names, labels = np.unique([path.relative_to(root).parts[0] for path in nested], return_inverse=True)
    names, paths = names.tolist(), nested or paths
    some = ", ".join(names[:10]) + ", ..." * (len(names) > 10)
    print(f"{root}: {len(paths)} images, {len(names)} classes{': ' * bool(names)}{some}"
          + "".join(f"; left out {n} ({kind})" for kind, n in left_out.items() if n))
    check(paths, f"{root} holds no images; lay them out as CLASS/*.jpg, or as *.jpg without classes.")
    check(not names or not SPLITS.issuperset(map(str.lower, names)), f"{root} is split into {some}: give one.")
    labels = torch.from_numpy(labels) if nested else torch.full((len(paths),), NO_CLASS)
    images = Images(names, labels, paths, shape)
    if len(paths) * math.prod(shape) <= MEMORY_LIMIT:
        images.load()
    return images


@functools.lru_cache(maxsize=2)  # a batch can span two epochs
def shuffled(n, seed, epoch):
    """The order in which an epoch goes through n images."""
    return np.random.default_rng([seed, epoch]).permutation(n).tolist()


def data_batches(data, places, seed, device, flip=False):
    """For each range of places in the row of all epochs: images (B, C, S, S) in [-1, 1], classes (B,)."""
    if isinstance(data, Shapes):
        for part in places:
            y = torch.randint(len(SHAPES), (len(part),), device=device)
            yield render_shapes(y, random_factors(len(y), device), data.size), y
        return
    n = len(data.labels)
    numbers = ([shuffled(n, seed, place // n)[place % n] for place in part] for part in places)
    for pixels, y in data.batches(numbers):
        check(len(y), "none of the images of a batch could be read.")
        x = pixels.to(device, non_blocking=True).float() / 127.5 - 1
        if flip:
            x = torch.where(torch.rand(len(x), 1, 1, 1, device=device) < 0.5, x.flip(-1), x)
        yield x, y.to(device, non_blocking=True)


# ---- 7. FID and Inception Score, as torch-fidelity computes them ----

INCEPTION_URL = ("https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
                 "weights-inception-2015-12-05-6726825d.pth")  # fmt: skip
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


def resize_tf1(x, dim):
    """Bilinear resize of one axis to 299 as in TensorFlow 1: no half-pixel shift, no antialiasing."""
    source = torch.arange(299, device=x.device) * torch.tensor(x.shape[dim] / 299, device=x.device)
    low = source.long()
    high = (low + 1).clamp_max(x.shape[dim] - 1)
    left, right = x.index_select(dim, low), x.index_select(dim, high)
    return left + (right - left) * (source - low).view(-1, *[1] * (3 - dim))


class Inception:
    """The network of FID, from 2015. layers: {name: (kernel, bias)}, batch norm folded in, and "fc"."""

    def __init__(self, layers):
        self.layers = layers

    def chain(self, x, block, *names, stride=1, padding="same"):
        """Convolutions, each with a ReLU, one after the other; stride and padding are the last one's."""
        for name in names[:-1]:
            x = F.relu_(F.conv2d(x, *self.layers[block + name], padding="same"))
        return F.relu_(F.conv2d(x, *self.layers[block + names[-1]], stride, padding))

    def block(self, name, x, *chains, pool=F.avg_pool2d):
        """Chains side by side, each given by its names, and one convolution after a pool."""
        branches = [self.chain(x, f"Mixed_{name}.branch", *names) for names in chains]
        details = dict(count_include_pad=False) if pool is F.avg_pool2d else {}
        x = pool(x, 3, stride=1, padding=1, **details)
        return torch.cat([*branches, self.chain(x, f"Mixed_{name}.branch", "_pool")], 1)

    def block_to_half(self, name, x, *chains):
        """Chains that end with stride 2 and without padding, and a pool that does."""
        branches = [self.chain(x, f"Mixed_{name}.branch", *names, stride=2, padding=0) for names in chains]
        return torch.cat([*branches, F.max_pool2d(x, 3, stride=2)], 1)

    @torch.no_grad()
    def __call__(self, images):
        """uint8 images (B, 1 or 3, H, W) of any size to features (B, 2048) and logits (B, 1008)."""
        assert images.dtype == torch.uint8, "images in [-1, 1] would all look alike"
        x = images.expand(-1, 3, -1, -1).float()
        x = (resize_tf1(resize_tf1(x, dim=3), dim=2) - 128) / 128  # (B, 3, 299, 299)
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.chain(x, "Conv2d_", "1a_3x3", stride=2, padding=0)
        x = self.chain(self.chain(x, "Conv2d_", "2a_3x3", padding=0), "Conv2d_", "2b_3x3")
        x = self.chain(F.max_pool2d(x, 3, stride=2), "Conv2d_", "3b_1x1", "4a_3x3", padding=0)
        x = F.max_pool2d(x, 3, stride=2)  # (B, 192, 35, 35)
        for name in ("5b", "5c", "5d"):
            x = self.block(name, x, ["1x1"], ["5x5_1", "5x5_2"], ["3x3dbl_1", "3x3dbl_2", "3x3dbl_3"])
        x = self.block_to_half("6a", x, ["3x3"], ["3x3dbl_1", "3x3dbl_2", "3x3dbl_3"])
        twice = [f"7x7dbl_{i}" for i in range(1, 6)]
        for name in ("6b", "6c", "6d", "6e"):  # (B, 768, 17, 17)
            x = self.block(name, x, ["1x1"], ["7x7_1", "7x7_2", "7x7_3"], twice)
        seven = [f"7x7x3_{i}" for i in range(1, 5)]
        x = self.block_to_half("7a", x, ["3x3_1", "3x3_2"], seven)  # (B, 1280, 8, 8)
        three, twice = ["3x3_1"], ["3x3dbl_1", "3x3dbl_2"]  # both end in a fork, 1 x 3 and 3 x 1
        forks = [[*three, "3x3_2a"], [*three, "3x3_2b"], [*twice, "3x3dbl_3a"], [*twice, "3x3dbl_3b"]]
        x = self.block("7b", x, ["1x1"], *forks)
        x = self.block("7c", x, ["1x1"], *forks, pool=F.max_pool2d)  # (B, 2048, 8, 8)
        features = x.mean((2, 3))  # (B, 2048)
        return features, features @ self.layers["fc"][0].T  # torch-fidelity leaves out the bias


def load_inception(path, device, sha256=INCEPTION_SHA256):
    """The Inception network, from a file (None: torch.hub's cache), downloaded if it is not there."""
    path = path or Path(torch.hub.get_dir(), "checkpoints", INCEPTION_URL.rpartition("/")[2])
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(INCEPTION_URL, str(path))
        except Exception as error:  # of the network or the disk
            hint = f"get {INCEPTION_URL}, put it at {path}; figures/rfd.py needs none."
            raise Stop(f"no download ({error}): {hint}", 2) from error
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    check(found == sha256, f"{path} is not {INCEPTION_URL}: its SHA-256 is another. Delete it.")
    state, layers = torch.load(path, map_location=device, weights_only=True), {}
    for name in [key.removesuffix(".conv.weight") for key in state if key.endswith(".conv.weight")]:
        scale = state[f"{name}.bn.weight"] / (state[f"{name}.bn.running_var"] + 1e-3).sqrt()
        kernel = state[f"{name}.conv.weight"] * scale[:, None, None, None]
        bias = state[f"{name}.bn.bias"] - state[f"{name}.bn.running_mean"] * scale
        layers[name] = kernel.contiguous(memory_format=torch.channels_last), bias
    return Inception(layers | {"fc": (state["fc.weight"], state["fc.bias"])})


def moments(batches):
    """Number, mean (d,) and covariance (d, d), with n - 1, of features in batches (B, d); in fp64."""
    n, total, products, origin = 0, 0.0, 0.0, None
    for batch in batches:
        batch = batch.cpu().double()
        origin = batch.mean(0) if origin is None else origin  # keeps the numbers small, thus exact
        n, total = n + len(batch), total + (batch - origin).sum(0)
        products = products + (batch - origin).T @ (batch - origin)
    check(n > 1, "a covariance needs two images at least.")
    covariance = (products - torch.outer(total, total) / n) / (n - 1)
    return n, (origin + total / n).numpy(), covariance.numpy()


def frechet_distance(mu1, sigma1, mu2, sigma2):
    """|mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr (S1 S2)^(1/2), between two Gaussians.

    With S = R R^T the last trace is the sum of the singular values of R1^T R2: real and exact for any rank.
    """
    roots = []
    for sigma in (sigma1, sigma2):
        values, vectors = np.linalg.eigh(sigma)
        kept = values > len(values) * np.finfo(float).eps * values[-1]  # the others are rounding
        roots.append(vectors[:, kept] * np.sqrt(values[kept]))
    cross = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    distance = np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * cross
    return max(float(distance), 0.0)  # below 0 by rounding; in this order NaN stays NaN


def inception_score(logits, splits=10):
    """exp(mean KL(p(y|x) | p(y))) of logits (N, 1008): mean and standard deviation over the splits."""
    order = np.random.RandomState(2020).permutation(len(logits))  # else a split has only some classes
    log_p, scores = logits.cpu().double()[order].log_softmax(1), []
    for i in range(splits):
        part = log_p[i * len(log_p) // splits : (i + 1) * len(log_p) // splits]
        if len(part):
            log_mean = part.logsumexp(0) - math.log(len(part))  # log p(y)
            scores.append((part.exp() * (part - log_mean)).sum(1).mean().exp().item())
    return float(np.mean(scores)), float(np.std(scores))


# ---- 8. Runs: checkpoints, log, pictures, and the training loop ----

CHECKPOINT = "checkpoint-last.pth"  # the official code's name
WEIGHTS = {"raw": "model", "ema1": "model_ema1", "ema2": "model_ema2"}  # --weights: key in the file
AVERAGES = {"model_ema1": (0.9999, 9), "model_ema2": (0.9996, 36)}  # decay, window of update_average


def make_folder(path):
    """A folder that can be written to: to be known before the work, not after it."""
    path.mkdir(parents=True, exist_ok=True)
    check(os.access(path, os.W_OK), f"{path} cannot be written to.")
    return path


def write_whole(path, write):
    """write(a file beside path), then rename: there is the old file or the new, never half."""
    temporary = Path(path).with_name(f".part-{Path(path).name}")  # np.savez wants its suffix
    try:
        write(temporary)
        os.replace(temporary, path)
    except RuntimeError as error:  # of torch.save
        raise OSError(f"{path} cannot be written: is the disk full?") from error
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path, networks, optimizer, step, config):
    """The official layout, names with the prefix "net."; and `config`, to build the network again."""
    checkpoint = dict(optimizer=optimizer.state_dict(), step=step, config=config)
    for key, network in networks.items():
        checkpoint[key] = {f"net.{name}": value for name, value in network.state_dict().items()}
    write_whole(path, functools.partial(torch.save, checkpoint))


def load_checkpoint(path):
    """What a checkpoint holds, names without prefix; nothing in it is executed."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # flags of the official code
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        assert "settings" not in checkpoint, "it is of an earlier jit.py; train it anew"
        for key in WEIGHTS.values():
            named = checkpoint.get(key, {}).items()
            checkpoint[key] = {re.sub("^((net|module|_orig_mod)[.])+", "", name): p for name, p in named}
        assert checkpoint["model"], "it holds no 'model'"
    except Exception as error:  # whatever bytes may cause
        reason = re.split("[.] |\n", str(error))[0]
        raise Stop(f"{path} cannot be read as a checkpoint: {reason}", 2) from error
    return checkpoint


def official_config(weights, flags):
    """The config of an official checkpoint, from the shapes of its weights and its flags."""
    r, channels, patch, _ = weights["x_embedder.proj1.weight"].shape
    rows, width = weights["y_embedder.embedding_table.weight"].shape
    depth = sum(name.endswith("attn.qkv.weight") for name in weights)
    size = math.isqrt(weights["pos_embed"].shape[1]) * patch
    heads = width // len(weights["blocks.0.attn.q_norm.weight"])
    network = dict(size=size, patch=patch, classes=rows - 1, depth=depth, width=width, heads=heads, bottleneck=r,
                   channels=channels)
    if "in_context_posemb" in weights:
        starts = {model["depth"]: model["context_start"] for model in MODELS.values()}
        start = starts.get(depth, depth // 3)
        network |= dict(context_tokens=weights["in_context_posemb"].shape[1], context_start=start)
        print(f"assumed, as no shape tells: in-context tokens join before block {start}", file=sys.stderr)
    flow = dict(noise_scale=flags.get("noise_scale", max(1.0, size / 256)), t_clip=flags.get("t_eps", T_CLIP))
    return dict(network=network, flow=flow, names=[], data="")


def load_run(path, weights, device, network=JiT):
    """(net, Flow, config) of a run folder or checkpoint; weights: a key of WEIGHTS, network: a class."""
    path = Path(path, CHECKPOINT) if Path(path).is_dir() else Path(path)
    checkpoint = load_checkpoint(path)
    there = [name for name, key in WEIGHTS.items() if checkpoint[key]]
    check(weights in there, f"{path} has no weights {weights}; try --weights {' or '.join(there)}.")
    try:
        flags = vars(checkpoint.get("args", argparse.Namespace()))
        config = checkpoint.get("config") or official_config(checkpoint["model"], flags)
        net = network(**config["network"])
        net.load_state_dict(checkpoint[WEIGHTS[weights]])
        assert all(p.isfinite().all() for p in net.parameters()), "its weights are not finite"
    except Exception as error:
        reason = str(error).splitlines()[-1].strip()[:200]
        raise Stop(f"{path} does not fit a JiT: {reason}", 2) from error
    return net.to(device).eval().requires_grad_(False), Flow(**config["flow"]), config


def resume(out, networks, optimizer, config):
    """Restore the run in folder `out`, if there is one; returns how many steps it has done."""
    path = out / CHECKPOINT
    if not path.exists():
        fresh = (out / "log.jsonl").exists() or not out.is_file() and not any(out.glob("[!.]*"))
        check(fresh, f"--out {out} is there already and is no run; choose another.")
        return 0
    checkpoint = load_checkpoint(path)
    check(all(map(checkpoint.get, ["config", "optimizer", "step", *networks])), f"{path} is no whole run of jit.py.")
    before, now = ({**c["network"], **c["flow"], **c["recipe"], "classes": c["names"], "images": c["images"]}
                   for c in (checkpoint["config"], config))
    others = ", ".join(f"{key} {str(before.get(key))[:150]}" for key in before | now if before.get(key) != now.get(key))
    check(not others, f"{out} is a run with {others}: give the same, or choose another --out.")
    for key, network in networks.items():
        network.load_state_dict(checkpoint[key])
    optimizer.load_state_dict(checkpoint["optimizer"])
    return checkpoint["step"]


def summarize(seen, parameters):
    """Of pairs loss, t: the mean loss, that in ten bins of t (None: empty), and the gradient's norm."""
    loss, t = (torch.cat(column).cpu() for column in zip(*seen))
    bins = [loss[(t * 10).long().clamp(max=9) == i] for i in range(10)]
    by_t = [part.mean().item() if len(part) else None for part in bins]
    norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
    return dict(loss=loss.mean().item(), loss_by_t=by_t, grad_norm=norm.item())


def pick_classes(n, classes, names=(), wanted=""):
    """For n images the numbers (n,) and names of classes: those wanted, or all, in turn."""
    chosen = []
    for word in wanted.split(",") if wanted else []:
        known = word in names or word.isdecimal() and int(word) < classes
        check(known, f"--classes {word}: there are {classes} classes, as {', '.join(names[:9]) or 'numbers'}.")
        chosen.append(names.index(word) if word in names else int(word))
    y = [(chosen or range(classes) or [NO_CLASS])[i % max(1, len(chosen) or classes)] for i in range(n)]
    return torch.tensor(y), [names[label] if 0 <= label < len(names) else str(label) for label in y]


def draw_sheet(path, images, captions):
    """uint8 images (n, C, H, W), enlarged to a side of 96 or more, ten in a row, as a PNG."""
    zoom = math.ceil(96 / images.shape[-1])
    arrays = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy().repeat(zoom, 1).repeat(zoom, 2)
    height, width = arrays.shape[1] + 18, arrays.shape[2] + 4
    sheet = Image.new("RGB", (10 * width, math.ceil(len(arrays) / 10) * height), "white")
    for i, (array, caption) in enumerate(zip(arrays, captions)):
        left, top = i % 10 * width + 2, i // 10 * height
        sheet.paste(Image.fromarray(array), (left, top + 16))
        ImageDraw.Draw(sheet).text((left + 1, top + 2), caption, fill="black")
    write_whole(path, functools.partial(sheet.save, format="PNG"))


def train(net, flow, data, out, steps=5000, batch_size=16, accum=1, lr=4e-3, warmup=100, decay=0.5,
          flip=False, seed=0, log_every=50, save_every=500, sample_every=1000, cfg=2.0, compile=False,
          data_name="", caught=(), loss_function=training_loss):  # fmt: skip
    """Train net on its device, or go on with the run in folder `out`: checkpoint, log, sheets of samples.

    accum: parts of a batch, one after the other, to save memory; decay: the share of the run in which lr
    falls to 0; caught: a list: a signal's number in it stops the run, which is saved. Raises Stop.
    """
    rank, world = int(os.environ.get("RANK") or 0), int(os.environ.get("WORLD_SIZE") or 1)  # of torchrun
    out, device, parameters = Path(out), net.pos_embed.device, list(net.parameters())
    # What is trained: the network, and two averages of its weights.
    networks = {"model": net} | {key: copy.deepcopy(net).eval() for key in AVERAGES}
    optimizer = torch.optim.AdamW(parameters, lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    if compile:
        net.compile()
    model = nn.parallel.DistributedDataParallel(net) if world > 1 else net
    # Where it goes on: with the same config, but for the place of the data.
    recipe = dict(batch_size=batch_size, accum=accum, lr=lr, warmup=warmup, decay=decay, flip=flip, seed=seed)
    config = dict(network=net.arguments, flow=dataclasses.asdict(flow), recipe=recipe, names=list(data.names),
                  images=len(data.labels), data=data_name)
    done = resume(out, networks, optimizer, config)
    if rank == 0:
        print(f"{out}: {flow.pred}-prediction, patches of {net.shape[0] * net.patch**2} numbers, {device}, "
              f"{f'goes on after step {done}' if done else 'new'}, to step {steps}")
    make_folder(out)
    parts = range(rank * accum, (rank + 1) * accum)  # of a batch, for this process
    count = batch_size // (accum * world)  # images of a part
    starts = (step * batch_size + part * count for step in range(done, steps) for part in parts)
    batches = data_batches(data, (range(i, i + count) for i in starts), seed, device, flip)
    bar = tqdm(range(done + 1, steps + 1), out.name, steps, initial=done, unit="step", disable=rank > 0)
    seen, logged, clock = [], done, time.perf_counter()
    for step in bar:
        for part in parts:  # The step: gradients of all parts, weights, averages.
            torch.manual_seed(mix_seed(seed, step, part))  # whether it was stopped or not
            x, y = next(batches)
            model.require_backward_grad_sync = part == parts[-1]  # DDP averages gradients once a step
            loss, t = loss_function(model, x, y, flow)
            if part == parts[0]:
                # Here memory goes straight from the old gradients to the new. Anywhere else the
                # system takes it back in between: tens of thousands of page faults in a step of B/16.
                optimizer.zero_grad()
            (loss.mean() / accum).backward()
            seen.append((loss.detach(), t))  # stay on the device: no step waits for a GPU
        rate = lr * min(1.0, step / max(1, warmup), (steps - step + 1) / max(1, decay * steps))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        for key, (memory, window) in AVERAGES.items():
            update_average(list(networks[key].parameters()), parameters, memory, window, step)
        last, stop = step == steps, bool(caught) and world == 1  # Then log, save, draw, stop.
        log = last or step % log_every == 0 or step % save_every == 0
        if log and world > 1:  # all processes must stop at the same step
            votes = torch.tensor(float(bool(caught)), device=device)
            torch.distributed.all_reduce(votes)
            stop = votes.item() > 0
        if log or stop:
            line = dict(step=step, lr=rate) | summarize(seen, parameters)
            loss, norm = line["loss"], line["grad_norm"]
            if not math.isfinite(loss + norm):
                raise Stop(f"at step {step} the loss is {loss}, its gradient {norm}: try a lower --lr.", 1)
            line["images_per_s"] = (step - logged) * batch_size / (time.perf_counter() - clock)
            line["gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
            seen, logged, clock = [], step, time.perf_counter()
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            if rank == 0:
                with open(out / "log.jsonl", "a") as file:
                    file.write(json.dumps(line) + "\n")
        if rank == 0 and (last or stop or step % save_every == 0):
            save_checkpoint(out / CHECKPOINT, networks, optimizer, step, config)
        if rank == 0 and (last or step % sample_every == 0):
            try:
                y, captions = pick_classes(40, net.classes, data.names)
                images = sample_images(networks["model_ema1"], y.to(device), flow, net.shape, cfg=cfg)
                draw_sheet(out / f"samples-{step:06d}.png", torch.cat(list(images)), captions)
            except Exception as error:  # lack of memory, say
                tqdm.write(f"no samples at step {step}: {error}", file=sys.stderr)
        if stop:
            raise Stop(f"stopped and saved at step {step}; the same command goes on.", 128 + max(caught, default=2))
    if rank == 0:
        print(f"done: see {out / f'samples-{steps:06d}.png'}, and more with: python jit.py sample {out}")


# ---- 9. The command line ----

MAY_BE_0 = "bottleneck context_tokens context_start label_drop warmup decay seed cfg".split()


def add_train_flags(add):
    """Flags of train; each is the parameter of JiT, Flow or train of its name."""
    switch = argparse.BooleanOptionalAction
    add("--data", default="shapes", help="shapes, or a folder: FOLDER/CLASS/*.jpg or FOLDER/*.jpg")
    add("--out", type=Path, help="run folder; None: runs/DATA-MODEL-PATCH-PRED")
    add("--model", default="Ti/16", help=f"{', '.join(MODELS)}, a slash, and the side of a patch")
    add("--size", type=int, default=64, help="side of the images in pixels")
    for name in "patch depth width heads bottleneck context-tokens context-start".split():
        add(f"--{name}", type=int, help="of the network; None: as --model says")
    add("--rope", action=switch, default=True, help="rotary position embedding (Table 4)")
    add("--qk-norm", action=switch, default=True, help="normalised queries and keys (Table 4)")
    add("--pred", choices=("x", "eps", "v"), default="x", help="what the network predicts")
    add("--loss", choices=("x", "eps", "v"), default="v", help="where prediction and truth are compared")
    add("--mu", type=float, default=-0.8, help="mean of logit(t); lower is noisier (Table 3)")
    add("--sigma", type=float, default=0.8, help="standard deviation of logit(t)")
    add("--noise-scale", type=float, help="standard deviation of eps; None: size / 256, at least 1")
    add("--label-drop", type=float, default=0.1, help="share of images without their class")
    add("--steps", type=int, default=5000, help="training steps; raise it to train on")
    add("--accum", type=int, default=1, help="parts of a batch, in turn, to save memory")
    add("--lr", type=float, help="learning rate; None: Ti 4e-3, S 5e-4, others 5e-5 * batch size / 256")
    add("--warmup", type=int, default=100, help="steps in which it rises")
    add("--decay", type=float, help="share of the run in which it falls to 0; None: Ti, S 0.5, others 0")
    add("--flip", action=switch, help="mirror half of the images; None: all data but shapes")
    for name, steps in dict(log=50, save=500, sample=1000).items():
        add(f"--{name}-every", type=int, default=steps, help=f"steps from one {name} to the next")


def parse_flags(words=None):
    """The command line: a command and its flags."""
    parser = argparse.ArgumentParser(prog="jit.py", description="Train and sample a Just image Transformer.")
    commands = parser.add_subparsers(dest="command", required=True)
    style = dict(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_train = commands.add_parser("train", help="train a network, or go on with a run", **style).add_argument
    add_sample = commands.add_parser("sample", help="draw images with a trained network", **style).add_argument
    add_eval = commands.add_parser("eval", help="FID and Inception Score", **style).add_argument
    add_train_flags(add_train)
    add_sample("run", help="run folder or checkpoint file, ours or the official code's")
    add_sample("--classes", help="names or numbers, with commas; they take turns")
    add_sample("--png-dir", type=Path, help="write every image to this folder")
    add_eval("run", help="a run, a checkpoint file, or a folder of images")
    add_eval("--size", type=int, help="side in pixels of the images of a folder")
    add_eval("--reference", help="a folder, or a file of statistics; None: the training data")
    add_eval("--stats", type=Path, help="write the reference's statistics to this .npz file")
    add_eval("--inception", type=Path, help="file of the Inception weights; None: a download")
    for add, n in ((add_sample, 40), (add_eval, 1000)):
        add("--n", type=int, default=n, help="number of images")
        add("--interval", type=float, nargs=2, default=(0.1, 1.0), help="guidance is for t between these")
        add("--sampling-steps", type=int, default=50, help="steps from noise to data")
        add("--solver", default="heun", choices=("heun", "euler"), help="of the differential equation")
        add("--weights", default="ema1", choices=WEIGHTS, help="those trained, or one of their averages")
    for add, batch_size, t_clip in ((add_train, 16, T_CLIP), (add_sample, 50, None), (add_eval, 50, None)):
        add("--batch-size", type=int, default=batch_size, help="images at a time")
        add("--cfg", type=float, default=2.0, help="weight of classifier-free guidance; 1: none")
        add("--t-clip", type=float, default=t_clip, help="smallest 1 - t, or t, in a division")
        add("--seed", type=int, default=0, help="of all that is random")
        add("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"), help="to use")
        add("--compile", action="store_true", help="torch.compile: a minute, then faster")
    for each in (parser, *commands.choices.values()):
        each.error = lambda message: parser.exit(2, f"jit.py: {message}; see --help.\n")
    return parser.parse_args(words)


def choose_device(name):
    """The torch.device of --device; auto: a GPU if there is one."""
    there = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    check(name in ("auto", *there), f"--device {name}: there is none here.")
    return torch.device(there[0] if name == "auto" else name)


def flags_of(function, args):
    """The flags that are parameters of a function, and are given."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in vars(args).items() if name in names and value is not None}


def run_train(args):
    """python jit.py train: from flags to the arguments of JiT, Flow and train."""
    name, _, patch = args.model.partition("/")
    check(name in MODELS and patch.lstrip("0").isdecimal(), f"--model {args.model}: {', '.join(MODELS)}, as in B/16.")
    network = MODELS[name] | dict(patch=int(patch)) | flags_of(JiT, args)
    out = args.out or Path("runs", f"{Path(args.data).stem}-{name}-{network['patch']}-{args.pred}")
    args.noise_scale = args.noise_scale or max(1.0, args.size / 256)
    lr, decay = {"Ti": (4e-3, 0.5), "S": (5e-4, 0.5)}.get(name, (5e-5 * args.batch_size / 256, 0.0))
    args.lr, args.decay = args.lr or lr, decay if args.decay is None else args.decay
    check(not args.flip or args.data != "shapes", "--flip: shapes are not mirrored.")
    args.flip = args.data != "shapes" if args.flip is None else args.flip
    device, world = choose_device(args.device), int(os.environ.get("WORLD_SIZE") or 1)
    check(args.batch_size % (args.accum * world) == 0, "--batch-size is no multiple of --accum and processes.")
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK") or 0))  # set by torchrun, as is WORLD_SIZE
    if world > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    data = open_data(args.data, (3, args.size, args.size))
    torch.manual_seed(args.seed)
    net = JiT(**network, classes=len(data.names)).to(device)
    caught = []

    def handler(number, frame):  # finish the step, save, then stop; the second time at once
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
    flags = flags_of(train, args) | dict(data=data, out=out, data_name=args.data, caught=caught)
    train(net, Flow(**flags_of(Flow, args)), **flags)


def open_run(args, classes=""):
    """(network, config, captions, batches of samples) of the run and the flags of a command."""
    check(0 <= args.interval[0] < args.interval[1] <= 1, "--interval: from 0 to 1, the lower first.")
    net, flow, config = load_run(args.run, args.weights, choose_device(args.device))
    flow.t_clip = args.t_clip or flow.t_clip
    args.cfg = args.cfg if net.classes > 1 else 1.0  # one class leaves nothing to guide towards
    if args.compile:
        net.compile()
    y, captions = pick_classes(args.n, net.classes, config["names"], classes)
    batches = sample_images(net, y.to(net.pos_embed.device), flow, net.shape, **flags_of(sample_images, args))
    return net, config, captions, batches


def run_sample(args):
    """python jit.py sample: images on a sheet, or in single files."""
    net, config, captions, batches = open_run(args, args.classes)
    folder = make_folder(args.png_dir or (Path(args.run) if Path(args.run).is_dir() else Path(args.run).parent))
    check(not args.png_dir or not any(folder.iterdir()), f"--png-dir {folder} is not empty: choose another.")
    sheet = []
    for i, batch in enumerate(tqdm(batches, "sampling", math.ceil(args.n / args.batch_size))):
        sheet.append(batch.cpu())
        if args.png_dir:  # at once: 50,000 images are not kept, nor lost by Ctrl-C
            for number, image in enumerate(sheet.pop().permute(0, 2, 3, 1).numpy(), i * args.batch_size):
                Image.fromarray(image.squeeze()).save(folder / f"{number:06d}.png")
    if sheet:
        draw_sheet(folder / "samples.png", torch.cat(sheet), captions)
    print(args.png_dir or folder / "samples.png")


def load_statistics(path):
    """Mean and covariance, from an .npz file of ours or of another program."""
    try:
        with np.load(path) as file:
            mu, sigma = file["mu"].astype(float), file["sigma"].astype(float)
        sound = sigma.shape == mu.shape * 2 == (2048, 2048) and np.isfinite(mu.sum() + sigma.sum())
        sound = sound and np.allclose(sigma, sigma.T) and sigma.diagonal().min() >= 0
        assert sound, "mu and sigma are no mean and covariance"
    except Exception as error:  # whatever bytes may cause
        raise Stop(f"{path} holds no statistics of Inception features: {error}.", 2) from error
    return mu, sigma


def read_images(name, shape, args, device):
    """(number, uint8 batches) of the images of a folder, or of args.n new shapes."""
    torch.manual_seed(args.seed + 1)
    data = open_data(name, shape)
    n = len(data.labels) or args.n
    places = [range(i, min(i + args.batch_size, n)) for i in range(0, n, args.batch_size)]
    return n, (to_uint8(x) for x, _ in data_batches(data, places, args.seed, device))


def run_eval(args):
    """python jit.py eval: FID and Inception Score of a run, or of a folder of images."""
    device, reference, logits = choose_device(args.device), args.reference, []
    if Path(args.run).is_dir() and not Path(args.run, CHECKPOINT).exists():
        check(args.size, f"{args.run} holds no {CHECKPOINT}; if it holds images, give --size.")
        shape = (3, args.size, args.size)
        n, batches = read_images(f"{args.run}/", shape, args, device)
    else:
        net, config, _, batches = open_run(args)
        n, shape, reference = args.n, net.shape, reference or config["data"]
    check(reference, "give --reference, a folder or a file of statistics.")
    if args.stats:
        check(args.stats.suffix == ".npz", f"--stats {args.stats}: its name must end in .npz.")
        make_folder(args.stats.parent)
    inception = load_inception(args.inception, device)

    def features(n, batches, keep=False):
        for images in tqdm(batches, "features", math.ceil(n / args.batch_size)):
            found, scores = inception(images.to(device))
            logits.extend(scores.cpu() if keep else [])
            yield found

    mu, sigma = (load_statistics(reference) if Path(reference).is_file()
                 else moments(features(*read_images(reference, shape, args, device)))[1:])
    if args.stats:
        write_whole(args.stats, functools.partial(np.savez, mu=mu, sigma=sigma))
    n, mean, covariance = moments(features(n, batches, keep=True))
    score, deviation = inception_score(torch.stack(logits))
    result = {f"fid_{n}": frechet_distance(mean, covariance, mu, sigma), "inception_score": score}
    print(json.dumps(result | dict(inception_score_std=deviation, run=args.run, reference=reference)))


def main(words=None):
    """Run a command; returns the exit code."""
    try:
        args = parse_flags(words)
        for name, value in vars(args).items():  # of numbers, only mu may be negative, and few of them 0
            right = value not in ("", Path())
            if type(value) in (int, float):
                most = 1 if name in ("label_drop", "decay", "t_clip") else 2**62
                right = (value > 0 or value == 0 and name in MAY_BE_0 or name == "mu") and abs(value) <= most
            check(right, f"--{name.replace('_', '-')} '{value}' is empty or out of range.")
        check(args.command == "train" or not os.environ.get("RANK"), "torchrun is for train only.")
        {"train": run_train, "sample": run_sample, "eval": run_eval}[args.command](args)
    except (Stop, OSError, ValueError, RuntimeError, MemoryError, KeyboardInterrupt) as error:
        said = str(error).partition("\n")[0] or type(error).__name__
        code = 1 if isinstance(error, RuntimeError) else 2  # RuntimeError: torch's, such as lack of memory
        sentence, code = error.args if isinstance(error, Stop) else (said, code)
        tqdm.write(f"jit.py: {sentence}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else code
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # for any name
    sys.exit(main())
