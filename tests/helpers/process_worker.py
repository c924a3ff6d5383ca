"""What each of several processes does in ``tests/runtime/test_processes.py``; prints one JSON object for each."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

import pathlens
from pathlens.cli import main
from pathlens.data import open_data
from pathlens.errors import NumericsError, PathlensError
from pathlens.residual import find_blocks
from pathlens.runtime import processes
from tests.helpers.lesion_oracle import small_batches, small_net

RGB = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def said(error: Exception) -> list[str]:
    return [type(error).__name__, str(error)]


def scenarios(group: processes.Processes, spec: str, bad: str, user: str, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"rank": group.rank, "world": group.world}
    view = find_blocks(small_net(torch.float32), torch.zeros(2, 3, 8, 8))
    data = open_data(spec)

    def sweep(**options: Any) -> pathlens.analyses.Table:
        return pathlens.delete_blocks(view, data, **{"batch_size": 5, **RGB, **options})

    computed: list[int] = []
    table = sweep(progress=lambda done, total: computed.append(done))
    found["table"], found["processes"] = table.rows, table.provenance["processes"]
    found["computed"] = max(computed)
    found["list of batches"] = pathlens.delete_blocks(view, small_batches(dtype=torch.float32)).rows

    gradients = pathlens.path_gradients(view, data, batch_size=7, max_samples=6, **RGB)
    found["gradients"] = gradients.rows
    found["lattice"] = pathlens.lattice(view, data, batch_size=7, **RGB).rows

    # the journal of a run with another number of processes is used, and used up
    found["resumed"] = sweep(journal=folder / "journal").provenance["resumed_batches"]

    # one process has more to do before it fails than the other has altogether
    def slow(done: int, total: int) -> None:
        if group.rank == 1 and done == 2:
            time.sleep(0.5)
            raise NumericsError("one process is out of sorts")

    try:
        sweep(progress=slow)
    except PathlensError as error:
        found["one failed"] = said(error)

    # a process that has much to do learns early that another has failed
    def early(done: int, total: int) -> None:
        if group.rank == 1:
            raise NumericsError("at once")
        time.sleep(0.3)

    began = time.monotonic()
    try:
        sweep(batch_size=1, progress=early)
    except PathlensError as error:
        found["early"] = [*said(error), time.monotonic() - began]
    try:
        sweep(blocks=[77])
    except PathlensError as error:
        found["all failed"] = said(error)
    shuffled = DataLoader(TensorDataset(torch.zeros(4, 3, 8, 8), torch.zeros(4)), shuffle=True)
    try:
        pathlens.delete_blocks(view, shuffled)
    except PathlensError as error:
        found["shuffled"] = said(error)
    # the network's classes are known only when it runs, and one process alone sees the label that is none of them
    command = ["delete-blocks", "-m", user, "-d", bad, "--batch-size", "10", "--out", str(folder / "out")]
    found["exit codes"] = [main(command), main(["delete-blocks", "-m", "nosuch"]), main([*command, "--blocks", "x"])]
    # and after all of these failures they still understand each other
    found["again"] = sweep().rows
    group.gather(None)
    return found


def work(spec: str, bad: str, user: str, folder: Path) -> None:
    with processes.joined() as group:
        found = scenarios(group, spec, bad, user, folder)
        if group.rank == 1:
            print(json.dumps(found), flush=True)
            os._exit(0)  # without a word to the others
        try:
            group.gather(None)
        except PathlensError as error:
            found["other is gone"] = said(error)
        print(json.dumps(found), flush=True)
