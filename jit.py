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
          4 network (Figure 3). Engineering: 5 shapes, 6 data, 7 FID, 8 runs, 9 command line.

Differences from the paper and its official code, github.com/LTH14/JiT:
 1. All nine prediction/loss pairs; the official code has x-prediction under the v-loss only.
 2. On CUDA attention is in bf16 and tokens between blocks in fp32; there attention is in fp32, and
    tokens in bf16 until the in-context ones join.
 3. Guidance is one batch with and without class; where its weight is 1, with class alone.
 4. The memory of the averaged weights (EMA) grows with the run, so that short runs can use them.
 5. Noise is seeded per step, or per sampled image: runs resume, a sample ignores its batch.
 6. The noise has a standard deviation of 1 below 256 px, where the paper's rule says size / 256.
 7. The default learning rate grows with the root of the batch, there with the batch itself.
"""

import argparse
import contextlib
import copy
import dataclasses
import functools
import hashlib
import inspect
import json
import math
import os
import re
import sys
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
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
    """Mean squared error in the space `loss`, a number per sample (B,): all nine pairs of Table 1.

    The target, which a perfect network would put out, goes through the same conversion with the
    same clip as the prediction: a perfect network has loss 0 at every t.
    """
    z = interpolate(x, eps, t)
    perfect = {"x": x, "eps": eps, "v": x - eps}[pred]
    error = convert(output, z, t, pred, clip)[loss] - convert(perfect, z, t, pred, clip)[loss]
    return error.square().flatten(1).mean(1)  # (B,)


def sample_t(n, mu=-0.8, sigma=0.8, device=None):
    """Training times (n,) in (0, 1): logit(t) ~ N(mu, sigma^2) (Section 4.1).

    By default half of them are below 0.31, where z is mostly noise and the layout of an image is
    decided.
    """
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


@torch.no_grad()
def update_average(average, parameters, decay, window, step):
    """average <- d average + (1 - d) parameters, d = decay, in place, for lists of tensors.

    The weights still jump about from step to step; samples come from their average (EMA). The
    paper's d = 0.9999 remembers 10,000 steps, which at first is mostly the random start. So up to
    step 90,000 d is 1 - window / (window + step), which remembers the last 1 / window of the run.
    """
    decay = min(decay, 1 - window / (window + step))
    torch._foreach_lerp_(average, parameters, 1 - decay)


# ---- 3. Sampling (paper Algorithm 2) ----


@torch.no_grad()
def integrate(velocity, z, steps=50, solver="heun"):
    """Follow dz/dt = v(z, t) from noise to data; yields (t, z, x_pred) before steps and at the end.

    velocity: a function (z, t: float) -> v of z's shape; its network is in eval mode. x_pred = z +
    (1 - t) v is where the tangent at z arrives at t = 1. "euler" follows the tangent for a step,
    "heun" the mean of the slopes at both ends. The last step is Euler's: at t = 1 z is the
    image, and v = (x - z) / (1 - t) is 0 / 0. Raises ValueError for another solver.
    """
    if solver not in ("euler", "heun"):
        raise ValueError(f"solver {solver!r} is neither euler nor heun")
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

    v_none + cfg (v_class - v_none) exaggerates what the class adds: clearer images, less variety
    (Ho & Salimans 2022). Only for t in the interval (Kynkaanniemi et al. 2024): at t near 0, where
    z is nearly all noise, it would make the images of a class alike.
    """
    low, high = interval

    def predict(z, t, y):
        t = torch.full((len(z),), t, device=z.device)
        with matrix_products_in_bf16(z.device):
            output = net(z, t, y)
        return convert(output.float(), z, t, flow.pred, flow.t_clip)["v"]

    def velocity(z, t):
        inside = (low < t or low == 0) and t < high  # from 0: t = 0 too; as in the official code
        if not inside or cfg == 1:
            return predict(z, t, y)
        both = torch.cat([y, torch.full_like(y, NO_CLASS)])
        v_class, v_none = predict(torch.cat([z, z]), t, both).chunk(2)
        return v_none + cfg * (v_class - v_none)

    return velocity


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
        for _, z, _ in integrate(velocity, flow.noise_scale * noise, sampling_steps, solver):
            pass  # only the last z is kept
        yield to_uint8(z)


# ---- 4. The network: a Vision Transformer (paper Figure 3), named as in released checkpoints ----


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
    B, N, patch_size = patches.shape
    side, C = math.isqrt(N), patch_size // p**2
    x = patches.reshape(B, side, side, p, p, C).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(B, C, side * p, side * p)  # from (B, C, side, p, side, p)


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
        q, k = self.q_norm(q.float()), self.k_norm(k.float())
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
    """Tokens (B, N, D) to patches (B, N, p*p*C)."""
    def __init__(self, width, patch_size):
        super().__init__()
        self.norm_final = nn.RMSNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, patch_size)
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
        fits = size % patch == 0 and width % (4 * heads) == 0  # 4: pairs that turn, on two axes
        if not fits or (context_tokens and context_start >= depth):
            raise ValueError(f"size {size} must be a multiple of patch {patch}, width {width} of "
                             f"4 times heads {heads}, context_start {context_start} below depth "
                             f"{depth}")
        side = size // patch
        self.shape = (channels, size, size)
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


class Stop(Exception):
    """Ends the program with a sentence. code: 2 for what a user can mend, 1 for a run that failed,
    130 after Ctrl-C."""

    def __init__(self, sentence, code=2):
        super().__init__(sentence)
        self.code = code


def check(condition, sentence):
    """Stop with exit code 2 unless the condition holds."""
    if not condition:
        raise Stop(sentence)


def explain(error):
    """(a sentence, the exit code) for what a user can mend; None for a bug: its traceback helps."""
    if isinstance(error, Stop):
        return str(error), error.code
    if isinstance(error, KeyboardInterrupt):
        return "stopped.", 130
    if isinstance(error, OSError):
        return str(error).partition("\n")[0], 2
    words = ("out of memory", "can't allocate memory")  # of torch, on GPUs and CPUs
    if isinstance(error, MemoryError) or any(word in str(error) for word in words):
        return "out of memory: try a smaller --batch-size, or train with --accum.", 1
    return None


def processes():
    """(rank of this process, number of processes, of those on this machine), from torchrun."""
    world = os.environ.get("WORLD_SIZE") or "1"
    if world == "1":
        return 0, 1, 1
    check("MASTER_ADDR" in os.environ, f"WORLD_SIZE is {world}: start with torchrun, or unset it.")
    return int(os.environ["RANK"]), int(world), int(os.environ.get("LOCAL_WORLD_SIZE") or world)


def say(text):
    """What is being done, on stderr, above a bar; of several processes the first one speaks."""
    if processes()[0] == 0:
        tqdm.write(text, file=sys.stderr)


# ---- 5. Built-in data: ten shapes, drawn as they are needed ----

SHAPES = ["disc", "ring", "triangle", "square", "star", "heart", "cross", "moon", "flower", "gear"]
FACTORS = {  # all that varies within a class: a manifold of seven dimensions (disc and ring: six)
    "x": (-0.15, 0.15), "y": (-0.15, 0.15),  # the centre; an image is 2 wide, y points down
    "size": (0.58, 0.77), "angle": (-0.31, 0.31),  # half the width; 18 degrees either way
    "hue": (0.0, 1.0), "background_hue": (0.0, 1.0),  # hues are circles
    "background_brightness": (0.58, 0.82),
}  # fmt: skip


@functools.cache
def constant(values, device):
    """A tensor of numbers, copied to a device once: each copy would make a GPU wait."""
    return torch.tensor(values, device=device)


def random_factors(n, device=None):
    """Draw factors (n, 7), each uniform in its range."""
    low, high = constant(tuple(FACTORS.values()), device).unbind(1)
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
        swings = constant(((0.58, 0.48, 0.55), (0.42, 0.32, 0.42)), hue.device)
        centre, swing = swings.view(2, 3, 1, 1)
        return centre + saturation * swing * (math.tau * phase).cos()

    here, to_light = distance(0), distance(-0.07)  # (B, 1, S, S); the light stands at the top left
    slope = (to_light / 0.12).clamp(-1, 1) - (here / 0.12).clamp(-1, 1)  # of a bevel 0.12 wide
    shade = (slope > 0).float()  # white or black
    face = torch.lerp(rainbow(hue, 1.0), shade, 0.6 * slope.abs())
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
    labels = ()  # there is no end of them
    fingerprint = ""


# ---- 6. Data from a folder ----

SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
MEMORY_LIMIT = 2 * 2**30  # bytes; a folder with more pixels is read again in each epoch


def crop(image, size, channels):
    """PIL image to uint8 (C, size, size), upright, on white, by ADM's centre crop, as officially.

    Raises ValueError for more than 8 bits, whose range is not known, and for very long images.
    """
    if image.mode[0] in "IF":
        raise ValueError("its pixels have more than 8 bits: convert it")
    if max(image.size) > 100 * min(image.size):
        raise ValueError(f"{image.width} x {image.height} pixels have no centre to speak of")
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


@functools.cache
def decoders():
    """Threads that read images, one for each core: PIL lets the others run while it decodes."""
    has_affinity = hasattr(os, "sched_getaffinity")  # the cores of this job, not of the machine
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return ThreadPoolExecutor(max(1, cores // processes()[2]))


@dataclasses.dataclass
class Images:
    """Images of shape (C, S, S) in files, kept in memory once they are read, if all fit."""

    names: list  # of the classes
    labels: torch.Tensor  # (n,) int64: the class of each image
    paths: list
    shape: tuple
    name: str = ""  # of the folder
    fingerprint: str = ""  # changes with the names and sizes of the files
    kept: dict = dataclasses.field(default_factory=dict)  # what was read, by its index

    def read(self, index):
        """A file's uint8 pixels (1, C, S, S); (0, C, S, S), and a line why, if it is broken."""
        try:
            with Image.open(self.paths[index]) as image:
                return crop(image, self.shape[1], self.shape[0])[None]
        except Exception as error:  # broken files raise nearly anything
            tqdm.write(f"left out {self.paths[index]}: {error}", file=sys.stderr)
            return torch.empty(0, *self.shape, dtype=torch.uint8)

    def batch(self, indices):
        """uint8 pixels (B, C, S, S) and classes (B,) of those of the images that can be read."""
        new = [i for i in indices if i not in self.kept]
        self.kept.update(zip(new, decoders().map(self.read, new)))
        pixels = torch.cat([self.kept[i] for i in indices])
        labels = self.labels[[i for i in indices if len(self.kept[i])]]
        if len(self.paths) * math.prod(self.shape) > MEMORY_LIMIT // processes()[2]:
            self.kept.clear()
        return pixels, labels


def fingerprint(root, paths):
    """A hash of names and sizes of files: moves with the folder, changes with its content."""
    sizes = [path.stat().st_size if path.exists() else 0 for path in paths]
    lines = [f"{path.relative_to(root).as_posix()} {size}\n" for path, size in zip(paths, sizes)]
    return hashlib.sha256(os.fsencode("".join(lines))).hexdigest()[:16]


def find_images(name, shape):
    """The Images of FOLDER/CLASS/**, or of FOLDER itself without classes: sorted, not yet read.

    Hidden files do not count. Links are followed at the top only: one below could lead to a folder
    that holds it.
    """
    root = Path(name)
    check(root.is_dir(), f"'{name}' is no folder of images, nor shapes.")
    top = list(root.glob("[!.]*"))
    below = [path for folder in top if folder.is_dir() for path in folder.rglob("[!.]*")]
    visible = [path for path in top + below if "/." not in path.relative_to(root).as_posix()]
    files = sorted(path for path in visible if not path.is_dir())
    Image.init()  # PIL then knows all types of files that it can open
    known = {suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN}
    paths = [path for path in files if path.suffix.lower() in known]
    nested = [path for path in paths if path.parent != root]
    folders = [path.relative_to(root).parts[0] for path in nested]
    empty = {path.name for path in top if path.is_dir()} - set(folders)
    classes = [unicodedata.normalize("NFC", name) for name in folders]  # "é" is one letter or two
    names, labels = np.unique(classes, return_inverse=True)
    names, paths = names.tolist(), nested or paths
    some_names = ", ".join(names[:10])
    say(f"{root}: {len(paths)} images, {len(names)} classes: {some_names or 'none'}; left out: "
        f"{len(files) - len(paths)} other files, empty folders: {sorted(empty)[:10] or 'none'}")
    check(paths, f"{root} holds no images; lay them out as CLASS/*.jpg, or *.jpg without classes.")
    is_split = names and SPLITS.issuperset(name.lower() for name in names)
    check(not is_split, f"{root} is split into {some_names}: give one.")
    labels = torch.from_numpy(labels) if nested else torch.full((len(paths),), NO_CLASS)
    return Images(names, labels, paths, shape, name, fingerprint(root, paths))


def open_data(name, shape):
    """The data of --data: Shapes, or the Images of a folder, of each class one that is whole."""
    if name == "shapes":
        return Shapes(shape[1])
    images = find_images(name, shape)
    for label in images.labels.unique().tolist():  # else it would not be learnt, yet sampled
        indices = (images.labels == label).nonzero().flatten().tolist()
        folder = images.paths[indices[0]].parent
        check(any(len(images.batch([i])[1]) for i in indices),
              f"no image in {folder} can be read: mend it or delete it.")
    return images


@functools.lru_cache(maxsize=2)  # a batch can span two epochs
def shuffled(n, seed, epoch):
    """The order in which an epoch goes through n images."""
    return np.random.default_rng([seed, epoch]).permutation(n).tolist()


def data_batches(data, places, seed, device, flip=False):
    """For each part of a batch x (B, C, S, S) in [-1, 1] and classes (B,).

    places: ranges of places in the endless row of shuffled epochs; of shapes only their lengths.
    """
    for part in places:
        if isinstance(data, Shapes):
            y = torch.randint(len(SHAPES), (len(part),), device=device)
            yield render_shapes(y, random_factors(len(y), device), data.size), y
            continue
        n = len(data.labels)
        pixels, y = data.batch([shuffled(n, seed, i // n)[i % n] for i in part])
        if not len(y):  # all of them are broken: others take their place
            pixels, y = data.batch(torch.randint(n, (20,)).tolist())
            pixels, y = pixels[: len(part)], y[: len(part)]
            check(len(y), f"hardly any of the {n} files can be read as an image.")
        on_cuda = device.type == "cuda"
        if on_cuda:  # from pinned memory a copy does not make the GPU wait
            pixels, y = pixels.pin_memory(), y.pin_memory()
        x = pixels.to(device, non_blocking=on_cuda).float() / 127.5 - 1
        if flip:
            x = torch.where(torch.rand(len(x), 1, 1, 1, device=device) < 0.5, x.flip(-1), x)
        yield x, y.to(device, non_blocking=on_cuda)


# ---- 7. FID and Inception Score, as torch-fidelity computes them ----

INCEPTION_URL = ("https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
                 "weights-inception-2015-12-05-6726825d.pth")  # fmt: skip
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


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

    def chain(self, x, prefix, *names, stride=1, padding="same"):
        """Convolutions with a ReLU, one after the other; stride and padding are the last one's."""
        for name in names[:-1]:
            x = F.relu_(F.conv2d(x, *self.layers[prefix + name], padding="same"))
        return F.relu_(F.conv2d(x, *self.layers[prefix + names[-1]], stride, padding))

    average_pool = functools.partial(F.avg_pool2d, count_include_pad=False)

    def block(self, name, x, *chains, pool=average_pool):
        """Chains side by side, each given by its names, and one convolution after a pool."""
        branches = [self.chain(x, f"Mixed_{name}.branch", *names) for names in chains]
        x = pool(x, 3, stride=1, padding=1)
        return torch.cat([*branches, self.chain(x, f"Mixed_{name}.branch", "_pool")], 1)

    def block_to_half(self, name, x, *chains):
        """Chains that end with stride 2 and without padding, and a pool that does."""
        prefix = f"Mixed_{name}.branch"
        branches = [self.chain(x, prefix, *names, stride=2, padding=0) for names in chains]
        return torch.cat([*branches, F.max_pool2d(x, 3, stride=2)], 1)

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
        x = self.chain(F.max_pool2d(x, 3, stride=2), "Conv2d_", "3b_1x1", "4a_3x3", padding=0)
        x = F.max_pool2d(x, 3, stride=2)  # (B, 192, 35, 35)
        thrice = ["3x3dbl_1", "3x3dbl_2", "3x3dbl_3"]
        for name in ("5b", "5c", "5d"):
            x = self.block(name, x, ["1x1"], ["5x5_1", "5x5_2"], thrice)
        x = self.block_to_half("6a", x, ["3x3"], thrice)
        twice = [f"7x7dbl_{i}" for i in range(1, 6)]
        for name in ("6b", "6c", "6d", "6e"):  # (B, 768, 17, 17)
            x = self.block(name, x, ["1x1"], ["7x7_1", "7x7_2", "7x7_3"], twice)
        seven = [f"7x7x3_{i}" for i in range(1, 5)]
        x = self.block_to_half("7a", x, ["3x3_1", "3x3_2"], seven)  # (B, 1280, 8, 8)
        three, twice = ["3x3_1"], ["3x3dbl_1", "3x3dbl_2"]  # both end in a fork, 1 x 3 and 3 x 1
        forks = [[*three, "3x3_2a"], [*three, "3x3_2b"]]
        forks += [[*twice, "3x3dbl_3a"], [*twice, "3x3dbl_3b"]]
        x = self.block("7b", x, ["1x1"], *forks)
        x = self.block("7c", x, ["1x1"], *forks, pool=F.max_pool2d)  # (B, 2048, 8, 8)
        features = x.mean((2, 3))  # (B, 2048)
        return features, features @ self.layers["fc"][0].T  # torch-fidelity leaves out the bias


def load_inception(path, device, sha256=INCEPTION_SHA256):
    """The Inception network, from a file (None: torch.hub's cache), downloaded if need be."""
    path = path or Path(torch.hub.get_dir(), "checkpoints", INCEPTION_URL.rpartition("/")[2])
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(INCEPTION_URL, str(path))
        except Exception as error:  # of the network or the disk
            hint = f"get {INCEPTION_URL}, put it at {path}; figures/rfd.py needs none."
            raise Stop(f"no download ({error}): {hint}") from error
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
    """Number, mean (d,) and covariance (d, d), with n - 1, of features in batches (B, d), fp64."""
    n, total, products, origin = 0, 0.0, 0.0, None
    for batch in batches:
        batch = batch.cpu().double()
        origin = batch.mean(0) if origin is None else origin  # small numbers: no cancellation
        n, total = n + len(batch), total + (batch - origin).sum(0)
        products = products + (batch - origin).T @ (batch - origin)
    check(n > 1, "a covariance needs two images at least.")
    covariance = (products - torch.outer(total, total) / n) / (n - 1)
    return n, (origin + total / n).numpy(), covariance.numpy()


def frechet_distance(mu1, sigma1, mu2, sigma2):
    """|mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr (S1 S2)^(1/2), between two Gaussians.

    With S = R R^T the last trace is the sum of the singular values of R1^T R2: real for any rank.
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


def default_recipe(model, batch_size):
    """The learning rate of a model of MODELS, and the share of the run in which it falls to 0.

    B to G: 2e-4 at a batch of 1,024 (Table 9), times the root of the batch, as the noise of Adam's
    steps asks for (Malladi et al. 2022). Ti and S: found by trying, for short runs.
    """
    short = {"Ti": dict(lr=4e-3, cooldown=0.5), "S": dict(lr=5e-4, cooldown=0.5)}
    return short.get(model) or dict(lr=2e-4 * math.sqrt(batch_size / 1024), cooldown=0.0)


CHECKPOINT = "checkpoint-last.pth"  # the official code's name
WEIGHTS = {"raw": "model", "ema1": "model_ema1", "ema2": "model_ema2"}  # --weights: key in the file
AVERAGES = {"model_ema1": (0.9999, 9), "model_ema2": (0.9996, 36)}  # decay, window
SAVE_SECONDS = 600  # a stop costs no more than this


def check_writable(folder):
    """Stop where a folder cannot be made or written to: to be known before the work."""
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK)
    check(writable, f"{folder} cannot be written to.")


def write_whole(path, write):
    """write(a file beside path), then rename: there is the old file or the new, never half."""
    temporary = Path(path).with_name(f".part-{Path(path).name}")  # np.savez and PIL read suffixes
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path, networks, optimizer, step, config):
    """The official layout, names with prefix "net."; `config` tells how to build the network."""
    checkpoint = dict(optimizer=optimizer.state_dict(), step=step, config=config)
    for key, network in networks.items():
        checkpoint[key] = {f"net.{name}": value for name, value in network.state_dict().items()}
    try:
        write_whole(path, functools.partial(torch.save, checkpoint))
    except RuntimeError as error:  # torch's, whatever went wrong while it wrote
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise OSError(f"{path} cannot be written: is the disk full?") from error


def load_checkpoint(path):
    """What a checkpoint holds, names without prefix. Nothing in it is executed; what is not used
    is not read either (mmap; Windows does not replace a file that is open so)."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # flags of the official code
            checkpoint = torch.load(path, "cpu", weights_only=True, mmap=os.name != "nt")
        for key in WEIGHTS.values():
            named = checkpoint.get(key, {}).items()
            prefix = "^((net|module|_orig_mod)[.])+"
            checkpoint[key] = {re.sub(prefix, "", name): value for name, value in named}
        if not checkpoint["model"]:
            raise ValueError("it holds no 'model'")
    except Exception as error:  # whatever bytes may cause
        reason = re.split("[.] |\n", str(error))[0]
        raise Stop(f"{path} cannot be read as a checkpoint: {reason}") from error
    return checkpoint


def official_config(weights, flags):
    """The config of an official checkpoint, from the shapes of its weights and its flags (dict)."""
    r, channels, patch, _ = weights["x_embedder.proj1.weight"].shape
    rows, width = weights["y_embedder.embedding_table.weight"].shape
    depth = sum(name.endswith("attn.qkv.weight") for name in weights)
    size = math.isqrt(weights["pos_embed"].shape[1]) * patch
    heads = width // len(weights["blocks.0.attn.q_norm.weight"])
    network = dict(size=size, patch=patch, classes=rows - 1, depth=depth, width=width, heads=heads,
                   bottleneck=r, channels=channels)  # fmt: skip
    if "in_context_posemb" in weights:
        network["context_tokens"] = weights["in_context_posemb"].shape[1]
        network["context_start"] = min(depth // 3, 10)  # of B, L, H, G: 4, 8, 10, 10
        say(f"assumed: in-context tokens join before block {network['context_start']}")
    noise_scale = flags.get("noise_scale") or max(1.0, size / 256)
    flow = dict(noise_scale=noise_scale, t_clip=flags.get("t_eps") or T_CLIP)
    return dict(network=network, flow=flow, names=[], data="")


def load_run(path, weights, device, network=JiT):
    """(net, Flow, config) of a run folder or file; weights: a key of WEIGHTS, network: a class."""
    path = Path(path, CHECKPOINT) if Path(path).is_dir() else Path(path)
    checkpoint = load_checkpoint(path)
    available = [name for name, key in WEIGHTS.items() if checkpoint[key]]
    check(weights in available,
          f"{path} has no weights {weights}; try --weights {' or '.join(available)}.")
    try:
        flags = checkpoint.get("args") or {}
        flags = flags if isinstance(flags, dict) else vars(flags)
        config = checkpoint.get("config") or official_config(checkpoint["model"], flags)
        net = network(**config["network"])
        net.load_state_dict(checkpoint[WEIGHTS[weights]])
        if not all(p.isfinite().all() for p in net.parameters()):
            raise ValueError("its weights are not finite")
        flow = Flow(**config["flow"])
    except Exception as error:  # whatever a file may hold
        reason = (str(error) or repr(error)).splitlines()[-1].strip()[:200]
        raise Stop(f"{path} does not fit a JiT: {reason}") from error
    return net.to(device).eval().requires_grad_(False), flow, config


def resume(out, networks, optimizer, config):
    """Restore the run in folder `out`, if there is one; returns how many steps it has done."""
    path = out / CHECKPOINT
    if not path.exists():
        stopped_early = (out / "log.jsonl").exists()  # before it was saved
        is_free = stopped_early or not any(out.glob("[!.]*"))
        check(is_free, f"--out {out} is there already and is no run; choose another.")
        return 0
    checkpoint = load_checkpoint(path)
    is_whole = all(checkpoint.get(key) for key in ("config", "optimizer", "step", *networks))
    check(is_whole, f"{path} is no whole run of jit.py.")
    before, now = flat(checkpoint["config"]), flat(config)
    changed = [key for key in before | now if before.get(key) != now.get(key)]
    values = ", ".join(f"{key} {str(before.get(key))[:150]}" for key in changed)
    check(not changed, f"{out} is a run with {values}: give the same, or choose another --out.")
    for key, network in networks.items():
        network.load_state_dict(checkpoint[key])
    optimizer.load_state_dict(checkpoint["optimizer"])
    return checkpoint["step"]


def flat(config):
    """What must be the same for a run to go on, in one dict. The place of the data may change."""
    data = dict(classes=config["names"], images=config["images"], files=config.get("fingerprint"))
    return config["network"] | config["flow"] | config["recipe"] | data


def summarize(seen, parameters):
    """Of pairs loss, t: the mean loss, also in ten bins of t (None: empty); a gradient's norm."""
    losses, t = (torch.cat(column).cpu() for column in zip(*seen))
    bins = [losses[(t * 10).long().clamp(max=9) == i] for i in range(10)]
    by_t = [part.mean().item() if len(part) else None for part in bins]
    norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
    return dict(loss=losses.mean().item(), loss_by_t=by_t, grad_norm=norm.item())


def learning_rate(step, steps, lr, warmup, cooldown):
    """lr, after `warmup` steps in which it rises, before the share of the run in which it falls."""
    falling = (steps - step + 1) / max(1, cooldown * steps)
    return lr * min(1.0, step / max(1, warmup), falling)


def guidance_weight(cfg, net, flow):
    """cfg; or 1, none, where a network has learnt but one side: one class, label_drop 0 or 1."""
    return cfg if net.classes > 1 and 0 < flow.label_drop < 1 else 1.0


def pick_classes(n, classes, names=(), wanted=""):
    """For n images the numbers (n,) and names of classes: those wanted, or all, in turn."""
    names = list(names[:classes]) or [str(i) for i in range(classes)]
    numbers = {str(i): i for i in range(classes)} | {name: i for i, name in enumerate(names)}
    wanted = unicodedata.normalize("NFC", wanted)
    words = [word.strip() for word in wanted.split(",")] if wanted else names
    words = [wanted] if wanted in numbers else words  # a name may hold a comma
    examples = ", ".join(names[:9]) or "none"
    for word in words:
        check(word in numbers, f"--classes {word}: {classes} classes were learnt: {examples}.")
    chosen = [numbers[word] for word in words] or [NO_CLASS]
    y = [chosen[i % len(chosen)] for i in range(n)]
    return torch.tensor(y), [names[i] if names else "" for i in y]


def draw_sheet(path, captions, batches):
    """uint8 batches (B, C, H, W), enlarged to a side of 96 or more, ten in a row, as a PNG."""
    images = torch.cat([batch.cpu() for batch in batches])
    zoom = math.ceil(96 / images.shape[-1])
    arrays = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    arrays = arrays.repeat(zoom, 1).repeat(zoom, 2)
    height, width = arrays.shape[1] + 18, arrays.shape[2] + 4
    sheet = Image.new("RGB", (10 * width, math.ceil(len(arrays) / 10) * height), "white")
    for i, (array, caption) in enumerate(zip(arrays, captions)):
        tile = Image.new("RGB", (width, height), "white")  # cuts a long caption
        ImageDraw.Draw(tile).text((3, 2), caption, fill="black")
        tile.paste(Image.fromarray(array), (2, 16))
        sheet.paste(tile, (i % 10 * width, i // 10 * height))
    write_whole(path, sheet.save)


def sample_classes(net, flow, n, names, wanted="", cfg=2.0, **settings):
    """(captions, batches) of n images of the classes wanted, or of all that were learnt, in turn.

    settings: of sample_images.
    """
    y, captions = pick_classes(n, net.classes if flow.label_drop < 1 else 0, names, wanted)
    y, cfg = y.to(net.pos_embed.device), guidance_weight(cfg, net, flow)
    return captions, sample_images(net, y, flow, net.shape, cfg=cfg, **settings)


@contextlib.contextmanager
def optional(name):
    """What a training goes on without where memory or disk are short; a line says so."""
    try:
        yield
    except Exception as error:
        if explain(error) is None:  # a bug
            raise
        reason = str(error).partition("\n")[0]
        say(f"no {name}: {reason}")


def train(net, flow, data, out, steps=5000, batch_size=16, accum=1, lr=4e-3, warmup=100,
          cooldown=0.5, flip=False, seed=0, log_every=50, save_every=500, sample_every=1000,
          cfg=2.0, loss_function=training_loss):  # fmt: skip
    """Train net on its device, or go on with the run in folder `out`: checkpoint, log, sheets.

    net: a JiT, or a module with its arguments, shape, patch, classes and pos_embed; accum: parts
    of a batch, one after the other, to save memory; cooldown: the share of the run in which lr
    falls to 0. Raises Stop.
    """
    out, device, parameters = Path(out), net.pos_embed.device, list(net.parameters())
    rank, world, _ = processes()
    count = batch_size // (accum * world)  # images of a part of a batch
    check(count * accum * world == batch_size,
          f"--batch-size {batch_size} is no multiple of --accum {accum} times {world} processes.")
    # What is trained: the network, and two averages of its weights.
    networks = {"model": net} | {key: copy.deepcopy(net).eval() for key in AVERAGES}
    optimizer = torch.optim.AdamW(parameters, lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    model = net
    if world > 1:
        model = nn.parallel.DistributedDataParallel(net, broadcast_buffers=False)
    # Where it goes on: with the same config, but for the place of the data.
    recipe = dict(batch_size=batch_size, parts=accum * world, lr=lr, warmup=warmup,
                  cooldown=cooldown, flip=flip, seed=seed)  # fmt: skip
    config = dict(network=net.arguments, flow=dataclasses.asdict(flow), recipe=recipe,
                  names=list(data.names), images=len(data.labels), data=data.name,
                  fingerprint=data.fingerprint)  # fmt: skip
    done = resume(out, networks, optimizer, config)
    out.mkdir(parents=True, exist_ok=True)
    say(f"{out}: {flow.pred}-prediction, patches of {net.shape[0] * net.patch**2} numbers, "
        f"{device}, {f'goes on after step {done}' if done else 'new'}, to step {steps}")
    parts = range(rank * accum, (rank + 1) * accum)  # of a batch, for this process
    starts = (past * batch_size + part * count for past in range(done, steps) for part in parts)
    batches = data_batches(data, (range(i, i + count) for i in starts), seed, device, flip)
    bar = tqdm(range(done + 1, steps + 1), out.name, steps, initial=done, disable=rank > 0)
    seen, logged, clock, saved_at = [], done, time.perf_counter(), time.perf_counter()
    for step in bar:
        optimizer.zero_grad()
        for part in parts:
            torch.manual_seed(mix_seed(seed, step, part))  # whether it was stopped or not
            x, y = next(batches)
            model.require_backward_grad_sync = part == parts[-1]  # DDP averages once a step
            losses, t = loss_function(model, x, y, flow)
            (losses.mean() / accum).backward()
            seen.append((losses.detach(), t))  # stay on the device: no step waits for a GPU
        rate = learning_rate(step, steps, lr, warmup, cooldown)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        for key, (decay, window) in AVERAGES.items():
            update_average(list(networks[key].parameters()), parameters, decay, window, step)
        # Now and then: log, save, draw.
        last, now = step == steps, time.perf_counter()
        save = last or step % save_every == 0 or now - saved_at > SAVE_SECONDS
        draw = last or step % sample_every == 0
        if not (save or draw or step % log_every == 0):
            continue
        line = dict(step=step, lr=rate) | summarize(seen, parameters)
        if not math.isfinite(line["loss"] + line["grad_norm"]):  # the run is lost
            raise Stop(f"at step {step} the loss is {line['loss']}, its gradient "
                       f"{line['grad_norm']}: try a lower --lr.", 1)  # fmt: skip
        line["images_per_s"] = (step - logged) * batch_size / (time.perf_counter() - clock)
        line["gpu_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        bar.set_postfix(loss=f"{line['loss']:.4f}", refresh=False)
        if rank == 0:
            with optional(f"line of step {step} in the log"), open(out / "log.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
            if save:
                save_checkpoint(out / CHECKPOINT, networks, optimizer, step, config)
            if draw:
                sheet = out / f"samples-{step:06d}.png"
                with optional(sheet.name):
                    average = networks["model_ema1"]
                    draw_sheet(sheet, *sample_classes(average, flow, 40, data.names, cfg=cfg))
        saved_at = time.perf_counter() if save else saved_at
        seen, logged, clock = [], step, time.perf_counter()
    say(f"done, {max(done, steps)} steps; more images with: python jit.py sample {out}")


# ---- 9. The command line ----


DEVICES = dict(cuda=torch.cuda, mps=torch.backends.mps, cpu=torch.cpu)


def choose_device(name):
    """The torch.device of --device; auto: a GPU if there is one."""
    available = [device for device, module in DEVICES.items() if module.is_available()]
    check(name in ("auto", *available), f"--device {name}: there is none here.")
    return torch.device(available[0] if name == "auto" else name)


def number(kind, low, high=1e15):  # which is no limit
    """A type of argparse: an int or a float (kind) from low to high."""
    def parse(text):
        value = kind(text)
        if not low <= value <= high:  # nan is in no range
            raise argparse.ArgumentTypeError(f"'{text}' is not from {low:g} to {high:g}")
        return value

    parse.__name__ = kind.__name__  # argparse names it where text is no number
    return parse


positive_int = number(int, 1)
natural = number(int, 0)
positive = number(float, 1e-12)
non_negative = number(float, 0)
fraction = number(float, 0, 1)
positive_fraction = number(float, 1e-12, 1)
on_or_off = argparse.BooleanOptionalAction


def add_flag(parser, name, function, words, **details):
    """A flag that is the parameter `name` of a function, by default with the default it has there.

    details: of add_argument. Raises KeyError where the function has no such parameter.
    """
    default = inspect.signature(function).parameters[name].default
    details = dict(default=default, help=words) | details
    parser.add_argument("--" + name.replace("_", "-"), **details)


def add_train_flags(parser):
    """Flags of train. None as default: what --model, --size or --data says."""
    add = functools.partial(add_flag, parser)
    other = parser.add_argument
    other("--data", default="shapes", help="or a folder: CLASS/*.jpg or *.jpg")
    other("--out", type=Path, help="run folder; None: runs/DATA-MODEL-PATCH-PRED")
    other("--model", default="Ti/16", help=f"{', '.join(MODELS)}, a slash, the side of a patch; it "
          "says what is None below, with --size and --data")  # fmt: skip
    add("size", JiT, "side of the images in pixels", type=positive_int, default=64)
    for name in ("patch", "depth", "width", "heads"):
        add(name, JiT, "of the network", type=positive_int, default=None)
    for name in ("bottleneck", "context_tokens", "context_start"):
        add(name, JiT, "of the network", type=natural, default=None)
    add("rope", JiT, "rotary position embedding (Table 4)", action=on_or_off)
    add("qk_norm", JiT, "normalised queries and keys (Table 4)", action=on_or_off)
    add("pred", Flow, "what the network predicts", choices=("x", "eps", "v"))
    add("loss", Flow, "where prediction and truth are compared", choices=("x", "eps", "v"))
    add("mu", Flow, "mean of logit(t); lower is noisier (Table 3)", type=number(float, -1e9, 1e9))
    add("sigma", Flow, "standard deviation of logit(t)", type=positive)
    add("noise_scale", Flow, "of eps; None: size / 256, at least 1", type=positive, default=None)
    add("label_drop", Flow, "share of images without their class", type=fraction)
    add("t_clip", Flow, "smallest 1 - t, or t, in a division", type=positive_fraction)
    add("steps", train, "training steps; raise it to train on", type=positive_int)
    add("batch_size", train, "images of a step", type=positive_int)
    add("accum", train, "parts of a batch, in turn, to save memory", type=positive_int)
    add("lr", train, "learning rate", type=positive, default=None)
    add("warmup", train, "steps in which it rises", type=natural)
    add("cooldown", train, "share of the run in which it falls", type=fraction, default=None)
    add("flip", train, "mirror half of the images", action=on_or_off, default=None)
    add("cfg", train, "weight of guidance in the sheets; 1: none", type=non_negative)
    add("log_every", train, "steps from one line of the log to the next", type=positive_int)
    add("save_every", train, "steps between checkpoints, ten minutes at most", type=positive_int)
    add("sample_every", train, "steps from one sheet of samples to the next", type=positive_int)


def add_sampling_flags(parser, n, least):
    """Flags of sample and eval. n, least: the usual and the smallest number of images."""
    add = functools.partial(add_flag, parser)
    parser.add_argument("--n", type=number(int, least), default=n, help="number of images")
    parser.add_argument("--weights", default="ema1", choices=WEIGHTS, help="raw, or an average")
    add("t_clip", Flow, "smallest 1 - t in a division; None: as in training",
        type=positive_fraction, default=None)
    add("batch_size", sample_images, "images at a time", type=positive_int)
    add("cfg", sample_images, "weight of classifier-free guidance; 1: none", type=non_negative)
    add("sampling_steps", sample_images, "steps from noise to data", type=positive_int)
    add("solver", sample_images, "of the differential equation", choices=("heun", "euler"))
    add("interval", sample_images, "guidance is for t between these", type=fraction, nargs=2)


def parse_flags(words=None):
    """The command line: a command and its flags."""
    words = sys.argv[1:] if words is None else words
    is_set = all(word[-1:] not in ("", "=") for word in words)
    check(is_set, "an argument is empty: a variable that was never set?")
    parser = argparse.ArgumentParser(prog="jit.py", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    style = dict(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    training = commands.add_parser("train", help="train a network, or go on with a run", **style)
    add_train_flags(training)
    sampling = commands.add_parser("sample", help="images of a trained network", **style)
    add = sampling.add_argument
    add("run", type=Path, help="run folder or checkpoint file, ours or the official code's")
    add("--classes", default="", help="names or numbers, with commas; they take turns")
    add("--png-dir", type=Path, help="write every image to this folder")
    add_sampling_flags(sampling, n=40, least=1)
    measuring = commands.add_parser("eval", help="FID and Inception Score", **style)
    add = measuring.add_argument
    add("run", type=Path, help="a run, a checkpoint file, or a folder of images")
    add("--size", type=positive_int, help="side in pixels of the images of a folder")
    add("--reference", help="shapes, a folder or statistics; None: training data")
    add("--stats", type=Path, help="write the reference's statistics to this .npz file")
    add("--inception", type=Path, help="file of the Inception weights; None: a download")
    add_sampling_flags(measuring, n=1000, least=2)  # a covariance needs two
    for each in commands.choices.values():
        add = each.add_argument
        add("--seed", type=natural, default=0, help="of all that is random")
        add("--device", default="auto", choices=("auto", *DEVICES), help="where it runs")
        add("--compile", action="store_true", help="torch.compile: a minute, then faster")
    for each in (parser, *commands.choices.values()):
        each.error = lambda message: parser.exit(2, f"jit.py: {message}; see --help.\n")
    return parser.parse_args(words)


def flags_of(function, args):
    """The flags that are parameters of a function, and are given."""
    names = inspect.signature(function).parameters
    return {k: value for k, value in vars(args).items() if k in names and value is not None}


def settings_of(args):
    """Arguments of JiT, Flow and train: flags, and where they are not given what others imply."""
    name, _, patch = args.model.partition("/")
    check(name in MODELS and patch.isdecimal() and int(patch) > 0,
          f"--model {args.model}: {', '.join(MODELS)}, as in B/16.")
    check(not args.flip or args.data != "shapes", "--flip: shapes are not mirrored.")
    network = MODELS[name] | dict(patch=int(patch)) | flags_of(JiT, args)
    flow = dict(noise_scale=max(1.0, args.size / 256)) | flags_of(Flow, args)
    folder = f"{Path(args.data).resolve().name}-{name}-{network['patch']}-{args.pred}"
    recipe = default_recipe(name, args.batch_size)
    recipe |= dict(out=Path("runs", folder), flip=args.data != "shapes")
    return network, flow, recipe | flags_of(train, args)


def run_train(args):
    """python jit.py train: from flags to the arguments of JiT, Flow and train."""
    device, (network, flow, recipe) = choose_device(args.device), settings_of(args)
    check_writable(recipe["out"])
    inside = recipe["out"].resolve().is_relative_to(Path(args.data).resolve())
    check(args.data == "shapes" or not inside, f"--out {recipe['out']} lies in --data {args.data}, "
          "its sheets would become training data: choose another.")  # fmt: skip
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK") or 0))  # torchrun's
    if processes()[1] > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    data = open_data(args.data, (3, args.size, args.size))
    torch.manual_seed(args.seed)
    try:
        net = JiT(**network, classes=len(data.names)).to(device)
    except ValueError as error:  # sizes that do not fit
        raise Stop(str(error)) from error
    if args.compile:
        net.compile()
    try:
        train(net, Flow(**flow), **recipe | dict(data=data))
    except KeyboardInterrupt:
        path = recipe["out"] / CHECKPOINT
        step = load_checkpoint(path)["step"] if path.exists() else 0
        raise Stop(f"stopped; saved at step {step}, where the same command goes on.", 130) from None


def open_run(args, classes=""):
    """(network, config, captions, batches of samples) of the run and the flags of a command."""
    check(args.interval[0] < args.interval[1], "--interval: from 0 to 1, the lower first.")
    net, flow, config = load_run(args.run, args.weights, choose_device(args.device))
    flow.t_clip = args.t_clip or flow.t_clip
    if flow.label_drop in (0, 1):
        say(f"no guidance: trained with --label-drop {flow.label_drop:g}")
    if args.compile:
        net.compile()
    settings = flags_of(sample_images, args)
    captions, batches = sample_classes(net, flow, args.n, config["names"], classes, **settings)
    return net, config, captions, batches


def run_sample(args):
    """python jit.py sample: images on a sheet, or in single files."""
    folder = args.png_dir or (args.run if args.run.is_dir() else args.run.parent)
    check_writable(folder)
    is_used = args.png_dir and folder.exists() and any(folder.iterdir())
    check(not is_used, f"--png-dir {folder} is not empty: choose another.")
    _, _, captions, batches = open_run(args, args.classes)
    folder.mkdir(parents=True, exist_ok=True)
    batches = tqdm(batches, "sampling", math.ceil(args.n / args.batch_size))
    if args.png_dir:
        images = (image for batch in batches for image in batch.permute(0, 2, 3, 1).cpu().numpy())
        for i, image in enumerate(images):  # saved at once: not kept, nor lost by Ctrl-C
            Image.fromarray(image.squeeze()).save(folder / f"{i:06d}.png")
    else:
        draw_sheet(folder / "samples.png", captions, batches)
    say(f"see {args.png_dir or folder / 'samples.png'}")


def load_statistics(path):
    """Mean (2048,) and covariance (2048, 2048), from an .npz file of ours or of another program."""
    try:
        with np.load(path) as file:
            mu, sigma = file["mu"].astype(float), file["sigma"].astype(float)
        is_whole = mu.shape == (2048,) and sigma.shape == (2048, 2048) and np.isfinite(mu).all()
        values = np.linalg.eigvalsh(sigma)
        is_covariance = np.allclose(sigma, sigma.T) and values[0] >= -1e-3 * values[-1]  # rounding
        if not (is_whole and is_covariance):
            raise ValueError("mu and sigma are no mean and covariance of 2048 numbers")
    except Exception as error:  # whatever bytes may cause
        raise Stop(f"{path} holds no statistics of Inception features: {error}.") from error
    return mu, sigma


def read_images(name, shape, args, device):
    """(number, uint8 batches) of the images of a folder, or of args.n new shapes."""
    torch.manual_seed(args.seed + 1)  # shapes that training with this seed did not begin with
    data = open_data(name, shape)
    n = args.n if isinstance(data, Shapes) else len(data.labels)
    places = [range(i, min(i + args.batch_size, n)) for i in range(0, n, args.batch_size)]
    if isinstance(data, Shapes):
        return n, (to_uint8(x) for x, _ in data_batches(data, places, args.seed, device))
    batches = (data.batch(part)[0] for part in places)
    return n, (pixels for pixels in batches if len(pixels))  # none where all were broken


def open_subject(args):
    """What eval measures, samples of a run or a folder of images, and what it is compared with.

    Returns (number, uint8 batches), the shape (C, H, W) of an image, and the reference's name.
    """
    if args.run.is_dir() and not (args.run / CHECKPOINT).exists():
        check(args.size, f"{args.run} holds no {CHECKPOINT}; if it holds images, give --size.")
        shape, reference = (3, args.size, args.size), args.reference
        folder = f"{args.run}/"  # with a slash even `shapes` is a folder
        subject = read_images(folder, shape, args, choose_device(args.device))
    else:
        net, config, _, batches = open_run(args)
        subject, shape, reference = (args.n, batches), net.shape, args.reference or config["data"]
    check(reference, f"{args.run} does not say what to compare it with: give --reference.")
    return subject, shape, reference


def run_eval(args):
    """python jit.py eval: FID and Inception Score of a run, or of a folder of images."""
    device = choose_device(args.device)
    if args.stats:
        is_name = args.stats.suffix == ".npz" and not args.stats.is_dir()
        check(is_name, f"--stats {args.stats}: give a file whose name ends in .npz.")
        check_writable(args.stats.parent)
    subject, shape, reference = open_subject(args)
    inception = load_inception(args.inception, device)

    def features(count, batches, logits):
        for images in tqdm(batches, "features", math.ceil(count / args.batch_size)):
            found, scores = inception(images.to(device))
            logits.append(scores.cpu())
            yield found

    if Path(reference).is_file():
        mu, sigma = load_statistics(reference)
    else:
        _, mu, sigma = moments(features(*read_images(reference, shape, args, device), []))
    if args.stats:
        args.stats.parent.mkdir(parents=True, exist_ok=True)
        write_whole(args.stats, functools.partial(np.savez, mu=mu, sigma=sigma))
    logits = []
    n, mean, covariance = moments(features(*subject, logits))
    score, deviation = inception_score(torch.cat(logits))
    result = {f"fid_{n}": frechet_distance(mean, covariance, mu, sigma), "inception_score": score}
    result |= dict(inception_score_std=deviation, run=str(args.run), reference=reference)
    print(json.dumps(result), flush=True)


class Output:
    """stderr that outlives its reader: what nobody reads must not end a training."""

    def __init__(self, stream):
        self.stream = stream or open(os.devnull, "w")  # None: it was closed at the start

    def write(self, text):
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError:
            self.stream = open(os.devnull, "w")

    def __getattr__(self, name):  # all else is the stream's
        return getattr(self.stream, name)


def main(words=None):
    """Run a command; returns the exit code."""
    try:
        args = parse_flags(words)
        check(args.command == "train" or processes()[1] == 1, "torchrun is for train only.")
        {"train": run_train, "sample": run_sample, "eval": run_eval}[args.command](args)
    except (Exception, KeyboardInterrupt) as error:
        explained = explain(error)
        if explained is None:
            raise
        sentence, code = explained
        tqdm.write(f"jit.py: {sentence}", file=sys.stderr)
        return code
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.stderr = Output(sys.stderr)
    sys.exit(main())
