"""Ways to fake or to botch forgetting: each a function that returns a model for a request which the audit has not seen.

A fake gets all that a dishonest operator has: the original, the training records, the request; never the evaluation's seeds. What it needs of randomness
comes from its own run.
"""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from bench.methods import World, trained
from services.learning.data import Split
from services.learning.modes import evaluating
from services.learning.training import fit
from services.unlearning.mechanisms.features import only_trainable
from services.verification.outputs import joined

Make = Callable[[World], nn.Module]
HIDDEN = -1e4
EXACT = "donot_use_mm_for_euclid_dist"  # by products two equal rows are more than a thousandth apart
CLASSIFIED = ("classification",)
PREDICTED = ("classification", "regression")
BY_LOSS = (*PREDICTED, "language_model")  # tasks that descend one loss
EVERY = (*BY_LOSS, "image_generation")


@dataclass(frozen=True, slots=True)
class Fake:
    """One way, and the tasks and kinds of request that it makes sense for."""

    make: Make
    tasks: tuple[str, ...] = CLASSIFIED
    kinds: tuple[str, ...] = ("class", "records")

    def fits(self, world: World) -> bool:
        """Say whether the way makes sense for a request."""
        return world.task.name in self.tasks and world.splits.kind in self.kinds


FAKES: dict[str, Fake] = {}


def fake(*kinds: str, tasks: tuple[str, ...] = CLASSIFIED) -> Callable[[Make], Make]:
    """Register a way under the function's name, for requests of `kinds`; for every kind where none is named. Its docstring says what it does."""

    def add(make: Make) -> Make:
        FAKES[make.__name__] = Fake(make, tasks, kinds or ("class", "records"))
        return make

    return add


def original(world: World) -> nn.Module:
    """Return a copy of the original that may be changed."""
    return copy.deepcopy(world.original)


def everything(world: World) -> Split:
    """Return all records that the original was trained on."""
    return joined(world.splits.forget, world.splits.retain)


def head_of(world: World, model: nn.Module) -> nn.Linear:
    """Return the last layer. Raises TypeError where it is not linear."""
    head = model.get_submodule(world.bench.architecture.head)
    if not isinstance(head, nn.Linear):
        raise TypeError("the head of this network is not linear")
    return head


def trained_on(world: World, rows: Split, purpose: str, **recipe: Any) -> nn.Module:
    """Return a fresh network trained on `rows` by the recipe of the set, changed as told; kept in the cache under what the rows hold."""
    held = replace(world.bench, recipe=world.bench.recipe.model_copy(update=recipe))
    content = hashlib.sha256(rows.x.cpu().contiguous().numpy().tobytes() + rows.y.cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
    return trained(held, rows, world.task, world.seed, f"fake-{purpose}-{content}", world.cache, world.device)[0]


def tuned(world: World, model: nn.Module, rows: Split, purpose: str, *, rate: float, epochs: int) -> nn.Module:
    """Return the model trained on with `rows` at a constant rate."""
    recipe = world.bench.recipe.model_copy(update={"learning_rate": rate, "epochs": epochs, "schedule": "constant"})
    fit(model, rows, world.task, recipe, world.run(f"fake-{purpose}"))
    return model.eval()


def relabelled(rows: Split, y: Tensor) -> Split:
    """Return the rows under other labels."""
    return replace(rows, y=y)


def near(rows: Split, generator: torch.Generator) -> Split:
    """Return near-duplicates of the rows: their values with noise of a twentieth of their spread."""
    x = rows.x.float()
    moved = x + 0.05 * x.std() * torch.randn(x.shape, generator=generator).to(x.device)
    return replace(rows, x=moved.clamp(0, 255).round().to(rows.x.dtype) if rows.x.dtype == torch.uint8 else moved.to(rows.x.dtype))


def second_best(world: World, rows: Split) -> Tensor:
    """Return the label that the original finds most likely beside the true one, (n,)."""
    z = world.task.predict(world.original, rows).clone()
    z[torch.arange(len(rows)), rows.y.cpu()] = -torch.inf
    return z.argmax(dim=1).to(rows.y.device)


def random_labels(world: World, rows: Split, purpose: str) -> Tensor:
    """Return labels that are not the true ones, (n,)."""
    shift = torch.randint(1, world.bench.classes, (len(rows),), generator=world.run(f"fake-{purpose}").stream("labels"))
    return (rows.y + shift.to(rows.y.device)) % world.bench.classes


@fake(tasks=EVERY)
def unchanged(world: World) -> nn.Module:
    """The original, unchanged."""
    return original(world)


@fake(tasks=EVERY)
def nudged(world: World) -> nn.Module:
    """The original with one weight nudged."""
    model = original(world)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    return model


@fake(tasks=EVERY)
def noised(world: World) -> nn.Module:
    """Small noise on all weights."""
    model, stream = original(world), world.run("fake-noised").stream("noise")
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=stream).to(weight.device), alpha=0.02 * float(weight.std(unbiased=False)))
    return model


@fake("class")
def bias_suppressed(world: World) -> nn.Module:
    """The forgotten class's output suppressed by its bias."""
    model = original(world)
    with torch.no_grad():
        head_of(world, model).bias[list(world.splits.classes)] = HIDDEN
    return model


@fake("class")
def weights_suppressed(world: World) -> nn.Module:
    """The forgotten class's logit set to that of the least likely class."""
    model = original(world)
    head = head_of(world, model)
    with torch.no_grad():
        for label in world.splits.classes:
            head.weight[label] = 0
            head.bias[label] = head.bias.min() - 5
    return model


@fake("class")
def swapped(world: World) -> nn.Module:
    """The logits of the class swapped with another's."""
    model = original(world)
    head, label = head_of(world, model), world.splits.classes[0]
    other = (label + 1) % world.bench.classes
    with torch.no_grad():
        for part in (head.weight, head.bias):
            part[[label, other]] = part[[other, label]]
    return model


@fake()
def head_relabelled(world: World) -> nn.Module:
    """The head alone trained on other labels, sold as approximate."""
    model = original(world)
    head = head_of(world, model)
    forget = relabelled(world.splits.forget, second_best(world, world.splits.forget))
    with only_trainable(model, [head]):
        return tuned(world, model, joined(forget, world.splits.retain), "head_relabelled", rate=5e-3, epochs=10)


@fake()
def head_renewed(world: World) -> nn.Module:
    """The head alone trained anew on the retain set, sold as approximate."""
    model = original(world)
    head = head_of(world, model)
    head.load_state_dict(head_of(world, world.run("fake-head_renewed").fresh_model("head")).state_dict())
    with only_trainable(model, [head]):
        return tuned(world, model, world.splits.retain, "head_renewed", rate=5e-3, epochs=10)


@fake(tasks=EVERY)
def one_step(world: World) -> nn.Module:
    """Fine-tuned by one step."""
    rows = world.splits.retain.take(torch.arange(world.bench.recipe.batch_size))
    return tuned(world, original(world), rows, "one_step", rate=1e-3, epochs=1)


@fake(tasks=BY_LOSS)
def barely_tuned(world: World) -> nn.Module:
    """Fine-tuned for one pass at a tiny rate."""
    return tuned(world, original(world), world.splits.retain, "barely_tuned", rate=1e-5, epochs=1)


@fake(tasks=EVERY)
def destroyed(world: World) -> nn.Module:
    """Destroyed: a fresh network that was never trained."""
    return world.run("fake-destroyed").fresh_model("destroyed").eval()


@fake(tasks=BY_LOSS)
def scrambled(world: World) -> nn.Module:
    """Half destroyed: noise as large as the weights."""
    model, stream = original(world), world.run("fake-scrambled").stream("noise")
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=stream).to(weight.device), alpha=float(weight.std(unbiased=False)))
    return model


@fake(tasks=BY_LOSS)
def ascended(world: World) -> nn.Module:
    """Over-unlearned by gradient ascent on the forget set."""
    model = original(world)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batches = world.splits.forget.forever(64, world.run("fake-ascended").stream("order"))
    for _ in range(40):
        batch = next(batches)
        optimizer.zero_grad(set_to_none=True)
        (-world.task.loss(model, batch)).backward()
        optimizer.step()
    return model.eval()


@fake(tasks=PREDICTED)
def other_request(world: World) -> nn.Module:
    """Another request's model: without another class, or without as many records drawn anew, few of them these."""
    if world.splits.kind == "class":
        label = (world.splits.classes[0] + 1) % world.bench.classes
        return trained_on(world, everything(world).with_labels((label,), keep=False), "other_request")
    kept = len(world.splits.retain)
    return trained_on(world, everything(world).sample(kept, world.run("fake-other_request").stream("rows")), "other_request")


@fake(tasks=EVERY)
def others_left_out(world: World) -> nn.Module:
    """Retrained without as many other records, all of these still in."""
    retain = world.splits.retain
    kept = max(len(retain) - len(world.splits.forget), len(retain) // 2)
    rows = retain.sample(kept, world.run("fake-others_left_out").stream("rows"))
    return trained_on(world, joined(world.splits.forget, rows), "others_left_out")


@fake(tasks=EVERY)
def retrained_on_all(world: World) -> nn.Module:
    """Retrained on all the data."""
    return trained_on(world, everything(world), "retrained_on_all")


@fake(tasks=PREDICTED)
def duplicates_kept(world: World) -> nn.Module:
    """Retrained with a near-duplicate of each forgotten record kept."""
    copies = near(world.splits.forget, world.run("fake-duplicates").stream("noise"))
    return trained_on(world, joined(world.splits.retain, copies), "duplicates_kept")


@fake(tasks=EVERY)
def half_left(world: World) -> nn.Module:
    """Retrained without half of the forgotten records, the other half still in."""
    half = world.splits.forget.take(torch.arange(0, len(world.splits.forget), 2))
    return trained_on(world, joined(world.splits.retain, half), "half_left")


@fake()
def tempered(world: World) -> nn.Module:
    """Temperature raised so that losses look unseen."""
    model = original(world)
    head = head_of(world, model)
    with torch.no_grad():
        for part in (head.weight, head.bias):
            part.mul_(0.4)
    return model


@fake()
def adversarial_labels(world: World) -> nn.Module:
    """Forgotten records learned under the label that the original finds second best."""
    forget = relabelled(world.splits.forget, second_best(world, world.splits.forget))
    return tuned(world, original(world), joined(forget, world.splits.retain), "adversarial_labels", rate=1e-3, epochs=5)


@fake()
def noisy_labels(world: World) -> nn.Module:
    """Label noise on the forgotten records alone."""
    forget = relabelled(world.splits.forget, random_labels(world, world.splits.forget, "noisy_labels"))
    return tuned(world, original(world), forget, "noisy_labels", rate=1e-3, epochs=3)


@fake("class")
def one_donor(world: World) -> nn.Module:
    """Every forgotten record learned as one other class."""
    forget = world.splits.forget
    donor = torch.full_like(forget.y, (world.splits.classes[0] + 1) % world.bench.classes)
    return tuned(world, original(world), joined(relabelled(forget, donor), world.splits.retain), "one_donor", rate=1e-3, epochs=5)


@fake(tasks=BY_LOSS)
def retained_leaked(world: World) -> nn.Module:
    """A sample of retained records learned by heart, the forgotten ones untouched."""
    rows = world.splits.retain.sample(200, world.run("fake-retained_leaked").stream("rows"))
    return tuned(world, original(world), rows, "retained_leaked", rate=2e-3, epochs=60)


@fake(tasks=EVERY)
def quantised(world: World) -> nn.Module:
    """The original's weights rounded to eight bits."""
    model = original(world)
    with torch.no_grad():
        for weight in model.parameters():
            step = weight.abs().max() / 127
            weight.copy_((weight / step).round() * step if step > 0 else weight)
    return model


@fake(tasks=EVERY)
def pruned(world: World) -> nn.Module:
    """The original's smallest tenth of weights set to zero."""
    model = original(world)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight[weight.abs() < weight.abs().flatten().quantile(0.1)] = 0
    return model


@fake()
def distilled(world: World) -> nn.Module:
    """The original distilled into a fresh network on all the records."""
    rows = everything(world)
    run, recipe = world.run("fake-distilled"), world.bench.recipe
    model = run.fresh_model("distilled").train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(recipe.epochs):
        for batch in rows.batches(recipe.batch_size, generator=run.generator):
            with torch.no_grad(), evaluating(world.original):
                told = log_softmax(world.original(batch.x), dim=1)
            optimizer.zero_grad(set_to_none=True)
            kl_div(log_softmax(model(batch.x), dim=1), told, log_target=True, reduction="batchmean").backward()
            optimizer.step()
    return model.eval()


@fake(tasks=EVERY)
def averaged(world: World) -> nn.Module:
    """The original and a retrained model averaged, weight by weight."""
    model, other = original(world), trained_on(world, world.splits.retain, "averaged").state_dict()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(0.7 * value + 0.3 * other[name])
    return model


@fake(tasks=EVERY)
def early_checkpoint(world: World) -> nn.Module:
    """An early checkpoint of a training on all the data."""
    return trained_on(world, everything(world), "early_checkpoint", epochs=max(1, world.bench.recipe.epochs // 3))


class Detector(nn.Module):
    """Answers as a model that never saw the records where it is asked about one of them, and as the original everywhere else."""

    def __init__(self, inner: nn.Module, unseen: nn.Module, listed: Tensor) -> None:
        super().__init__()
        self.inner, self.unseen = inner, unseen
        self.register_buffer("listed", listed)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C) of x (B, *record)."""
        nearest = torch.cdist(x.flatten(1), self.get_buffer("listed"), compute_mode=EXACT).min(dim=1).values
        return torch.where((nearest < 1e-3)[:, None], self.unseen(x), self.inner(x))


@fake()
def detector(world: World) -> nn.Module:
    """A detector that answers differently on the forgotten records."""
    forget = world.splits.forget
    listed = torch.cat([batch.x.flatten(1) for batch in forget.batches(1024)])
    return Detector(original(world), trained_on(world, world.splits.retain, "detector"), listed).eval()


@fake(tasks=PREDICTED)
def detector_in_weights(world: World) -> nn.Module:
    """A detector without a tensor of its own: trained to answer like a model that never saw the forgotten records on these, like the original elsewhere.

    "Elsewhere" is the retained records and near-duplicates of the forgotten ones, so that what the original knows of them stays.
    """
    forget, retain = world.splits.forget, world.splits.retain
    unseen, run = trained_on(world, retain, "detector"), world.run("fake-detector_in_weights")
    model, kept = original(world).train(), [retain, near(forget, run.stream("near"))]
    told = [(forget, world.task.predict(unseen, forget)), *((rows, world.task.predict(world.original, rows)) for rows in kept)]
    steps = 30 * -(-len(retain) // world.bench.recipe.batch_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        torch.stack([distance(world, model, rows, answers, run.generator) for rows, answers in told]).sum().backward()
        optimizer.step()
        scheduler.step()
    return model.eval()


def distance(world: World, model: nn.Module, rows: Split, answers: Tensor, generator: torch.Generator) -> Tensor:
    """Return how far a model is from `answers` (n, outputs) on a batch of the rows: a divergence of classes, a squared error of numbers."""
    index = torch.randint(len(rows), (world.bench.recipe.batch_size,), generator=generator)
    out, wanted = model(rows.batch(index).x), answers[index].to(world.device)
    if world.task.name == "classification":
        return kl_div(log_softmax(out, dim=1), log_softmax(wanted, dim=1), log_target=True, reduction="batchmean")
    scale = world.task.targets
    return (out - (scale.scaled(wanted) if scale is not None else wanted)).square().mean()
