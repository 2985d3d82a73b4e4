"""One model on two ranks over gloo, against the same model in one process. Jobs of the runner on two ranks: tests/unit/worker/test_ranks.py."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.soak  # three processes that each import torch
ROOT = Path(__file__).parents[3]
SCRIPT = '''
import copy, json, sys
from pathlib import Path
import torch
from services.jobs.compute.ranks import Ranks
from services.jobs.compute.team import Alone
from services.learning.architectures.small_gpt import SmallGPT
from services.learning.data import Split, Splits
from services.learning.recipe import Recipe
from services.learning.run import Run
from services.learning.tasks.language_model import LanguageModel
from services.learning.training import fit
from services.unlearning.methods.grad_diff import GradDiff

torch.set_num_threads(1)
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
architecture = SmallGPT(SmallGPT.Parameters(outputs=259, max_length=10, width=32, layers=2))
recipe, task = Recipe(learning_rate=3e-3, epochs=4, batch_size=9, gradient_clip=1.0), LanguageModel(259)
x = torch.randint(3, 40, (45, 10), generator=torch.Generator().manual_seed(0))
y = torch.where(torch.arange(10) >= 5, x, -100)
whole = Split(x, y, tuple(str(row) for row in range(45)))
forget, retain, held = (whole.take(torch.arange(*ends)) for ends in ((0, 8), (8, 36), (36, 45)))
splits = Splits(forget, retain, held, kind="records")
method = GradDiff(GradDiff.Parameters(lr=1e-3, epochs=3, batch_size=5, min_steps=0, forget_target=0.0, guard_factor=100))


def job(team):
    """Train on what is kept, then climb on what is to be forgotten beside what is kept."""
    run = Run(seed=1, architecture=architecture, recipe=recipe, spread=team.spread)
    model = run.fresh_model("init")
    fit(model, retain, task, recipe, run)
    trained = {name: value.clone() for name, value in team.whole(model.state_dict()).items()}
    model = method.unlearn(model, splits, task, run)
    return model, trained, team.whole(model.state_dict()), run.notes["steps"]


def farthest(ours, theirs):
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs if not name.endswith("k_proj.bias"))


single, *one = job(Alone())
team = Ranks.join(rank, 2, folder=folder, device=torch.device("cpu"))
model, *two = job(team)
copied, every = copy.deepcopy(model), sum(weight.numel() for weight in single.parameters())
with torch.inference_mode():
    said = [float((each(x[:5]) - single(x[:5])).abs().max()) for each in (model, copied)]
    _, past = model.continued(x[:1, :4])
    said.append(float((model.continued(x[:1, 4:5], past)[0] - single(x[:1, :5])[:, 4:]).abs().max()))
asked = team.agreed(lambda: rank == 0)()
held = [sum(weight.to_local().numel() for weight in each.parameters()) / every for each in (model, copied)]
found = {"held": held, "said": said, "steps": [one[2], two[2]], "asked": asked}
if rank == 0:
    found |= {"trained": farthest(two[0], one[0]), "unlearned": farthest(two[1], one[1]), "moved": farthest(one[1], one[0])}
else:
    found |= {"kept": len(two[0]) + len(two[1])}
print(json.dumps(found))
'''


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found."""
    folder, environment = tmp_path_factory.mktemp("ranks"), {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for rank in (0, 1)
    ]
    told = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0, 0], told
    return [json.loads(out) for out, _ in told]


def test_two_ranks_train_and_unlearn_to_the_weights_of_one(ranks: list[dict[str, Any]]) -> None:
    first = ranks[0]

    assert first["moved"] > 1e-3
    assert first["trained"] < 1e-5
    assert first["unlearned"] < 5e-5  # the order of float32 sums alone; both through Adam, which lifts small gradients
    assert first["steps"][0] == first["steps"][1]


def test_each_rank_holds_half_of_the_weights_and_the_first_alone_puts_them_together(ranks: list[dict[str, Any]]) -> None:
    assert all(share == pytest.approx(0.5, abs=0.02) for found in ranks for share in found["held"])
    assert ranks[1]["kept"] == 0


def test_a_shared_network_its_copy_and_its_continuation_say_what_the_whole_one_says(ranks: list[dict[str, Any]]) -> None:
    assert max(number for found in ranks for number in found["said"]) < 1e-3
    assert [found["asked"] for found in ranks] == [True, True]
