"""JiT, "Just image Transformers", in one file: a plain Vision Transformer on pixels draws images.

After "Back to Basics: Let Denoising Generative Models Denoise" (Li & He 2025, arXiv 2511.13720).

JiT is x-prediction with the v-loss: the network predicts the clean image, and training compares
velocities. So the squared error of the image has the weight 1 / (1 - t)^2: the last, fine steps
count more than they do when images are compared.

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
          4 network (Figure 3). Engineering: what differs from the paper, 5 shapes, 6 data, 7 FID,
          8 runs, 9 command line.
"""

import dataclasses
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

# From here on engineering needs them, not the method.
import argparse
import copy
import functools
import inspect
import json
import re
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from tqdm import tqdm

# ---- 1. The flow: from noise to data, and three things to predict (paper Section 3, Table 1) ----

# While t goes from 0 to 1, z = t x + (1 - t) eps goes from noise to image, and dz/dt = x - eps = v.
# Many pairs of image and noise pass through the same z, each with its own v. Least squares learns
# their mean, E[v | z, t], and that is enough: moving every z with it gives, at each t, the same
# distribution of z as the straight paths do. So what is noise at t = 0 arrives as images at t = 1
# (flow matching, Lipman et al. 2023).


def interpolate(x, eps, t):
    """z = t x + (1 - t) eps (paper Eq. 1). x, eps, z: (B, ...); t: (B,) in [0, 1]."""
    t = t.view(-1, *[1] * (x.dim() - 1))  # (B, 1, ..., 1), to multiply x
    return t * x + (1 - t) * eps


T_CLIP = 0.05  # the official code's t_eps: with it, 1 / (1 - t) is 20 at most


def convert(output, z, t, pred, clip=T_CLIP):
    """Read a network's output as x, eps or v (pred); returns all three as a dict (paper Table 1).

    Two equations tie them, z = t x + (1 - t) eps and v = x - eps: one, and z, give the others.
    output, z: (B, ...); t: (B,). Raises ValueError for another pred.
    """
    t = t.view(-1, *[1] * (z.dim() - 1))  # (B, 1, ..., 1)
    noise_share = (1 - t).clamp_min(clip)  # at t = 1 z holds no noise: else a division by 0
    image_share = t.clamp_min(clip)  # at t = 0 no image; our choice, the paper is silent there
    if pred == "x":
        x = output
        eps = (z - t * x) / noise_share
        v = (x - z) / noise_share
    elif pred == "eps":
        eps = output
        x = (z - (1 - t) * eps) / image_share
        v = (z - eps) / image_share
    elif pred == "v":
        v = output
        x = z + (1 - t) * v
        eps = z - t * v
    else:
        raise ValueError(f"pred {pred!r} is none of x, eps, v")
    return {"x": x, "eps": eps, "v": v}


def flow_loss(output, x, eps, t, pred, loss, clip=T_CLIP):
    """Mean squared error in the space `loss`, one per image (B,): all nine pairs of Table 1."""
    # JiT's own pair, x-prediction with the v-loss, comes to ((output - x) / max(1 - t, clip))^2.
    # The target is what a perfect network would put out, through the same conversion and clip:
    # against the plain x - eps even a perfect network would have a loss where 1 - t is clipped.
    z = interpolate(x, eps, t)
    perfect = {"x": x, "eps": eps, "v": x - eps}[pred]
    error = convert(output, z, t, pred, clip)[loss] - convert(perfect, z, t, pred, clip)[loss]
    return error.square().flatten(1).mean(1)  # (B,)


def sample_t(n, mu=-0.8, sigma=0.8, device=None):
    """Training times (n,) in (0, 1): logit(t) ~ N(mu, sigma^2) (Section 4.1)."""
    # By default half are below 0.31, where z is mostly noise and the layout of an image is decided.
    return torch.sigmoid(mu + sigma * torch.randn(n, device=device))


@dataclasses.dataclass
class Flow:
    """All choices about the flow. Sampling needs pred, noise_scale and t_clip of them."""

    pred: str = "x"  # what the network predicts: x, eps or v
    loss: str = "v"  # the space in which prediction and truth are compared: x, eps or v
    mu: float = -0.8  # mean of logit(t); lower is noisier (Table 3)
    sigma: float = 0.8  # standard deviation of logit(t)
    noise_scale: float = 1.0  # standard deviation of eps; the paper: image size / 256
    label_drop: float = 0.1  # share of the images that are trained without their class
    t_clip: float = T_CLIP  # smallest 1 - t, and smallest t, in a division


# ---- 2. The training step (paper Algorithm 1) ----

# A network is a function net(z, t, y) -> output, with z and output (B, C, H, W), t (B,), and y (B,)
# the numbers of the classes. It also learns to do without the class, which guidance will need.
NO_CLASS = -1  # for the network the last row of its table


def matrix_products_in_bf16(device):
    """On CUDA, for speed. Conversion and loss are always computed in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def training_loss(net, x, y, flow):
    """Noise a batch, have the network denoise it, compare. x: (B, C, H, W) in [-1, 1]; y: (B,).

    Returns the loss of each image, whose mean is to be minimised, and its time t: (B,) and (B,).
    """
    t = sample_t(len(x), flow.mu, flow.sigma, x.device)
    eps = flow.noise_scale * torch.randn_like(x)
    z = interpolate(x, eps, t)
    dropped = torch.rand(len(y), device=y.device) < flow.label_drop
    y = torch.where(dropped, NO_CLASS, y)
    with matrix_products_in_bf16(x.device):
        output = net(z, t, y)
    return flow_loss(output.float(), x, eps, t, flow.pred, flow.loss, flow.t_clip), t


# The weights still jump about from step to step; samples come from their average (EMA). Two are
# kept: ema1 with decay .9999 and ema2 with .9996, as officially. But .9999 remembers 10,000 steps,
# at first mostly the random start; so a short run's remember the last 9th and 36th part of it.
AVERAGES = {"ema1": (0.9999, 9), "ema2": (0.9996, 36)}  # decay, parts


@torch.no_grad()
def update_average(average, parameters, decay, parts, step):
    """average <- d average + (1 - d) parameters, in place, for lists of tensors, after a step."""
    # This d remembers the last of so many parts of the run; ema1's is the decay from step 90,000.
    d = min(decay, 1 - parts / (parts + step))
    torch._foreach_lerp_(average, parameters, 1 - d)


# ---- 3. Sampling (paper Algorithm 2) ----


def predict_velocity(net, z, t, y, flow):
    """The network's output for z (B, C, H, W) at time t (a float) and classes y (B,), read as v."""
    t = torch.full((len(z),), t, device=z.device)
    with matrix_products_in_bf16(z.device):
        output = net(z, t, y)
    return convert(output.float(), z, t, flow.pred, flow.t_clip)["v"]


def guided_velocity(net, y, flow, cfg=2.0, interval=(0.1, 1.0)):
    """The velocity (z, t) -> v for classes y (B,), with classifier-free guidance of weight cfg.

    v_none + cfg (v_class - v_none) exaggerates what the class adds: clearer images, less variety
    (Ho & Salimans 2022). Only for t inside the interval (Kynkaanniemi et al. 2024): at t near 0,
    where z is nearly all noise, it would make the images of a class more alike.
    """
    low, high = interval

    def velocity(z, t):
        inside = (low < t or low == 0) and t < high  # as officially: .1 is outside, but 0 inside
        if cfg == 1 or not (inside or cfg == 0):  # cfg 0, without class, holds at every t
            return predict_velocity(net, z, t, y, flow)
        both = torch.cat([y, torch.full_like(y, NO_CLASS)])
        v_class, v_none = predict_velocity(net, torch.cat([z, z]), t, both, flow).chunk(2)
        return v_none + cfg * (v_class - v_none)

    return velocity


@torch.no_grad()
def integrate(velocity, z, steps=50, solver="heun", watch=None):
    """Follow dz/dt = v(z, t) from noise z at t = 0; returns the image, z at t = 1.

    velocity: a function (z, t: float) -> v of z's shape. "euler" goes along v for a step, "heun"
    along the mean of v at both ends. The last step is Euler's: at t = 1 z is the image, and
    v = (x - z) / (1 - t) is 0 / 0. watch(t, z, x_pred), if given, sees the way, before each step
    and at the end; x_pred = z + (1 - t) v is where v leads. Raises ValueError for another solver.
    """
    if solver not in ("euler", "heun"):
        raise ValueError(f"solver {solver!r} is neither euler nor heun")
    for i in range(steps):
        t, t_next = i / steps, (i + 1) / steps
        v = velocity(z, t)
        if watch:
            watch(t, z, z + (1 - t) * v)
        if solver == "heun" and i < steps - 1:
            v = (v + velocity(z + (t_next - t) * v, t_next)) / 2
        z = z + (t_next - t) * v
    if watch:
        watch(1.0, z, z)
    return z


# ---- 4. The network: a Vision Transformer (paper Figure 3), named as in released checkpoints ----


class PatchEmbed(nn.Module):
    """Patches to tokens, through a bottleneck of r numbers (Figure 4). r = 0: directly.

    Images pass through few numbers: x loses nothing (in the paper it gains). Noise does not, and
    what does not get in cannot come out: behind a bottleneck eps and v are out of reach.
    """
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
    B, N, patch_size = patches.shape
    side, C = math.isqrt(N), patch_size // p**2
    x = patches.reshape(B, side, side, p, p, C).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(B, C, side * p, side * p)  # from (B, C, side, p, side, p)


# Attention does not see where its tokens stand. They are told twice: sines and cosines, added once,
# say where a token is; RoPE, which turns queries and keys, how far two are apart, in every block.


def grid_angles(side, n):
    """Row and column of each token, times n frequencies, from 1 towards 1 / 10000: (N, n) each."""
    frequency = 10000.0 ** -(torch.arange(n, dtype=torch.float64) / n)
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency  # (side, n)
    return angle.repeat_interleave(side, dim=0), angle.repeat(side, 1)


def position_embedding(side, width):
    """Where a token stands, added to it at the start: sines and cosines (1, N, D)."""
    row, column = grid_angles(side, width // 4)
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)[None].float()


def rope_table(side, head_dim, context_tokens, on=True):
    """Rotary position embedding (RoFormer, Su et al. 2021): cos and sin (K + N, d) of the angles by
    which pairs of numbers in a query or key turn, half with the row of its token, half the column.

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
        q, k = self.q_norm(q.float()), self.k_norm(k.float())  # fp32: a norm is a sum of squares
        q, k = rotate(q, *rope), rotate(k, *rope)
        x = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)  # (B, h, N, d)
        x = x.transpose(1, 2).flatten(2)  # (B, N, D)
        return self.dropout(self.proj(x))


class SwiGLU(nn.Module):
    """A block's MLP: w3(silu(a) * b) with a, b = w12(x) (SwiGLU, Shazeer 2020)."""
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
    """Tokens (B, N, D) to patches (B, N, p*p*C). Here x-prediction parts from eps and v:

    A linear layer from D numbers reaches an affine space of D dimensions, and noise is alike in all
    directions: a network narrower than a patch misses the share 1 - D / (p*p*C) of it, at least.
    And the norm keeps a token's direction, but not its length; of noise the length matters, too.
    """
    def __init__(self, width, patch_size):
        super().__init__()
        self.norm_final = nn.RMSNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, patch_size)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


def time_features(t):
    """t (B,) in [0, 1], as officially not times 1,000, as 128 cosines and 128 sines (B, 256)."""
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
        fits = size % patch == 0 and width % (4 * heads) == 0  # 4: pairs that turn, on two axes
        if not fits or (context_tokens and context_start >= depth):
            raise ValueError(f"size {size} must be a multiple of patch {patch}, width {width} of "
                             f"4 x heads {heads}, context_start {context_start} < depth {depth}")
        side = size // patch
        self.shape = (channels, size, size)
        self.patch, self.classes = patch, classes
        self.context_tokens, self.context_start = context_tokens, context_start
        # In the order of forward. The two ModuleDicts are there for the official names alone.
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
        c = time + label
        rope = (self.cos, self.sin)
        tokens = self.x_embedder(z) + self.pos_embed  # (B, N, D)
        for i, block in enumerate(self.blocks):
            if self.context_tokens and i == self.context_start:
                context = label + self.in_context_posemb  # (B, K, D)
                tokens = torch.cat([context, tokens], dim=1)  # (B, K + N, D)
            tokens = block(tokens, c, rope)
        patches = self.final_layer(tokens[:, self.context_tokens :], c)  # (B, N, p*p*C)
        return unpatchify(patches, self.patch)  # (B, C, H, W)


# ---- That was the method. Engineering from here. ----

# What differs from the paper and its official code, github.com/LTH14/JiT:
# 1. All nine prediction/loss pairs; the official code has x-prediction under the v-loss only.
# 2. On CUDA attention is in bf16 and tokens between blocks in fp32; there attention is in fp32, and
#    tokens in bf16 until the in-context ones join.
# 3. Guidance is one batch with and without class; where its weight is 1, with class alone.
# 4. The memory of the averaged weights (EMA) grows with the run, so that short runs can use them.
# 5. Noise is seeded per step, or per sampled image: runs resume, a sample ignores its batch.
# 6. The noise has a standard deviation of 1 below 256 px, where the paper's rule says size / 256.
# 7. The default learning rate grows with the root of the batch, there with the batch itself.


class Stop(Exception):
    """Ends the program with a sentence instead of a traceback: what a user can mend."""


def check(condition, sentence):
    """Stop unless the condition holds."""
    if not condition:
        raise Stop(sentence)


def say(sentence):
    """A line on stderr, above the bar of progress; cut where it is too long."""
    tqdm.write(textwrap.shorten(sentence, 350, placeholder=" ..."), sys.stderr)


# ---- 5. Built-in data: ten shapes, drawn as they are needed ----

SHAPES = ["disc", "ring", "triangle", "square", "star", "heart", "cross", "moon", "flower", "gear"]
FACTORS = {  # all that varies within a class: a manifold of seven dimensions (disc and ring: six)
    "x": (-0.15, 0.15), "y": (-0.15, 0.15),  # the centre; an image is 2 wide, y points down
    "size": (0.58, 0.77), "angle": (-0.31, 0.31),  # half the width; 18 degrees either way
    "hue": (0.0, 1.0), "background_hue": (0.0, 1.0),  # hues are circles
    "background_brightness": (0.58, 0.82),
}  # fmt: skip

constant = functools.cache(torch.tensor)  # copied to a GPU once: each copy would make it wait


def random_factors(n, device=None):
    """Draw factors (n, 7), each uniform in its range."""
    low, high = constant(tuple(FACTORS.values()), device=device).unbind(1)
    return low + (high - low) * torch.rand(n, len(FACTORS), device=device)


def shape_outlines():
    """Each shape as polygons in the complex plane, x + iy, y down; one inside another is a hole."""
    angle = torch.arange(120) * (math.tau / 120)
    crescent = 0.6 + 0.34 * angle.sin() * angle.sin().abs()

    def around(radii):  # corners at these radii, evenly spaced in angle, clockwise from the top
        turn = torch.arange(len(radii)) * (math.tau / len(radii))
        return torch.polar(torch.as_tensor(radii), turn - math.tau / 4)

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
        "moon": [torch.polar(crescent, math.pi + 2.3 * angle.cos())],
        "flower": [around(0.42 + 0.52 * (2.5 * angle).cos().abs()), around([0.25] * 120)],
        "gear": [around(0.77 + 0.18 * (3 * (6 * angle).cos()).clamp(-1, 1)), around([0.42] * 120)],
    }


@functools.cache
def distance_fields(device):
    """Distances to the outlines, negative inside, over [-1.5, 1.5]^2: (10, 1, 128, 128)."""
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
    """Images (B, 3, size, size) in [-1, 1] of labels (B,) and factors (B, 7)."""
    x, y, scale, angle, hue, back_hue, back_light = factors[..., None, None].unbind(1)  # (B, 1, 1)
    fields = distance_fields(factors.device)[labels]  # (B, 1, 128, 128)
    cos, sin = angle.cos() / (1.5 * scale), angle.sin() / (1.5 * scale)  # 1.5: as the fields span
    axis = (torch.arange(size, device=factors.device) + 0.5) * (2 / size) - 1

    def distance(shift):  # to the outline, from each pixel or a place shifted along the diagonal
        right, down = axis[None, :] - x + shift, axis[:, None] - y + shift  # (B, 1, S), (B, S, 1)
        turned = right * cos + down * sin, down * cos - right * sin
        place = torch.stack(turned, dim=-1)  # (B, S, S, 2)
        return scale[:, None] * F.grid_sample(fields, place.clamp(-1, 1), align_corners=True)

    def rainbow(hue, saturation):  # RGB (B, 3, 1, 1), about equally light: so green swings less
        phase = torch.stack([hue, hue - 1 / 3, hue + 1 / 3], 1)
        swings = constant(((0.58, 0.48, 0.55), (0.42, 0.32, 0.42)), device=hue.device)
        centre, swing = swings.view(2, 3, 1, 1)
        return centre + saturation * swing * (math.tau * phase).cos()

    here, to_light = distance(0), distance(-0.07)  # (B, 1, S, S); the light stands at the top left
    slope = (to_light / 0.12).clamp(-1, 1) - (here / 0.12).clamp(-1, 1)  # of a bevel 0.12 wide
    face = torch.lerp(rainbow(hue, 1.0), (slope > 0).float(), 0.6 * slope.abs())  # to white, black
    shadow = 1 - 0.4 * torch.sigmoid(-22 * to_light)
    back = back_light[:, None] * (0.5 + rainbow(back_hue, 0.3)) * shadow
    paint = torch.sigmoid(-1.5 * size * here)  # an edge about 1.5 pixels wide at any size
    return torch.lerp(back, face, paint) * 2 - 1


@dataclasses.dataclass
class Shapes:
    """The built-in data: images (3, size, size) without end."""

    size: int
    name = "shapes"
    names = SHAPES
    counts = [1] * len(SHAPES)  # of images in each class: equally many
    summary = "ten built-in shapes"


# ---- 6. Data from a folder ----

SPLIT = re.compile("(train|val|test|dev)(ing|id|idation)?[-_]?([ab]|[0-9]+)?")  # val, train2017
MEMORY_LIMIT = 2 * 2**30  # bytes; more images are read again in each epoch
DECODERS = ThreadPoolExecutor()  # PIL lets other threads run while it decodes
CHECKPOINT = "checkpoint-last.pth"  # the official code's name


def crop(image, size, channels):
    """PIL image to uint8 (C, size, size), upright, on white, by ADM's centre crop as officially."""
    if image.mode[0] in "IF":
        raise ValueError("its pixels have more than 8 bits, and which is white is not known")
    image = ImageOps.exif_transpose(image)
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
    return torch.from_numpy(pixels.reshape(size, size, channels)).permute(2, 0, 1).contiguous()


@dataclasses.dataclass
class Images:
    """Images of shape (C, S, S) in files, kept in memory once they are read, if all fit."""

    names: list  # of the classes
    labels: torch.Tensor  # (n,) int64: the class of each image
    paths: list
    shape: tuple
    name: str = ""  # of the folder
    counts: list = ()  # of images in each class
    summary: str = ""
    kept: dict = dataclasses.field(default_factory=dict)  # pixels, by index

    def read(self, index):
        """uint8 pixels (C, S, S). A broken file is named, and the next takes its place for good."""
        for i in [place % len(self.paths) for place in range(index, index + 10)]:
            try:
                with Image.open(self.paths[i]) as image:
                    pixels = crop(image, self.shape[1], self.shape[0])
                self.paths[index], self.labels[index] = self.paths[i], self.labels[i]
                return pixels
            except Exception as error:  # broken files raise nearly anything
                say(f"left out {self.paths[i]}: {error}")
        raise Stop(f"ten files in a row cannot be read as images, the last is {self.paths[i]}.")

    def batch(self, indices):
        """uint8 pixels (B, C, S, S) and classes (B,)."""
        new = [i for i in indices if i not in self.kept]
        self.kept.update(zip(new, DECODERS.map(self.read, new)))
        pixels = torch.stack([self.kept[i] for i in indices])
        if len(self.paths) * math.prod(self.shape) > MEMORY_LIMIT:
            self.kept.clear()
        return pixels, self.labels[indices]


def open_data(name, shape):
    """The data of --data: Shapes, or Images of FOLDER/CLASS/**, or of FOLDER/* without classes."""
    if name == "shapes":
        return Shapes(shape[1])
    root, types = Path(name).resolve(), Image.registered_extensions()
    check(root.is_dir(), f"'{name}' is no folder of images, nor shapes.")
    # What is hidden is left out. Links are followed at the top only: below, one may lead back up.
    found = sorted(path for top in root.glob("[!.]*") for path in (top, *top.rglob("*")))
    parts = {path: path.relative_to(root).parts for path in found}
    found = [path for path in found if not any(part[0] == "." for part in parts[path])]
    paths = [path for path in found if types.get(path.suffix.lower()) in Image.OPEN]
    check(paths, f"{root} holds no images; lay them out as CLASS/*.jpg, or *.jpg without classes.")
    others = {path.suffix or path.name for path in {*found} - {*paths} if not path.is_dir()}

    # What would be learnt without a word, and was not meant.
    names, labels, counts = np.unique([parts[path][0] if parts[path][1:] else "" for path in paths],
                                      return_inverse=True, return_counts=True)  # "": at the top
    check(names[0] or len(names) == 1, f"{root} holds images and folders of images: move either.")
    splits = {part for path in paths for part in parts[path][:-1] if SPLIT.fullmatch(part.lower())}
    check(len(splits) < 2 and splits != {*names},
          f"{root} is split: give a folder with one of {', '.join(sorted(splits))}.")
    check(CHECKPOINT not in {path.name for path in found},
          f"{root} holds a run ({CHECKPOINT}), whose pictures are no data: move it.")

    names = [name for name in names.tolist() if name]
    labels = torch.tensor(labels) if names else torch.full((len(paths),), NO_CLASS)
    summary = f"{root}: {len(paths)} images, {len(names)} classes, left out: {sorted(others)}"
    return Images(names, labels, paths, shape, str(root), counts.tolist(), summary)


def data_batches(data, places, seed, device, flip=False):
    """Batches x (B, C, S, S) in [-1, 1], y (B,), one for each of some ranges in the endless row of
    shuffled epochs. Shapes are drawn anew: of their ranges only the lengths count."""
    @functools.lru_cache(maxsize=2)  # a batch can span two epochs
    def order(epoch):
        return np.random.default_rng([seed, epoch]).permutation(len(data.paths)).tolist()

    for part in places:
        if isinstance(data, Shapes):
            y = torch.randint(len(SHAPES), (len(part),), device=device)
            yield render_shapes(y, random_factors(len(y), device), data.size), y
            continue
        n = len(data.paths)
        pixels, y = data.batch([order(i // n)[i % n] for i in part])
        if device.type == "cuda":  # from pinned memory a copy does not make the GPU wait
            pixels, y = pixels.pin_memory(), y.pin_memory()
        x = pixels.to(device, non_blocking=pixels.is_pinned()).float() / 127.5 - 1
        if flip:
            x = torch.where(torch.rand(len(x), 1, 1, 1, device=device) < 0.5, x.flip(-1), x)
        yield x, y.to(device, non_blocking=y.is_pinned())


# ---- 7. FID and Inception Score, as torch-fidelity computes them ----


def resize_tf1(x, dim):
    """Bilinear resize of one axis to 299 as in TensorFlow 1: no half-pixel shift, no smoothing."""
    source = torch.arange(299, device=x.device) * torch.tensor(x.shape[dim] / 299, device=x.device)
    low = source.long()
    high = (low + 1).clamp_max(x.shape[dim] - 1)
    left, right = x.index_select(dim, low), x.index_select(dim, high)
    return left + (right - left) * (source - low).view(-1, *[1] * (3 - dim))


class Inception:
    """The network of FID (2015). layers: {name: (kernel, bias)}, batch norm folded in, and "fc"."""

    def __init__(self, layers):
        self.layers = layers

    def chain(self, x, prefix, names, stride=1, padding="same"):
        """Convolutions with a ReLU, one after the other; stride and padding are the last one's."""
        *names, last = names.split()
        for name in names:
            x = F.relu_(F.conv2d(x, *self.layers[prefix + name], padding="same"))
        return F.relu_(F.conv2d(x, *self.layers[prefix + last], stride, padding))

    def block(self, name, x, *chains, pool=None):
        """Chains side by side, and a pool with one convolution. Without one: all halve the side."""
        prefix = f"Mixed_{name}.branch"
        if pool is None:
            branches = [self.chain(x, prefix, names, stride=2, padding=0) for names in chains]
            return torch.cat([*branches, F.max_pool2d(x, 3, stride=2)], 1)
        branches = [self.chain(x, prefix, names) for names in chains]
        x = pool(x, 3, stride=1, padding=1)
        return torch.cat([*branches, self.chain(x, prefix, "_pool")], 1)

    @torch.no_grad()
    def __call__(self, images):
        """uint8 images (B, 1 or 3, H, W) of any size to features (B, 2048) and logits (B, 1008)."""
        if images.dtype != torch.uint8:
            raise ValueError("images must be uint8: those in [-1, 1] would all look alike")
        x = images.expand(-1, 3, -1, -1).float()
        x = (resize_tf1(resize_tf1(x, dim=3), dim=2) - 128) / 128  # (B, 3, 299, 299)
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.chain(x, "Conv2d_", "1a_3x3", stride=2, padding=0)
        x = self.chain(self.chain(x, "Conv2d_", "2a_3x3", padding=0), "Conv2d_", "2b_3x3")
        x = self.chain(F.max_pool2d(x, 3, stride=2), "Conv2d_", "3b_1x1 4a_3x3", padding=0)
        x = F.max_pool2d(x, 3, stride=2)  # (B, 192, 35, 35)
        average_pool = functools.partial(F.avg_pool2d, count_include_pad=False)
        thrice = "3x3dbl_1 3x3dbl_2 3x3dbl_3"
        for name in ("5b", "5c", "5d"):
            x = self.block(name, x, "1x1", "5x5_1 5x5_2", thrice, pool=average_pool)
        x = self.block("6a", x, "3x3", thrice)  # (B, 768, 17, 17)
        chains = "1x1", "7x7_1 7x7_2 7x7_3", "7x7dbl_1 7x7dbl_2 7x7dbl_3 7x7dbl_4 7x7dbl_5"
        for name in ("6b", "6c", "6d", "6e"):
            x = self.block(name, x, *chains, pool=average_pool)
        x = self.block("7a", x, "3x3_1 3x3_2", "7x7x3_1 7x7x3_2 7x7x3_3 7x7x3_4")
        forks = ["3x3_1 3x3_2a", "3x3_1 3x3_2b"]  # both end in a fork, 1 x 3 and 3 x 1
        forks += ["3x3dbl_1 3x3dbl_2 3x3dbl_3a", "3x3dbl_1 3x3dbl_2 3x3dbl_3b"]
        x = self.block("7b", x, "1x1", *forks, pool=average_pool)  # (B, 2048, 8, 8)
        x = self.block("7c", x, "1x1", *forks, pool=F.max_pool2d)
        features = x.mean((2, 3))  # (B, 2048)
        return features, features @ self.layers["fc"][0].T  # torch-fidelity leaves out the bias


def load_inception(path, device):
    """The Inception network from a file, or, for None, from torch.hub's cache or a download."""
    url = ("https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
           "weights-inception-2015-12-05-6726825d.pth")  # fmt: skip
    options = dict(map_location=device, weights_only=True)
    try:
        state = torch.load(path, **options) if path else torch.hub.load_state_dict_from_url(
            url, check_hash=True, **options)
    except OSError as error:
        raise Stop(f"{error}: get {url} and give it with --inception.") from error
    layers = {"fc": (state["fc.weight"], state["fc.bias"])}
    for name in [key.removesuffix(".conv.weight") for key in state if key.endswith(".conv.weight")]:
        scale = state[f"{name}.bn.weight"] / (state[f"{name}.bn.running_var"] + 1e-3).sqrt()
        kernel = state[f"{name}.conv.weight"] * scale[:, None, None, None]
        bias = state[f"{name}.bn.bias"] - state[f"{name}.bn.running_mean"] * scale
        layers[name] = kernel.contiguous(memory_format=torch.channels_last), bias
    return Inception(layers)


def moments(batches):
    """Number, mean (d,) and covariance (d, d), with n - 1, of features in batches (B, d), fp64."""
    n, total, products = 0, 0.0, 0.0
    for batch in batches:
        batch = batch.cpu().double()
        n, total, products = n + len(batch), total + batch.sum(0), products + batch.T @ batch
    check(n > 1, "a covariance needs two images at least.")
    covariance = (products - torch.outer(total, total) / n) / (n - 1)
    return n, (total / n).numpy(), covariance.numpy()


def frechet_distance(mu1, sigma1, mu2, sigma2):
    """|mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr (S1 S2)^(1/2), between two Gaussians."""
    roots = []  # with S = R R^T the last trace is the sum of the singular values of R1^T R2
    for sigma in (sigma1, sigma2):
        values, vectors = np.linalg.eigh(sigma)
        kept = values > len(values) * np.finfo(float).eps * values[-1]  # the others are rounding
        roots.append(vectors[:, kept] * np.sqrt(values[kept]))
    cross = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    distance = np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * cross
    return max(float(distance), 0.0)  # below 0 by rounding; in this order NaN stays NaN


def inception_score(logits, splits=10):
    """exp(mean KL(p(y|x) | p(y))) of logits (N, 1008): mean and standard deviation over splits."""
    order = np.random.RandomState(2020).permutation(len(logits))  # else a split has few classes
    log_p, scores = logits.cpu().double()[order].log_softmax(1), []
    for i in range(splits):
        part = log_p[i * len(log_p) // splits : (i + 1) * len(log_p) // splits]
        if len(part):
            log_mean = part.logsumexp(0) - math.log(len(part))  # log p(y)
            scores.append((part.exp() * (part - log_mean)).sum(1).mean().exp().item())
    return float(np.mean(scores)), float(np.std(scores))


# ---- 8. Runs: models, checkpoints, log, pictures, and the training loop ----

MODELS = {  # paper Table 9; Ti and S are ours, for a CPU and a small GPU
    "Ti": dict(depth=4, width=128, heads=4, bottleneck=32, context_tokens=4, context_start=1),
    "S": dict(depth=12, width=384, heads=6, bottleneck=64, context_tokens=16, context_start=4),
    "B": dict(depth=12, width=768, heads=12, bottleneck=128, context_tokens=32, context_start=4),
    "L": dict(depth=24, width=1024, heads=16, bottleneck=128, context_tokens=32, context_start=8),
    "H": dict(depth=32, width=1280, heads=16, bottleneck=256, context_tokens=32, context_start=10),
    "G": dict(depth=40, width=1664, heads=16, bottleneck=256, context_tokens=32, context_start=10),
}
MODELS["H"]["dropout"] = MODELS["G"]["dropout"] = 0.2

WEIGHTS = {"raw": "model", "ema1": "model_ema1", "ema2": "model_ema2"}  # --weights: key in the file


def write_whole(path, write):
    """write(a file beside path), then rename it: there is the old file or the new, never half."""
    part = Path(path).with_name(f".part-{Path(path).name}")  # np.savez and PIL read suffixes
    part.parent.mkdir(parents=True, exist_ok=True)
    write(part)
    part.replace(path)


def save_checkpoint(path, networks, optimizer, step, config):
    """The official layout, names with prefix "net."; `config` tells how to build the network."""
    checkpoint = dict(optimizer=optimizer.state_dict(), step=step, config=config)
    for key, network in networks.items():
        checkpoint[key] = {f"net.{name}": value for name, value in network.state_dict().items()}
    write_whole(path, lambda part: torch.save(checkpoint, part))


def load_checkpoint(path):
    """What a checkpoint of ours or the official code's holds, names without prefix."""
    try:  # nothing in the file is executed, and only what is used is read
        with torch.serialization.safe_globals([argparse.Namespace]):  # flags of the official code
            checkpoint = torch.load(path, "cpu", weights_only=True, mmap=sys.platform != "win32")
        for key in WEIGHTS.values():
            weights = checkpoint.get(key, {}).items()
            checkpoint[key] = {name.removeprefix("net."): value for name, value in weights}
    except Exception as error:  # whatever bytes may cause
        code = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it would run {code[1]}" if code else error
        raise Stop(f"{path} cannot be loaded as a checkpoint: {reason}") from error
    return checkpoint


def official_config(weights, flags):
    """The config of an official checkpoint, from the shapes of its weights and its flags."""
    r, channels, patch, _ = weights["x_embedder.proj1.weight"].shape
    rows, width = weights["y_embedder.embedding_table.weight"].shape
    depth = sum(name.endswith("attn.qkv.weight") for name in weights)
    size = math.isqrt(weights["pos_embed"].shape[1]) * patch
    heads = width // len(weights["blocks.0.attn.q_norm.weight"])
    network = dict(size=size, patch=patch, classes=rows - 1, depth=depth, width=width, heads=heads,
                   bottleneck=r, context_tokens=weights["in_context_posemb"].shape[1],
                   context_start=min(depth // 3, 10), channels=channels)  # B, L, H: 4, 8, 10
    noise_scale = float(getattr(flags, "noise_scale", None) or max(1.0, size / 256))
    flow = dict(noise_scale=noise_scale, t_clip=float(getattr(flags, "t_eps", None) or T_CLIP))
    names = [str(number) for number in range(rows - 1)]
    return dict(network=network, flow=flow, names=names, counts=[1] * len(names), data="ImageNet")


def load_run(path, weights, device, network=JiT):
    """(net, Flow, config) of a run folder or file; weights: a key of WEIGHTS, network: a class."""
    path = Path(path, CHECKPOINT) if Path(path).is_dir() else Path(path)
    checkpoint = load_checkpoint(path)
    state = checkpoint[WEIGHTS[weights]]
    check(state, f"{path} has no weights {weights}; try --weights raw.")
    try:
        config = checkpoint.get("config") or official_config(state, checkpoint.get("args"))
        net, flow = network(**config["network"]), Flow(**config["flow"])
        net.load_state_dict(state)
    except Exception as error:  # whatever a file may hold
        raise Stop(f"{path} does not fit a JiT: {error}") from error
    return net.to(device).eval().requires_grad_(False), flow, config


def resume(path, networks, optimizer, config):
    """Restore a run from its checkpoint, if there is one; returns how many steps it has done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return 0
    checkpoint = load_checkpoint(path)
    check("config" in checkpoint, f"{path} is not a run of jit.py: choose another --out.")
    before, now = [dict(names=each["names"], counts=each["counts"]) | each["network"] | each["flow"]
                   | each["recipe"] for each in (checkpoint["config"], config)]  # fmt: skip
    changed = [f"{key} {str(before.get(key))[:99]}" for key in now if before.get(key) != now[key]]
    check(not changed, f"{path.parent} is a run with {', '.join(changed)}: give the same, or "
          "choose another --out.")
    for key, network in networks.items():
        network.load_state_dict(checkpoint[key])
    optimizer.load_state_dict(checkpoint["optimizer"])
    return checkpoint["step"]


def summarize(seen, parameters):
    """Of pairs loss, t: the mean loss, also in ten bins of t (None: empty); a gradient's norm."""
    losses, t = (torch.cat(column).cpu() for column in zip(*seen))
    bins = [losses[(t * 10).long().clamp(max=9) == i] for i in range(10)]
    by_t = [part.mean().item() if len(part) else None for part in bins]
    norms = torch.stack([p.grad.norm() for p in parameters if p.grad is not None])
    loss, norm = losses.mean().item(), norms.norm().item()
    # The run is lost, and its checkpoint must not be.
    check(math.isfinite(loss + norm), f"loss {loss}, gradient {norm}: try a lower --lr.")
    return dict(loss=loss, loss_by_t=by_t, grad_norm=norm)


def mix_seed(*parts):
    """One seed from several integers, such that neighbouring ones have nothing in common."""
    sequence = np.random.SeedSequence([len(parts), *parts])  # else (1, 2) would equal (1, 2, 0)
    return int(sequence.generate_state(1)[0])


def image_noise(shape, seed, indices):
    """Normal noise (B, *shape): that of image i depends on seed and i alone, not on its batch."""
    generators = [torch.Generator().manual_seed(mix_seed(seed, i)) for i in indices]
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def to_uint8(x):
    """[-1, 1] to 0 ... 255, rounded, as in the official code; images are clipped here only."""
    return ((x.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)


def sample_images(net, y, flow, shape, seed=0, batch_size=50, cfg=2.0, interval=(0.1, 1.0),
                  sampling_steps=50, solver="heun"):  # fmt: skip
    """Draw an image of each class in y (n,), in batches: uint8 (B, *shape), one after the other.

    net: in eval mode; shape: (C, H, W), as net.shape. The paper's 50 Heun steps are 99 evaluations.
    """
    for first in range(0, len(y), batch_size):
        labels = y[first : first + batch_size]
        noise = image_noise(shape, seed, range(first, first + len(labels))).to(y.device)
        velocity = guided_velocity(net, labels, flow, cfg, interval)
        yield to_uint8(integrate(velocity, flow.noise_scale * noise, sampling_steps, solver))


def sample_classes(net, flow, names, n, wanted=(), cfg=2.0, batch_size=50, **settings):
    """Captions, and batches of sample_images: n images of the classes wanted, or all, in turn."""
    known = dict(zip(names, range(net.classes))) or {"": NO_CLASS}
    words = list(wanted or known)
    for word in words:
        check(word in known, f"--classes {word}: it has learnt {', '.join(names) or 'none'}.")
    captions = [words[i % len(words)] for i in range(n)]
    if cfg != 1 and not (len(names) > 1 and flow.label_drop > 0):
        say("no guidance: it has not learnt both with and without class")
        cfg = 1.0
    y = torch.tensor([known[caption] for caption in captions], device=net.pos_embed.device)
    settings = settings | dict(cfg=cfg, batch_size=batch_size)
    batches = sample_images(net, y, flow, net.shape, **settings)
    return captions, tqdm(batches, "samples", math.ceil(n / batch_size), leave=False)


def draw_sheet(path, captions, batches):
    """uint8 batches (B, C, H, W), enlarged to a side of 96 or more, ten in a row, as a PNG."""
    images = torch.cat([batch.cpu() for batch in batches]).expand(-1, 3, -1, -1)
    zoom = math.ceil(96 / images.shape[-1])
    arrays = images.permute(0, 2, 3, 1).numpy().repeat(zoom, 1).repeat(zoom, 2)
    height, width = arrays.shape[1] + 18, arrays.shape[2] + 4
    sheet = Image.new("RGB", (10 * width, math.ceil(len(arrays) / 10) * height), "white")
    for i, (array, caption) in enumerate(zip(arrays, captions)):
        tile = Image.new("RGB", (width, height), "white")  # cuts a long caption
        ImageDraw.Draw(tile).text((3, 2), caption, fill="black")
        tile.paste(Image.fromarray(array), (2, 16))
        sheet.paste(tile, (i % 10 * width, i // 10 * height))
    write_whole(path, sheet.save)


def train(net, flow, data, out, steps=5000, batch_size=16, accum=1, lr=4e-3, warmup=100,
          cooldown=0.5, flip=False, seed=0, log_every=50, save_every=500, sample_every=1000,
          cfg=2.0, loss_function=training_loss):  # fmt: skip
    """Train net on its device, or go on with the run in folder `out`: checkpoint, log, sheets."""
    rank, world = 0, 1  # this process, and how many there are
    if torch.distributed.is_initialized():
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    out, device, parameters = Path(out), net.pos_embed.device, list(net.parameters())
    count = batch_size // (accum * world)  # images of a part of a batch
    check(count * accum * world == batch_size,
          f"--batch-size {batch_size} is no multiple of --accum {accum} times {world} processes.")

    # What is trained: the network, and two averages of its weights.
    networks = {"model": net} | {WEIGHTS[name]: copy.deepcopy(net).eval() for name in AVERAGES}
    optimizer = torch.optim.AdamW(parameters, lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    model = nn.parallel.DistributedDataParallel(net, broadcast_buffers=False) if world > 1 else net

    # Where it goes on: with the same config, but for the place of the data.
    config = dict(network=net.arguments, flow=dataclasses.asdict(flow), names=list(data.names),
                  counts=data.counts, data=data.name, recipe=dict(batch_size=batch_size, lr=lr,
                  warmup=warmup, cooldown=cooldown, flip=flip, seed=seed))  # fmt: skip
    done = resume(out / CHECKPOINT, networks, optimizer, config)
    if rank == 0:
        numbers, mirrored = net.shape[0] * net.patch**2, "mirrored" if flip else "not mirrored"
        say(f"{out} after step {done}: {flow.pred}-prediction, patches of {numbers} numbers, "
            f"on {device}, {mirrored}; {data.summary}")

    parts = range(rank * accum, (rank + 1) * accum)  # of a batch, for this process
    starts = (past * batch_size + part * count for past in range(done, steps) for part in parts)
    batches = data_batches(data, (range(i, i + count) for i in starts), seed, device, flip)
    bar = tqdm(range(done + 1, steps + 1), str(out), steps, initial=done, disable=rank > 0)
    seen, logged, clock = [], done, time.perf_counter()
    for step in bar:
        optimizer.zero_grad()
        for part in parts:
            torch.manual_seed(mix_seed(seed, step, part))  # whether it was stopped or not
            x, y = next(batches)
            model.require_backward_grad_sync = part == parts[-1]  # DDP averages once a step
            losses, t = loss_function(model, x, y, flow)
            (losses.mean() / accum).backward()
            seen.append((losses.detach(), t))  # stay on the device: no step waits for a GPU
        falling = (steps - step + 1) / max(1, cooldown * steps)
        rate = lr * min(1.0, step / max(1, warmup), falling)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        for name, memory in AVERAGES.items():
            average = list(networks[WEIGHTS[name]].parameters())
            update_average(average, parameters, *memory, step)

        # Now and then: log, save, draw.
        save = step == steps or step % save_every == 0
        draw = step == steps or step % sample_every == 0
        if not (save or draw or step % log_every == 0):
            continue
        line = dict(step=step, lr=rate) | summarize(seen, parameters)
        line["images_per_s"] = (step - logged) * batch_size / (time.perf_counter() - clock)
        line["gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        bar.set_postfix(loss=f"{line['loss']:.4f}", refresh=False)
        if rank == 0:
            with open(out / "log.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
            if save:
                save_checkpoint(out / CHECKPOINT, networks, optimizer, step, config)
            if draw:
                average = networks["model_ema1"]
                sheet = sample_classes(average, flow, data.names, 40, cfg=cfg, batch_size=count)
                draw_sheet(out / f"samples-{step:06d}.png", *sheet)
        seen, logged, clock = [], step, time.perf_counter()


# ---- 9. The command line ----


def number(kind, low, high=1e15):
    """A type of argparse: an int or a float (kind) from low to high."""
    def number(text):  # argparse says "invalid number value" where it is none
        value = kind(text)
        if not low <= value <= high:  # nan is in no range
            raise argparse.ArgumentTypeError(f"'{text}' is not from {low:g} to {high:g}")
        return value

    return number


DEVICES = dict(cuda=torch.cuda, mps=torch.backends.mps, cpu=torch.cpu)
ON_OR_OFF = argparse.BooleanOptionalAction
positive_int, natural = number(int, 1), number(int, 0)
positive, fraction = number(float, 1e-12), number(float, 0, 1)

# How argparse reads a flag. A default that is not here is that of the parameter of Flow, train or
# sample_images; where it follows from other flags, the help says how.
FLAGS = {
    "data": dict(default="shapes", help="shapes, or a folder: CLASS/*.jpg or *.jpg"),
    "out": dict(type=Path, help="run folder (default: runs/DATA-MODEL-PATCH-PRED)"),
    "model": dict(default="Ti/16", help="Ti, S, B, L, H or G, a slash, the side of a patch"),
    "size": dict(type=positive_int, default=64, help="side of the images in pixels"),
    "depth": dict(type=positive_int, help="number of Transformer blocks (default: of --model)"),
    "width": dict(type=positive_int, help="numbers of a token (default: of --model)"),
    "heads": dict(type=positive_int, help="attention heads of a block (default: of --model)"),
    "bottleneck": dict(type=natural, help="width of the bottleneck, 0: none (default: of --model)"),
    "context_tokens": dict(type=natural, help="in-context tokens of a class (default: of --model)"),
    "context_start": dict(type=natural, help="block where these join (default: of --model)"),
    "rope": dict(action=ON_OR_OFF, default=True, help="rotary position embedding (Table 4)"),
    "qk_norm": dict(action=ON_OR_OFF, default=True, help="normalised queries and keys (Table 4)"),
    "pred": dict(choices=("x", "eps", "v"), help="what the network predicts"),
    "loss": dict(choices=("x", "eps", "v"), help="where prediction and truth are compared"),
    "mu": dict(type=number(float, -1e9, 1e9), help="mean of logit(t); lower is noisier (Table 3)"),
    "sigma": dict(type=positive, help="standard deviation of logit(t)"),
    "noise_scale": dict(type=positive, help="scale of the noise (default: size / 256, at least 1)"),
    "label_drop": dict(type=number(float, 0, 0.99), help="share of images trained without class"),
    "t_clip": dict(type=number(float, 1e-12, 1), help="smallest 1 - t, or t, in a division"),
    "steps": dict(type=positive_int, help="training steps; raise it to train on"),
    "accum": dict(type=positive_int, help="parts of a batch, in turn, to save memory"),
    "lr": dict(type=positive, help="learning rate (default: of --model and --batch-size)"),
    "warmup": dict(type=natural, help="steps in which the rate rises"),
    "cooldown": dict(type=fraction, help="share of steps with falling rate (default: of --model)"),
    "flip": dict(action=ON_OR_OFF, help="mirror half of the images (default: those of a folder)"),
    "log_every": dict(type=positive_int, help="steps from one line of the log to the next"),
    "save_every": dict(type=positive_int, help="steps from one checkpoint to the next"),
    "sample_every": dict(type=positive_int, help="steps from one sheet of samples to the next"),
    "run": dict(type=Path, help="run folder or checkpoint file, ours or the official code's"),
    "weights": dict(choices=WEIGHTS, default="ema1", help="raw, or one of the averages"),
    "interval": dict(type=fraction, nargs=2, help="guidance is for t between these two"),
    "sampling_steps": dict(type=positive_int, help="steps from noise to data"),
    "solver": dict(choices=("heun", "euler"), help="of the differential equation"),
    "n": dict(type=positive_int, default=40, help="number of images"),
    "classes": dict(help="names (of official files numbers), with commas; they take turns"),
    "png_dir": dict(type=Path, help="write each image to CLASS/NUMBER.png in this new folder"),
    "reference": dict(help="shapes, folder or .npz of mu, sigma instead of the training data"),
    "stats": dict(type=Path, help="write the reference's mu and sigma to this .npz file"),
    "inception": dict(type=Path, help="file of the Inception weights, instead of a download"),
    "batch_size": dict(type=positive_int, help="images of a step, or drawn at a time"),
    "cfg": dict(type=number(float, 0), help="weight of guidance; 1: none, 0: without class"),
    "seed": dict(type=natural, help="of all that is random"),
    "device": dict(choices=("auto", *DEVICES), default="auto", help="where it runs"),
    "compile": dict(action="store_true", help="torch.compile: a minute, then faster"),
}  # fmt: skip


def flags_of(function, args):
    """The flags that are parameters of a function."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in vars(args).items() if name in names}


def choose_device(name):
    """The torch.device of --device; auto: a GPU if there is one."""
    available = [device for device, backend in DEVICES.items() if backend.is_available()]
    check(name in ("auto", *available), f"--device {name}: there is none here.")
    return torch.device(available[0] if name == "auto" else name)


def run_train(args):
    """Train a network, or go on with a run."""
    name, _, patch = args.model.partition("/")
    check(name in MODELS and patch.isdecimal() and int(patch) > 0,
          f"--model {args.model}: {', '.join(MODELS)}, as in B/16.")
    network = MODELS[name] | dict(patch=int(patch)) | flags_of(JiT, args)
    flow = dict(noise_scale=max(1.0, args.size / 256)) | flags_of(Flow, args)

    # Table 9 at its batch of 1,024; Adam's noise asks for the root of it (Malladi et al. 2022).
    paper = 2e-4 * math.sqrt(args.batch_size / 1024), 0.0
    lr, cooldown = {"Ti": (4e-3, 0.5), "S": (5e-4, 0.5)}.get(name, paper)  # Ti, S: by trying
    out = Path("runs", f"{Path(args.data).resolve().name}-{name}-{patch}-{args.pred}")
    recipe = dict(lr=lr, cooldown=cooldown, flip=args.data != "shapes", out=out)
    recipe |= flags_of(train, args)

    device = choose_device(args.device)
    if torch.distributed.is_torchelastic_launched():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if device.type == "cuda":
            torch.cuda.set_device(torch.distributed.get_node_local_rank())
    data = open_data(args.data, (3, args.size, args.size))
    torch.manual_seed(args.seed)
    try:
        net = JiT(**network, classes=len(data.names)).to(device)
    except ValueError as error:  # sizes that do not fit
        raise Stop(str(error)) from error
    if args.compile:
        net.compile()
    train(net, Flow(**flow), **recipe | dict(data=data))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def run_sample(args):
    """Images of a trained network, on a sheet or in single files."""
    check(args.interval[0] < args.interval[1], "--interval: two numbers, the lower first.")
    check(args.png_dir or args.n <= 1000, "more than 1,000 images need --png-dir.")
    net, flow, config = load_run(args.run, args.weights, choose_device(args.device))
    wanted = args.classes.split(",") if args.classes else ()
    captions, batches = sample_classes(net, flow, config["names"], args.n, wanted,
                                       **flags_of(sample_images, args))
    place = args.png_dir or (args.run if args.run.is_dir() else args.run.parent) / "samples.png"
    if args.png_dir:
        place.mkdir(parents=True)  # an error where it is there: its images would be mixed with ours
        for i, image in enumerate(image for batch in batches for image in batch.cpu()):
            path = place / captions[i] / f"{i:06d}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(path)
    else:
        draw_sheet(place, captions, batches)
    say(f"see {place}")


def run_eval(args):
    """FID and Inception Score of a run."""
    check(args.interval[0] < args.interval[1], "--interval: two numbers, the lower first.")
    net, flow, config = load_run(args.run, args.weights, choose_device(args.device))
    device, size = net.pos_embed.device, args.batch_size
    inception = load_inception(args.inception, device)
    reference = args.reference or config["data"]
    if reference.endswith(".npz"):
        with np.load(reference) as file:
            mu, sigma = file["mu"].astype(float), file["sigma"].astype(float)
    else:
        data = open_data(reference, net.shape)
        n = args.n if isinstance(data, Shapes) else len(data.paths)
        places = tqdm([range(i, min(i + size, n)) for i in range(0, n, size)], "real images")
        torch.manual_seed(args.seed + 1)  # shapes that training with this seed did not begin with
        real = data_batches(data, places, args.seed, device)
        _, mu, sigma = moments(inception(to_uint8(x))[0] for x, _ in real)
    if args.stats:
        write_whole(args.stats, lambda part: np.savez(part, mu=mu, sigma=sigma))

    # Each class as often as in the training data: n of its sorted labels, evenly spread.
    labels = np.repeat(config["names"] or [""], config["counts"])
    labels = labels[np.arange(args.n) * len(labels) // args.n].tolist()
    settings = flags_of(sample_images, args)
    _, samples = sample_classes(net, flow, config["names"], args.n, labels, **settings)
    features, logits = zip(*map(inception, samples))
    n, *ours = moments(features)
    score, deviation = inception_score(torch.cat(logits))
    result = {f"fid_{n}": frechet_distance(*ours, mu, sigma), "inception_score": score}
    result |= dict(inception_score_std=deviation, run=str(args.run), reference=reference)
    print(json.dumps(result))


COMMANDS = {  # what runs, FLAGS of its own, and functions whose parameters are FLAGS, too
    "train": (run_train, f"model size {' '.join(MODELS['Ti'])} rope qk_norm device compile",
              Flow, train),
    "sample": (run_sample, "run n weights device classes png_dir", sample_images),
    "eval": (run_eval, "run n weights device reference stats inception", sample_images),
}  # fmt: skip


def parse_flags(words=None):
    """The command line: a command and its flags."""
    parser = argparse.ArgumentParser(prog="jit.py", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (work, own, *functions) in COMMANDS.items():
        command = commands.add_parser(name, help=work.__doc__, allow_abbrev=False)
        command.error = lambda message: parser.exit(2, f"jit.py: {message}; see --help.\n")
        defaults = dict.fromkeys(own.split())
        for function in functions:
            parameters = inspect.signature(function).parameters.items()
            defaults |= {flag: parameter.default for flag, parameter in parameters}
        for flag in [flag for flag in FLAGS if flag in defaults]:
            details = dict(default=defaults[flag]) | FLAGS[flag]
            if "(default: " in details["help"]:
                details["default"] = argparse.SUPPRESS
            elif details["default"] is not None and "action" not in details:
                details["help"] += " (default: %(default)s)"
            option = flag if flag == "run" else "--" + flag.replace("_", "-")
            command.add_argument(option, **details)
    commands.choices["eval"].set_defaults(n=1000)
    return parser.parse_args(words)


def main(words=None):
    """Run a command; returns the exit code."""
    args = parse_flags(words)
    try:
        COMMANDS[args.command][0](args)
    except KeyboardInterrupt:
        say("jit.py: stopped; a training goes on from its last checkpoint.")
        return 130
    except (Stop, OSError) as error:
        say(f"jit.py: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
