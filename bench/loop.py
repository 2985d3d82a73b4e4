"""The training loop against a DataLoader over a Python list with per-item transforms: same network, same batch, same records."""

import statistics
import time
from typing import Any

from bench.row import Row

RECORDS = 8192
BATCH = 256
REPEATS = 5


def measure() -> Row:
    """Return samples per second of `fit` over samples per second of the DataLoader loop; medians of alternating repeats."""
    import torch  # only this bench needs it, and the others must not pay for it

    torch.set_num_threads(1)
    images = torch.randint(0, 256, (RECORDS, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 10, (RECORDS,), generator=torch.Generator().manual_seed(1))
    ours, theirs = [], []
    for repeat in range(REPEATS + 1):
        pair = (ours_rate(images, labels), loader_rate(images, labels))
        if repeat > 0:  # the first warms caches and allocators
            ours.append(pair[0])
            theirs.append(pair[1])
    own, other = statistics.median(ours), statistics.median(theirs)
    detail = {
        "records": RECORDS,
        "batch": BATCH,
        "repeats": REPEATS,
        "network": "mlp 784-64-10",
        "samples_per_s": round(own),
        "loader_samples_per_s": round(other),
        "loader": "DataLoader over a Python list of uint8 arrays, ToTensor and Normalize per item, no worker process",
    }
    return Row("loop", own / other, 5.0, "higher", detail)


def ours_rate(images: Any, labels: Any) -> float:
    """Return samples per second of one epoch of `fit`."""
    from services.learning.architectures.mlp import MLP
    from services.learning.data import Split, by_255
    from services.learning.recipe import Recipe
    from services.learning.run import Run
    from services.learning.tasks.classification import Classification
    from services.learning.training import fit

    model = MLP(MLP.Parameters(inputs=784, outputs=10, hidden=(64,))).fresh(0)
    split = Split(images, labels, tuple(str(i) for i in range(len(labels))), by_255)
    started = time.perf_counter()
    fit(model, split, Classification(10), Recipe(epochs=1, batch_size=BATCH, optimizer="sgd", learning_rate=0.01), Run(seed=0))
    return len(labels) / (time.perf_counter() - started)


def loader_rate(images: Any, labels: Any) -> float:
    """Return samples per second of one epoch of a DataLoader loop with per-item transforms."""
    import torch
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    from services.learning.architectures.mlp import MLP

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.0,), (1.0,))])

    class Items(Dataset[tuple[torch.Tensor, int]]):
        """A Python list of (H, W, 1) uint8 arrays and labels."""

        def __init__(self) -> None:
            self.items = [(image.permute(1, 2, 0).numpy(), int(label)) for image, label in zip(images, labels, strict=True)]

        def __len__(self) -> int:
            return len(self.items)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            pixels, label = self.items[index]
            return transform(pixels), label

    model = MLP(MLP.Parameters(inputs=784, outputs=10, hidden=(64,))).fresh(0).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    loader = DataLoader(Items(), batch_size=BATCH, shuffle=True, generator=torch.Generator().manual_seed(0))
    started = time.perf_counter()
    for x, y in loader:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return len(labels) / (time.perf_counter() - started)
