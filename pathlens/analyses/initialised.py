"""Networks initialised anew: each scheme of a list, from several seeds, for analyses of networks before training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from pathlens.analyses.linear import BATCH_SIZE, Opened
from pathlens.analyses.sources import Data
from pathlens.data import ImageData
from pathlens.errors import DataError, ModelError, UsageError, one_line
from pathlens.initialisation import SCHEMES, check_name, initialise
from pathlens.metrics import sample_interval
from pathlens.residual import ResidualView, view_of
from pathlens.residual.modes import copied

AS_BUILT = "as-built"
"""The initialisation that the code of a network has, beside the schemes of :func:`pathlens.initialise`."""


def check_schemes(
    schemes: Sequence[str], seeds: int, build: Callable[[int], nn.Module] | None, given: bool | None
) -> None:
    """Raise unless there is something to measure.

    Args:
        schemes: names.
        seeds: initialisations of each.
        build: seed -> the network anew.
        given: whether the weights that the model has are measured too.

    Raises:
        UsageError: no seeds, nothing to measure, an unknown scheme or one twice, or ``as-built`` without ``build``.
    """
    if seeds < 1:
        raise UsageError(f"seeds {seeds}: give at least 1 initialisation")
    if given is False and not schemes:
        raise UsageError("nothing to measure: give a scheme with init, or given=True")
    for scheme in schemes:
        check_name(scheme, AS_BUILT)
    if len(set(schemes)) < len(schemes):
        raise UsageError(f"init {','.join(schemes)}: give each scheme once")
    if AS_BUILT in schemes and build is None:
        raise UsageError(f"{AS_BUILT} needs build=, which makes the network anew from a seed")


def check_batches(data: Data, batch_size: int | None) -> None:
    """Batch norms in train mode need two examples, also in the last batch.

    Args:
        data: images, or batches, which are checked when they come.
        batch_size: examples at a time (default: that of gradients).

    Raises:
        DataError: a batch of one.
    """
    size = BATCH_SIZE if batch_size is None else batch_size
    if isinstance(data, ImageData) and size > 0 and (data.n if size >= data.n else data.n % size or size) == 1:
        raise DataError(
            f"{data.n} images in batches of {size} leave a batch of one, which has no statistics in train mode; give "
            "another number of images (--limit) or batch size, or mode='eval' (--mode eval)"
        )


def initialisations(
    run: Opened, scheme: str, seeds: Iterable[int], build: Callable[[int], nn.Module] | None, standardise: bool
) -> Iterator[tuple[int, ResidualView]]:
    """Each seed, and a copy of the network with its weights, in the mode that is measured; one copy for all of them.

    Args:
        run: the network.
        scheme: name.
        seeds: of the initialisations.
        build: seed -> the network anew, for ``as-built``.
        standardise: as of :func:`pathlens.initialise`.

    Raises:
        ModelError: what ``build`` makes is another network.
    """
    network = copied(run.view.model)
    example = run.moved(torch.zeros(2, *run.view.input_shape, dtype=run.view.input_dtype))
    view = view_of(network, example, run.view.output)
    keeps = scheme in SCHEMES and (SCHEMES[scheme].factor is not None or SCHEMES[scheme].standardises)
    for seed in seeds:
        if scheme == AS_BUILT:
            assert build is not None
            fresh = build(seed)
            try:
                network.load_state_dict(fresh.state_dict())
            except RuntimeError as error:
                raise ModelError(
                    f"{AS_BUILT} makes another network than {type(network).__name__} from seed {seed}: "
                    f"{one_line(error, 200)}; give a build= of the same sizes, or another initialisation"
                ) from error
        else:
            initialise(view, scheme, standardise=standardise, generator=torch.Generator().manual_seed(seed))
            view = view_of(network, example, run.view.output) if keeps else view  # what was attached is traced too
        network.train(run.mode == "train")
        network.requires_grad_(False)
        yield seed, view


def labelled(
    run: Opened,
    own: str | None,
    schemes: Sequence[str],
    seeds: range,
    build: Callable[[int], nn.Module] | None,
    standardise: bool,
) -> Iterator[tuple[str, bool, Iterable[tuple[int, ResidualView]]]]:
    """The curves of an analysis: a label, whether it is of the weights that were given, and seeds with networks.

    Args:
        run: the network.
        own: label of the weights that it has; None leaves them out.
        schemes: names, each of a further curve; the other arguments are those of :func:`initialisations`.
        seeds: of the initialisations.
        build: seed -> the network anew.
        standardise: as of :func:`pathlens.initialise`.
    """
    if own is not None:
        yield own, True, [(seeds.start, run.view)]
    for scheme in schemes:
        yield scheme, False, initialisations(run, scheme, seeds, build, standardise)


def checked_batch(run: Opened, batch: int, images: Tensor) -> Tensor:
    """The images of a batch where the network is.

    Args:
        run: the network.
        batch: its number.
        images: of it.

    Raises:
        DataError: naming it; it has one example in train mode, or an input is not finite.
    """
    if run.mode == "train" and len(images) < 2:
        raise DataError(
            f"batch {batch} has one example, which has no statistics in train mode; leave it out or use mode='eval'"
        )
    images = run.moved(images)
    if images.is_floating_point() and not images.isfinite().all():
        raise DataError(f"batch {batch} has inputs that are NaN or infinite; check how the data is normalised")
    return images


def mean(values: Sequence[float | None]) -> float | None:
    """The mean, missing where a value is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def interval(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Student's 95 % interval of the mean over seeds, missing for one, or where a value is."""
    known = [value for value in values if value is not None]
    return sample_interval(known) if len(known) == len(values) > 1 else (None, None)
