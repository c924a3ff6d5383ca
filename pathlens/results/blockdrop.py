"""The tables of ``blockdrop``: networks with as many blocks, choices by example and by class, and the training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from pathlens.metrics.tasks import REGRESSION, TASKS
from pathlens.results import measured, tasks
from pathlens.results.charts import Axis, Chart, Series, chart, scaled
from pathlens.results.measured import error_rules, error_series, with_interval
from pathlens.results.result import Headline, Provenance, Result, Row, Rows, Shown, column, formatted
from pathlens.results.text import said
from pathlens.tables import Column, Table

WORDS = {
    "intact": "intact network",
    "tuned": "tuned network, all blocks",
    "policy": "policy",
    "random": "random sets",
    "single": "best by single lesions",
    "greedy": "greedy deletion",
}
"""What the networks of the table are called."""

_NOT_COUNTED = "missing: numbers are not right or wrong"
_SHARE = "1 - squared error of {whose} network / variance of the training targets, and 0 where that is negative"
_SHARE_OF_UNITS = "share of its {units} that {whose} network predicts correctly; 1 where none of them counts"
_EPOCH = "squared error / variance of the training targets, at most 1, under the {which} choices; mean over {examples}"
_EPOCH_OF_UNITS = "share of an example's {units} predicted wrongly under the {which} choices, mean over {examples}"


_Words = Mapping[str, tuple[str, str]]


def _of_task(table: Table, of_units: _Words, of_numbers: _Words) -> Table:
    """A table in the words of its task.

    Args:
        table: in those of classes and images.
        of_units: unit and meaning of columns that a task with many answers an example words otherwise.
        of_numbers: likewise of a regression.
    """
    stated, task = table.provenance, str(table.provenance.get("task"))
    if task not in tasks.WORDS:
        return table
    examples, units = tasks.WORDS[task]
    words = {"examples": examples, "units": units, "test": TASKS[task].test}
    words |= {"loss": tasks.loss_of(stated), "loss_unit": tasks.loss_unit(stated)}
    changed = of_numbers if task == REGRESSION.name else of_units

    def reworded(column: Column) -> Column:
        if column.name in changed:
            unit, meaning = (text.format(**words) for text in changed[column.name])
        else:
            unit, meaning = (_of_example(text, stated) for text in (column.unit, column.description))
        return replace(column, unit=unit, description=meaning)

    return replace(table, columns=tuple(map(reworded, table.columns)))


def example_of(provenance: Provenance) -> str:
    """What an example of a table is called, in the singular; an image where nothing is said.

    Args:
        provenance: of the table.
    """
    task = TASKS.get(str(provenance.get("task")))
    return "image" if task is None else task.example


def blocks_label(provenance: Provenance) -> str:
    """What an axis of blocks that run is called. Argument as :func:`example_of`."""
    return _of_example("blocks that run for an image", provenance)


def _of_example(text: str, provenance: Provenance) -> str:
    """A text on images in the words of the task."""
    example = example_of(provenance)
    return text.replace("an image", f"{'an' if example[0] in 'aeiou' else 'a'} {example}").replace("image", example)


@dataclass(frozen=True, kw_only=True)
class _Which:
    network: str = column(
        "",
        "intact; tuned (jointly with the policy, all blocks); policy; or one of the same number of blocks for all "
        "images: random, single (those of which the deletion alone costs most) or greedy (left by a greedy deletion)",
    )
    sample: int | None = column("", "number of the random set; missing for others and in the row of their mean")
    blocks: float = column("blocks", "blocks that run for an image, mean")
    blocks_sd: float = column("blocks", "standard deviation of it over images")
    choices: int = column("", "different choices of blocks among the images")
    kept: str | None = column("", "the blocks that run, where they are the same for all images and some are not run")
    multiply_adds: float = column("", "multiply-adds for an image, mean; of the policy with those of its own network")
    seconds: float | None = column(
        "s", "measured time for all images, in turns with the policy's, which has its own network's in it"
    )


@dataclass(frozen=True, kw_only=True)
class _Against:
    policy_difference: float | None = column("fraction", "error minus that of the policy on the same images")
    policy_lost: int | None = column("images", "those that the policy alone classifies correctly")
    policy_gained: int | None = column("images", "those that this network alone classifies correctly, not the policy")
    policy_p: float | None = column("", "McNemar's exact test against the policy, two-sided, not corrected")


@dataclass(frozen=True, kw_only=True)
class ChoiceRow(_Against, measured.Measured, _Which):
    """One network on all images."""


def rows_of(rows: Rows, *networks: str) -> list[Row]:
    """Rows of some kinds of networks, of random sets that of their mean, or of the only one.

    Args:
        rows: of the table of ``blockdrop``.
        *networks: their kinds.
    """
    chosen = [row for row in rows if row["network"] in networks and None not in (row["blocks"], row["error"])]
    sets = sum(row["network"] == "random" for row in chosen)
    return [row for row in chosen if row["network"] != "random" or row.get("sample") is None or sets == 1]


def called(row: Row) -> str:
    """What the network of a row is called.

    Args:
        row: of the table of ``blockdrop``.
    """
    if row["network"] == "random" and row.get("sample") is not None:
        return "random set"
    return WORDS.get(row["network"], str(row["network"]))


def _name(row: Row, name: str) -> str:
    is_mean = row["network"] == "random" and row.get("sample") is None
    return f"{called(row)}, mean" if is_mean else called(row)


_NETWORKS_OF_UNITS: _Words = {
    "policy_lost": ("{units}", "those that the policy alone predicts correctly"),
    "policy_gained": ("{units}", "those that this network alone predicts correctly, not the policy"),
    "policy_p": ("", "{test}, against the policy; not corrected"),
}
_NETWORKS_OF_NUMBERS: _Words = {
    "policy_lost": ("", _NOT_COUNTED),
    "policy_gained": ("", _NOT_COUNTED),
    "policy_p": ("", "{test}, against the policy; not corrected"),
}


class BlockDropped(Result):
    """The main table of ``blockdrop``."""

    name = "blockdrop"
    row = ChoiceRow
    needed = ("network", "blocks", *measured.NEEDED)
    shown: ClassVar[Mapping[str, Shown]] = {
        "network": Shown(text=_name, left=True),
        "blocks": Shown("blocks\nrun", formatted(".2f")),
        "blocks_sd": Shown("s.d.", formatted(".2f"), gives_way=4),
        "choices": Shown("different\nchoices", gives_way=5),
        "multiply_adds": Shown("multiply-\nadds", formatted(".3g"), gives_way=6),
        "seconds": Shown("measured\nseconds", formatted(".2f"), gives_way=7),
        **measured.SHOWN,
        "policy_difference": Shown("beyond\npolicy", measured.points, gives_way=1),
    }
    bar = "error"
    figure = "blockdrop.trade_off"
    what = "blocks chosen for each image"

    def table(self, rows: Rows, provenance: Provenance) -> Table:
        """See :meth:`.Result.table`."""
        return _of_task(super().table(rows, provenance), _NETWORKS_OF_UNITS, _NETWORKS_OF_NUMBERS)

    def title(self, rows: Rows, provenance: Provenance) -> str:
        """What was done."""
        return _of_example(self.what, provenance)

    def headlines(self, rows: Rows, provenance: Provenance) -> list[Headline]:
        """The errors, and the blocks that the policy runs."""
        lines = [with_interval(f"Error, {called(row)}", row) for kind in WORDS for row in rows_of(rows, kind)]
        for row in rows_of(rows, "policy"):
            spread = "" if row.get("blocks_sd") is None else f"standard deviation {row['blocks_sd']:.2f}"
            of = f" of {said(provenance['blocks'])}" if "blocks" in provenance else ""
            label = _of_example("Blocks run for an image", provenance)
            lines.insert(0, Headline(label, f"{row['blocks']:.2f}{of}", spread))
        return lines

    def notes(self, provenance: Provenance) -> list[str]:
        """How networks were compared, what the policy saves, and on what the numbers rest."""
        saved = [str(provenance["saved"])] if provenance.get("saved") else []
        return [*saved, *measured.notes(provenance)]

    def charts(self, rows: Rows, provenance: Provenance) -> list[Chart]:
        """Error against the blocks that run."""
        series = []
        for colour, kind in enumerate(("policy", "random", "single", "greedy")):
            if points := rows_of(rows, kind):
                line = error_series(points, "blocks", key=kind, name=called(points[0]), colour=colour)
                series.append({**line, "line": "none"})
        whole = next(iter(rows_of(rows, "intact")), None)
        rules = error_rules(whole, WORDS["intact"])
        label = blocks_label(provenance)
        return [
            chart(
                "error by blocks",
                f"Error by {label}",
                label,
                tasks.error_axis(provenance),
                series,
                whole=False,
                rules=rules,
            )
        ]


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """What was chosen for one image, or another example."""

    image: int = column("", "its row in the data, from 0")
    label: int | None = column("", "its class")
    blocks: int = column("blocks", "blocks that run for it")
    choice: str = column(
        "", "a digit for each block, 1 where it runs; begins with b, so that no reader takes it for a number"
    )
    correct: float = column("", "1 where the policy's network classifies it correctly")
    intact_correct: float = column("", "1 where the intact network does")


def bits(choice: str | None) -> list[int]:
    """The digits of a choice.

    Args:
        choice: as the table has it; anything else gives no digits.
    """
    mark, digits = (choice or "")[:1], (choice or "")[1:]
    return [int(digit) for digit in digits] if mark == "b" and set(digits) <= {"0", "1"} else []


def usage(rows: Rows) -> list[float]:
    """Share of the images for which each block runs; empty where choices are of different lengths.

    Args:
        rows: of the table of choices.
    """
    choices = [bits(row["choice"]) for row in rows]
    if not choices or len({len(choice) for choice in choices}) > 1:
        return []
    return [sum(block) / len(choices) for block in zip(*choices, strict=True)]


_NO_CLASS = "missing: there is no one class for each of the {examples}"


_CHOICES_OF_UNITS: _Words = {
    "label": ("", _NO_CLASS),
    "correct": ("fraction", _SHARE_OF_UNITS.replace("{whose}", "the policy's")),
    "intact_correct": ("fraction", _SHARE_OF_UNITS.replace("{whose}", "the intact")),
}
_CHOICES_OF_NUMBERS: _Words = {
    "label": ("", _NO_CLASS),
    "correct": ("fraction", _SHARE.replace("{whose}", "the policy's")),
    "intact_correct": ("fraction", _SHARE.replace("{whose}", "the intact")),
}


class Choices(Result):
    """The choices of ``blockdrop``, example by example."""

    name = "blockdrop-choices"
    row = ImageRow
    needed = ("image", "blocks", "choice", "correct")
    figure = "blockdrop.choices"
    what = "the choice of blocks for each image"

    def table(self, rows: Rows, provenance: Provenance) -> Table:
        """See :meth:`.Result.table`."""
        return _of_task(super().table(rows, provenance), _CHOICES_OF_UNITS, _CHOICES_OF_NUMBERS)

    def title(self, rows: Rows, provenance: Provenance) -> str:
        """What was done."""
        return _of_example(self.what, provenance)

    def charts(self, rows: Rows, provenance: Provenance) -> list[Chart]:
        """How often each block runs."""
        shares = usage(rows)
        if not shares:
            return []
        examples = f"{example_of(provenance)}s"
        series: Series = {"key": "usage", "name": examples, "colour": 0, "x": list(range(len(shares)))}
        series["y"] = scaled(shares, 100)
        y: Axis = {"label": f"{examples} for which it runs (%)"}
        return [chart("block usage", f"{examples.capitalize()} for which each block runs", "block", y, [series])]


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """What was chosen for the images of one class."""

    label: int = column("", "the class")
    name: str | None = column("", "its name, where the data state it")
    n: int = column("images", "images of it")
    blocks: float = column("blocks", "blocks that run for an image of it, mean")
    blocks_sd: float = column("blocks", "standard deviation of it over images")
    choices: int = column("", "different choices of blocks among them")
    error: float = column("fraction", "share that the policy's network classifies wrongly")
    error_low: float = column("fraction", "lower end of the 95 % interval (Wilson)")
    error_high: float = column("fraction", "upper end of it")
    intact_error: float = column("fraction", "share that the intact network classifies wrongly")


class Classes(Result):
    """The choices of ``blockdrop``, class by class."""

    name = "blockdrop-classes"
    row = ClassRow
    needed = ("label", "blocks", "intact_error", *measured.NEEDED)
    what = "the choice of blocks by class"


@dataclass(frozen=True, kw_only=True)
class LearningRow:
    """One epoch of the training of a policy; of its images, augmented, with the weights of each step."""

    epoch: int = column("", "epochs done")
    phase: str = column("", "frozen: the policy alone is trained; joint: the network too")
    choosing: int = column("blocks", "so many of the last blocks are chosen by the policy, at the epoch's end")
    reward: float = column("", "reward of the drawn choices, mean over images")
    error: float = column("fraction", "share classified wrongly under the drawn choices")
    blocks: float = column("blocks", "blocks of the drawn choices, mean over images")
    likely_error: float = column("fraction", "share classified wrongly under the most probable choices")
    likely_blocks: float = column("blocks", "blocks of the most probable choices, mean over images")
    loss: float | None = column(
        "nats", "mean cross-entropy under the drawn choices; missing while the network is frozen"
    )
    seconds: float = column("s", "wall time of the epoch's steps")


_EPOCHS_OF_UNITS: _Words = {
    "error": ("fraction", _EPOCH_OF_UNITS.replace("{which}", "drawn")),
    "likely_error": ("fraction", _EPOCH_OF_UNITS.replace("{which}", "most probable")),
    "loss": (
        "{loss_unit}",
        "mean {loss} of the {examples} under the drawn choices; missing while the network is frozen",
    ),
}
_EPOCHS_OF_NUMBERS: _Words = {
    "error": ("fraction", _EPOCH.replace("{which}", "drawn")),
    "likely_error": ("fraction", _EPOCH.replace("{which}", "most probable")),
    "loss": ("targets^2", "mean squared error under the drawn choices; missing while the network is frozen"),
}


class Learning(Result):
    """How a policy was trained."""

    name = "blockdrop-training"
    row = LearningRow
    needed = ("epoch", "choosing", "reward", "likely_error", "likely_blocks")
    what = "a policy trained"

    def table(self, rows: Rows, provenance: Provenance) -> Table:
        """See :meth:`.Result.table`."""
        return _of_task(super().table(rows, provenance), _EPOCHS_OF_UNITS, _EPOCHS_OF_NUMBERS)

    def charts(self, rows: Rows, provenance: Provenance) -> list[Chart]:
        """Reward and blocks by epoch."""
        epochs = [row["epoch"] for row in rows]
        charts = []
        for name, key, words in (
            ("reward", "reward", "reward of drawn choices"),
            ("blocks", "likely_blocks", "blocks of the most probable choice"),
        ):
            series: Series = {"key": key, "name": words, "colour": 0, "x": epochs, "y": [row[key] for row in rows]}
            charts.append(
                chart(f"policy {name}", f"{words.capitalize()} by epoch", "epoch", {"label": words}, [series])
            )
        return charts


BLOCKDROP = BlockDropped()
CHOICES = Choices()
CLASSES = Classes()
LEARNING = Learning()
