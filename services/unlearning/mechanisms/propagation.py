"""Layer-wise relevance in every linear and convolutional layer, by captum, for networks whose parts its rules cover.

captum neither splits relevance at a `+` written as an operator nor notices a ReLU that is used twice, so the network is traced and written out
again: each addition as a module, each activation as one of its own. Where that cannot be done the network is refused.
"""

import copy
import importlib
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

WEIGHTED = (nn.Linear, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
RELUS = (torch.relu, nn.functional.relu, "relu", "relu_")
STABLE = 1e-9


class Unpropagatable(Exception):
    """Relevance cannot be carried through a network; the message says what is in the way."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear or convolutional layer by its name in the original network, with the batch norm that reads it, if one does."""

    name: str
    norm: str | None


@dataclass(frozen=True, slots=True)
class Propagation:
    """A network written out for captum, and its weighted layers but the last, in the order of the forward pass."""

    network: nn.Module
    layers: tuple[Layer, ...]

    def relevance(self, x: Tensor, targets: Tensor, *, eps: float) -> list[Tensor]:
        """Return the relevance of each layer's outputs, one (n, channels) per layer, for records `x` and logits `targets` (n,).

        Epsilon rule with `eps` in linear and convolutional layers, and with 1e-9 in pooling and batch norm; places of a map are summed.
        Relevance is 1 at the target's logit: captum starts from the logit's value, which is divided out.
        """
        attribution = importlib.import_module("captum.attr")  # it loads a plotting library: only runs that need it pay for that
        rule = importlib.import_module("captum.attr._utils.lrp_rules").EpsilonRule
        for module in self.network.modules():
            if isinstance(module, (*WEIGHTED, *NORMS)):
                vars(module)["rule"] = rule(epsilon=eps if isinstance(module, WEIGHTED) else STABLE)
        places = [self.network.get_submodule(written(layer.name)) for layer in self.layers]
        with torch.enable_grad():
            found = attribution.LayerLRP(self.network, places).attribute(x.detach().clone().requires_grad_(), target=targets)
        with torch.no_grad():
            reached = self.network(x).gather(1, targets[:, None]).double()
        by = torch.where(reached == 0, torch.ones_like(reached), reached)
        return [values.detach().double().flatten(2).sum(dim=2) / by if values.dim() > 2 else values.detach().double() / by for values in found]


def written(name: str) -> str:
    """Return the attribute under which a module stands in the network written out for captum."""
    return "at_" + name.replace(".", "_")


def propagation_of(model: nn.Module) -> Propagation:
    """Return `model` written out for captum, in eval mode, on copies of its weights.

    Raises:
        Unpropagatable: it cannot be traced, uses a layer twice, or holds a part without a rule (attention, concatenation).
    """
    try:
        traced = fx.symbolic_trace(copy.deepcopy(model).eval())
    except Exception as error:  # a foreign network's forward may fail in any way when it is traced
        raise Unpropagatable(f"its forward pass depends on values and cannot be traced ({type(error).__name__})") from error
    writer = _Writer(traced)
    for node in traced.graph.nodes:
        writer.write(node)
    return Propagation(fx.GraphModule(writer.modules, writer.graph).eval(), tuple(writer.layers()))


class _Writer:
    """Copies a traced graph node by node into a graph of modules alone."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.graph = fx.Graph()
        self.modules: dict[str, nn.Module] = {}
        self.found: list[tuple[str, nn.Module, fx.Node]] = []
        self._new: dict[fx.Node, fx.Node] = {}

    def write(self, node: fx.Node) -> None:
        """Add one node."""
        if node.op == "placeholder":
            self._new[node] = self.graph.placeholder("x")
        elif node.op == "output":
            self.graph.output(self._new[self._first(node)])
        elif node.op == "call_module":
            self._module(node, str(node.target))
        elif node.target in ADDITIONS and len(node.args) == 2 and all(isinstance(each, fx.Node) for each in node.args):
            addition = importlib.import_module("captum.attr._utils.custom_modules").Addition_Module
            self._add(node, f"sum_{len(self.modules)}", addition(), node.args)
        elif node.target in RELUS:
            self._add(node, f"relu_{len(self.modules)}", nn.ReLU(), (self._first(node),))
        elif node.target in {torch.flatten, "flatten"}:
            self._new[node] = self.graph.node_copy(node, lambda old: self._new[old])
        else:
            raise Unpropagatable(f"there is no rule for `{node.name}`")

    def _first(self, node: fx.Node) -> fx.Node:
        first = node.args[0] if node.args else None
        if not isinstance(first, fx.Node):
            raise Unpropagatable(f"`{node.name}` does not take one tensor")
        return first

    def _module(self, node: fx.Node, name: str) -> None:
        module = self.traced.get_submodule(name)
        if isinstance(module, (nn.Identity, nn.Dropout)):
            self._new[node] = self._new[self._first(node)]
        elif isinstance(module, nn.Flatten):
            self._new[node] = self.graph.call_function(torch.flatten, (self._new[self._first(node)], module.start_dim, module.end_dim))
        elif type(module) in {nn.ReLU, nn.Tanh}:
            self._add(node, f"activation_{len(self.modules)}", type(module)(), (self._first(node),))
        elif type(module) in POOLS:
            self._add(node, f"pool_{len(self.modules)}", copy.deepcopy(module), (self._first(node),))
        elif type(module) in (*WEIGHTED, *NORMS):
            if written(name) in self.modules:
                raise Unpropagatable(f"layer `{name}` is used more than once")
            self._add(node, written(name), module, (self._first(node),))
            self.found.append((name, module, node))
        else:
            raise Unpropagatable(f"there is no rule for a layer {type(module).__name__}")

    def _add(self, node: fx.Node, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.modules[name] = module
        self._new[node] = self.graph.call_module(name, tuple(self._new[each] for each in inputs))

    def layers(self) -> list[Layer]:
        """Return the weighted layers but the last, with their batch norms."""
        norms = {self._first(node): name for name, module, node in self.found if isinstance(module, NORMS)}
        weighted = [(name, node) for name, module, node in self.found if isinstance(module, WEIGHTED)]
        return [Layer(name, norms.get(node)) for name, node in weighted[:-1]]


def strongest(own: Tensor, others: Tensor | None, share: float) -> Tensor:
    """Return the `share` of channels with the largest relevance for a class less the largest for any other class, largest first, (k,) int64.

    `own` (n, channels) row by row, `others` (classes, channels) means of the other classes or None. A channel that speaks against the class is
    never taken: without it the class's logit would rise.
    """
    means = own.mean(dim=0).cpu()
    scores = means if others is None else means - others.max(dim=0).values.cpu()
    order = scores.sort(descending=True, stable=True).indices
    return order[means[order] > 0][: round(share * len(means))]


def class_means(values: Tensor, labels: Tensor) -> Tensor | None:
    """Return the mean of `values` (n, channels) over the rows of each label, (classes, channels); None where there is no row."""
    present = sorted({int(label) for label in labels.tolist()})
    if not present:
        return None
    return torch.stack([values[labels == label].mean(dim=0) for label in present])
