"""Six networks built from jit.py without touching it: Tables 4, 10, 11, and three of our own.

Each is a JiT with a part exchanged; jit.train and jit.sample_images take it as it is:

    import jit, variants                      # with figures/ and its parent on the path
    net = variants.Preconditioned("edm", **jit.MODELS["Ti"], size=64, patch=16, classes=10)
    jit.train(net, jit.Flow(), jit.open_data("shapes", net.shape), "runs/edm")
    net, flow, _ = jit.load_run("runs/edm", "ema1", "cpu", variants.Preconditioned)

A loss with a further term is a function for jit.train(loss_function=classifying_loss(100)).
"""

import torch
import torch.nn.functional as F
from common import jit
from torch import nn

# ---- Data of more dimensions ----


def add_texture(x, patch, k, strength):
    """x (B, C, S, S) plus normal noise in k fixed random directions of its patches.

    strength: its standard deviation in each of them.
    """
    generator = torch.Generator().manual_seed(k)
    numbers, size = x.shape[1] * patch**2, x.shape[-1]
    basis = torch.linalg.qr(torch.randn(numbers, k, generator=generator)).Q
    patches = strength * torch.randn(len(x), k, (size // patch) ** 2)
    return x + F.fold(basis @ patches, size, patch, stride=patch)


def textured_loss(patch, k, strength):
    """A loss for jit.train(loss_function=...) on images with this texture."""

    def loss(net, x, y, flow):
        return jit.training_loss(net, add_texture(x, patch, k, strength), y, flow)

    return loss


# ---- Table 10: pre-conditioning ----


def coefficients(t, kind):
    """c_skip and c_out of Table 10, of t's shape: linear, or EDM's ("edm").

    Those of EDM have sigma_t = (1 - t) / t and sigma_d = 0.5, the spread of images. Numerator and
    denominator are multiplied by t, so that nothing divides by 0 at t = 0.
    """
    if kind == "linear":
        return t, 1 - t
    if kind != "edm":
        raise ValueError(f"kind {kind!r} is neither linear nor edm")
    sigma_d = 0.5
    variance = (t * sigma_d) ** 2 + (1 - t) ** 2
    return t * sigma_d**2 / variance, (1 - t) * sigma_d / variance.sqrt()


class Preconditioned(jit.JiT):
    """x_pred = c_skip z + c_out JiT(z, t, y): it only corrects its input (Table 10: it hurts)."""

    def __init__(self, kind, **arguments):
        super().__init__(**arguments)
        self.arguments["kind"] = kind  # saved, so that jit.py does not read it as a plain JiT

    def forward(self, z, t, y):
        c_skip, c_out = coefficients(t.view(-1, 1, 1, 1), self.arguments["kind"])
        return c_skip * z + c_out * super().forward(z, t, y).float()


# ---- Our own: a gate for the noise; no last norm ----


class Gated(jit.JiT):
    """JiT(z, t, y) - g(t) z, with g one learned number per image: a way around it for the noise.

    v = (x - z) / (1 - t): if g learns 1 / (1 - t), the network is left with x / (1 - t), which
    holds no noise.
    """

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.gate = nn.Sequential(nn.Linear(256, 64), nn.SiLU(), nn.Linear(64, 1))
        self.initialize()  # again, with the gate
        nn.init.zeros_(self.gate[2].weight)  # at first there is none

    def g(self, t):
        """(B,) for times t (B,); in fp32: the rounding of bf16 would leave noise in the image."""
        with torch.autocast(t.device.type, enabled=False):
            return self.gate(jit.time_features(t)).flatten()

    def forward(self, z, t, y):
        return super().forward(z, t, y).float() - self.g(t).view(-1, 1, 1, 1) * z


class NoLastNorm(jit.JiT):
    """Without the RMSNorm before the last linear layer, which forgets how long a vector was."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.final_layer.norm_final = nn.Identity()


class LengthLayer(jit.FinalLayer):
    """What the last norm has taken from a token, its root mean square, as a factor of its patch."""

    def forward(self, x, c):
        length = x.float().square().mean(dim=-1, keepdim=True).sqrt()  # (B, N, 1)
        return length * super().forward(x, c)


class LearnedLength(jit.JiT):
    """The last norm stays; each token carries one number around it: the length of its patch."""

    def __init__(self, lengths=1, **arguments):
        super().__init__(**arguments)
        self.arguments["lengths"] = lengths  # saved, so that jit.py does not read it as a plain JiT
        self.final_layer = LengthLayer(self.arguments["width"], self.patch**2 * self.shape[0])
        self.initialize()  # again, with the new part


# ---- Table 4, first row: LayerNorm and GELU ----


def layer_norm(width):
    """DiT's norm: no weights of its own, scale and shift are left to adaLN."""
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


class LayerNormGelu(jit.JiT):
    """With the norms and MLPs that Transformers had before RMSNorm and SwiGLU."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        width = self.arguments["width"]
        for block in self.blocks:
            block.norm1, block.norm2 = layer_norm(width), layer_norm(width)
            dropout = nn.Dropout(block.mlp.dropout.p)
            inner, outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            block.mlp = nn.Sequential(inner, nn.GELU(), dropout, outer)
        self.final_layer.norm_final = layer_norm(width)
        self.initialize()  # again, with the new parts


# ---- Table 11: classification loss ----


class Classifying(jit.JiT):
    """A head before block `context_start` has to tell the class, which no block before is told."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        if self.context_start == 0:
            raise ValueError("the head needs blocks before it: context_start 1 or more")
        self.head = nn.Linear(self.arguments["width"], self.classes)
        self.initialize()  # again, with the head

    def forward(self, z, t, y, return_logits=False):
        """As JiT's; with return_logits the prediction and the scores (B, classes)."""
        time = self.t_embedder["mlp"](jit.time_features(t))[:, None]  # (B, 1, D)
        y = torch.where(y == jit.NO_CLASS, self.classes, y)
        label = self.y_embedder["embedding_table"](y)[:, None]  # (B, 1, D)
        rope = self.cos, self.sin
        tokens = self.x_embedder(z) + self.pos_embed  # (B, N, D)
        for block in self.blocks[: self.context_start]:
            tokens = block(tokens, time, rope)
        logits = self.head(tokens.mean(dim=1))  # (B, classes)
        if self.context_tokens:
            tokens = torch.cat([label + self.in_context_posemb, tokens], dim=1)  # (B, K + N, D)
        for block in self.blocks[self.context_start :]:
            tokens = block(tokens, time + label, rope)
        patches = self.final_layer(tokens[:, self.context_tokens :], time + label)  # (B, N, p*p*C)
        image = jit.unpatchify(patches, self.patch)  # (B, C, H, W)
        return (image, logits) if return_logits else image


def classifying_loss(weight=100.0):
    """A loss for jit.train: jit.training_loss, and `weight` times the cross-entropy of the head.

    The paper adds it to the sum of squares over an image; ours is their mean, so the weight is
    divided by their number.
    """

    def loss_function(net, x, y, flow):
        seen = []

        def denoiser(z, t, y):
            image, logits = net(z, t, y, return_logits=True)
            seen.append(logits)
            return image

        loss, t = jit.training_loss(denoiser, x, y, flow)
        # (B,): of all classes, dropped or not
        entropy = F.cross_entropy(seen[0].float(), y, reduction="none")
        return loss + weight / x[0].numel() * entropy, t

    return loss_function
