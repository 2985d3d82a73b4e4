"""How a model is trained: the recipe that a model version keeps, and that retraining repeats."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from services.learning.targets import Targets


class Recipe(BaseModel):
    """A training recipe; every field is written into the version's manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="Optimiser.")
    learning_rate: PositiveFloat = Field(1e-3, le=10, description="Step size.")
    momentum: NonNegativeFloat = Field(0.9, lt=1, description="Momentum; SGD only.")
    weight_decay: NonNegativeFloat = Field(0.0, le=1, description="Weight decay.")
    epochs: PositiveInt = Field(10, le=2000, description="Passes over the training records.")
    batch_size: PositiveInt = Field(128, le=65536, description="Records per step.")
    schedule: Literal["constant", "cosine", "onecycle"] = Field(
        "constant", description="Learning rate over the run; cosine falls to zero, onecycle rises for 30 % of the run before it does."
    )
    augmentation: Literal["none", "flip_crop"] = Field("none", description="Images only: horizontal flip and a shifted crop (4 pixels), batched.")
    label_smoothing: NonNegativeFloat = Field(0.0, lt=1, description="Label smoothing of the cross-entropy.")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="Autocast precision of the forward pass.")
    gradient_clip: NonNegativeFloat = Field(0.0, description="Bound of the gradient norm; 0 means none.")
    targets: Targets | None = Field(None, description="Loss and scale of real-valued targets; regression and forecasting only, null: the task's own.")
