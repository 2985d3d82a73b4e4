"""How many rows are made at once where the request does not say: a GPU takes more of them than a CPU."""

from services.learning.run import Run

ON_CPU, ON_GPU = 64, 256


def device_batch(asked: int | None, run: Run) -> int:
    """Return `asked`, or without it 256, on a CPU 64."""
    if asked is not None:
        return asked
    return ON_CPU if run.device.type == "cpu" else ON_GPU
