"""Names of splits, and what file and folder names say about them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pathlens.errors import DataError, MissingSplitError

SPLITS = {"train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test",)}
"""Split -> the names under which it is found, best first."""


def split_name(split: str) -> str:
    """The split that a user's word stands for.

    Raises:
        DataError: it stands for none.
    """
    for name, aliases in SPLITS.items():
        if split in aliases:
            return name
    raise DataError(f"split '{split}' is unknown; give one of {', '.join(SPLITS)}")


def split_of(name: str) -> str | None:
    """The split that a file or folder name begins with (``test``, ``test-00000-of-00002``), or None."""
    word = name.lower().replace("_", "-").replace(".", "-").split("-")[0]
    return next((split for split, aliases in SPLITS.items() if word in aliases), None)


def folder_name(folder: Path) -> str:
    """Name of a data set that lies in ``folder``: the nearest folder that is not called ``data`` or like a split."""
    folder = folder.absolute()
    skipped = {"", "data", *(alias for aliases in SPLITS.values() for alias in aliases)}
    return next((place.name for place in (folder, *folder.parents) if place.name not in skipped), folder.name or "data")


def places_of(folder: Path, holds: Callable[[Path], bool]) -> dict[str, Path]:
    """The folders of splits in a folder.

    Args:
        folder: that a user names.
        holds: whether a folder holds the images of a split.
    """
    places: dict[str, Path] = {}
    for name, aliases in SPLITS.items():
        for alias in aliases:
            if name not in places and holds(folder / alias):
                places[name] = folder / alias
    return places


def place_of(folder: Path, split: str, holds: Callable[[Path], bool]) -> tuple[Path, str]:
    """Where the images of a split lie, and the split it is: a folder in this one, or this one where there is none.

    Where there is no test folder, that of the validation images stands in.

    Args:
        folder: that a user names.
        split: which one.
        holds: whether a folder holds the images of a split.

    Raises:
        MissingSplitError: there are folders for splits, and none for this one.
    """
    places = places_of(folder, holds)
    if not places:
        return folder, split_of(folder.name) or split
    if split == "test" and "test" not in places and "validation" in places:
        split = "validation"
    if split not in places:
        raise MissingSplitError(f"{folder} has no folder for the split '{split}', only for {', '.join(sorted(places))}")
    return places[split], split
