"""Error and loss as counts that add up over batches and processes, their intervals, and paired comparisons.

An interval or a test is computed once, at the end. What is counted is said by a task.
"""

from pathlens.metrics.classification import (
    ClassificationCounts,
    PairedCounts,
    count_answers,
    count_pairs,
    count_values,
    require_labels,
)
from pathlens.metrics.intervals import (
    holm,
    interval_of_sums,
    kendall_tau,
    mcnemar_p,
    paired_interval,
    sample_interval,
    wilson_interval,
)
from pathlens.metrics.tasks import Task, task_for, task_named
from pathlens.metrics.units import UnitCounts, UnitPairs

__all__ = [
    "ClassificationCounts",
    "PairedCounts",
    "Task",
    "UnitCounts",
    "UnitPairs",
    "count_answers",
    "count_pairs",
    "count_values",
    "holm",
    "interval_of_sums",
    "kendall_tau",
    "mcnemar_p",
    "paired_interval",
    "require_labels",
    "sample_interval",
    "task_for",
    "task_named",
    "wilson_interval",
]
