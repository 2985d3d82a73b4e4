"""The released recipes of four methods, written straightforwardly: the yardstick of `python -m bench speed`.

In our own words after the specifications of the methods: records as Python lists of tensors behind a DataLoader, one class of noise after another
with gradients of weights that nobody uses, both teachers live on every row, pseudo-images and the teacher's answers made anew for every student
step, importance of the whole set computed in every run, and the loss read back after every batch. It is no part of the product.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

Records = list[tuple[Tensor, int]]


def listed(x: Tensor, y: Tensor) -> Records:
    """Return records as a Python list of image and label."""
    return [(x[row], int(y[row])) for row in range(len(y))]


def loader(records: Any, batch: int, *, shuffle: bool = True) -> DataLoader[Any]:
    """Return a DataLoader without worker processes: the processes would have to be started for each of these short stages."""
    return DataLoader(records, batch_size=batch, shuffle=shuffle)


def trained_one_epoch(model: nn.Module, records: Records, *, lr: float, batch: int) -> float:
    """Train for an epoch of Adam, adding up loss and right answers batch by batch; return the mean loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()
    loss_sum, right = 0.0, 0
    for x, y in loader(records, batch):
        optimizer.zero_grad()
        logits = model(x)
        loss = functional.cross_entropy(logits, y)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(y)
        right += int((logits.argmax(dim=1) == y).sum().item())
    return loss_sum / len(records)


def unsir(
    model: nn.Module, retain: Records, classes: Sequence[int], *, rows: int, steps: int, copies: int, lr: tuple[float, float], batch: int
) -> nn.Module:
    """Impair with noise learned class by class, then repair; `retain` is the subset that is shown."""
    shape = retain[0][0].shape
    shown: Records = list(retain)
    for label in classes:
        noise = nn.Parameter(torch.randn(rows, *shape))
        optimizer = torch.optim.Adam([noise], lr=0.1)
        labels = torch.full((rows,), label)
        for _ in range(steps):
            loss = -functional.cross_entropy(model(noise), labels) + 0.1 * noise.square().flatten(1).sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()  # weights take gradients as well
            optimizer.step()
            loss.item()
        for _ in range(copies):
            shown.extend((noise[row].detach().clone(), label) for row in range(rows))
    model.zero_grad()
    trained_one_epoch(model, shown, lr=lr[0], batch=batch)
    trained_one_epoch(model, retain, lr=lr[1], batch=batch)
    return model


class Marked(Dataset[tuple[Tensor, int]]):
    """Forget records marked 1, then retain records marked 0."""

    def __init__(self, forget: Records, retain: Records) -> None:
        self.forget, self.retain = forget, retain

    def __len__(self) -> int:
        return len(self.forget) + len(self.retain)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        if place < len(self.forget):
            return self.forget[place][0], 1
        return self.retain[place - len(self.forget)][0], 0


def bad_teacher(model: nn.Module, incompetent: nn.Module, forget: Records, retain: Records, *, lr: float, epochs: int, batch: int) -> nn.Module:
    """Let the model imitate two live teachers, both asked about every row."""
    competent = copy.deepcopy(model).eval()
    incompetent.eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()
    for _ in range(epochs):
        total = 0.0
        for x, mark in loader(Marked(forget, retain), batch):
            with torch.no_grad():
                good, bad = (functional.softmax(teacher(x), dim=1) for teacher in (competent, incompetent))
            share = mark[:, None].float()
            target = share * bad + (1 - share) * good
            loss = mean_divergence(functional.log_softmax(model(x), dim=1), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
    return model


def mean_divergence(log_student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher, student) over rows and classes, as the released reduction has it."""
    return functional.kl_div(log_student, teacher, reduction="none").mean()


def importances(model: nn.Module, records: Records, *, batch: int) -> dict[str, Tensor]:
    """Return squared gradients of the loss of each batch, averaged over batches."""
    total = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    batches = loader(records, batch, shuffle=False)
    for x, y in batches:
        model.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        loss.backward()
        loss.item()
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                total[name] += weight.grad.clone().square()
    return {name: value / len(batches) for name, value in total.items()}


def ssd(model: nn.Module, forget: Records, whole: Records, *, alpha: float, strength: float, batch: int) -> nn.Module:
    """Compare the importances for the forget set with those for the whole set, both computed now, and dampen."""
    model.eval()
    of_whole, of_forget = importances(model, whole, batch=batch), importances(model, forget, batch=batch)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            chosen = of_forget[name] > alpha * of_whole[name]
            factor = (strength * of_whole[name] / of_forget[name]).clamp(max=1)
            weight[chosen] = (weight * factor)[chosen]
    return model


def gkt_pseudo_batch(
    teacher: nn.Module,
    student: nn.Module,
    generator: nn.Module,
    optimizers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
    z: Tensor,
    *,
    forgotten: int,
    epsilon: float,
    student_steps: int,
) -> float:
    """Take one generator step and the student steps, each on images made and answered anew, with gradients through all three networks."""
    of_generator, of_student = optimizers
    loss = -transferred(teacher, student, generator(z), forgotten, epsilon)
    of_generator.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(generator.parameters(), 5)
    of_generator.step()
    last = loss.item()
    for _ in range(student_steps):
        loss = transferred(teacher, student, generator(z), forgotten, epsilon)
        of_student.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 5)
        of_student.step()
        last = loss.item()
    return last


def transferred(teacher: nn.Module, student: nn.Module, x: Tensor, forgotten: int, epsilon: float) -> Tensor:
    """Return KL(teacher, student) on the images that the gate keeps; the teacher is asked twice, for the gate and for its answer."""
    with torch.no_grad():
        keep = functional.softmax(teacher(x), dim=1)[:, forgotten] <= epsilon
    x = x[keep]
    return mean_divergence(functional.log_softmax(student(x), dim=1), functional.softmax(teacher(x), dim=1))
