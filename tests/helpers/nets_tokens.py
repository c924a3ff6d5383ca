"""Small transformers and networks with unusual results or control flow, and the list of all networks of the tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathlens import ResidualView, find_blocks
from tests.helpers import nets
from tests.helpers.nets import Trunk, conv


class Encoder(nn.Module):
    """``nn.TransformerEncoder``; two blocks a layer."""

    def __init__(self, norm_first: bool, frozen: bool = False):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True, norm_first=norm_first)
        self.position = nn.Parameter(torch.randn(1, 5, 16) * 0.1)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(16, 3)
        self.norm_first = norm_first
        if frozen:
            self.requires_grad_(False)

    def forward(self, x):
        return self.out(self.encoder(x + self.position).mean(1))

    def points(self, x):
        states = [x + self.position]
        for layer in self.encoder.layers:
            x = states[-1]

            def attend(y, layer=layer):
                return layer.self_attn(y, y, y, need_weights=False)[0]

            def feed(y, layer=layer):
                return layer.linear2(torch.relu(layer.linear1(y)))

            if self.norm_first:
                states.append(x + attend(layer.norm1(x)))
                states.append(states[-1] + feed(layer.norm2(states[-1])))
            else:
                states.append(layer.norm1(x + attend(x)))
                states.append(layer.norm2(states[-1] + feed(states[-1])))
        return states


class BiasedAttention(nn.Module):
    """Attention with relative position bias and rotary embedding: additions that are not residual."""

    def __init__(self, dim, tokens, heads=2):
        super().__init__()
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.randn(heads, tokens, tokens) * 0.1)
        self.heads = heads
        angles = torch.outer(torch.arange(tokens), 1 / 10 ** torch.arange(dim // heads // 2))
        self.register_buffer("cos", torch.cat([angles, angles], -1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat([angles, angles], -1).sin(), persistent=False)

    def rotate(self, x):
        one, two = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-two, one], dim=-1) * self.sin

    def forward(self, x):
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = self.rotate(q), self.rotate(k)
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + self.bias
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, dim))


class ParallelBlock(nn.Module):
    """Attention and MLP side by side (GPT-J, ViT-22B), the sum written in one of two ways."""

    def __init__(self, dim, tokens, branches_first):
        super().__init__()
        self.a, self.norm = BiasedAttention(dim, tokens), nn.LayerNorm(dim)
        self.m = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.branches_first = branches_first

    def forward(self, x):
        y = self.norm(x)
        return (self.a(y) + self.m(y)) + x if self.branches_first else x + self.a(y) + self.m(y)


class Parallel(Trunk):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.position = nn.Parameter(torch.randn(6, 8))
        self.blocks = nn.ModuleList([ParallelBlock(8, 6, False), ParallelBlock(8, 6, True)])

    def stem(self, x):
        return self.embed(x) + self.position

    def head(self, x):
        return x[:, 0]


class GPT(nn.Module):
    """Tokens in, causal mask by addition, weights of embedding and output tied, loss-free dictionary out."""

    def __init__(self, dim=8, vocabulary=11, length=6):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, dim), nn.Embedding(length, dim)
        self.h = nn.ModuleList(
            nn.ModuleDict(
                {
                    "ln_1": nn.LayerNorm(dim), "attn": BiasedAttention(dim, length), "ln_2": nn.LayerNorm(dim),
                    "fc": nn.Linear(dim, 2 * dim), "proj": nn.Linear(2 * dim, dim),
                }
            )
            for _ in range(2)
        )  # fmt: skip
        self.ln_f, self.lm_head = nn.LayerNorm(dim), nn.Linear(dim, vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight
        self.drop = nn.Dropout(0.1)
        self.register_buffer("mask", torch.full((length, length), -1e4).triu(1))

    def gelu(self, x):
        return 0.5 * x * (1.0 + torch.tanh(0.7978845608 * (x + 0.044715 * torch.pow(x, 3.0))))

    def points(self, tokens):
        places = torch.arange(tokens.shape[1], device=tokens.device)
        states = [self.drop(self.wte(tokens) + self.wpe(places)[None])]
        for block in self.h:
            x = states[-1]
            attention = block["attn"]
            bias = attention.bias
            scores = bias + self.mask
            batch, length, dim = x.shape
            q, k, v = attention.qkv(block["ln_1"](x)).split(dim, dim=2)
            q, k, v = (t.view(batch, length, 2, dim // 2).transpose(1, 2) for t in (q, k, v))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=scores)
            states.append(x + self.drop(attention.proj(y.transpose(1, 2).contiguous().view(batch, length, dim))))
            x = states[-1]
            states.append(x + self.drop(block["proj"](self.gelu(block["fc"](block["ln_2"](x))))))
        return states

    def forward(self, tokens):
        hidden = self.points(tokens)[-1]
        return {"logits": self.lm_head(self.ln_f(hidden)), "hidden": hidden, "loss": None}


class WindowBlock(nn.Module):
    """Swin: windows folded into the batch, shifted by a roll, biased attention, then an MLP."""

    def __init__(self, dim, shift):
        super().__init__()
        self.norm1, self.norm2, self.shift = nn.LayerNorm(dim), nn.LayerNorm(dim), shift
        self.attn = BiasedAttention(dim, 4)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def attend(self, x):
        n, h, w, c = x.shape
        y = torch.roll(self.norm1(x), (-self.shift, -self.shift), (1, 2))
        y = y.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        y = self.attn(y)
        y = y.view(-1, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return torch.roll(y, (self.shift, self.shift), (1, 2))

    def forward(self, x):
        x = x + self.attend(x)
        return x + self.mlp(self.norm2(x))


class Windows(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.one, self.two = nn.Conv2d(3, 8, 2, 2), WindowBlock(8, 0), WindowBlock(8, 1)
        self.reduction = nn.Linear(32, 12)
        self.three = WindowBlock(12, 0)

    def merge(self, x):
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.reduction(x)

    def points(self, x):
        states = [self.patch(x).permute(0, 2, 3, 1)]
        for block, enter in ((self.one, None), (self.two, None), (self.three, self.merge)):
            x = enter(states[-1]) if enter else states[-1]
            states.append(x + block.attend(x))
            states.append(states[-1] + block.mlp(block.norm2(states[-1])))
        return states

    def forward(self, x):
        x = self.two(self.one(self.patch(x).permute(0, 2, 3, 1)))
        return self.three(self.merge(x)).mean((1, 2))


class FoldedWindows(nn.Module):
    """The trunk itself keeps its windows in the batch: x_i has shape (4 N, ...)."""

    def __init__(self):
        super().__init__()
        self.patch, self.fc = nn.Conv2d(3, 8, 2, 2), nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.norm = nn.LayerNorm(8)

    def points(self, x):
        y = self.patch(x)
        n, c, h, w = y.shape
        y = y.view(n, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 3, 5, 1).reshape(n * 4, -1, c)
        states = [y]
        for layer in self.fc:
            states.append(states[-1] + torch.relu(layer(self.norm(states[-1]))))
        return states

    def forward(self, x):
        return self.points(x)[-1].reshape(x.shape[0], -1)


class Answer(NamedTuple):
    """Logits, and what they were made from."""

    logits: Tensor
    rest: dict[str, list[Tensor]]


class TupleOut(Trunk):
    """Returns a tuple with features beside the logits."""

    def __init__(self):
        super().__init__()
        self.first, self.out = conv(3, 5), nn.Linear(5, 4)
        self.blocks = nn.Sequential(nets.SmallBlock(5), nets.SmallBlock(5))

    def stem(self, x):
        return self.first(x)

    def head(self, x):
        features = x.mean((2, 3))
        return Answer(self.out(features), {"features": [features, x]})


class ScaledPair(nn.Module):
    """0.5 a(x) + 0.5 b(x): no shortcut anywhere."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = conv(3, 6), conv(3, 6, 5), conv(6, 2)

    def forward(self, x):
        return self.out(torch.relu(0.5 * torch.relu(self.a(x)) + 0.5 * torch.relu(self.b(x)))).mean((2, 3))


class BakedBatch(Trunk):
    """The batch size becomes a Python integer."""

    def __init__(self):
        super().__init__()
        self.first, self.out = conv(3, 5), nn.Linear(5 * 64, 4)
        self.blocks = nn.Sequential(nets.SmallBlock(5), nets.SmallBlock(5))

    def stem(self, x):
        return self.first(x)

    def head(self, x):
        return self.out(x.reshape(int(x.shape[0]), -1))


class ValueControlFlow(nn.Module):
    """Looks at values while it runs; no graph can say that."""

    def __init__(self):
        super().__init__()
        self.block = nets.SmallBlock(3)

    def forward(self, x):
        for _ in range(3):
            if x.mean() > 0:
                x = self.block(x)
        return x


class Plain(nn.Module):
    """VGG: convolution, norm and ReLU, pooling, a classifier."""

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for out in (6, 6, "pool", 8, 8, "pool", 5):
            if out == "pool":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
                width = out
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(5 * 16, 7), nn.ReLU(), nn.Dropout(0.5), nn.Linear(7, 3))

    def forward(self, x):
        return self.classifier(torch.flatten(self.features(x), 1))


KINDS = {"i": "identity", "p": "projection", "d": "padding", "s": "scaled", "g": "gated"}


@dataclass(frozen=True)
class Case:
    """A network, the shape of its input and what must be found in it (one letter of ``KINDS`` per block)."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    letters: str
    stages: str
    vocabulary: int = 0
    names: tuple[str, ...] | None = None
    random: bool = False

    @property
    def kinds(self) -> list[str]:
        return [KINDS[letter] for letter in self.letters]

    def model(self, seed: int = 0) -> nn.Module:
        """The network in eval mode, with batch-norm statistics that are not those of a fresh one."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.make()
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.uniform_(module.weight, 0.5, 1.5)
                    nn.init.normal_(module.bias, std=0.1)
                    module.running_mean.normal_(0, 0.2)
                    module.running_var.uniform_(0.5, 2)
        return model.eval()

    def input(self, batch: int = 3, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if self.vocabulary:
            return torch.randint(self.vocabulary, (batch, *self.shape), generator=generator)
        return torch.randn(batch, *self.shape, generator=generator)


IMAGE = (3, 16, 16)
SMALL = (3, 8, 8)

CIFAR_NAMES = ("layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer2.2")

CASES = {
    "cifar": Case(nets.CifarResNet, IMAGE, "iidii", "00111", names=CIFAR_NAMES),
    "preact": Case(nets.PreAct, SMALL, "ipii", "0111", names=tuple(f"layers.{i}" for i in range(4))),
    "norm_free": Case(nets.NormFree, SMALL, "ipi", "011", names=tuple(f"blocks.{i}" for i in range(3))),
    "arithmetic": Case(nets.Arithmetic, (6, 8, 8), "iiiiiiis", "00000000"),
    "highway": Case(nets.Highway, (12,), "ggg", "000", names=tuple(f"blocks.{i}" for i in range(3))),
    "repvgg": Case(nets.RepVGG, IMAGE, "ppp", "001", names=("stages.1", "stages.2", "stages.4")),
    "post_norm": Case(nets.PostNorm, SMALL, "ii", "00", names=("blocks.0", "blocks.1")),
    "shake_shake": Case(nets.ShakeShake, SMALL, "ii", "00", names=("blocks.0", "blocks.1"), random=True),
    "shake_shake_stages": Case(
        nets.ShakeShakeStages, SMALL, "ipi", "011", names=tuple(f"blocks.{i}" for i in range(3)), random=True
    ),
    "unet": Case(nets.UNet, SMALL, "ii", "00", names=("before", "after")),
    "edsr": Case(nets.EDSR, SMALL, "i", "0"),
    "one_function": Case(nets.OneFunction, SMALL, "iii", "000"),
    "shared": Case(nets.Shared, SMALL, "iii", "000"),
    "mobile": Case(nets.Mobile, SMALL, "iii", "011", names=("features.1", "features.3", "features.4")),
    "mobile_drop": Case(lambda: nets.Mobile(0.4), SMALL, "iii", "011", random=True),
    "inplace": Case(nets.InplaceEverywhere, SMALL, "idi", "011"),
    "denoiser": Case(nets.Denoiser, SMALL, "i", "0"),
    "encoder_post": Case(lambda: Encoder(False), (5, 16), "iiii", "0000"),
    "encoder_pre": Case(lambda: Encoder(True), (5, 16), "iiii", "0000"),
    "encoder_post_frozen": Case(lambda: Encoder(False, True), (5, 16), "iiii", "0000"),
    "encoder_pre_frozen": Case(lambda: Encoder(True, True), (5, 16), "iiii", "0000"),
    "parallel": Case(Parallel, (6, 4), "ii", "00", names=("blocks.0", "blocks.1")),
    "gpt": Case(GPT, (6,), "iiii", "0000", vocabulary=11, random=True),
    "windows": Case(Windows, SMALL, "iiiiii", "000011"),
    "folded_windows": Case(FoldedWindows, SMALL, "iii", "000"),
    "tuple_out": Case(TupleOut, SMALL, "ii", "00", names=("blocks.0", "blocks.1")),
}  # fmt: skip

#: networks without residual blocks, or that no graph can hold
ODD = {
    "scaled_pair": Case(ScaledPair, SMALL, "", ""),
    "control_flow": Case(ValueControlFlow, SMALL, "", ""),
    "baked_batch": Case(BakedBatch, SMALL, "ii", "00"),
    "plain": Case(Plain, IMAGE, "", ""),
}


@cache
def found(name: str) -> tuple[nn.Module, ResidualView]:
    """A network in eval mode and its view, made once for all tests that only read them."""
    case = CASES[name]
    model = case.model()
    return model, find_blocks(model, case.input())


def main_output(result):
    """The tensor that counts among what a network returns."""
    if isinstance(result, dict):
        return result["logits"]
    return result[0] if isinstance(result, tuple) else result
