"""Train the embedded default: ``digits54``, 54 pre-activation blocks on scikit-learn's digits.

Run from the repository root, with the defaults for the published weights::

    python -m studies.embedded_default

The split is fixed (seed 0, stratified): 1,257 training, 180 validation and 360 test images. The recipe is the best of
six by validation error (learning rates 0.05, 0.1, 0.2; weight decays 5e-4, 1e-3; batches of 64 and 128; 60 and 120
epochs; 1 to 4 of 180 wrong, so the choice is mostly among equals). The test split is read once, after training, and
the weights are those of the last epoch.

Batch-norm scales start at 1, not at 0 as a common trick has it: branches that start at zero tend to stay small, and
deleting them would then be harmless by construction.

The same arguments give the same bytes on the same kind of machine (one thread, fixed seed; other processors may
round differently).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from pathlens.data import ImageData, open_data
from pathlens.models import PreActResNet, digits54, save_weights, state_sha256

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_OUT = ROOT / "pathlens" / "models" / "weights" / "digits54.safetensors"


def pixels(data: ImageData) -> Tensor:
    """Return all images, shape ``(N, 1, 8, 8)``, values in [0, 1]."""
    return data.batch(0, data.n, mean=(0.0,), std=(1.0,)).images


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every image by -1, 0 or 1 pixel along both axes, zeros coming in; shapes ``(N, 1, H, W)``."""
    n, _, height, width = images.shape
    dy, dx = torch.randint(0, 3, (2, n, 1, 1), generator=generator)
    rows = torch.arange(height).view(1, -1, 1) + dy
    columns = torch.arange(width).view(1, 1, -1) + dx
    padded = F.pad(images, (1, 1, 1, 1))
    return padded[torch.arange(n).view(-1, 1, 1), 0, rows, columns].unsqueeze(1)


def error(model: PreActResNet, data: ImageData, mean: float, std: float) -> float:
    """Return the share of wrong predictions of the model in eval mode."""
    model.eval()
    with torch.inference_mode():
        return (model((pixels(data) - mean) / std).argmax(1) != data.labels).float().mean().item()


def train(splits: dict[str, ImageData], args: argparse.Namespace, mean: float, std: float) -> PreActResNet:
    """Train by SGD with Nesterov momentum, a linear warm-up and a cosine to zero."""
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    model = digits54()
    images, labels = pixels(splits["train"]), splits["train"].labels
    batches = math.ceil(len(labels) / args.batch_size)
    total, warm = args.epochs * batches, args.warmup * batches
    optimizer = torch.optim.SGD(
        model.parameters(), lr=args.lr, momentum=0.9, nesterov=True, weight_decay=args.weight_decay
    )

    def rate(step: int) -> float:
        return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    start = time.perf_counter()
    for epoch in range(args.epochs):
        model.train()
        losses = 0.0
        for index in torch.randperm(len(labels), generator=generator).split(args.batch_size):
            batch = (shifted(images[index], generator) - mean) / std
            loss = F.cross_entropy(model(batch), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses += loss.item() * len(index)
        if (epoch + 1) % 10 == 0 or epoch + 1 == args.epochs:
            print(
                f"epoch {epoch + 1}/{args.epochs}  loss {losses / len(labels):.4f}  "
                f"validation error {error(model, splits['validation'], mean, std):.4f}  "
                f"{time.perf_counter() - start:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    return model.eval()


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Train digits54, the embedded default network.")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--warmup", type=int, default=5, help="epochs of linear warm-up")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="part of the recipe: sums depend on it")
    parser.add_argument("--no-test", action="store_true", help="do not read the test split (when choosing a recipe)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Train, print the errors, write the weights."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    names = ["train", "validation"] if args.no_test else ["train", "validation", "test"]
    splits = {name: open_data("digits", split=name) for name in names}
    (mean,), (std,) = splits["train"].mean, splits["train"].std
    model = train(splits, args, mean, std)
    errors = {name: error(model, data, mean, std) for name, data in splits.items()}
    for name, value in errors.items():
        print(f"{name} error {value:.4f} ({round(value * splits[name].n)} of {splits[name].n})")
    metadata = {
        "model": "digits54",
        "data": "digits (scikit-learn load_digits), fixed stratified split 1257/180/360",
        "mean": json.dumps([mean]),
        "std": json.dumps([std]),
        "num_classes": "10",
        "input_shape": "[1, 8, 8]",
        "seed": str(args.seed),
        "epochs": str(args.epochs),
        "torch": torch.__version__,
        **{f"{name}_error": f"{value:.6f}" for name, value in errors.items()},
    }
    save_weights(args.out, model, metadata)
    print(f"wrote {args.out} ({args.out.stat().st_size} bytes), state dict sha256 {state_sha256(model)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
