"""JiT, "Just image Transformers", in one file: a plain Vision Transformer on large pixel patches that generates images.

Paper: "Back to Basics: Let Denoising Generative Models Denoise", Tianhong Li and Kaiming He, 2025, arXiv 2511.13720.
Its point: images lie near a low-dimensional manifold; noise fills the whole space. A network of limited width can put
out the clean image x, but not the noise eps, nor the velocity v = x - eps that contains it, once a patch has more
numbers than the network has room for. So let the denoiser denoise: predict x.

    python jit.py train                          ten built-in shapes, no download; minutes on a laptop CPU
    python jit.py train --pred eps               the same, predicting the noise: see it fail
    python jit.py sample runs/shapes-Ti-16-x     a sheet of pictures; --trajectory shows the way there
    python jit.py eval runs/shapes-Ti-16-x       how good are they? FID; or rfd, a random-feature distance, no download
    python jit.py info                           the paper's table of models, computed

Notation  t = 0 is noise, t = 1 is data. x image, eps noise, z = t x + (1 - t) eps what the network sees, v = x - eps.
Shapes    B batch, C channels, H W height and width, p patch, N = (H/p)(W/p) tokens, D width, h heads, d = D/h,
          r bottleneck, K in-context tokens.
Contents  The method: 1 settings, 2 flow (Table 1), 3 network (Figure 3), 4 training step (Algorithm 1), 5 sampling
          (Algorithm 2). Engineering from there: 6 shapes, 7 data, 8 metrics, 9 runs, 10 pictures and commands.

Differences from the paper and its official code, github.com/LTH14/JiT:
 1. All nine prediction/loss pairs, pre-conditioning and the ablation ladder are switches; the code released has x/v.
 2. Attention is torch's own, in bf16 on CUDA; the official code multiplies queries and keys in fp32.
 3. The residual stream is fp32; the official one is bf16 until the in-context tokens join it.
 4. Guidance runs with and without class as one batch, and skips the part without class where w = 1. Same result.
 5. The decay of the weight averages (EMA) starts low and rises to the official value, so short runs can use them.
 6. Noise is seeded per step and per image: a resumed run repeats itself, and an image does not depend on its batch.
"""

import argparse
import collections
import contextlib
import copy
import dataclasses
import difflib
import functools
import glob
import hashlib
import itertools
import json
import math
import os
import re
import signal
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# ---- 1. Settings -----------------------------------------------------------------------------------------------------

# Paper Table 9. Ti and S are ours, for a CPU and for a small GPU, with learning rates for small batches.
MODELS = {
    "Ti": dict(depth=4, width=128, heads=4, bottleneck=32, context_tokens=4, context_start=1, dropout=0.0, lr=2e-3),
    "S": dict(depth=12, width=384, heads=6, bottleneck=64, context_tokens=16, context_start=4, dropout=0.0, lr=5e-4),
    "B": dict(depth=12, width=768, heads=12, bottleneck=128, context_tokens=32, context_start=4, dropout=0.0),
    "L": dict(depth=24, width=1024, heads=16, bottleneck=128, context_tokens=32, context_start=8, dropout=0.0),
    "H": dict(depth=32, width=1280, heads=16, bottleneck=256, context_tokens=32, context_start=10, dropout=0.2),
    "G": dict(depth=40, width=1664, heads=16, bottleneck=256, context_tokens=32, context_start=10, dropout=0.2),
}

def setting(default, help, type=None, choices=None, low=None):
    """A dataclass field that knows its flag, --name VALUE (or --name / --no-name for a bool), and its lowest value."""
    metadata = dict(help=help, type=type or default.__class__, choices=choices, low=low)
    return dataclasses.field(default=default, metadata=metadata)

def numbers(text):
    """For flags with several numbers: "0.1,1" -> (0.1, 1.0)."""
    return tuple(float(word) for word in text.split(","))

@dataclasses.dataclass
class Settings:
    """All settings of a training run, saved with it. None: taken from --model, or from the data."""

    data: str = setting("shapes", "shapes, cifar10, a folder of images, or an .npz file (arr_0 images, arr_1 labels)")
    out: str = setting("", "run folder; the same command goes on with it (default: runs/DATA-MODEL-PATCH-PRED)")
    model: str = setting("Ti/16", "Ti, S, B, L, H or G, a slash, and the side of a patch in pixels")
    size: int = setting(64, "height and width of the images in pixels", low=1)
    channels: int = setting(3, "3 for colour, 1 for grey", choices=(1, 3))
    classes: int = setting(None, "number of classes; 0: unconditional (default: as many as the data has)", int, low=0)
    # The flow
    pred: str = setting("x", "what the network predicts", choices=("x", "eps", "v"))
    loss: str = setting("v", "the space in which prediction and truth are compared", choices=("x", "eps", "v"))
    precond: str = setting("none", "pre-conditioned x-prediction (Table 10)", choices=("none", "linear", "edm"))
    t_law: str = setting("logit-normal", "how training times t are drawn", choices=("logit-normal", "uniform"))
    mu: float = setting(-0.8, "mean of logit(t); lower is noisier (Table 3)")
    sigma: float = setting(0.8, "standard deviation of logit(t)", low=0)
    noise_scale: float = setting(None, "standard deviation of the noise (default: size / 256, but 1 at least)", float)
    t_clip: float = setting(0.05, "smallest value of 1 - t (or of t) in a division", low=1e-6)
    # The network
    patch: int = setting(None, "side of a patch in pixels", int, low=1)
    depth: int = setting(None, "number of Transformer blocks", int, low=1)
    width: int = setting(None, "numbers per token, D", int, low=1)
    heads: int = setting(None, "attention heads", int, low=1)
    bottleneck: int = setting(None, "rank r of the patch embedding; 0: a plain linear map (Figure 4)", int, low=0)
    context_tokens: int = setting(None, "in-context class tokens; 0: none (Table 4)", int, low=0)
    context_start: int = setting(None, "the block before which they join; blocks count from 0", int, low=0)
    dropout: float = setting(None, "dropout in the middle half of the blocks", float, low=0)
    rope: bool = setting(True, "rotary position embedding (Table 4)")
    qk_norm: bool = setting(True, "normalised queries and keys (Table 4)")
    norm: str = setting("rms", "RMSNorm or LayerNorm (Table 4)", choices=("rms", "layer"))
    mlp: str = setting("swiglu", "SwiGLU or GELU (Table 4)", choices=("swiglu", "gelu"))
    cls_loss: float = setting(0.0, "weight of the classification loss, in the paper about 100 (Table 11)", low=0)
    # Training
    steps: int = setting(2500, "training steps; raise it to go on with a finished run", low=1)
    batch_size: int = setting(32, "images per step, over all GPUs and parts together", low=1)
    accum: int = setting(1, "gradient accumulation: parts of a batch, one after the other, to save memory", low=1)
    lr: float = setting(None, "learning rate (default: Ti 2e-3, S 5e-4, others 5e-5 * batch size / 256)", float, low=0)
    warmup: int = setting(100, "steps in which the learning rate rises (the paper: 5 epochs)", low=0)
    label_drop: float = setting(0.1, "probability to train an image without its class, for guidance", low=0)
    ema1: float = setting(0.9999, "decay of the first average (EMA) of the weights; lower in short runs", low=0)
    ema2: float = setting(0.9996, "decay of the second average of the weights", low=0)
    flip: bool = setting(None, "mirror half of the images (default: all data but shapes)", bool)
    seed: int = setting(0, "of weights, order of the data, and noise", low=0)
    # The run
    log_every: int = setting(50, "steps between two lines of log.jsonl", low=1)
    save_every: int = setting(500, "steps between two checkpoints", low=1)
    sample_every: int = setting(1000, "steps between two sheets of pictures", low=1)
    cfg: float = setting(2.0, "guidance weight of these pictures", low=0)
    workers: int = setting(min(8, os.cpu_count() or 1), "threads that decode images", low=1)
    device: str = setting("auto", "where to compute", choices=("auto", "cuda", "mps", "cpu"))
    compile: bool = setting(False, "torch.compile: a minute of waiting, then faster steps")
    resume: bool = setting(False, "fail if --out holds no checkpoint, instead of starting anew")

# A run may go on with other values of these; any other change is an error.
CHANGEABLE = "out steps log_every save_every sample_every cfg workers device compile resume".split()

@dataclasses.dataclass
class Sampling:
    """How images are drawn from a trained network (paper Table 9, last part)."""

    n: int = setting(40, "number of images", low=1)
    seed: int = setting(0, "image number i depends on this and on i alone", low=0)
    cfg: float = setting(2.0, "weight w of classifier-free guidance; 1: none", low=0)
    interval: tuple = setting((0.1, 1.0), "guidance acts for t between these two", numbers)
    steps: int = setting(50, "steps from noise to data", low=1)
    solver: str = setting("heun", "of the differential equation", choices=("heun", "euler"))
    t_clip: float = setting(None, "smallest value of 1 - t in a division (default: as trained)", float, low=1e-6)
    weights: str = setting("ema1", "trained weights, or one of their averages", choices=("raw", "ema1", "ema2"))
    batch_size: int = setting(50, "images drawn at a time", low=1)
    device: str = setting("auto", "where to compute", choices=("auto", "cuda", "mps", "cpu"))
    compile: bool = setting(False, "torch.compile the network")

class Stop(Exception):
    """Ends the program with (one sentence, exit code): 2 for a mistake of the user's, 1 for a run that failed."""

def need(condition, sentence):
    """Stop with exit code 2 unless the condition holds."""
    if not condition:
        raise Stop(sentence, 2)

def flag(field):
    """Its name on the command line: batch_size -> --batch-size."""
    return "--" + field.name.replace("_", "-")

def as_typed(field, value):
    """A setting as one types it: --batch-size 32, or --no-rope."""
    if isinstance(value, bool):
        return flag(field) if value else flag(field).replace("--", "--no-", 1)
    return f"{flag(field)} {value}"

def check_lowest(s):
    """Refuse numbers below what their field allows."""
    for field in dataclasses.fields(s):
        value, low = getattr(s, field.name), field.metadata["low"]
        need(None in (value, low) or value >= low, f"{flag(field)} must be {low} at least, not {value}.")

def resolve(s):
    """A copy of Settings with every None filled in from --model; stops if the settings cannot work."""
    name, _, patch = s.model.partition("/")
    need(name in MODELS and patch.isdecimal(), f"--model {s.model}: write one of {', '.join(MODELS)}, as in B/16.")
    defaults = dict(patch=int(patch), noise_scale=max(1.0, s.size / 256), flip=s.data != "shapes")
    defaults["lr"] = 5e-5 * s.batch_size / 256
    defaults |= MODELS[name]  # Ti and S have their own lr
    s = dataclasses.replace(s, **{key: value for key, value in defaults.items() if getattr(s, key) is None})
    s.data = str(Path(s.data))  # FOLDER/ is FOLDER
    s.out = s.out or f"runs/{Path(s.data).stem}-{name}-{s.patch}-{s.pred}"
    check_lowest(s)
    need(max(s.dropout, s.label_drop, s.ema1, s.ema2) <= 1, "--dropout, --label-drop, --ema1 and --ema2 are 1 at most.")
    need(s.size % s.patch == 0, f"--size {s.size} is no multiple of the patch, {s.patch}.")
    need(s.width % (4 * s.heads) == 0, f"--width {s.width} is no multiple of 4 * --heads, as RoPE on two axes needs.")
    need(s.precond == "none" or s.pred == "x", f"--precond {s.precond} is for --pred x.")
    need(s.data != "shapes" or not s.flip, "--flip is not for the built-in shapes: mirrored, they are others.")
    if s.context_tokens or s.cls_loss:
        need(s.context_start < s.depth, f"--context-start must be below {s.depth}, the number of blocks.")
    need(s.context_start or not s.cls_loss, "--cls-loss needs blocks below its head: --context-start 1 or more.")
    return s

class Parser(argparse.ArgumentParser):
    """Says in one sentence what is wrong."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; --help, before or after a command, lists what there is.\n")

    def add_settings(self, kind):
        """One flag for each field of a dataclass."""
        for field in dataclasses.fields(kind):
            meta, default = field.metadata, field.default
            help = meta["help"] + ("" if default in (None, "") else f" (default: {default})")
            kinds = dict(type=meta["type"], choices=meta["choices"])
            if meta["type"] is bool:
                kinds = dict(action=argparse.BooleanOptionalAction)
            self.add_argument(flag(field), default=default, help=help, **kinds)

def take(kind, args):
    """The dataclass of these parsed flags."""
    return kind(**{field.name: getattr(args, field.name) for field in dataclasses.fields(kind)})

def parse_flags(words=None):
    """The command line: a command and its flags."""
    parser = Parser(prog="jit.py", description="Train and sample a Just image Transformer.")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", allow_abbrev=False, usage="jit.py train [--FLAG VALUE ...]",
                                help="train a network, or go on with a run")
    train.add_settings(Settings)
    sample = commands.add_parser("sample", allow_abbrev=False, usage="jit.py sample RUN [--FLAG VALUE ...]",
                                 help="draw images with a trained network")
    sample.add_argument("run", help="run folder or checkpoint file, of ours or of the official code")
    sample.add_argument("--classes", default="", help="names or numbers, with commas; they take turns (default: all)")
    sample.add_argument("--png-dir", help="write every image to this folder")
    sample.add_argument("--npz", help="write all images to this file: arr_0 uint8 (n, H, W, C), arr_1 labels")
    sample.add_argument("--trajectory", action="store_true", help="a strip and an animation from noise to image")
    sample.add_settings(Sampling)
    for name, help in {"eval": "FID, Inception Score and KID, or rfd", "stats": "write statistics for eval"}.items():
        measure = commands.add_parser(name, allow_abbrev=False, usage=f"jit.py {name} SOURCE [--FLAG VALUE ...]",
                                      help=help, conflict_handler="resolve")  # some flags of Sampling, redefined
        measure.add_argument("source", help="a run, a checkpoint, or what --data takes: a folder, an .npz file, shapes")
        measure.add_settings(Sampling)
        measure.add_argument("--n", type=int, default=1000, help="images to draw; the paper: 50000 (default: 1000)")
        measure.add_argument("--features", choices=("inception", "rfd"), default="inception",
                             help="of the Inception network, or of a fixed random one (rfd), which needs no download")
        measure.add_argument("--inception", help="file of the Inception weights (default: torch.hub's, or a download)")
        measure.add_argument("--inception-any-hash", action="store_true", help="take other weights than everyone's")
        measure.add_argument("--size", type=int, help="side in pixels of images that are not from a run")
        measure.add_argument("--cfg", type=numbers, default=(2.0,), help="guidance weights to try (default: 2)")
        measure.add_argument("--weights", default="ema1", help="weights to try: raw,ema1,ema2 (default: ema1)")
        if name == "stats":
            measure.add_argument("--to", required=True, help="the .npz file to write: mu, sigma, n, size")
        else:
            measure.add_argument("--reference", help="as source, or statistics (default: the run's training data)")
    commands.add_parser("info", help="the paper's table of models, computed")
    return parser.parse_args(words)

ARGS = parse_flags() if __name__ == "__main__" else None  # torch takes seconds to import: help and typos need not wait

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from PIL import Image, ImageDraw, ImageOps  # noqa: E402
from tqdm import tqdm  # noqa: E402

# ---- 2. The flow: what is noised, and what is predicted (paper Section 3, Table 1) -----------------------------------

T_CLIP = 0.05  # the official t_eps: keeps 1 / (1 - t) at 20 or less

def expand_like(t, x):
    """View t (B,) as (B, 1, ..., 1), to multiply x (B, ...) sample by sample."""
    return t.view(-1, *[1] * (x.dim() - 1))

def sample_t(n, mu=-0.8, sigma=0.8, law="logit-normal", device=None):
    """Draw n training times in (0, 1): logit(t) ~ N(mu, sigma^2), or t ~ U(0, 1) (paper Section 4.1, Table 3)."""
    if law == "uniform":
        return torch.rand(n, device=device)
    return torch.sigmoid(mu + sigma * torch.randn(n, device=device))

def interpolate(x, eps, t):
    """z = t x + (1 - t) eps: noise at t = 0, data at t = 1 (paper Eq. 1). x, eps, z: (B, ...); t: (B,)."""
    t = expand_like(t, x)
    return t * x + (1 - t) * eps

def convert(out, z, t, pred, clip=T_CLIP):
    """Read a network output as x, eps or v, and return all three: {"x": ..., "eps": ..., "v": ...} (paper Table 1).

    Two equations tie the four, z = t x + (1 - t) eps and v = x - eps: whichever is predicted, the others follow.
    out, z: (B, ...); t: (B,).
    But at t = 1 z holds no noise, and at t = 0 no image: there we would divide by 0. We divide by max(1 - t, clip), as
    the official code, and by max(t, clip), which is our choice: neither paper nor code mentions it.
    """
    t = expand_like(t, z)
    if pred == "x":
        x = out
        eps = (z - t * x) / (1 - t).clamp_min(clip)
        v = (x - z) / (1 - t).clamp_min(clip)
    elif pred == "eps":
        eps = out
        x = (z - (1 - t) * eps) / t.clamp_min(clip)
        v = (z - eps) / t.clamp_min(clip)
    else:
        v = out
        x = z + (1 - t) * v
        eps = z - t * v
    return {"x": x, "eps": eps, "v": v}

def flow_loss(out, x, eps, t, pred, loss, clip=T_CLIP):
    """Squared error in the loss space, one number per sample (B,): any of the nine combinations of Table 1.

    The target, what a perfect network would put out, is converted by the same formula, with the same clip, as the
    prediction. So a perfect network has loss 0 at every t.
    """
    z = interpolate(x, eps, t)
    perfect = {"x": x, "eps": eps, "v": x - eps}[pred]
    error = convert(out, z, t, pred, clip)[loss] - convert(perfect, z, t, pred, clip)[loss]
    return error.square().flatten(1).mean(1)  # (B,)

def precondition(out, z, t, kind):
    """x_pred = c_skip z + c_out out: the network only corrects its input (paper Table 10: it hurts). Shapes as convert.

    The EDM-style coefficients have sigma_t = (1 - t) / t and sigma_d = 0.5; here numerator and denominator are
    multiplied by t, so that nothing divides by 0 at t = 0.
    """
    if kind == "none":
        return out
    t = expand_like(t, z)
    if kind == "linear":
        return t * z + (1 - t) * out
    sigma_d = 0.5
    variance = (t * sigma_d) ** 2 + (1 - t) ** 2
    return t * sigma_d**2 / variance * z + (1 - t) * sigma_d / variance.sqrt() * out

# ---- 3. The network: a Vision Transformer (paper Figure 3, Section 4.3), parameters named as in released checkpoints -

def make_norm(s):
    """RMSNorm, or DiT's LayerNorm, which leaves scale and shift to adaLN. Tokens stay fp32, so norms are in fp32."""
    if s.norm == "rms":
        return nn.RMSNorm(s.width, eps=1e-6)
    return nn.LayerNorm(s.width, eps=1e-6, elementwise_affine=False)

def modulate(x, shift, scale):
    """adaLN: time and class decide on shift and scale, (B, 1, D), of all tokens x (B, N, D)."""
    return x * (1 + scale) + shift

class PatchEmbed(nn.Module):
    """Patches to tokens through a bottleneck of r numbers: images are low-dimensional, so little is lost (Figure 4)."""

    def __init__(self, s):
        super().__init__()
        self.p = s.patch
        self.proj1 = nn.Conv2d(s.channels, s.bottleneck, s.patch, s.patch, bias=False) if s.bottleneck else None
        self.proj2 = nn.Conv2d(s.bottleneck, s.width, 1) if s.bottleneck else nn.Conv2d(s.channels, s.width, s.patch)

    def forward(self, z):
        B, C, H, W = z.shape
        patches = z.reshape(B, C, H // self.p, self.p, W // self.p, self.p).permute(0, 2, 4, 1, 3, 5)
        tokens = patches.reshape(B, -1, C * self.p**2)  # (B, N, C*p*p): as a matrix product, the convolution is faster
        if self.proj1 is not None:
            tokens = F.linear(tokens, self.proj1.weight.flatten(1))  # (B, N, r)
        return F.linear(tokens, self.proj2.weight.flatten(1), self.proj2.bias)  # (B, N, D)

def unpatchify(tokens, p):
    """Patches (B, N, p*p*C) to images (B, C, H, W). A patch is (row, column, channel) here; above, C was first."""
    B, N, numbers = tokens.shape
    side, C = math.isqrt(N), numbers // p**2
    x = tokens.reshape(B, side, side, p, p, C).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(B, C, side * p, side * p)

def position_embedding(side, width):
    """ViT's fixed 2-D sin-cos embedding (1, N, D): first half of D the column, second the row, each [sin | cos]."""
    frequency = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)  # (side, D/2)
    column = wave[None].expand(side, -1, -1)
    row = wave[:, None].expand(-1, side, -1)
    return torch.cat([column, row], dim=2).flatten(0, 1)[None].float()

def rope_table(side, head_dim, context_tokens):
    """cos and sin (K + N, d) of two-axis RoPE: the first half of a head turns with the row, the second with the column.

    In-context tokens have no place in the image: they come first, with angle 0, and do not turn.
    """
    axis_dim = head_dim // 2
    frequency = 10000.0 ** -(torch.arange(0, axis_dim, 2).float() / axis_dim)
    angle = torch.arange(side).float()[:, None] * frequency
    angle = angle.repeat_interleave(2, dim=1)  # (side, d/2): the two numbers of a pair turn together
    row = angle[:, None].expand(-1, side, -1)
    column = angle[None].expand(side, -1, -1)
    angle = F.pad(torch.cat([row, column], dim=2).flatten(0, 1), (0, 0, context_tokens, 0))
    return angle.cos(), angle.sin()

def rotate(x, cos, sin):
    """Turn every pair (a, b) in x (B, h, N, d) by its angle: q . k then depends on the offset between tokens only."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * cos + torch.stack([-b, a], dim=-1).flatten(-2) * sin

class Attention(nn.Module):
    """Multi-head self-attention over tokens, queries and keys normalised, then rotated."""

    def __init__(self, s, dropout):
        super().__init__()
        self.heads = s.heads
        self.q_norm = nn.RMSNorm(s.width // s.heads, eps=1e-6) if s.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(s.width // s.heads, eps=1e-6) if s.qk_norm else nn.Identity()
        self.qkv = nn.Linear(s.width, 3 * s.width)
        self.proj = nn.Linear(s.width, s.width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, rope):
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, N, 3, h, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, h, N, d) each: tokens attend to tokens, not heads to heads
        q, k = self.q_norm(q.float()), self.k_norm(k.float())
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        x = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)  # (B, h, N, d)
        return self.dropout(self.proj(x.transpose(1, 2).flatten(2)))  # (B, N, D)

class MLP(nn.Module):
    """SwiGLU, w3(silu(a) * b) with a, b = w12(x), or plain w3(gelu(w12(x)))."""

    def __init__(self, s, dropout):
        super().__init__()
        self.gated = s.mlp == "swiglu"
        hidden = int(4 * s.width * 2 / 3) if self.gated else 4 * s.width  # 2/3: three matrices for the price of two
        self.w12 = nn.Linear(s.width, 2 * hidden if self.gated else hidden)
        self.w3 = nn.Linear(hidden, s.width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        x = self.w12(x)
        if self.gated:
            a, b = x.chunk(2, dim=-1)
            x = F.silu(a) * b
        else:
            x = F.gelu(x)
        return self.w3(self.dropout(x))

class Block(nn.Module):
    """Transformer block with adaLN-Zero: its gates start at 0, so the block starts as the identity."""

    def __init__(self, s, dropout):
        super().__init__()
        self.norm1 = make_norm(s)
        self.attn = Attention(s, dropout)
        self.norm2 = make_norm(s)
        self.mlp = MLP(s, dropout)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(s.width, 6 * s.width))

    def forward(self, x, c, rope):
        """x: (B, N, D) tokens; c: (B, 1, D) time and class; rope: the table's rows for these tokens, or None."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=-1)  # (B, 1, D) each
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), rope)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))

class FinalLayer(nn.Module):
    """Tokens to patches: norm, adaLN without gate, one linear map, which starts at 0."""

    def __init__(self, s):
        super().__init__()
        self.norm_final = make_norm(s)
        self.linear = nn.Linear(s.width, s.patch**2 * s.channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(s.width, 2 * s.width))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))  # (B, N, p*p*C)

def time_features(t):
    """t (B,) in [0, 1], not scaled up, as 128 cosines and 128 sines (B, 256)."""
    angle = t[:, None] * 10000.0 ** -(torch.arange(128, device=t.device).float() / 128)
    return torch.cat([angle.cos(), angle.sin()], dim=1)

class JiT(nn.Module):
    """Just image Transformer: noisy image, time and class in, an image-shaped prediction out (paper Figure 3)."""

    def __init__(self, s):
        """s: Settings from resolve(), with classes set."""
        super().__init__()
        self.s, side = s, s.size // s.patch
        time_mlp = nn.Sequential(nn.Linear(256, s.width), nn.SiLU(), nn.Linear(s.width, s.width))
        self.t_embedder = nn.ModuleDict({"mlp": time_mlp})
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(s.classes + 1, s.width)})  # last: "no class"
        self.x_embedder = PatchEmbed(s)
        self.pos_embed = nn.Parameter(position_embedding(side, s.width), requires_grad=False)
        if s.context_tokens:
            self.in_context_posemb = nn.Parameter(torch.empty(1, s.context_tokens, s.width))
        for name, table in zip(["rope_cos", "rope_sin"], rope_table(side, s.width // s.heads, s.context_tokens)):
            self.register_buffer(name, table, persistent=False)
        middle = range(s.depth // 4, s.depth // 4 * 3)
        self.blocks = nn.ModuleList([Block(s, s.dropout if i in middle else 0.0) for i in range(s.depth)])
        self.final_layer = FinalLayer(s)
        self.cls_head = nn.Linear(s.width, s.classes) if s.cls_loss else None
        self.initialize()

    def initialize(self):
        """Xavier-uniform matrices and small embeddings; zeros where they make a block the identity, or the output 0."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.data.flatten(1))  # a view: a convolution counts as a matrix
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in [self.y_embedder["embedding_table"], self.t_embedder["mlp"][0], self.t_embedder["mlp"][2]]:
            nn.init.normal_(module.weight, std=0.02)
        if self.s.context_tokens:
            nn.init.normal_(self.in_context_posemb, std=0.02)
        for module in [*self.blocks, self.final_layer]:
            nn.init.zeros_(module.adaLN_modulation[1].weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def rope(self, with_context):
        """The rotation table for image tokens, after in-context tokens or without; None if RoPE is off."""
        first = 0 if with_context else self.s.context_tokens
        return (self.rope_cos[first:], self.rope_sin[first:]) if self.s.rope else None

    def forward(self, z, t, y, return_logits=False):
        """z: (B, C, H, W); t: (B,); y: (B,) class numbers, s.classes for "no class" -> the prediction (B, C, H, W).

        With return_logits also the class scores (B, classes) of Table 11's head, None without that head. The blocks
        before the head are not given the class, which it has to recognise.
        """
        time = self.t_embedder["mlp"](time_features(t))[:, None]  # (B, 1, D)
        label = self.y_embedder["embedding_table"](y)[:, None]  # (B, 1, D)
        x = self.x_embedder(z) + self.pos_embed  # (B, N, D)
        logits = None
        for i, block in enumerate(self.blocks):
            if i == self.s.context_start and self.cls_head is not None:  # before the tokens that know the class
                logits = self.cls_head(x.mean(dim=1))  # (B, classes)
            if i == self.s.context_start and self.s.context_tokens:
                x = torch.cat([label + self.in_context_posemb, x], dim=1)  # (B, K + N, D)
            joined = i >= self.s.context_start
            c = time + label if joined or self.cls_head is None else time
            x = block(x, c, self.rope(joined))
        x = self.final_layer(x[:, self.s.context_tokens :], time + label)  # (B, N, p*p*C)
        x = unpatchify(x, self.s.patch)  # (B, C, H, W)
        return (x, logits) if return_logits else x

# ---- 4. The training step (paper Algorithm 1) ------------------------------------------------------------------------

def autocast(device):
    """bf16 matrix products on CUDA, fp32 elsewhere. Conversions and loss are outside of it, always in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

def training_loss(net, x, y, s):
    """Noise a batch, have the network denoise it, compare. x: (B, C, H, W) in [-1, 1]; y: (B,) class numbers.

    Returns the scalar to descend, and for the log the flow loss (B,) and the time t (B,) of each image.
    """
    t = sample_t(len(x), s.mu, s.sigma, s.t_law, x.device)
    eps = s.noise_scale * torch.randn_like(x)
    z = interpolate(x, eps, t)
    dropped = torch.rand(len(y), device=y.device) < s.label_drop  # so it learns v without a class, too, for guidance
    with autocast(x.device):
        out, logits = net(z, t, torch.where(dropped, s.classes, y), return_logits=True)
    out = precondition(out.float(), z, t, s.precond)
    flow = flow_loss(out, x, eps, t, s.pred, s.loss, s.t_clip)
    total = flow.mean()
    if logits is not None:  # the paper adds it to the SUM of squares over an image; ours is their mean
        total = total + s.cls_loss / x[0].numel() * F.cross_entropy(logits.float(), y)
    return total, flow.detach(), t

EMA_WINDOW = {"ema1": 9, "ema2": 36}  # ema2 forgets four times as fast, as its decay of 0.9996 does against 0.9999

@torch.no_grad()
def update_average(average, parameters, decay, window, step):
    """average <- d average + (1 - d) parameters, in place, for lists of tensors.

    The paper's d = 0.9999 remembers 10,000 steps; in a shorter run that is mostly the random start. Until then we take
    d = 1 - window / (window + step): a memory of the last 1 / window of the run, as EDM2's power-function average.
    """
    decay = min(decay, 1 - window / (window + step))
    torch._foreach_lerp_(average, parameters, 1 - decay)

# ---- 5. Sampling (paper Algorithm 2) ---------------------------------------------------------------------------------

@torch.no_grad()
def integrate(velocity, z, steps=50, solver="heun"):
    """Solve dz/dt = v(z, t) from noise, t = 0, to data, t = 1; yield (t, z, x_pred) before every step and at the end.

    velocity: a function (z, t: float) -> v, of z's shape. x_pred = z + (1 - t) v: where the tangent at z meets t = 1.
    Heun takes the mean of the slopes at both ends of a step. The last step is Euler's, since at t = 1 itself
    v = (x - z) / (1 - t) would be 0 / 0: 2 * steps - 1 evaluations in all.
    """
    for i in range(steps):
        t, t_next = i / steps, (i + 1) / steps
        v = velocity(z, t)
        yield t, z, z + (1 - t) * v
        if solver == "heun" and i < steps - 1:
            v = (v + velocity(z + (t_next - t) * v, t_next)) / 2
        z = z + (t_next - t) * v
    yield 1.0, z, z

def guided_velocity(net, y, s, sampling):
    """The function (z, t) -> v that `integrate` follows: v_none + w (v_class - v_none), for classes y (B,).

    Guidance acts inside the open interval (paper Section 4.4); both halves then share one forward. Outside, w = 1 and
    v_class alone is enough.
    """
    clip = s.t_clip if sampling.t_clip is None else sampling.t_clip
    low, high = sampling.interval

    def velocity(z, t):
        inside = (low < t or low == 0) and t < high  # from 0 means t = 0 as well, as in the official code
        guided = inside and sampling.cfg != 1 and s.classes > 1  # a single class leaves nothing to guide towards
        labels = y
        if guided:
            z, labels = torch.cat([z, z]), torch.cat([y, torch.full_like(y, s.classes)])
        time = torch.full((len(z),), t, device=z.device)
        with autocast(z.device):
            out = net(z, time, labels)
        out = precondition(out.float(), z, time, s.precond)
        v = convert(out, z, time, s.pred, clip)["v"]
        if guided:
            v_class, v_none = v.chunk(2)
            v = v_none + sampling.cfg * (v_class - v_none)
        return v

    return velocity

def mix_seed(*numbers):
    """One seed from several numbers, mixed so that seeds of neighbouring steps or images have nothing in common."""
    sequence = np.random.SeedSequence([len(numbers), *numbers])  # the length, since (1, 2) and (1, 2, 0) count as equal
    return int(sequence.generate_state(1)[0])

def denoise(net, y, s, sampling, first=0):
    """From noise to images of classes y (B,), numbered first, first + 1, ...: the generator of `integrate`."""
    generators = [torch.Generator().manual_seed(mix_seed(sampling.seed, first + i)) for i in range(len(y))]
    noise = torch.stack([torch.randn(s.channels, s.size, s.size, generator=generator) for generator in generators])
    velocity = guided_velocity(net, y, s, sampling)
    return integrate(velocity, s.noise_scale * noise.to(y.device), sampling.steps, sampling.solver)

def sample_images(net, y, s, sampling):
    """Yield batches of finished images (B, C, H, W), uint8, one image for each class number in y (n,)."""
    for first in range(0, len(y), sampling.batch_size):
        for _, _, x in denoise(net, y[first : first + sampling.batch_size], s, sampling, first):
            pass  # the last x is the image
        if not x.isfinite().all():
            raise Stop("the network puts out numbers that are not finite: the run has failed.", 1)
        yield to_uint8(x)

def to_uint8(x):
    """[-1, 1] to 0 ... 255, rounded, as the official code writes images; they are clipped here and nowhere before."""
    return ((x.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)

# ---- That was the method. Engineering from here. ---------------------------------------------------------------------

# ---- 6. Built-in data: ten shapes, drawn as they are needed ----------------------------------------------------------

SHAPES = ["disc", "ring", "triangle", "square", "star", "heart", "cross", "moon", "flower", "gear"]
FACTORS = {  # all that varies within a class, so that it is a manifold of seven dimensions (disc and ring: six)
    "x": (-0.15, 0.15), "y": (-0.15, 0.15),  # the centre; a picture reaches from -1 to 1, y points down
    "size": (0.58, 0.77), "angle": (-0.31, 0.31),  # about half the width; 18 degrees either way
    "hue": (0.0, 1.0), "background_hue": (0.0, 1.0), "background_brightness": (0.58, 0.82),  # hues are circles
}

def random_factors(n, device=None):
    """Draw factors (n, 7), each uniform in its range."""
    low, high = torch.tensor(list(FACTORS.values()), device=device).unbind(1)
    return low + (high - low) * torch.rand(n, len(FACTORS), device=device)

def shape_outlines():
    """Each shape as a list of polygons in the complex plane (x + iy, y down); one inside another is a hole."""
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
        "star": [around([1.05, 0.42] * 5)],
        "heart": [torch.complex(16 * angle.sin() ** 3, heart_y) / 16],
        "cross": [torch.cat([arm * 1j**quarter for quarter in range(4)])],
        "moon": [torch.polar(0.6 + 0.34 * angle.sin() * angle.sin().abs(), math.pi + 2.3 * angle.cos())],
        "flower": [around(0.42 + 0.52 * (2.5 * angle).cos().abs()), around([0.25] * 120)],
        "gear": [around(0.77 + 0.18 * (3 * (8 * angle).cos()).clamp(-1, 1)), around([0.42] * 120)],
    }

@functools.cache
def distance_fields(device):
    """The signed distance to each outline, negative inside, on a grid over [-1.5, 1.5]^2: (10, 1, 128, 128)."""
    axis = torch.linspace(-1.5, 1.5, 128)
    point = torch.complex(axis[None, :], axis[:, None])  # (128, 128)
    fields = []
    for polygons in shape_outlines().values():
        start = torch.cat(polygons)[:, None, None]  # of each edge: (E, 1, 1)
        end = torch.cat([polygon.roll(-1) for polygon in polygons])[:, None, None]
        along = ((point - start) / (end - start)).real.clamp(0, 1)  # where on the edge the nearest place is
        distance = (point - start - along * (end - start)).abs().amin(0)
        turns = ((end - point) / (start - point)).angle().sum(0) / math.tau  # winding number: odd inside
        fields.append(distance * (1 - 2 * (turns.round() % 2)) - 0.06)  # the last term rounds the corners
    return torch.stack(fields)[:, None].to(device)

def rainbow(hue, saturation):
    """A circle of colours, about equally light (hence green's small swing): hue (B, 1, 1) -> RGB (B, 3, 1, 1)."""
    phase = torch.stack([hue, hue - 1 / 3, hue + 1 / 3], 1)
    centre, swing = torch.tensor([[0.58, 0.48, 0.55], [0.42, 0.32, 0.42]], device=hue.device).view(2, 3, 1, 1)
    return centre + saturation * swing * (math.tau * phase).cos()

def render_shapes(labels, factors, size):
    """Draw a picture for each label (B,) and row of factors (B, 7): (B, 3, size, size) in [-1, 1]."""
    x, y, scale, angle, hue, back_hue, back_light = factors[..., None, None].unbind(1)  # (B, 1, 1) each
    fields = distance_fields(factors.device)[labels]  # (B, 1, 128, 128)
    cos, sin = angle.cos() / (1.5 * scale), angle.sin() / (1.5 * scale)
    axis = (torch.arange(size, device=factors.device) + 0.5) * (2 / size) - 1

    def distance(shift):  # to the outline, from each pixel or from a place shifted along the diagonal
        right, down = axis[None, :] - x + shift, axis[:, None] - y + shift  # (B, 1, S), (B, S, 1)
        place = torch.stack([right * cos + down * sin, down * cos - right * sin], -1).clamp(-1, 1)  # (B, S, S, 2)
        return scale[:, None] * F.grid_sample(fields, place, align_corners=True)  # (B, 1, S, S)

    here, to_light = distance(0), distance(-0.07)  # the light stands at the top left
    slope = (to_light / 0.12).clamp(-1, 1) - (here / 0.12).clamp(-1, 1)  # of a bevel 0.12 wide
    face = torch.lerp(rainbow(hue, 1.0), (slope > 0).float(), 0.6 * slope.abs())  # towards white or black
    back = back_light[:, None] * (0.5 + rainbow(back_hue, 0.3)) * (1 - 0.4 * torch.sigmoid(-22 * to_light))  # shadow
    paint = torch.sigmoid(-1.5 * size * here)  # an edge about 1.5 pixels wide at any size
    return torch.lerp(back, face, paint) * 2 - 1

# ---- 7. Data: a folder of images, an .npz file, CIFAR-10 -------------------------------------------------------------

IMAGE_TYPES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
MEMORY_LIMIT = 4 * 2**30  # bytes; sets with more pixels are read from disk again and again
CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"  # the version without pickles
CIFAR_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # processes; set by torchrun

@dataclasses.dataclass
class Data:
    """A data set: the names of its classes (none: unconditional) and each image's class, and its pixels or its file."""

    names: list
    labels: torch.Tensor = None  # (n,) int64; None: drawn as they are needed, without end
    pixels: torch.Tensor = None  # (n, C, S, S) uint8, if they fit into memory
    files: list = None  # else their paths

def crop(image, size, channels):
    """PIL image of any mode -> uint8 (C, size, size): upright, on white, ADM's centre crop as in the official code."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, or 8 in a wide format
        wide = np.asarray(image)
        image = Image.fromarray((wide // 256 if wide.max() > 255 else wide).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
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

def decode(path, size, channels):
    """The pixels of an image file, uint8 (C, size, size); None, and a line that says so, if they cannot be read."""
    try:
        with Image.open(path) as image:
            return crop(image, size, channels)
    except Exception as error:  # broken files raise nearly anything
        tqdm.write(f"skipped {path}: {error}", file=sys.stderr)
        return None

def open_folder(root, s):
    """FOLDER/CLASS/**/IMAGE, or FOLDER/IMAGE for unconditional data; in sorted order, so numbers keep their meaning."""
    found = map(Path, glob.glob(f"{glob.escape(str(root))}/**/*", recursive=True))  # leaves out hidden files
    paths = sorted(path for path in found if path.suffix.lower() in IMAGE_TYPES)
    need(paths, f"{root} holds no images; lay them out as {root}/CLASS/*.jpg, or {root}/*.jpg if there are no classes.")
    nested = [path for path in paths if path.parent != root]
    if nested and len(nested) < len(paths):
        print(f"{len(paths) - len(nested)} images in {root} itself have no class and are left out", file=sys.stderr)
    class_of = [path.relative_to(root).parts[0] for path in nested] or [""] * len(paths)
    names = sorted(set(class_of))
    split = "train" in names and set(names) <= {"train", "val", "test"}
    need(not split, f"{root} is split into {', '.join(names)}: give one of them, such as {root / 'train'}.")
    labels = torch.tensor([names.index(name) for name in class_of])
    names, paths = (names, nested) if nested else ([], paths)
    if len(paths) * s.channels * s.size**2 > MEMORY_LIMIT:
        return Data(names, labels, files=paths)
    with ThreadPoolExecutor(s.workers) as pool:
        images = pool.map(lambda path: decode(path, s.size, s.channels), paths)
        images = list(tqdm(images, "decoding", len(paths), unit="image", leave=False))
    good = [i for i, image in enumerate(images) if image is not None]
    need(good, f"none of the {len(paths)} files in {root} can be read as an image.")
    if len(good) < len(paths):
        print(f"{len(paths) - len(good)} of {len(paths)} files in {root} were skipped", file=sys.stderr)
    return Data(names, labels[good], torch.stack([images[i] for i in good]))

def from_arrays(images, labels, names, s):
    """uint8 images (n, H, W, C) or (n, H, W) of any size and class numbers (n,) -> Data in memory."""
    if images.shape[1:] == (s.size, s.size, s.channels):
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    else:
        pixels = torch.stack([crop(Image.fromarray(image.squeeze()), s.size, s.channels) for image in images])
    return Data(names, torch.from_numpy(labels).long(), pixels)

def load_arrays(path):
    """The arrays of an .npz file, by name."""
    try:
        with np.load(path) as file:
            return dict(file)
    except Exception as error:  # whatever bytes may cause
        raise Stop(f"{path} cannot be read as an .npz file: {error}", 2) from error

def save_arrays(path, arrays):
    """An .npz file, through write_whole; numpy would add .npz to another name, but not to an open file."""
    def write(temporary):
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)
    write_whole(path, write)

def open_npz(path, s):
    """The format of ADM's evaluation suite: arr_0 uint8 (n, H, W, C) and, if there are classes, arr_1 (n,)."""
    arrays = load_arrays(path)
    need("arr_0" in arrays, f"{path} holds no arr_0, the images.")
    images, labels = arrays["arr_0"], arrays.get("arr_1")
    shaped = images.size and images.ndim > 2 and images.shape[3:] in ((), (1,), (3,), (4,))
    need(shaped and images.dtype == np.uint8, f"{path}: arr_0 must be uint8 (n, H, W, C), not {images.dtype} "
         f"{images.shape}.")
    if labels is None:
        return from_arrays(images, np.zeros(len(images)), [], s)
    counted = labels.shape == (len(images),) and labels.dtype.kind in "iu" and labels.min() >= 0
    need(counted, f"{path}: arr_1 must hold a class number for each image, whole and not negative.")
    return from_arrays(images, labels.astype(np.int64), [str(i) for i in range(labels.max() + 1)], s)

def download(url, path, sha256, otherwise=""):
    """Fetch a file, unless it is there; a file with another checksum is not kept."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)
    except Exception as error:  # of the network, the disk or the checksum
        raise Stop(f"the download failed ({error}): get {url} and put it at {path}{otherwise}.", 2) from error

def open_cifar10(s):
    """CIFAR-10, kept in torch.hub's cache; a record is a label and 3072 bytes: red, green, blue."""
    path = Path(torch.hub.get_dir()) / "cifar-10-binary.tar.gz"
    download(CIFAR_URL, path, CIFAR_SHA256)
    with tarfile.open(path) as archive:
        files = [archive.extractfile(f"cifar-10-batches-bin/data_batch_{i}.bin").read() for i in range(1, 6)]
    records = np.frombuffer(b"".join(files), np.uint8).reshape(-1, 3073)
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # (50000, 32, 32, 3)
    return from_arrays(np.ascontiguousarray(images), records[:, 0].astype(np.int64), CIFAR_CLASSES, s)

def open_data(s):
    """The data set that --data names."""
    path = Path(s.data)
    if s.data == "shapes":
        return Data(SHAPES)
    if s.data == "cifar10":
        return open_cifar10(s)
    if path.is_dir():
        return open_folder(path, s)
    need(path.suffix == ".npz" and path.is_file(), f"--data {path}: no folder, no .npz file, nor shapes or cifar10.")
    return open_npz(path, s)

def draw_shapes(y, s):
    """A new picture of each shape y (B,): (B, C, S, S) in [-1, 1]."""
    x = render_shapes(y, random_factors(len(y), y.device), s.size)
    return x if s.channels == 3 else x.mean(1, keepdim=True)

@functools.lru_cache(maxsize=2)  # a batch can span two epochs
def shuffled(n, seed, epoch):
    """The order in which an epoch goes through n images."""
    return np.random.default_rng([seed, epoch]).permutation(n)

def read_batches(data, lists, s, ahead=4):
    """Yield (pixels, labels) for each list of indices: from memory, or decoded by threads, some batches ahead.

    Threads will do, since PIL decodes outside of Python's lock. A batch is smaller by its broken files.
    """
    if data.files is None:
        yield from ((data.pixels[indices], data.labels[indices]) for indices in lists)
        return
    with ThreadPoolExecutor(s.workers) as pool:
        started = ([(i, pool.submit(decode, data.files[i], s.size, s.channels)) for i in indices] for indices in lists)
        waiting = collections.deque(itertools.islice(started, ahead))
        while waiting:
            decoded = [(i, job.result()) for i, job in waiting.popleft()]
            waiting.extend(itertools.islice(started, 1))
            good = [(i, image) for i, image in decoded if image is not None]
            need(good, "a whole batch of images could not be read.")
            yield torch.stack([image for _, image in good]), data.labels[[i for i, _ in good]]

def training_batches(data, s, steps, parts, device):
    """Yield (x, y) for each part of each step: x (b, C, S, S) in [-1, 1] and y (b,) on the device."""
    b = s.batch_size // (s.accum * WORLD)
    if data.labels is None:
        for _ in range(len(steps) * len(parts)):
            y = torch.randint(len(SHAPES), (b,), device=device)
            yield draw_shapes(y, s), y * (s.classes > 0)
        return
    n = len(data.labels)

    def image_at(place):  # image numbers go on through all epochs: place // n is the epoch
        return int(shuffled(n, s.seed, place // n)[place % n])

    starts = (step * s.batch_size + part * b for step in steps for part in parts)
    lists = ([image_at(place) for place in range(start, start + b)] for start in starts)
    for pixels, y in read_batches(data, lists, s):
        x = pixels.to(device, non_blocking=True).float() / 127.5 - 1
        if s.flip:
            x = torch.where(torch.rand(len(x), 1, 1, 1, device=device) < 0.5, x.flip(-1), x)
        yield x, y.to(device, non_blocking=True) * (s.classes > 0)

# ---- 8. Metrics: FID, Inception Score and KID as the official code has them, from torch-fidelity; and rfd ------------

INCEPTION_FILES = ["weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"]  # one file
INCEPTION_URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/" + INCEPTION_FILES[0]
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
# The Inception network of 2015 as a table. A block's branches, separated by ";", are concatenated; "," separates the
# steps of a branch, and "|" two layers on the same input. "/2" is stride 2; that and "valid" go without padding.
BLOCKS = {
    "A": "branch1x1; branch5x5_1, branch5x5_2; branch3x3dbl_1, branch3x3dbl_2, branch3x3dbl_3; average, branch_pool",
    "B": "branch3x3 /2; branch3x3dbl_1, branch3x3dbl_2, branch3x3dbl_3 /2; max /2",
    "C": "branch1x1; branch7x7_1, branch7x7_2, branch7x7_3; branch7x7dbl_1, branch7x7dbl_2, branch7x7dbl_3, "
         "branch7x7dbl_4, branch7x7dbl_5; average, branch_pool",
    "D": "branch3x3_1, branch3x3_2 /2; branch7x7x3_1, branch7x7x3_2, branch7x7x3_3, branch7x7x3_4 /2; max /2",
    "E": "branch1x1; branch3x3_1, branch3x3_2a | branch3x3_2b; branch3x3dbl_1, branch3x3dbl_2, branch3x3dbl_3a | "
         "branch3x3dbl_3b; average, branch_pool",
}
STEM = "Conv2d_1a_3x3 /2, Conv2d_2a_3x3 valid, Conv2d_2b_3x3, max /2, Conv2d_3b_1x1, Conv2d_4a_3x3 valid, max /2"
MIXED = dict(zip("5b 5c 5d 6a 6b 6c 6d 6e 7a 7b".split(), "A A A B C C C C D E".split()))
INCEPTION = {"": STEM} | {f"Mixed_{name}.": BLOCKS[kind] for name, kind in MIXED.items()}
INCEPTION["Mixed_7c."] = BLOCKS["E"].replace("average", "max")

def load_inception(path, any_hash, device):
    """The weights {layer: (kernel, bias)}, batch norm folded in, for inception_features, and their file's SHA-256.

    From path, else from torch.hub's cache under either of the file's names, else downloaded into that cache.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    cached = [folder / name for name in INCEPTION_FILES if (folder / name).exists()]
    path = Path(path or (cached + [folder / INCEPTION_FILES[0]])[0])
    if path.parent == folder:
        download(INCEPTION_URL, path, INCEPTION_SHA256, otherwise=", or use --features rfd")
    need(path.exists(), f"--inception {path}: there is no such file; without this flag it is downloaded.")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    need(any_hash or sha256 == INCEPTION_SHA256, f"{path} is not the file that all FIDs are measured with: its SHA-256 "
         f"begins {sha256[:8]}, not {INCEPTION_SHA256[:8]}; --inception-any-hash takes it all the same.")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
        network = {"fc": (state.pop("fc.weight"), state.pop("fc.bias"))}
        for block, table in INCEPTION.items():
            for layer in re.findall(r"(?:Conv2d|branch)\w+", table):
                kernel, scale, shift, mean, variance = (state.pop(f"{block}{layer}.{part}") for part in (
                    "conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"))
                scale = scale / (variance + 1e-3).sqrt()
                kernel = (kernel * scale[:, None, None, None]).contiguous(memory_format=torch.channels_last)
                network[block + layer] = kernel, shift - mean * scale
        inception_features(network, torch.zeros(1, 3, 8, 8, dtype=torch.uint8, device=device))  # do the shapes fit?
    except Exception as error:
        raise Stop(f"{path} does not hold the weights of FID's Inception network: {error}", 2) from error
    need(not state, f"{path} does not hold the weights of FID's Inception network: what is {next(iter(state), '')}?")
    return network, sha256

def resize_tf1(x, dim):
    """Bilinear resize of one axis to 299 as TensorFlow 1 did it: no half-pixel shift, no antialiasing."""
    source = torch.arange(299, device=x.device) * torch.tensor(x.shape[dim] / 299, device=x.device)
    low = source.long()
    left, right = x.index_select(dim, low), x.index_select(dim, (low + 1).clamp_max(x.shape[dim] - 1))
    return left + (right - left) * (source - low).view(-1, *[1] * (3 - dim))

def inception_layer(network, block, layer, x):
    """One entry of the table: a pooling, or a convolution and ReLU."""
    name, _, option = layer.partition(" ")
    stride = 2 if option == "/2" else 1
    if name == "max":
        return F.max_pool2d(x, 3, stride, padding=0 if stride == 2 else 1)
    if name == "average":
        return F.avg_pool2d(x, 3, stride, padding=1, count_include_pad=False)
    padding = "valid" if option else "same"  # "/2" goes without padding, too
    return F.relu_(F.conv2d(x, *network[block + name], stride, padding))

@torch.no_grad()
def inception_features(network, images):
    """uint8 images (B, 1 or 3, H, W) of any size -> features (B, 2048), Inception Score logits (B, 1008); in fp32."""
    assert images.dtype == torch.uint8, "images in [-1, 1] would all look alike"
    x = images.expand(-1, 3, -1, -1).float()
    x = (resize_tf1(resize_tf1(x, dim=3), dim=2) - 128) / 128  # (B, 3, 299, 299)
    x = x.contiguous(memory_format=torch.channels_last)
    for block, table in INCEPTION.items():
        branches = []
        for branch in table.split("; "):
            y = x
            for step in branch.split(", "):
                y = torch.cat([inception_layer(network, block, layer, y) for layer in step.split(" | ")], 1)
            branches.append(y)
        x = torch.cat(branches, 1)
    features = x.mean((2, 3))  # (B, 2048, 8, 8) -> (B, 2048)
    return features, features @ network["fc"][0].T  # torch-fidelity's Inception Score leaves out the bias

@functools.cache
def random_kernels(device):
    """Three 3x3 convolutions with He weights, always the same ones."""
    generator = np.random.RandomState(2511)  # the numbers of this old generator are frozen for ever
    widths = ((32, 3), (64, 32), (128, 64))
    kernels = [generator.standard_normal((n, m, 3, 3)) * (2 / (9 * m)) ** 0.5 for n, m in widths]
    kernels[0] -= kernels[0].mean((1, 2, 3), keepdims=True)  # the first looks for edges and colours, not brightness
    return [torch.tensor(kernel, dtype=torch.float32, device=device) for kernel in kernels]

@torch.no_grad()
def random_features(images):
    """uint8 images (B, 1 or 3, H, W), 8 pixels or more -> features (B, 496) of a fixed random network.

    A Frechet distance between such features is what we call rfd, random-feature distance. It is not FID.
    Of each of three layers the mean and the spread of every channel over the image; and, since those do not know where
    things are, the mean colours of a 4 x 4 grid.
    """
    assert images.dtype == torch.uint8, "images in [-1, 1] would all look alike"
    need(min(images.shape[-2:]) >= 8, "rfd needs images of 8 pixels or more.")
    if len(images) > 16:  # more would not fit into the cache of a CPU
        return torch.cat([random_features(part) for part in images.split(16)])
    x = images.expand(-1, 3, -1, -1).float() / 127.5 - 1
    features = [F.adaptive_avg_pool2d(x, 4).flatten(1)]
    for kernel in random_kernels(images.device):
        x = F.relu_(F.conv2d(x, kernel, padding=1))
        features += [x.mean((2, 3)), x.std((2, 3), correction=0)]
        x = F.avg_pool2d(x, 2)
    return torch.cat(features, 1)

class Moments:
    """Number, mean (d,) and covariance (d, d), with N - 1, of features that come in batches; float64, on the CPU."""

    def __init__(self):
        self.n, self.mean, self.scatter = 0, 0.0, 0.0

    def add(self, features):
        """Take in a batch (B, d) (Chan, Golub and LeVeque 1979)."""
        batch = features.cpu().double().numpy()
        n = self.n + len(batch)
        delta, centred = batch.mean(0) - self.mean, batch - batch.mean(0)
        self.scatter = self.scatter + centred.T @ centred + np.outer(delta, delta) * (self.n * len(batch) / n)
        self.mean = self.mean + delta * (len(batch) / n)
        self.n = n

    def covariance(self):
        return self.scatter / (self.n - 1)

def frechet_distance(mu1, sigma1, mu2, sigma2):
    """|mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr (S1 S2)^(1/2), between two Gaussians.

    With S = R R^T the last trace is the sum of the singular values of R1^T R2. So nothing is ever complex, and any rank
    will do, where the square root of S1 S2 itself is inexact if there are fewer images than features.
    """
    roots = []
    for sigma in (sigma1, sigma2):
        values, vectors = np.linalg.eigh(sigma)
        kept = values > len(values) * np.finfo(float).eps * values[-1]  # the others are rounding errors
        roots.append(vectors[:, kept] * np.sqrt(values[kept]))
    cross = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    return max(0.0, float(np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * cross))

def inception_score(logits, splits=10):
    """exp(mean KL(p(y|x) | p(y))) of logits (N, 1008): mean and standard deviation over the splits.

    Shuffled first: samples come sorted by class, and a split without most classes scores about half.
    """
    log_p = logits.cpu().double()[np.random.RandomState(2020).permutation(len(logits))].log_softmax(1)
    bounds = [i * len(log_p) // splits for i in range(splits + 1)]
    parts = [log_p[start:end] for start, end in zip(bounds, bounds[1:]) if end > start]
    log_means = [part.logsumexp(0) - math.log(len(part)) for part in parts]  # log p(y)
    scores = [(part.exp() * (part - mean)).sum(1).mean().exp().item() for part, mean in zip(parts, log_means)]
    return float(np.mean(scores)), float(np.std(scores))

def kid(features1, features2, subsets=100, size=1000):
    """Kernel Inception Distance: MMD^2 with kernel (x.y / d + 1)^3, mean over random subsets. Unbiased at any N."""
    generator, values = np.random.RandomState(2020), []
    m = min(size, len(features1), len(features2))
    for _ in range(subsets):
        x, y = (f[generator.choice(len(f), m, replace=False)].double() for f in (features1, features2))
        xx, yy, xy = ((a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))  # (m, m)
        same = xx.sum() - xx.trace() + yy.sum() - yy.trace()
        values.append((same / (m * (m - 1)) - 2 * xy.mean()).item())
    return float(np.mean(values))

# ---- 9. Runs: the training loop, its log and its checkpoints ---------------------------------------------------------

CHECKPOINT = "checkpoint-last.pth"  # the official name
WEIGHTS = {"raw": "model", "ema1": "model_ema1", "ema2": "model_ema2"}  # --weights and the official keys

def write_whole(path, write):
    """write(a temporary file), then rename: at `path` there is the old file or the new one, never half of one."""
    temporary = Path(path).with_name(f".{Path(path).name}.part")
    write(temporary)
    os.replace(temporary, path)

def choose_device(name):
    """The torch.device of --device; auto: a GPU if there is one."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = name if name != "auto" else next(kind for kind in there if there[kind])
    need(there[name], f"--device {name}: there is none here; without --device the best there is is taken.")
    if name != "cuda":
        return torch.device(name)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))  # set by torchrun
    torch.cuda.set_device(device)
    return device

def make_optimizer(net, s):
    """AdamW, in two groups as in the official code (one for weight decay, which is 0), so that its state fits there."""
    groups = [{"params": []}, {"params": []}]
    for name, p in net.named_parameters():
        if p.requires_grad:
            groups[0 if p.dim() == 1 or name.endswith(".bias") else 1]["params"].append(p)
    return torch.optim.AdamW(groups, s.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

def save_checkpoint(path, net, averages, optimizer, step, s, data):
    """The official layout, parameter names with the prefix "net."; and settings, step and class names as plain data."""
    names = ["net." + name for name, _ in net.named_parameters()]
    weights = {"model": net.parameters(), "model_ema1": averages["ema1"], "model_ema2": averages["ema2"]}
    checkpoint = {key: {name: p.detach() for name, p in zip(names, values)} for key, values in weights.items()}
    epoch = 0 if data.labels is None else step * s.batch_size // len(data.labels)
    checkpoint |= dict(optimizer=optimizer.state_dict(), epoch=epoch, step=step)
    checkpoint |= dict(settings=dataclasses.asdict(s), names=data.names)
    write_whole(path, lambda temporary: torch.save(checkpoint, temporary))

def load_checkpoint(path):
    """What a checkpoint file holds; nothing in it is executed."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the official code saves its flags so
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise Stop(f"there is no checkpoint {path}.", 2) from error
    except Exception as error:  # whatever bytes may cause
        raise Stop(f"{path} cannot be read as a checkpoint ({type(error).__name__}).", 2) from error
    need(isinstance(checkpoint, dict) and "model" in checkpoint, f"{path} is no checkpoint of a JiT: no 'model' in it.")
    return checkpoint

def infer_settings(weights):
    """The settings of a released checkpoint, from the shapes of its weights (names without prefix)."""
    bottleneck, channels, patch, _ = weights["x_embedder.proj1.weight"].shape
    rows, width = weights["y_embedder.embedding_table.weight"].shape
    depth = sum(name.endswith("attn.qkv.weight") for name in weights)
    model = next((name for name in MODELS if (MODELS[name]["depth"], MODELS[name]["width"]) == (depth, width)), "B")
    s = resolve(Settings(
        model=f"{model}/{patch}", size=math.isqrt(weights["pos_embed"].shape[1]) * patch, channels=channels,
        classes=rows - 1, depth=depth, width=width, heads=width // len(weights["blocks.0.attn.q_norm.weight"]),
        bottleneck=bottleneck, context_tokens=weights["in_context_posemb"].shape[1]))
    return dataclasses.replace(s, data="")  # of which the file says nothing

def find_checkpoint(run):
    """The checkpoint file of a run folder, or the file itself; what is made from a run is written beside it."""
    return Path(run) / CHECKPOINT if Path(run).is_dir() else Path(run)

def load_run(path, which, device):
    """(network, settings, class names) for sampling, from a run folder or checkpoint file; which: a key of WEIGHTS."""
    path = find_checkpoint(path)
    checkpoint = load_checkpoint(path)
    need(WEIGHTS[which] in checkpoint, f"{path} has no weights {which}.")
    try:
        weights = {name.removeprefix("net."): value for name, value in checkpoint[WEIGHTS[which]].items()}
        s = Settings(**checkpoint["settings"]) if "settings" in checkpoint else infer_settings(weights)
        net = JiT(s)
        net.load_state_dict(weights)
    except Stop:
        raise
    except Exception as error:
        raise Stop(f"{path} does not fit this network: {str(error).splitlines()[-1].strip()}", 2) from error
    return net.to(device).eval().requires_grad_(False), s, checkpoint.get("names", [str(i) for i in range(s.classes)])

def resume(s, names, net, averages, optimizer):
    """Restore the state of the run in --out, if there is one; return the number of steps it has done."""
    out = Path(s.out)
    if not (out / CHECKPOINT).exists():
        need(not s.resume, f"--resume: there is no {out / CHECKPOINT} to go on from.")
        ours = (out / "config.json").exists() or not any(out.glob("[!.]*"))  # hidden files may be ours, half-written
        need(ours and not out.is_file(), f"--out {out} is there already and is no run; choose another.")
        return 0
    checkpoint = load_checkpoint(out / CHECKPOINT)
    need("settings" in checkpoint, f"{out / CHECKPOINT} is not from this program and cannot be trained further.")
    before, now = checkpoint["settings"], dataclasses.asdict(s)
    changed = [f for f in dataclasses.fields(s) if f.name not in CHANGEABLE and before.get(f.name) != now[f.name]]
    others = ", ".join(as_typed(field, before.get(field.name)) for field in changed)
    need(not changed, f"{out} is a run with {others}: give the same, or choose another --out.")
    classes = ", ".join(checkpoint["names"]) or "(none)"
    need(checkpoint["names"] == names, f"{out} is a run with the classes {classes}: the data have others now.")
    with torch.no_grad():
        for target, key in ((net.parameters(), "raw"), (averages["ema1"], "ema1"), (averages["ema2"], "ema2")):
            for tensor, value in zip(target, checkpoint[WEIGHTS[key]].values(), strict=True):
                tensor.copy_(value)
    optimizer.load_state_dict(checkpoint["optimizer"])
    if checkpoint["step"] >= s.steps:
        raise Stop(f"{out} is done, at step {checkpoint['step']}; go on with more --steps, or: jit.py sample {out}", 0)
    return checkpoint["step"]

def summarize(seen):
    """Mean loss, and mean loss in ten bins of t (None: no t fell there), of a list of pairs flow, t, (b,) each."""
    flow, t = (torch.cat(column).cpu() for column in zip(*seen))
    bins = [flow[(t * 10).long().clamp(max=9) == i] for i in range(10)]
    return flow.mean().item(), [loss.mean().item() if len(loss) else None for loss in bins]

def read_log(out):
    """log.jsonl as a list of dicts, without a last line that a crash cut short."""
    path = Path(out) / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]

def plot_loss(out):
    """loss.png: the loss against the step, and, for the last tenth of the log, against t."""
    import matplotlib.pyplot as plt

    log = read_log(out)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    left.plot([line["step"] for line in log], [line["loss"] for line in log])
    left.set(xlabel="step", ylabel="loss", yscale="log")
    last = np.array([line["loss_by_t"] for line in log[-max(1, len(log) // 10) :]], dtype=float)  # None -> nan
    right.plot(np.arange(0.05, 1, 0.1), np.ma.masked_invalid(last).mean(0), "o-")
    right.set(xlabel="t (0 noise, 1 data)", ylabel="loss", yscale="log", xlim=(0, 1))
    write_whole(Path(out) / "loss.png", lambda path: figure.savefig(path, format="png"))
    plt.close(figure)

def open_run(out, s, data, net, done, device):
    """Write config.json, drop log lines later than the checkpoint, and say what begins."""
    out.mkdir(parents=True, exist_ok=True)
    config = json.dumps(dataclasses.asdict(s) | dict(names=data.names, torch=torch.__version__), indent=1)
    write_whole(out / "config.json", lambda path: path.write_text(config))
    log = [json.dumps(line) + "\n" for line in read_log(out) if line["step"] <= done]
    write_whole(out / "log.jsonl", lambda path: path.write_text("".join(log)))
    images = "endless" if data.labels is None else f"{len(data.labels):,}"
    parameters = sum(p.numel() for p in net.parameters() if p.requires_grad)
    print(f"{out}: {s.pred}-prediction, {s.loss}-loss, {parameters / 1e6:.1f}M parameters, {net.pos_embed.shape[1]} "
          f"patches of {s.channels * s.patch**2} numbers, {images} images, {s.classes} classes, {device}, step {done}")

def catch_signals():
    """A list into which Ctrl-C and SIGTERM put their number; the second one ends the program at once."""
    caught = []
    def handler(number, frame):
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
    return caught

def any_process(wish, device):
    """Whether a process has this wish; all of them must get here at the same step, and stop at the same step."""
    if WORLD == 1:
        return wish
    votes = torch.tensor(float(wish), device=device)
    torch.distributed.all_reduce(votes)
    return votes.item() > 0

def train(s):
    """The training loop. (seed, step, part) seeds all that a step draws, so a resumed run draws as if never stopped."""
    device = choose_device(s.device)
    if WORLD > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    out = Path(s.out)
    data = open_data(s)
    s.classes = len(data.names) if s.classes is None else s.classes
    data.names = data.names if s.classes else []
    need(s.classes >= len(data.names), f"--classes {s.classes} is too few: the data has {len(data.names)}.")
    need(s.classes or not s.cls_loss, "--cls-loss needs data with classes.")
    need(s.batch_size % (s.accum * WORLD) == 0, f"--batch-size is no multiple of the {s.accum * WORLD} parts it has.")
    torch.manual_seed(s.seed)
    net = JiT(s).to(device)
    parameters = list(net.parameters())
    averages = {key: [p.detach().clone() for p in parameters] for key in EMA_WINDOW}
    optimizer = make_optimizer(net, s)
    done = resume(s, data.names, net, averages, optimizer)
    if RANK == 0:
        open_run(out, s, data, net, done, device)
    model = torch.compile(net) if s.compile else net
    if WORLD > 1:
        model = nn.parallel.DistributedDataParallel(model, [device] if device.type == "cuda" else None)
    parts = range(RANK * s.accum, (RANK + 1) * s.accum)
    batches = training_batches(data, s, range(done, s.steps), parts, device)
    seen, caught = [], catch_signals()
    logged, clock = done, time.perf_counter()
    bar = tqdm(total=s.steps, initial=done, desc=out.name, unit="step", disable=RANK > 0)

    for step in range(done + 1, s.steps + 1):
        for part in parts:
            torch.manual_seed(mix_seed(s.seed, step, part))
            x, y = next(batches)
            early = WORLD > 1 and part != parts[-1]  # processes average their gradients once, after the last part
            with model.no_sync() if early else contextlib.nullcontext():
                total, flow, t = training_loss(model, x, y, s)
                (total / len(parts)).backward()
            seen.append((flow, t))  # stays on the device: no step waits for the GPU
        for group in optimizer.param_groups:
            group["lr"] = s.lr * min(1.0, step / max(1, s.warmup))
        optimizer.step()
        for key, decay in (("ema1", s.ema1), ("ema2", s.ema2)):
            update_average(averages[key], parameters, decay, EMA_WINDOW[key], step)
        bar.update()

        last = step == s.steps
        log = last or step % s.log_every == 0
        save = last or step % s.save_every == 0
        draw = last or step % s.sample_every == 0
        stop = (log or WORLD == 1) and any_process(bool(caught), device)
        if log or save or draw or stop:
            mean, by_t = summarize(seen)
            norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm().item()
            if not math.isfinite(mean + norm):
                bar.close()
                raise Stop(f"at step {step} the loss is {mean}, its gradient {norm}; what is saved in {out} is from "
                           "before. Try a lower --lr and another --out.", 1)
            rate = (step - logged) * s.batch_size / (time.perf_counter() - clock)
            if RANK == 0:
                line = dict(step=step, loss=mean, loss_by_t=by_t, grad_norm=norm, lr=group["lr"], images_per_s=rate,
                            gpu_memory_gb=torch.cuda.max_memory_allocated() / 1e9)
                with open(out / "log.jsonl", "a") as file:
                    file.write(json.dumps(line) + "\n")
                bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
                if save or stop:
                    save_checkpoint(out / CHECKPOINT, net, averages, optimizer, step, s, data)
                if draw:
                    draw_preview(net, averages["ema1"], s, data.names, out / f"samples-{step:06d}.png")
                    plot_loss(out)
            seen, logged, clock = [], step, time.perf_counter()
        optimizer.zero_grad()
        if stop:
            bar.close()
            raise Stop(f"stopped and saved at step {step}; the same command goes on.", 128 + max(caught + [2]))
    bar.close()
    if RANK == 0:
        print(f"done: look at {out / f'samples-{s.steps:06d}.png'}; more with: python jit.py sample {out}")

# ---- 10. Pictures and commands ---------------------------------------------------------------------------------------

def make_sheet(pixels, captions, columns):
    """uint8 images (n, C, H, W), enlarged to a side of 96 at least, row by row with captions: a PIL image."""
    zoom = math.ceil(96 / pixels.shape[-1])
    arrays = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy().repeat(zoom, 1).repeat(zoom, 2)
    height, width = arrays.shape[1] + 18, arrays.shape[2] + 4
    sheet = Image.new("RGB", (columns * width, math.ceil(len(arrays) / columns) * height), "white")
    for i, (array, caption) in enumerate(zip(arrays, captions)):
        left, top = i % columns * width + 2, i // columns * height
        sheet.paste(Image.fromarray(array), (left, top + 16))
        ImageDraw.Draw(sheet).text((left + 1, top + 2), caption, fill="black")
    return sheet

def save_sheet(path, pixels, y, names):
    """Images (n, C, H, W) of classes y (n,) to one picture, ten in a row under the names of their classes."""
    captions = [names[label] if label < len(names) else "" for label in y]
    sheet = make_sheet(pixels, captions, columns=10)
    write_whole(path, lambda temporary: sheet.save(temporary, "PNG"))

def pick_classes(n, wanted, s, names):
    """The class number of each of n images, (n,): those wanted, or all, taking turns; 0 for unconditional data."""
    chosen = []
    for word in filter(None, (word.strip() for word in wanted.split(","))):
        near = "".join(f" Did you mean {name}?" for name in difflib.get_close_matches(word, names, 1, cutoff=0.4))
        known = word in names or word.isdecimal() and int(word) < s.classes
        need(known, f"--classes {word}: there is no such class among {s.classes}.{near}")
        chosen.append(names.index(word) if word in names else int(word))
    chosen = chosen or range(max(1, s.classes))
    return torch.tensor([chosen[i % len(chosen)] for i in range(n)])

def draw_preview(net, average, s, names, path):
    """A sheet from averaged weights and always the same noise: the sheets of a run show its progress."""
    shown = copy.deepcopy(net).eval()
    for p, value in zip(shown.parameters(), average):
        p.data.copy_(value)
    y = pick_classes(40, "", s, names).to(average[0].device)
    pixels = torch.cat(list(sample_images(shown, y, s, Sampling(cfg=s.cfg))))
    save_sheet(path, pixels, y, names)

def draw_trajectory(net, y, s, sampling, folder):
    """From noise to image: trajectory.png, z above x_pred at ten times, and trajectory.gif, a frame a step."""
    states = list(denoise(net, y, s, sampling))
    shown = [states[i * (len(states) - 1) // 9] for i in range(10)]
    rows, captions = [], []
    for i in range(len(y)):
        rows += [to_uint8(z[i]) for _, z, _ in shown] + [to_uint8(x_pred[i]) for _, _, x_pred in shown]
        captions += [f"{name} t = {t:.2f}" for name in ("z", "x_pred") for t, _, _ in shown]
    strip = make_sheet(torch.stack(rows), captions, columns=10)
    write_whole(folder / "trajectory.png", lambda temporary: strip.save(temporary, "PNG"))
    frames = []
    for t, z, x_pred in states:
        captions = [f"z t = {t:.2f}"] * len(y) + ["x_pred"] * len(y)
        frames.append(make_sheet(to_uint8(torch.cat([z, x_pred])), captions, columns=len(y)))
    pauses = [80] * (len(frames) - 1) + [2000]  # milliseconds
    write_whole(folder / "trajectory.gif", lambda temporary: frames[0].save(
        temporary, "GIF", save_all=True, append_images=frames[1:], duration=pauses, loop=0))
    print(f"{folder / 'trajectory.png'} and {folder / 'trajectory.gif'}")

def check_sampling(sampling):
    """The same, or a stop if it cannot be."""
    check_lowest(sampling)
    need(len(sampling.interval) == 2, "--interval needs two numbers, such as 0.1,1.")
    need(sampling.weights in WEIGHTS, f"--weights {sampling.weights}: choose from {', '.join(WEIGHTS)}.")
    return sampling

def sample(args):
    """python jit.py sample RUN: draw images to a sheet, single files, an .npz file, or the whole way from the noise."""
    sampling = check_sampling(take(Sampling, args))
    device = choose_device(sampling.device)
    net, s, names = load_run(args.run, sampling.weights, device)
    y = pick_classes(sampling.n, args.classes, s, names).to(device)
    folder = find_checkpoint(args.run).parent
    if args.trajectory:
        need(not args.png_dir and not args.npz, "--trajectory goes without --png-dir and --npz.")
        draw_trajectory(net, y[:4], s, sampling, folder)
        return
    for target in filter(None, (args.png_dir, args.npz and Path(args.npz).parent)):
        Path(target).mkdir(parents=True, exist_ok=True)
    model = torch.compile(net) if sampling.compile else net
    kept, number = [], 0
    for batch in tqdm(sample_images(model, y, s, sampling), "sampling", math.ceil(sampling.n / sampling.batch_size)):
        if args.png_dir:  # at once: 50,000 images are not kept, nor lost by Ctrl-C
            for image in batch.permute(0, 2, 3, 1).cpu().numpy():
                Image.fromarray(image.squeeze()).save(Path(args.png_dir) / f"{number:06d}.png")
                number += 1
        if args.npz or not args.png_dir:
            kept.append(batch.cpu())
    if args.npz:
        arrays = {"arr_0": torch.cat(kept).permute(0, 2, 3, 1).numpy()}  # (n, H, W, C)
        save_arrays(args.npz, arrays | ({"arr_1": y.cpu().numpy()} if s.classes else {}))
    if not args.png_dir and not args.npz:
        save_sheet(folder / "samples.png", torch.cat(kept), y, names)
    print(args.png_dir or args.npz or folder / "samples.png")

def is_run(source):
    """Whether this is a trained network, not images."""
    return (Path(source) / CHECKPOINT).exists() or Path(source).suffix == ".pth"

def image_batches(source, s, sampling, device):
    """(number, uint8 batches) of the images of a run or checkpoint, drawn now, or of a data set as --data takes it."""
    if is_run(source):
        net, s, names = load_run(source, sampling.weights, device)
        y = pick_classes(sampling.n, "", s, names).to(device)
        return sampling.n, sample_images(torch.compile(net) if sampling.compile else net, y, s, sampling)
    data = open_data(dataclasses.replace(s, data=source))
    if data.labels is None:
        torch.manual_seed(sampling.seed)
        y = torch.arange(sampling.n) % len(SHAPES)
        return sampling.n, (to_uint8(draw_shapes(part, s)) for part in y.split(sampling.batch_size))
    lists = (part.tolist() for part in torch.arange(len(data.labels)).split(sampling.batch_size))
    return len(data.labels), (pixels for pixels, _ in read_batches(data, lists, s))

def collect(source, s, sampling, extract, device):
    """One side of a comparison: {"mu", "sigma", "n", "size"}, and for images also their "features" and "logits"."""
    if Path(source).suffix == ".npz" and Path(source).is_file():
        arrays = load_arrays(source)
        if "mu" in arrays and "sigma" in arrays:  # statistics, not images; other programs' do not tell n and size
            side = {key: arrays[key].astype(float) for key in ("mu", "sigma", "n", "size") if key in arrays}
            need(side.get("size", s.size) == s.size, f"{source} is of images of another size, {side.get('size')}.")
            d = side["mu"].size
            sound = side["sigma"].shape == (d, d) and np.isfinite(side["sigma"]).all()
            need(sound, f"{source}: sigma is not a finite matrix with a row for each of the {d} numbers of mu.")
            return side
    total, batches = image_batches(source, s, sampling, device)
    moments, kept = Moments(), []
    with tqdm(total=total, desc=f"features of {source}", unit="image", leave=False) as bar:
        for images in batches:
            features, logits = extract(images.to(device))
            moments.add(features)
            if total <= 50_000:  # more would fill the memory
                kept.append((features.cpu(), logits.cpu()))
            bar.update(len(images))
    need(moments.n > 1, f"{source}: there must be two images at least.")
    if moments.n < 2048:
        print(f"{source}: with {moments.n} images, a Frechet distance is far too high (bias, rank)", file=sys.stderr)
    side = dict(mu=moments.mean, sigma=moments.covariance(), n=moments.n, size=s.size)
    return side | {key: torch.cat(column) for key, column in zip(("features", "logits"), zip(*kept))}

def compare(side, reference, sha256):
    """The metrics of two results of `collect`; sha256: of the Inception weights, None for rfd."""
    need(side["mu"].shape == reference["mu"].shape, "the two sides have features of different kinds.")
    n = int(side.get("n", 0))
    count = f"{n // 1000}k" if n % 1000 == 0 else str(n)
    name = ("fid" if sha256 else "rfd") + (f"_{count}" if n else "")  # other programs' statistics do not tell n
    result = {name: frechet_distance(side["mu"], side["sigma"], reference["mu"], reference["sigma"])}
    if sha256 and "logits" in side:
        mean, deviation = inception_score(side["logits"])
        result |= dict(inception_score=mean, inception_score_std=deviation, inception_sha256=sha256)
    if sha256 and "features" in side and "features" in reference:
        result |= dict(kid=kid(side["features"], reference["features"]))
    return result

def prepare(args):
    """For eval and stats: (settings, a Sampling for each trial, device, feature extractor, hash of its weights)."""
    device, base = choose_device(args.device), take(Sampling, args)
    trials = [check_sampling(dataclasses.replace(base, weights=weights, cfg=cfg))
              for weights in args.weights.split(",") for cfg in args.cfg]
    drawn = is_run(args.source)
    need(drawn or args.size, f"{args.source} is no run with a {CHECKPOINT}; if it is images, give --size, their side.")
    need(len(trials) == 1 or drawn and args.command == "eval", "several --cfg or --weights are for eval of a run.")
    s = load_run(args.source, "raw", device)[1] if drawn else Settings(size=args.size)
    check_lowest(s)
    if args.features == "rfd":
        return s, trials, device, lambda images: (random_features(images), torch.empty(0)), None  # it has no logits
    torch.backends.cudnn.allow_tf32 = False
    network, sha256 = load_inception(args.inception, args.inception_any_hash, device)
    return s, trials, device, functools.partial(inception_features, network), sha256

def write_statistics(args):
    """python jit.py stats: mean and covariance of the features of images, for eval --reference."""
    s, (sampling,), device, extract, _ = prepare(args)
    side = collect(args.source, s, sampling, extract, device)
    save_arrays(args.to, {key: side[key] for key in ("mu", "sigma", "n", "size") if key in side})
    print(args.to)

def evaluate(args):
    """python jit.py eval: compare images with a reference, at each of the guidance weights and averages."""
    s, trials, device, extract, sha256 = prepare(args)
    against = args.reference or s.data
    need(against, f"{args.source} does not say what it was trained on: give --reference.")
    other = dataclasses.replace(trials[0], seed=args.seed + 1)  # else both sides would hold the same generated shapes
    reference = collect(against, s, other, extract, device)
    results = []
    for sampling in trials:
        side = collect(args.source, s, sampling, extract, device)
        result = compare(side, reference, sha256) | dict(source=args.source, reference=against, size=s.size)
        if is_run(args.source):
            result |= dataclasses.asdict(sampling)
        results.append(result | dict(n=int(side.get("n", 0))))
        print(json.dumps(results[-1]))
    if is_run(args.source):
        file = find_checkpoint(args.source).parent / "metrics.json"
        before = json.loads(file.read_text()) if file.exists() else []
        write_whole(file, lambda temporary: temporary.write_text(json.dumps(before + results, indent=1)))
    if len(results) > 1:
        name = next(iter(results[0]))
        print("\n".join(f"{r['weights']:5} cfg {r['cfg']:<5g} {name} {r[name]:.4f}" for r in results), file=sys.stderr)

# Parameters in millions and multiply-adds in billions, from Tables 5 and 6 of the paper.
PAPER = {
    ("B/16", 256): (131, 25), ("B/32", 512): (133, 26), ("B/64", 1024): (141, 30), ("L/16", 256): (459, 88),
    ("L/32", 512): (462, 89), ("H/16", 256): (953, 182), ("H/32", 512): (956, 183), ("G/16", 256): (2007, 384),
    ("G/32", 512): (2012, 385),
}

def count_cost(s):
    """(parameters, multiply-adds of one forward of one image), counted without computing anything."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        net = JiT(s)
        inputs = torch.empty(1, s.channels, s.size, s.size), torch.empty(1), torch.empty(1, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        net(*inputs)
    return sum(p.numel() for p in net.parameters() if p.requires_grad), counter.get_total_flops() // 2

def info(args):
    """python jit.py info: the paper's table of models, computed."""
    print("model  size  tokens  numbers per patch  width  bottleneck  parameters/M (paper)  multiply-adds/G (paper)")
    for model, size in [("Ti/16", 64), ("S/16", 256), *PAPER]:
        s = resolve(Settings(model=model, size=size, classes=1000))
        parameters, products = count_cost(s)
        paper = PAPER.get((model, size), ("-", "-"))
        tokens, numbers = (size // s.patch) ** 2, s.channels * s.patch**2
        print(f"{model:5} {size:5} {tokens:7} {numbers:18} {s.width:6} {s.bottleneck:11} {parameters / 1e6:13.1f} "
              f"{f'({paper[0]})':>7} {products / 1e9:16.2f} {f'({paper[1]})':>7}")

def main(args):
    """Run a command; returns the exit code."""
    try:
        if args.command == "train":
            train(resolve(take(Settings, args)))
        else:
            {"sample": sample, "eval": evaluate, "stats": write_statistics, "info": info}[args.command](args)
    except (Stop, OSError, KeyboardInterrupt) as error:
        sentence, code = error.args if isinstance(error, Stop) else (str(error) or "interrupted", 2)
        print(f"jit.py {args.command}: {sentence}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else code
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0

if __name__ == "__main__":
    sys.exit(main(ARGS))
