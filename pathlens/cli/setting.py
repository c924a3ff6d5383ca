"""What verbs share: opening the network, the data and the device before, and printing and writing the table after."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from pathlens.cli.initialised import check_init, initialised
from pathlens.cli.options import Common, parse_numbers
from pathlens.cli.progress import say, waiting
from pathlens.errors import DataError, PathlensError, UsageError

if TYPE_CHECKING:
    import torch

    from pathlens.analyses.options import Options
    from pathlens.cli.training import TrainingOptions
    from pathlens.data import DataSet, ImageData
    from pathlens.models import LoadedModel
    from pathlens.residual import ResidualView
    from pathlens.runtime.processes import Processes
    from pathlens.tables import Provenance, Table

DEFAULT_MODEL = "digits54"


@dataclass
class Setting:
    """An opened network and data set, ready for a verb."""

    verb: str
    common: Common
    loaded: LoadedModel
    data: DataSet
    view: ResidualView
    device: torch.device
    group: Processes
    mean: tuple[float, ...]
    std: tuple[float, ...]
    provenance: Provenance
    initialisation: Table | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def journal(self) -> Path | None:
        """Where finished batches are kept; None where there is no place for them."""
        from pathlens.storage.journal import default_folder

        return self.common.out / ".journal" if self.common.out else default_folder()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the results should know of the network."""
        untrained = () if self.loaded.trained else (f"weights are {self.loaded.weights}",)
        lost = () if self.journal else ("no cache folder can be written: if this is killed, it starts anew; see --out",)
        return (*self.loaded.notes, *self.view.notes, *untrained, *lost)

    @property
    def shows_progress(self) -> bool:
        """Whether this process says anything on stderr."""
        return self.group.is_main and not self.common.quiet

    @property
    def options(self) -> Options:
        """Keyword arguments of every analysis."""
        return {
            "batch_size": self.common.batch_size,
            "device": self.device,
            "mean": self.mean or None,
            "std": self.std or None,
            "journal": self.journal,
            "provenance": self.provenance,
        }


def spoken(options: object) -> dict[str, object]:
    """Options as a manifest states them: enumerations and paths as text."""
    return {name: str(value) if isinstance(value, Path | StrEnum) else value for name, value in vars(options).items()}


@contextlib.contextmanager
def setting(
    verb: str,
    common: Common,
    additions: str | None = "trunk",
    may_be_empty: bool = False,
    concat: bool = False,
) -> Iterator[Setting]:
    """Open network, data and device as the options say, with the run folder locked for the length of the body.

    Args:
        verb: that is to run.
        common: the options.
        additions: which residual additions are blocks; None for those of the trunk, and all where there is none.
        may_be_empty: whether a network without any will do.
        concat: whether concatenations are blocks too.

    Raises:
        PathlensError: whatever is wrong with the options, the network, the weights, the data or the run folder.
    """
    import torch

    from pathlens.analyses import view_of
    from pathlens.report import check_run_folder
    from pathlens.runtime import processes
    from pathlens.runtime.memory import oom_as_error
    from pathlens.storage.journal import results_unsaved

    mean, std = parse_normalisation(common.mean, common.std)
    check_init(common, common.weights)
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(processes.joined())
        opening = f"opening {common.model or DEFAULT_MODEL}"
        with group.agreed(), waiting(opening, group.is_main and not common.quiet), oom_as_error(common.batch_size):
            device = processes.pick_device(common.device.value)
            if device.type == "cuda":
                torch.cuda.set_device(device)
            if common.out is not None and group.is_main and os.path.exists(common.out):
                check_run_folder(common.out, verb)
            loaded, data = open_both(common)
            mean, std, source = normalisation(mean, std, loaded, data)
            check_fits(loaded, data)
            example = data.batch(0, min(2, data.n), mean=mean or None, std=std or None).images
            loaded.model.to(device)
            with foreign_output():
                loaded, initialisation = initialised(loaded, common, example, common.seed, common.output)
                example = example.to(device)
                which = additions and str(additions)
                view = view_of(loaded.model, example, common.output, which, may_be_empty, concat)
            if common.out is not None and group.is_main:
                stack.enter_context(run_folder(common.out, verb))
        saved = stack.enter_context(results_unsaved())
        is_random = common.weights == "random"
        ends: Provenance = {"num_classes": data.num_classes, "in_channels": data.channels} if is_random else {}
        yield Setting(
            verb=verb,
            common=common,
            loaded=loaded,
            data=data,
            view=view,
            device=device,
            group=group,
            mean=mean,
            std=std,
            initialisation=initialisation,
            provenance={
                "model": loaded.spec,
                "weights": loaded.weights,
                "trained": loaded.trained,
                "model_sha256": loaded.sha256,
                **ends,  # as which random weights were drawn
                "normalisation": source,
                "notes": list(loaded.notes),
            },
        )
        sys.stdout.flush()
        saved()


def open_both(common: Common) -> tuple[LoadedModel, DataSet]:
    """The network and the data; random weights are shaped by the data, images in folders by the network."""
    from pathlens.models import load_model
    from pathlens.runtime.memory import check_input_fits

    if common.weights == "random":
        data = opened(common, common.split, common.limit, common.image_size)
        loaded = load_model(
            common.model,
            common.weights,
            num_classes=data.num_classes,
            in_channels=data.channels,
            seed=common.seed,
        )
        return loaded, data
    loaded = load_model(common.model, common.weights, seed=common.seed)
    size = common.image_size
    spec = data_spec(common.data, common.model)
    if size is None and spec.startswith("imagefolder:") and loaded.input_shape is not None:
        size = loaded.input_shape[-1]
    if size is not None:
        channels = loaded.input_shape[0] if loaded.input_shape is not None else 3
        check_input_fits((channels, size, size), common.batch_size, "give a smaller --image-size or --batch-size")
    return loaded, opened(common, common.split, common.limit, size)


def opened(given: Common | TrainingOptions, split: str, limit: int | None, image_size: int | None) -> DataSet:
    """The images, the text or the arrays that the options name.

    Args:
        given: the options.
        split: which part.
        limit: how many examples, or None.
        image_size: of images, or None.

    Raises:
        UsageError: options of texts for images, or of images for a text, or of either for arrays.
        DataError: data that cannot be read.
    """
    from pathlens.data import open_arrays, open_data, open_text

    spec = data_spec(given.data, given.model)
    kind, _, path = spec.partition(":")
    if kind == "arrays":
        if image_size or given.tokenizer or given.sequence_length or given.stride:
            raise UsageError(
                "--image-size, --tokenizer, --sequence-length and --stride are of images and texts, and arrays are "
                "taken as they are; leave them out"
            )
        return open_arrays(path, split=split, limit=limit)
    if kind != "text" and (given.tokenizer or given.sequence_length or given.stride):
        raise UsageError("--tokenizer, --sequence-length and --stride are of texts; give --data text:FILE with them")
    if kind != "text":
        return open_data(spec, split=split, limit=limit, image_size=image_size, download=given.download)
    if image_size:
        raise UsageError(f"--image-size {image_size} is of images, and {spec} is a text; leave it out")
    return open_text(
        path,
        tokenizer=given.tokenizer or (given.model if (given.model or "").startswith("hf:") else None),
        length=given.sequence_length,
        stride=given.stride,
        split=split,
        limit=limit,
    )


def data_spec(data: str | None, model: str | None) -> str:
    """The data as given; only the network that comes with pathlens has data of its own."""
    if data is not None:
        return data
    if model in (None, DEFAULT_MODEL):
        return "digits"
    raise UsageError(
        f"no data given for {model}; give --data digits, cifar10, cifar100, parquet:PATH, imagefolder:DIR, text:FILE "
        "or arrays:FILE"
    )


def parse_normalisation(mean: str | None, std: str | None) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """``--mean`` and ``--std``, both or neither."""
    remedy = "one for each channel, such as 0.5,0.5,0.5"
    parsed = parse_numbers(mean, "mean", remedy), parse_numbers(std, "std", remedy)
    if (parsed[0] is None) != (parsed[1] is None):
        raise UsageError("--mean and --std belong together; give both or neither")
    return parsed


def normalisation(
    mean: tuple[float, ...] | None, std: tuple[float, ...] | None, loaded: LoadedModel, data: DataSet
) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """Mean, standard deviation and where they are from: as given, else stated by the network, else the data set's."""
    if mean is not None and std is not None:
        return mean, std, "given (--mean, --std)"
    if loaded.mean is not None and loaded.std is not None and len(loaded.mean) == len(data.mean):
        return tuple(loaded.mean), tuple(loaded.std), f"of the network: {loaded.normalisation_source}"
    return tuple(data.mean), tuple(data.std), f"of the data: {data.normalisation_source}"


def check_fits(loaded: LoadedModel, data: DataSet) -> None:
    """Raise if the network is not made for such data, as far as is known without running it.

    Args:
        loaded: the network.
        data: to be read by it.

    Raises:
        DataError: images of other channels or classes, or tokens or lengths that it does not know.
    """
    from pathlens.data import ImageData, TextData, check_labels, check_tokens

    if isinstance(data, TextData):
        known = data.num_classes if loaded.num_classes is None else loaded.num_classes
        check_tokens(data, known, loaded.context)
    elif isinstance(data, ImageData):
        _check_channels(loaded, data)
        if loaded.num_classes is not None:
            check_labels(data, loaded.num_classes)


def _check_channels(loaded: LoadedModel, data: ImageData) -> None:
    if loaded.input_shape is not None and loaded.input_shape[0] != data.channels:
        raise DataError(
            f"{data.name} has images of {data.channels} channel(s) and {loaded.spec} takes {loaded.input_shape[0]}; "
            "give data of the kind that the network is made for"
        )


@contextlib.contextmanager
def run_folder(out: Path, verb: str) -> Iterator[None]:
    """Lock the run folder; a new one is removed again if the body fails before anything is written."""
    from pathlens.report import check_run_folder
    from pathlens.storage import lock_run

    new = not os.path.exists(out)
    with lock_run(out):
        try:
            check_run_folder(out, verb)
            yield
        except BaseException:
            if new and os.listdir(out) == [".lock"]:
                (out / ".lock").unlink()
                out.rmdir()
            raise


@contextlib.contextmanager
def foreign_output() -> Iterator[None]:
    """What a user's own network prints goes to stderr, because stdout is for results."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def finish(
    current: Setting,
    table: Table,
    arguments: Mapping[str, object],
    more: Mapping[str, Table] | None = None,
) -> None:
    """Print the table and, where asked for, write the run folder. Only the main process does either.

    Args:
        current: what the verb worked on.
        table: its main table.
        arguments: of the verb itself, for the manifest.
        more: further tables by stem.
    """
    if not current.group.is_main:
        return
    from dataclasses import replace

    from pathlens.cli.show import show
    from pathlens.report import provenance, write_run

    common = current.common
    table = replace(table, provenance=provenance(**table.provenance))
    written: list[Path] = []
    failure: Exception | None = None
    if common.out is not None:
        manifest = {
            **table.provenance,
            "verb": current.verb,
            "arguments": {**spoken(common), **arguments},
            "wall_time_seconds": round(time.monotonic() - current.began, 3),
        }
        from pathlens import figures
        from pathlens.results import named

        tables = {current.verb: table, **(more or {})}
        if current.initialisation is not None:
            tables["initialisation"] = current.initialisation
        pictures = {}
        # a failure is raised below, after the numbers were written and printed
        for stem in (stem for stem in tables if named(stem).figure):
            try:
                pictures[stem] = figures.draw(stem, tables[stem])
            except Exception as error:
                failure = error
        try:
            written = write_run(common.out, tables, pictures, manifest)
        except PathlensError as error:
            failure = error
    show(table, current.verb, common.json)
    if failure is not None:
        raise failure
    if not common.quiet:
        where = (
            f"wrote {len(written)} files to {common.out}" if written else "give --out DIR for CSV, Parquet and figures"
        )
        say(where)
