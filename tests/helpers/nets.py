"""Small convolutional networks of strangers, each in a style found in the wild, for the tests of the residual rooms.

``points(x)`` of a network is a hand-written forward pass that returns x_0, ..., x_n. It is the oracle.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth


def conv(cin: int, cout: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, size, stride, size // 2, bias=False)


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Trunk(nn.Module):
    """Stem, ``self.blocks`` one after the other, head."""

    def stem(self, x: Tensor) -> Tensor:
        return x

    def head(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def points(self, x: Tensor) -> list[Tensor]:
        states = [self.stem(x)]
        for block in self.blocks:
            states.append(block(states[-1].clone()))
        return states


class CifarBlock(nn.Module):
    def __init__(self, cin, cout, stride=1):
        super().__init__()
        self.conv1, self.bn1 = conv(cin, cout, 3, stride), nn.BatchNorm2d(cout)
        self.conv2, self.bn2 = conv(cout, cout), nn.BatchNorm2d(cout)
        self.shortcut = nn.Sequential()
        if stride != 1 or cin != cout:
            self.shortcut = Lambda(
                lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, cout // 4, cout // 4), "constant", 0)
            )

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class CifarResNet(Trunk):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 8), nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(CifarBlock(8, 8), CifarBlock(8, 8))
        self.layer2 = nn.Sequential(CifarBlock(8, 16, 2), CifarBlock(16, 16), CifarBlock(16, 16))
        self.linear = nn.Linear(16, 10)

    @property
    def blocks(self):
        return [*self.layer1, *self.layer2]

    def stem(self, x):
        return F.relu(self.bn1(self.conv1(x)))

    def head(self, x):
        return self.linear(F.avg_pool2d(x, x.size()[3]).view(x.size(0), -1))


class PreActBlock(nn.Module):
    def __init__(self, cin, cout, stride=1):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(cin), conv(cin, cout, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(cout), conv(cout, cout)
        if stride != 1 or cin != cout:
            self.shortcut = nn.Sequential(conv(cin, cout, 1, stride))

    def forward(self, x):
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        out += shortcut
        return out


class PreAct(Trunk):
    def __init__(self):
        super().__init__()
        self.conv1 = conv(3, 8)
        self.layers = nn.Sequential(PreActBlock(8, 8), PreActBlock(8, 16, 2), PreActBlock(16, 16), PreActBlock(16, 16))
        self.bn, self.fc = nn.BatchNorm2d(16), nn.Linear(16, 10)

    @property
    def blocks(self):
        return self.layers

    def stem(self, x):
        return self.conv1(x)

    def head(self, x):
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))


class NormFreeBlock(nn.Module):
    """Brock et al. 2021: ``x + alpha * f(x / beta)``, the projection after the activation."""

    def __init__(self, cin, cout, beta):
        super().__init__()
        self.alpha, self.beta = 0.2, beta
        self.conv1, self.conv2 = conv(cin, cout), conv(cout, cout)
        self.downsample = conv(cin, cout, 1) if cin != cout else None
        self.gain = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        out = F.gelu(x) * self.beta
        shortcut = x if self.downsample is None else self.downsample(out)
        out = self.conv2(F.gelu(self.conv1(out)))
        out = out * self.gain
        return out * self.alpha + shortcut


class NormFree(Trunk):
    def __init__(self):
        super().__init__()
        self.first = conv(3, 6)
        self.blocks = nn.Sequential(NormFreeBlock(6, 6, 0.9), NormFreeBlock(6, 8, 0.8), NormFreeBlock(8, 8, 0.7))

    def stem(self, x):
        return self.first(x)

    def head(self, x):
        return x.mean((2, 3))


class Arithmetic(Trunk):
    """Every way to write an addition."""

    def __init__(self, width=6):
        super().__init__()
        self.convs = nn.ModuleList(conv(width, width) for _ in range(8))
        self.scale = nn.Parameter(torch.linspace(0.1, 0.9, width).view(1, width, 1, 1))
        c = self.convs

        def inplace(x):
            y = F.gelu(c[5](x))
            y.add_(x)
            return y

        self.blocks = [
            lambda x: torch.add(x, torch.tanh(c[0](x)), alpha=0.5),
            lambda x: x - torch.relu(c[1](x)),
            lambda x: torch.addcmul(x, self.scale, torch.sigmoid(c[2](x))),
            lambda x: sum([x, torch.tanh(c[3](x))]),
            lambda x: torch.sub(x, torch.tanh(c[4](x)), alpha=2),
            inplace,
            lambda x: torch.addcmul(x, torch.tanh(c[6](x)), self.scale, value=-0.5),
            lambda x: torch.add(torch.tanh(c[7](x)), x, alpha=0.25),
        ]

    def __deepcopy__(self, memo):
        twin = Arithmetic()
        twin.load_state_dict(self.state_dict())
        return twin.train(self.training)


class HighwayBlock(nn.Module):
    """Srivastava et al. 2015, equation 2: y = H T + x (1 - T)."""

    def __init__(self, width):
        super().__init__()
        self.h, self.t = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        gate = torch.sigmoid(self.t(x))
        return torch.relu(self.h(x)) * gate + x * (1 - gate)


class Highway(Trunk):
    def __init__(self):
        super().__init__()
        self.plain, self.out = nn.Linear(12, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(HighwayBlock(8) for _ in range(3))

    def stem(self, x):
        return self.plain(x)

    def head(self, x):
        return self.out(x)


class ThreeBranch(nn.Module):
    """RepVGG while training (Ding et al. 2021): 3x3, 1x1 and identity, each with its batch norm."""

    def __init__(self, cin, cout, stride=1):
        super().__init__()
        self.dense = nn.Sequential(conv(cin, cout, 3, stride), nn.BatchNorm2d(cout))
        self.one = nn.Sequential(conv(cin, cout, 1, stride), nn.BatchNorm2d(cout))
        self.identity = nn.BatchNorm2d(cin) if cin == cout and stride == 1 else None

    def forward(self, x):
        rest = 0 if self.identity is None else self.identity(x)
        return F.relu(self.dense(x) + self.one(x) + rest)


class RepVGG(Trunk):
    def __init__(self):
        super().__init__()
        self.stages = nn.Sequential(
            ThreeBranch(3, 8, 2), ThreeBranch(8, 8), ThreeBranch(8, 8), ThreeBranch(8, 12, 2), ThreeBranch(12, 12)
        )

    def forward(self, x):
        return self.stages(x).mean((2, 3))

    def points(self, x):
        x0 = self.stages[0](x)
        x1 = self.stages[1](x0)
        x2 = self.stages[2](x1)
        return [x0, x1, x2, self.stages[4](self.stages[3](x2))]


class ShakeShakeBlock(nn.Module):
    """Gastaldi 2017: x + a f1(x) + (1 - a) f2(x), with random a while training."""

    def __init__(self, width):
        super().__init__()
        self.one = nn.Sequential(nn.ReLU(), conv(width, width), nn.BatchNorm2d(width))
        self.two = nn.Sequential(nn.ReLU(), conv(width, width), nn.BatchNorm2d(width))

    def forward(self, x):
        a = torch.rand(x.shape[0], 1, 1, 1, device=x.device, dtype=x.dtype) if self.training else 0.5
        return x + a * self.one(x) + (1 - a) * self.two(x)


class ShakeShake(Trunk):
    def __init__(self):
        super().__init__()
        self.first = conv(3, 6)
        self.blocks = nn.Sequential(ShakeShakeBlock(6), ShakeShakeBlock(6))

    def stem(self, x):
        return self.first(x)


class ShakeShakeDown(nn.Module):
    """Gastaldi 2017 where shapes change: the shortcut is a ReLU of the input, seen by two shifted projections."""

    def __init__(self, width, out):
        super().__init__()
        self.one, self.two = (
            nn.Sequential(nn.ReLU(), conv(width, out, 3, 2), nn.BatchNorm2d(out), nn.ReLU(), conv(out, out))
            for _ in range(2)
        )
        self.left, self.right = conv(width, out // 2, 1), conv(width, out // 2, 1)
        self.norm = nn.BatchNorm2d(out)

    def shortcut(self, x):
        x = torch.relu(x)
        shifted = nn.functional.pad(x, (-1, 1, -1, 1))
        parts = [self.left(nn.functional.avg_pool2d(x, 1, 2)), self.right(nn.functional.avg_pool2d(shifted, 1, 2))]
        return self.norm(torch.cat(parts, 1))

    def forward(self, x):
        return 0.5 * self.one(x) + 0.5 * self.two(x) + self.shortcut(x)


class ShakeShakeStages(Trunk):
    def __init__(self):
        super().__init__()
        self.first = conv(3, 6)
        self.blocks = nn.Sequential(ShakeShakeBlock(6), ShakeShakeDown(6, 8), ShakeShakeBlock(8))

    def stem(self, x):
        return self.first(x)


class SmallBlock(nn.Module):
    """A post-activation block without batch norm."""

    def __init__(self, width, scale=1.0):
        super().__init__()
        self.body = nn.Sequential(conv(width, width), nn.ReLU(inplace=True), conv(width, width))
        self.scale = scale

    def forward(self, x):
        return x + self.body(x) * self.scale


class UNet(nn.Module):
    """Concatenating skip; residual blocks before, inside and after it."""

    def __init__(self):
        super().__init__()
        self.inc, self.before = conv(3, 6), SmallBlock(6)
        self.down, self.inside, self.up = conv(6, 8, 3, 2), SmallBlock(8), nn.ConvTranspose2d(8, 6, 2, 2)
        self.fuse, self.after, self.out = conv(12, 6), SmallBlock(6), conv(6, 2, 1)

    def forward(self, x):
        x = self.before(self.inc(x))
        low = self.inside(torch.relu(self.down(x)))
        x = torch.cat([x, self.up(low)], dim=1)
        return self.out(self.after(torch.relu(self.fuse(x))))

    def points(self, x):
        x0 = self.inc(x)
        x1 = self.before(x0)
        low = self.inside(torch.relu(self.down(x1)))
        return [x0, x1, self.after(torch.relu(self.fuse(torch.cat([x1, self.up(low)], dim=1))))]


class EDSR(nn.Module):
    """Lim et al. 2017: a global skip around a body of residual blocks, which are nested in it."""

    def __init__(self):
        super().__init__()
        self.first = conv(3, 6)
        self.body = nn.Sequential(*[SmallBlock(6, 0.1) for _ in range(3)], conv(6, 6))
        self.tail = nn.Sequential(conv(6, 12), nn.PixelShuffle(2))

    def forward(self, x):
        x = self.first(x)
        res = self.body(x)
        res += x
        return self.tail(res)

    def points(self, x):
        x0 = self.first(x)
        return [x0, x0 + self.body(x0)]


class OneFunction(nn.Module):
    """No submodule at all."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.weights = nn.ParameterList(torch.randn(5, 5, 3, 3) * 0.2 for _ in range(6))
        self.first = nn.Parameter(torch.randn(5, 3, 3, 3) * 0.3)

    def points(self, x):
        states = [torch.relu(F.conv2d(x, self.first, padding=1))]
        for one, two in zip(self.weights[::2], self.weights[1::2], strict=True):
            x = states[-1]
            y = F.conv2d(torch.relu(F.conv2d(x, one, padding=1)), two, padding=1)
            states.append(torch.relu(x + y))
        return states

    def forward(self, x):
        return self.points(x)[-1].amax((2, 3))


class PostNormBlock(nn.Module):
    """Batch norm and activation after the addition."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(conv(width, width), nn.ReLU(), conv(width, width))
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return F.relu(self.norm(x + self.body(x)))


class PostNorm(Trunk):
    def __init__(self):
        super().__init__()
        self.first = conv(3, 6)
        self.blocks = nn.Sequential(PostNormBlock(6), PostNormBlock(6))

    def stem(self, x):
        return self.first(x)


class SharedBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), conv(6, 6))

    def forward(self, x):
        return self.body(x) + x


class Shared(Trunk):
    """One block, used three times."""

    def __init__(self):
        super().__init__()
        self.first, self.block, self.out = conv(3, 6), SharedBlock(), nn.Linear(6, 4)

    @property
    def blocks(self):
        return [self.block] * 3

    def stem(self, x):
        return self.first(x)

    def head(self, x):
        return self.out(x.mean((2, 3)))


class SqueezeBlock(nn.Module):
    """Inverted bottleneck with squeeze and excitation, hand-written GELU and stochastic depth."""

    def __init__(self, cin, cout, stride=1, drop=0.0):
        super().__init__()
        self.expand, self.bn = conv(cin, 2 * cin, 1), nn.BatchNorm2d(2 * cin)
        self.depthwise = nn.Conv2d(2 * cin, 2 * cin, 3, stride, 1, groups=2 * cin)
        self.fc1, self.fc2 = nn.Conv2d(2 * cin, 2, 1), nn.Conv2d(2, 2 * cin, 1)
        self.project = conv(2 * cin, cout, 1)
        self.use_res = stride == 1 and cin == cout
        self.drop = StochasticDepth(drop, "row")

    def gelu(self, x):
        return 0.5 * x * (1 + torch.tanh(0.79788456 * (x + 0.044715 * x * x * x)))

    def forward(self, x):
        out = self.gelu(self.bn(self.expand(x)))
        out = self.depthwise(out)
        out = out * torch.sigmoid(self.fc2(F.relu(self.fc1(out.mean((2, 3), keepdim=True)))))
        out = self.project(out)
        return x + self.drop(out) if self.use_res else out


class Mobile(nn.Module):
    """Layers without shortcut between the blocks."""

    def __init__(self, drop=0.0):
        super().__init__()
        self.features = nn.Sequential(
            conv(3, 6), SqueezeBlock(6, 6, drop=drop), SqueezeBlock(6, 8, 2), SqueezeBlock(8, 8, drop=drop),
            SqueezeBlock(8, 8, drop=drop), SqueezeBlock(8, 10),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Dropout(drop), nn.Linear(10, 5))

    def forward(self, x):
        return self.classifier(self.features(x).mean([2, 3]))

    def points(self, x):
        f = self.features
        x0 = f[0](x)
        x1 = f[1](x0)
        x2 = f[3](f[2](x1))
        return [x0, x1, x2, f[4](x2)]


class InplaceEverywhere(Trunk):
    """Pads channels by writing into a slice; every activation in place."""

    def __init__(self):
        super().__init__()
        self.first, self.act = conv(3, 6), nn.ReLU(inplace=True)
        self.bodies = nn.ModuleList(
            [
                nn.Sequential(conv(6, 6), nn.BatchNorm2d(6), nn.ReLU(inplace=True), conv(6, 6)),
                nn.Sequential(conv(6, 9), nn.BatchNorm2d(9), nn.ReLU(inplace=True), conv(9, 9)),
                nn.Sequential(conv(9, 9), nn.BatchNorm2d(9), nn.ReLU(inplace=True), conv(9, 9)),
            ]
        )

    def block(self, body, x):
        out = body(x)
        out[:, : x.shape[1]] += x
        return self.act(out)

    @property
    def blocks(self):
        return [lambda x, b=body: self.block(b, x) for body in self.bodies]

    def stem(self, x):
        return self.act(self.first(x))


class Denoiser(Trunk):
    """The whole network is one block: the input minus what is predicted."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(conv(3, 6), nn.ReLU(True), conv(6, 3))

    @property
    def blocks(self):
        return [lambda x: x - self.net(x)]
