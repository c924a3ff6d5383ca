"""Deeper networks that are trained here: bytes of the documentation that comes with Python."""

from __future__ import annotations

import ast
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import pathlens
from pathlens.data import TextData
from pathlens.storage import atomic_write_bytes
from studies.common import StudySetting, train_all

FILE = "documentation.txt"
NETWORK = "bytes24"
#: folders of the standard library that hold tests, or what others wrote
LEFT_OUT = {"site-packages", "test", "tests", "idle_test", "lib2to3"}


def documents(every: int = 1) -> Iterator[str]:
    """The topics of Python's ``help``, and the docstrings of its standard library: of each ``every``-th file."""
    yield from (topics[name] for name in sorted(topics))
    library = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(library.rglob("*.py"))[::every]:
        if LEFT_OUT.isdisjoint(file.relative_to(library).parts):
            try:
                tree = ast.parse(file.read_bytes())
            except (SyntaxError, OSError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    yield ast.get_docstring(node) or ""


def text(every: int = 1) -> str:
    """All documents in an order drawn once, with each paragraph only where it comes first.

    Topics repeat one another, and what is watched must not have been trained on.

    Args:
        every: 1 for all files of the standard library, 2 for every other one, and so on.
    """
    whole = sorted(set(documents(every)))
    random.Random(0).shuffle(whole)
    return "\n\n".join(dict.fromkeys(paragraph for document in whole for paragraph in document.split("\n\n")))


@dataclass(frozen=True)
class Trainings:
    """Networks that differ in their seed, and the sequences that they were not trained on.

    Attributes:
        network: their name in pathlens.
        folders: name of a network -> its run folder.
        held_out: the end of the text.
    """

    network: str
    folders: dict[str, Path]
    held_out: TextData


def trainings(study: StudySetting) -> Trainings:
    """Train what is not trained yet; the run folders keep it."""
    file = study.runs / FILE
    if not file.is_file():  # kept, since another Python has another text
        study.runs.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(file, text(study.pick(100, 1, 1)).encode()[: study.pick(4000, None, None)])
    network = study.pick("llama6_96", "llama12_64", "llama24_256")
    length, epochs, batch = study.pick((16, 1, 8), (128, 3, 16), (256, 20, 64))
    data = pathlens.open_text(file, length=length)
    held_out = study.pick(8, data.n // 10, data.n // 10)
    shared = f"--model {network} --data text:{FILE} --sequence-length {length} --epochs {epochs} --batch-size {batch}"
    recipe = [*shared.split(), "--lr", "3e-3", "--validation", str(held_out)]
    wanted = {f"{NETWORK}-seed{seed}": [*recipe, "--seed", str(seed)] for seed in range(study.pick(1, 3, 3))}
    return Trainings(network, train_all(wanted, study), data.hold_out(held_out)[1])
