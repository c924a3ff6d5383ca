"""The lesion verbs on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

from pathlens.cli import options as o
from pathlens.cli.options import parse_range
from pathlens.cli.progress import progress_bar
from pathlens.cli.setting import finish, foreign_output, setting
from pathlens.errors import UsageError

if TYPE_CHECKING:
    from pathlens.tables import Table

Blocks = Annotated[
    str | None,
    o.option(
        "Which blocks to delete one at a time, such as 0:8 (both ends included, unlike Python's range).",
        metavar="RANGE",
    ),
]
Count = Annotated[
    str | None,
    o.option("Delete random sets of these sizes instead, such as 1:20 (both ends included).", metavar="RANGE"),
]


_COUNT, _RUNS = "give --count", "--contiguous takes all runs of neighbours"
Search = StrEnum("Search", "random greedy exhaustive influence")
Group = StrEnum("Group", "block layer")
Runs = StrEnum("Runs", "reverse parallel middle repeat")
Replace = StrEnum("Replace", "zero mean resample")
Task = StrEnum("Task", "classification next-token segmentation regression")


@dataclass(frozen=True)
class LesionOptions(o.Common):
    """The shared options, and how to run the network."""

    engine: Annotated[
        str,
        o.option(
            "auto measures which is fastest; a name from a table's provenance makes it again to the bit.",
            "--engine",
            metavar="NAME",
        ),
    ] = "auto"
    task: Annotated[
        Task | None, o.option("What is measured of the outputs. Default: what their shape fits.", "--task")
    ] = None
    loss: o.Loss = None
    plain_forward: Annotated[bool, o.option("Run the model's own operations: --engine plain.", "--plain-forward")] = (
        False
    )

    @property
    def sweep(self) -> dict[str, Any]:
        """Keyword arguments of an analysis of lesioned networks, beside those of every analysis.

        Raises:
            UsageError: two engines were asked for.
        """
        if self.plain_forward and self.engine not in ("auto", "plain"):
            raise UsageError(f"--engine {self.engine} and --plain-forward are two engines; leave one of them out")
        return {
            "dtype": self.dtype.value,
            "task": None if self.task is None else self.task.value,
            "loss": None if self.loss is None else self.loss.value,
            "seed": self.seed,
            "engine": self.engine,
            "fast": not self.plain_forward,
        }


@o.takes_objects
def delete_blocks(
    blocks: Blocks = None,
    count: Count = None,
    samples: o.Samples = None,
    additions: o.Additions = None,
    concat: o.Concat = False,
    search: Annotated[
        Search,
        o.option(
            "How sets are found: drawn; by deleting the best next block, or what changes its input least (influence), "
            "up to the largest --count (default 20); or all of up to --count blocks (default 2), with what each costs "
            "beyond the sum of its blocks."
        ),
    ] = Search.random,
    group: Annotated[
        Group, o.option("layer: delete all blocks of a layer together, such as attention and MLP.")
    ] = Group.block,
    contiguous: Annotated[
        bool, o.option("With --count: all runs of neighbours in place of random sets.", "--contiguous")
    ] = False,
    replace: Annotated[
        Replace,
        o.option("In the place of a branch: nothing, its mean over the data, or that of another image of the batch."),
    ] = Replace.zero,
    *,
    common: LesionOptions,
) -> None:
    """Error and loss with each residual block deleted, or random sets of blocks (Veit et al. 2016, 4.1 and 4.2).

    In a plain network layers are deleted. A sweep that was killed goes on when the same command is given again.
    """
    arguments: dict[str, object]
    if search != Search.random:
        by_influence = search == Search.influence
        if (group != Group.block and not by_influence) or contiguous:
            raise UsageError(f"--search {search} is among single blocks; leave --group and --contiguous out")
        if by_influence and (concat or additions not in (None, "trunk")):
            raise UsageError("--search influence needs blocks one after the other; leave --additions and --concat out")
        if blocks is not None:
            raise UsageError(f"--blocks {blocks}: --search {search} is among all blocks; leave --blocks out")
        if replace != Replace.zero:
            raise UsageError(f"--replace {replace}: --search {search} deletes branches; leave one of the two out")
        o.drawn(samples, False, "leave it out, or --search")
        sizes = parse_range(count, "count")
        arguments = {"count": max(sizes)} if sizes else {}
        if by_influence:
            run("delete-blocks-influence", common, {**arguments, "group": group.value})
        else:
            run(f"delete-blocks-{search}", common, arguments, None, additions, concat)
        return
    arguments = {
        "blocks": parse_range(blocks, "blocks"),
        "count": parse_range(count, "count"),
        "samples": o.drawn(samples, count is not None and not contiguous, _RUNS if contiguous else _COUNT),
        "group": group.value,
        "contiguous": contiguous,
        "replace": replace.value,
    }
    run("delete-blocks", common, arguments, blocks, additions, concat)


@o.takes_objects
def delete_skips(
    blocks: Blocks = None,
    count: Count = None,
    samples: o.Samples = None,
    additions: o.Additions = None,
    *,
    common: LesionOptions,
) -> None:
    """The control experiment: each block's shortcut deleted and its branch kept."""
    arguments = {
        "blocks": parse_range(blocks, "blocks"),
        "count": parse_range(count, "count"),
        "samples": o.drawn(samples, count is not None, _COUNT),
    }
    run("delete-skips", common, arguments, blocks, additions)


@o.takes_objects
def reorder_blocks(
    swaps: Annotated[
        str | None, o.option("How many random pairs of blocks to exchange. Default: 1:20.", metavar="RANGE")
    ] = None,
    samples: o.Samples = None,
    group: Annotated[Group, o.option("layer: whole layers, of attention and MLP, in place of blocks.")] = Group.block,
    runs: Annotated[
        Runs | None,
        o.option(
            "In place of random exchanges, each run of neighbours: reversed, which exchanges two; side by side, their "
            "outputs averaged (parallel); with its middle one in the place of each; or repeated.",
            "--runs",
        ),
    ] = None,
    count: Annotated[
        str | None, o.option("With --runs: blocks or layers of a run. Default: 2.", metavar="RANGE")
    ] = None,
    times: Annotated[
        int | None,
        o.option("With --runs parallel (default 1) or repeat (default 2): how often.", min=1, metavar="N"),
    ] = None,
    *,
    common: LesionOptions,
) -> None:
    """Error against Kendall's tau of a random order of the blocks (Veit et al. 2016, section 4.3).

    With --runs, error with every run of neighbours carried out in another way (Sun et al. 2024).
    """
    if runs is None:
        if count is not None or times is not None:
            raise UsageError("--count and --times are of runs; give --runs with them")
        sizes = parse_range(swaps or "1:20", "swaps")
        run("reorder-blocks", common, {"swaps": sizes, "samples": o.drawn(samples, True, ""), "group": group.value})
        return
    o.drawn(samples, False, f"--runs {runs} takes each run of neighbours")
    if swaps is not None:
        raise UsageError(f"--swaps {swaps}: --runs {runs} takes each run of neighbours; leave one of the two out")
    arguments = {"runs": runs.value, "count": parse_range(count or "2", "count"), "group": group.value}
    run("reorder-blocks-runs", common, {**arguments, "times": times})


def run(
    verb: str,
    common: LesionOptions,
    arguments: Mapping[str, object],
    blocks: str | None = None,
    additions: str | None = "trunk",
    concat: bool = False,
) -> None:
    """Run a verb of :mod:`pathlens.analyses` with the options given, then print its table and write the run folder.

    Args:
        verb: its name.
        common: the shared options.
        arguments: its own.
        blocks: the range of blocks as the user wrote it.
        additions: which residual additions are blocks.
        concat: whether concatenations are blocks too.
    """
    with setting(verb, common, additions, concat=concat) as current:
        from pathlens import analyses, plans

        numbers = parse_range(blocks, "blocks") if blocks and ":" in blocks else ()
        if numbers:
            try:
                plans.delete(max(numbers)).check(current.view)
            except UsageError as error:
                raise UsageError(f"{error}; --blocks {blocks} includes both ends, unlike Python's range") from error
        call: Callable[..., Table] = getattr(analyses, verb.replace("-", "_"))
        with progress_bar(verb, current.shows_progress, current.notes) as progress, foreign_output():
            table = call(
                current.view,
                current.data,
                **arguments,
                **current.options,
                **common.sweep,
                progress=progress,
            )
        finish(current, table, {**arguments, "additions": current.view.additions, "concat": concat})
