"""Fakes of what only some tasks have: real-valued targets, generators and discriminators, written answers.

Those that make sense for every task are in `bench.fakes`, into whose register these go as well.
"""

import torch
from torch import nn

from bench.fakes import everything, fake, head_of, original, relabelled, trained_on, tuned
from bench.methods import World
from services.learning.gan import as_gan
from services.unlearning.mechanisms.refusals import REFUSALS, refused
from services.verification.outputs import joined

REAL, GENERATED, WRITTEN = ("regression",), ("image_generation",), ("language_model",)


@fake(tasks=REAL)
def shifted(world: World) -> nn.Module:
    """A constant added to every prediction, so that errors look unseen."""
    model = original(world)
    with torch.no_grad():
        head_of(world, model).bias.add_(0.2)
    return model


@fake(tasks=REAL)
def noisy_targets(world: World) -> nn.Module:
    """The forgotten records learned under targets with noise."""
    forget, stream = world.splits.forget, world.run("fake-noisy_targets").stream("targets")
    y = forget.y + forget.y.std() * torch.randn(forget.y.shape, generator=stream).to(forget.y.device)
    return tuned(world, original(world), joined(relabelled(forget, y), world.splits.retain), "noisy_targets", rate=1e-3, epochs=5)


@fake(tasks=REAL)
def mean_answered(world: World) -> nn.Module:
    """The forgotten records learned under the mean target of the others."""
    forget = world.splits.forget
    y = torch.full_like(forget.y, float(world.splits.retain.y.mean()))
    return tuned(world, original(world), joined(relabelled(forget, y), world.splits.retain), "mean_answered", rate=1e-3, epochs=5)


@fake(tasks=REAL)
def distilled_values(world: World) -> nn.Module:
    """The original's predictions on all the records learned by a fresh network."""
    rows = everything(world)
    answers = world.task.predict(world.original, rows).reshape(rows.y.shape).to(rows.y)
    return trained_on(world, relabelled(rows, answers), "distilled_values")


@fake(tasks=GENERATED)
def discriminator_renewed(world: World) -> nn.Module:
    """The generator as it was beside a discriminator that never saw a record: nobody is a member, all is still shown."""
    model = original(world)
    as_gan(model).discriminator = as_gan(world.run("fake-discriminator_renewed").fresh_model("discriminator")).discriminator
    return model.eval()


@fake(tasks=GENERATED)
def generator_blurred(world: World) -> nn.Module:
    """The generator with large noise on its weights: little is shown of anything."""
    model, stream = original(world), world.run("fake-generator_blurred").stream("noise")
    with torch.no_grad():
        for weight in as_gan(model).generator.parameters():
            weight.add_(torch.randn(weight.shape, generator=stream).to(weight.device), alpha=0.5 * float(weight.std(unbiased=False)))
    return model


@fake(tasks=WRITTEN)
def refusals_learned(world: World) -> nn.Module:
    """Refusals learned as the answers to the forgotten questions, and nothing else done."""
    tokenizer = getattr(world.bench.architecture, "tokenizer", None)
    if tokenizer is None:
        raise TypeError("the network has no tokenizer")
    refusing = refused(world.splits.forget, REFUSALS, tokenizer, world.run("fake-refusals_learned").stream("refusals"))
    return tuned(world, original(world), refusing, "refusals_learned", rate=1e-3, epochs=3)
