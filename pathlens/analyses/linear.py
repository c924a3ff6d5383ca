"""A network and data opened for gradients: device, dtype, mode, and the linearisation at each batch."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pathlens import plans
from pathlens.analyses.agreement import check_traced
from pathlens.analyses.journal import code_version
from pathlens.analyses.lesions import Data
from pathlens.analyses.sources import Source, make_source
from pathlens.errors import UsageError
from pathlens.intervene import active_plans
from pathlens.machine import processes
from pathlens.machine.precision import precision
from pathlens.models import state_sha256
from pathlens.plans import Plan
from pathlens.residual import ResidualView, view_of
from pathlens.residual.gradients import Linearisation
from pathlens.residual.losses import Loss
from pathlens.residual.modes import in_mode
from pathlens.residual.routes import Part, Route, intact


@dataclass
class Opened:
    """What the gradient analyses work on."""

    view: ResidualView
    route: Route
    source: Source
    device: torch.device
    dtype: torch.dtype
    stacked: bool
    journal: Path | None
    facts: dict[str, Any]
    batches: int
    images: int

    def linearise(self, batch: int, at: str, loss: Loss) -> tuple[Linearisation, int]:
        """The network linearised at a batch, and the number of examples in it."""
        ((_, images, labels),) = self.source.batches([batch])
        images = _moved(images, self.device, self.dtype)
        labels = labels.to(self.device)
        linear = Linearisation(self.view, images, labels, loss=loss, at=at, stacked=self.stacked, route=self.route)
        return linear, len(images)

    def facts_for_key(self, verb: str, request: Any) -> dict[str, Any]:
        """Everything that results depend on."""
        return {
            "verb": verb,
            "code": code_version(),
            "torch": torch.__version__,
            "model": state_sha256(self.view.model),
            "network": [repr(block) for block in self.view],
            "route": self.route,
            "output": self.view.output,
            "data": self.source.fingerprint,
            "mode": self.facts["mode"],
            "dtype": str(self.dtype),
            "device": self.device.type,
            "stacked": self.stacked,
            "request": repr(request),
        }


@contextlib.contextmanager
def opened(
    model: nn.Module | ResidualView,
    data: Data,
    *,
    batch_size: int,
    lesion: Plan | Iterable[Plan] = (),
    device: str | torch.device | None = None,
    dtype: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    mode: str = "eval",
    stacked: bool = True,
    journal: str | Path | None = None,
    facts: dict[str, Any] | None = None,
) -> Iterator[Opened]:
    """Open a network and data for gradients; the model is afterwards as it was.

    Args:
        model: the network or its view.
        data: an opened data set, or batches of (images, labels).
        batch_size: examples at a time.
        lesion: deletions and reorderings of :mod:`pathlens.plans`, beside those of the ``with`` blocks around.
        device: where to compute (default: where the model is); elsewhere a copy of the model is used.
        dtype: what to compute with (default: the model's type); in another type a copy of the model is used.
        mean: per-channel mean for normalisation.
        std: per-channel standard deviation.
        mode: ``eval``, or ``train`` for batch norms with the statistics of the batch, differentiated through them.
        stacked: carry many gradients through convolutional blocks at once.
        journal: folder for finished units.
        facts: what provenance should also say.

    Raises:
        UsageError: an unknown mode or type, or a lesion that does not fit the network.
        DataError: no images.
        NumericsError: the traced network is not what the model's own forward computes.
    """
    if mode not in ("eval", "train"):
        raise UsageError(f"mode {mode!r} is unknown; give eval or train")
    module = model.model if isinstance(model, ResidualView) else model
    if not isinstance(module, nn.Module):
        raise UsageError(f"a model must be a torch.nn.Module or a view of one; found {type(module).__name__}")
    given = module
    own = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    where = processes.device_of(module, device)
    name = dtype or str(own.dtype).removeprefix("torch.")
    with precision(name) as kind:
        source = make_source(data, batch_size, mean, std, where)
        view = model if isinstance(model, ResidualView) else None
        if own.dtype != kind or own.device != where:
            module = copy.deepcopy(module).to(device=where, dtype=kind)
            view = None
        if view is None:
            view = view_of(module, source.first(), model.output if isinstance(model, ResidualView) else None)
        count = source.count if source.count is not None else sum(1 for _ in source.batches())
        images = source.facts.get("images") or sum(len(batch) for _, batch, _ in source.batches())
        with in_mode(module, training=mode == "train"), _frozen(module):
            active = (*active_plans(given, view), *_checked(lesion, view))
            route = plans.route(active, len(view))
            check_traced(view, _moved(source.first(), where, kind))
            yield Opened(
                view=view,
                route=route,
                source=source,
                device=where,
                dtype=kind,
                stacked=stacked,
                journal=Path(journal) if journal is not None and source.fingerprint else None,
                facts={
                    "network": type(module).__name__,
                    "blocks": len(view),
                    "block_names": [block.name for block in view],
                    "output": view.output,
                    **source.facts,
                    **(facts or {}),
                    **({"lesion": _spoken(route)} if route != intact(len(view)) else {}),
                    "mode": mode,
                    "dtype": name,
                    "device": processes.device_name(where),
                    "batch_size": batch_size,
                    "notes": list(view.notes) + list((facts or {}).get("notes", ())),
                },
                batches=count,
                images=images,
            )


def _moved(images: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return images.to(device, dtype) if images.is_floating_point() else images.to(device)


def _checked(lesion: Plan | Iterable[Plan], view: ResidualView) -> tuple[Plan, ...]:
    given = (lesion,) if isinstance(lesion, Plan) else tuple(lesion)
    for plan in given:
        if not (isinstance(plan, Plan) and plan.changes_forward):
            raise UsageError(
                "a lesion must be made of plans to delete blocks, to delete shortcuts or to reorder blocks "
                f"(pathlens.plans); found {type(plan).__name__}"
            )
    return tuple(plan.check(view) for plan in given)


def _spoken(route: Route) -> dict[str, Any]:
    """The lesion for provenance."""
    order = [block for _, block in route]
    return {
        "deleted_blocks": sorted(block for part, block in route if part is Part.SHORTCUT),
        "deleted_shortcuts": sorted(block for part, block in route if part is Part.BRANCH),
        "order": order if order != sorted(order) else None,
    }


@contextlib.contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Gradients at activations need none of the parameters."""
    wanted = [parameter.requires_grad for parameter in module.parameters()]
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, needed in zip(module.parameters(), wanted, strict=True):
            parameter.requires_grad_(needed)
