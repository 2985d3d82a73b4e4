"""The membership attack on losses that tables of published methods are made of: forgotten records against held-out ones, on one model.

Source: Choi and Na, arXiv 2311.02240, and the starting kit of the NeurIPS 2023 unlearning competition: a logistic regression on cross-entropies.
Differs: as many records of a label are taken from one side as from the other; else the attack could go by how hard a label is.
"""

import numpy as np
from torch import nn

from services.learning.data import Splits
from services.learning.task import Task
from services.verification.class_attack import ClassAttackParameters, class_by_class
from services.verification.outputs import NO_HELD_OUT, outputs_on, rows_of, with_labels_of
from services.verification.reading import Unmeasured, all_measured
from services.verification.statistics.learned import SplitCounts, shuffled_accuracy
from services.verification.statistics.scores import negative_losses

LEAST = 5


def tested_on_losses(model: nn.Module, data: Splits, task: Task, split: str, p: ClassAttackParameters) -> SplitCounts | Unmeasured:
    """Return how the attack tells the records of `split` from the verification records of the same labels, ten stratified shuffled splits.

    Unmeasured where there are no held-out records of these labels, or fewer than five on a side.
    """
    parts = all_measured(rows_of(data, name) for name in (split, "test"))
    if isinstance(parts, Unmeasured):
        return parts
    members, others = with_labels_of(parts[0], parts[1]), with_labels_of(parts[1], parts[0])
    if not len(members):
        return NO_HELD_OUT
    inside, outside = (outputs_on(model, rows, task) for rows in (members, others))
    losses = (-negative_losses(inside.z, inside.y), -negative_losses(outside.z, outside.y))
    sides = class_by_class((inside.y, outside.y), losses, p, least=1)
    if isinstance(sides, Unmeasured):
        return sides
    taken = [np.concatenate([getattr(one, name) for one in sides]) for name in ("members", "others")]
    return Unmeasured("too_few_records") if len(taken[0]) < LEAST else shuffled_accuracy(taken[0], taken[1], seed=p.seed)
