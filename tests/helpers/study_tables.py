"""Tables of a network of four blocks as a study measures them, made by hand: block 0 is critical."""

from __future__ import annotations

from typing import Any

from pathlens.tables import Column, Table

IMAGES = {"images": 1000, "data": "d", "split": "test", "batch_size": 128, "dtype": "float32"}
#: by length: how many paths, mean norm of one, and share of the gradient by projection
LENGTHS = ((1, 1.0, 0.1), (4, 0.5, 0.7), (6, 0.25, 0.3), (4, 0.5, -0.1), (1, 0.0, 0.0))


def made(rows: list[dict[str, Any]], **facts: Any) -> Table:
    return Table(tuple(map(Column, rows[0])), tuple(rows), {**IMAGES, **facts})


def lesions() -> Table:
    """Single deletions, with narrow intervals."""
    rows = []
    for block, cost in ((None, 0.0), (0, 0.4), (1, 0.0), (2, 0.01), (3, 0.0)):
        row: dict[str, Any] = {"block": block, "name": None, "kind": "identity", "count": int(block is not None)}
        row |= {"sample": None, "blocks": None, "error": 0.1 + cost, "n": 1000}
        ends = {"difference": cost, "difference_low": cost - 0.01, "difference_high": cost + 0.01, "p_holm": 0.5}
        rows.append({**row, **(dict.fromkeys(ends) if block is None else ends)})
    return made(rows)


def sets(more: float = 0.0) -> Table:
    """Random sets of one and of two blocks; all errors may be higher."""
    rows: list[dict[str, Any]] = [{"count": 0, "sample": None, "blocks": None, "error": 0.1}]
    drawn = {"0": 0.5, "1": 0.1, "2": 0.12, "0,1": 0.6, "0,2": 0.7, "1,2": 0.2}
    rows += [
        {"count": 1 + blocks.count(","), "sample": sample, "blocks": blocks, "error": error + more}
        for sample, (blocks, error) in enumerate(drawn.items())
    ]
    return made(rows)


def orders() -> Table:
    """Orders after one exchange and after two, of which no order after two moves block 0."""
    drawn = (
        (0, None, None, "0,1,2,3", 1.0, 0.1),
        (1, 0, "0,1", "1,0,2,3", 0.7, 0.5),
        (1, 1, "1,2", "0,2,1,3", 0.7, 0.2),
        (2, 0, "1,2,3", "0,3,1,2", 0.3, 0.3),
    )
    names = ("swaps", "sample", "blocks", "order", "kendall_tau", "error")
    rows = [{**dict(zip(names, row, strict=True)), "moved": len(row[2].split(",")) if row[2] else 0} for row in drawn]
    return made(rows)


def gradients() -> Table:
    """Gradients by path length, with effective lengths of 0 to 2."""
    rows = [
        {
            "length": length, "n_paths": count, "share": share, "path_norm_mean": norm, "path_norm_low": 0.9 * norm,
            "path_norm_high": 1.1 * norm, "path_norm_median": norm, "path_norm_rms": 1.2 * norm,
            "path_norm_rms_error": 0.1 * norm, "contribution": count * norm, "total_norm": 0.3 * count * norm,
            "total_low": 0.2 * count * norm, "total_high": 0.4 * count * norm,
        }
        for length, (count, norm, share) in enumerate(LENGTHS)
    ]  # fmt: skip
    ends = {"first": 0, "last": 2, "share_of_paths": 11 / 16}
    found = {**ends, "blocks_per_batch": 2, **{f"{name}_{end}": ends[name] for name in ends for end in ("low", "high")}}
    effective = dict.fromkeys(("sampled", "signed", "exact"), found)
    said = {"decay": {"explained": 0.9}, "cancellation": {"length": 2}}
    return made(rows, blocks=4, share=0.95, images_measured=1000, effective=effective, **said)
