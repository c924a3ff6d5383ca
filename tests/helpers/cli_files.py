"""Files for the tests of the command line: networks of a user, weights, images, each good or bad in one way."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import torch

from pathlens.models import load_model
from tests.helpers.data_files import noise, png, write
from tests.helpers.lesion_oracle import small_net

USER_FILE = """
import torch
from torch import nn
from tests.helpers.joined import Levels
from tests.helpers.lesion_oracle import small_net

def levels():
    return Levels(True, 5)

def build():
    return small_net(torch.float32)

def pair():
    return small_net(torch.float32), torch.zeros(2, 3, 8, 8)

def raises():
    raise RuntimeError("first line\\nsecond line")

def number():
    return 3

class Talks(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = small_net(torch.float32)

    def forward(self, x):
        print("a word from the network")
        return self.net(x)

class Branching(Talks):
    def forward(self, x):
        return self.net(x) if x.sum() > 0 else -self.net(x)

class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(192, 20), nn.ReLU(), nn.Linear(20, 5))

class Joins(Talks):
    def forward(self, x):
        return self.net(x), torch.cat([x, x])

class Features(Talks):
    def forward(self, x):
        return x + self.net.stem(x)[:, :3]

class Dense(Talks):
    def forward(self, x):
        return torch.cat([x, torch.relu(self.net.stem(x))], 1).mean((2, 3))

class Huge(Talks):
    def forward(self, x):
        if not torch.compiler.is_exporting():
            x = x.repeat(1, 1, 2**22, 2**22)[..., :8, :8]
        return self.net(x)

class Fails(Talks):
    def forward(self, x):
        if not torch.compiler.is_exporting():
            raise KeyError("not today")
        return self.net(x)
"""


class RunsCode:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.proof),)


def make_files(folder: Path) -> dict[str, str]:
    """Write everything; the names are used in the tables of cases as ``{name}``."""
    made: dict[str, str] = {"folder": str(folder), "proof": str(folder / "code was run")}
    (folder / "nets.py").write_text(USER_FILE)
    made["user"] = str(folder / "nets.py")

    weights = load_model("resnet20", "random").model.state_dict()
    torch.save(weights, folder / "good.pt")
    content = (folder / "good.pt").read_bytes()
    (folder / "text.pt").write_text("no weights")
    (folder / "cut.pt").write_bytes(content[: len(content) // 2])
    (folder / "noise.safetensors").write_bytes(b"\xff" * 100)
    torch.save({"state_dict": RunsCode(folder / "code was run")}, folder / "runs.pt")
    (folder / "runs.pth").write_bytes(pickle.dumps(RunsCode(folder / "code was run")))
    broken = {name: value.clone() for name, value in weights.items()}
    broken["layer1.0.conv1.weight"][0, 0] = torch.nan
    torch.save(broken, folder / "nan.pt")
    small = small_net(torch.float32).state_dict()
    torch.save(small, folder / "small.pt")

    def images(name: str, count: int = 30, side: int = 8, classes: int = 5) -> str:
        pngs = [png(image) for image in noise(count, side, side, 3)]
        return write(folder / name / "test.parquet", [*pngs], [row % classes for row in range(count)])

    made["images"] = images("images")
    made["cifar"] = images("cifar", count=12, side=32, classes=10)
    made["many classes"] = images("many", classes=30)
    made["cifar 12"] = images("cifar12", count=12, side=32, classes=12)
    eight, sixteen = (png(noise(1, side, side, 3)[0]) for side in (8, 16))
    made["sizes"] = write(folder / "sizes" / "test.parquet", [eight, sixteen], [0, 1])
    made["undecodable"] = write(folder / "undecodable" / "test.parquet", [eight, b"no image"], [0, 1])
    made["negative"] = write(folder / "negative" / "test.parquet", [eight, eight], [0, -1])
    (folder / "empty").mkdir()
    made["empty"] = f"imagefolder:{folder / 'empty'}"
    made["empty parquet"] = f"parquet:{folder / 'empty'}"
    return made
