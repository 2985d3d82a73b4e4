"""What the gateway plans and refuses by what the ledger knows of a model and its records, on the methods as workers publish them."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from services.catalogue.service import EntryIn
from services.datasets import service as datasets
from services.datasets.forms import FileForm, NewDataset
from services.db.tables import Policy
from services.errors import MethodNotApplicable
from services.model_versions import publication
from services.model_versions import repository as models_sql
from services.model_versions import service as models
from services.model_versions.forms import DatasetRef, NewModel, NewTrainingRun, NewVersion
from services.model_versions.forms import FileForm as WeightsForm
from services.requests import holdings, planning
from services.requests import service as requests
from services.requests.forms import ClassScope, NewRequest, RecordsScope
from services.requests.holdings import Holdings
from tests.integration.conftest import Ledger
from tests.integration.real_catalogue import publish_real
from tests.integration.test_ledger_requests import CLOCK, KEYS, World, digest

TASKS = ["classification"]
ADAPTERS = [EntryIn("dataset_adapter", name, facts={"tasks": TASKS, "modality": name}) for name in ("image", "text", "tabular")]
CLASSES = ("0", "1", "2")
BUDGET = {"budget": {"spent": {}}, "l2": 1e-3, "scale": 1.0, "fingerprint": "f"}
REMOVAL = {"epsilon": 1.0, "delta": 0.01, "features": "public"}


class Stock:
    """The world with `intents` (texts) and `sheet` (a table), of 20 records of each label 0..4 and one of label `rare`, and models of several kinds."""

    def __init__(self, ledger: Ledger) -> None:
        self.world = World(ledger)
        publish_real(ledger, *ADAPTERS)
        for name, adapter in (("intents", "text"), ("sheet", "tabular")):
            self.dataset(name, adapter)
        for name, architecture in (("triage", "text_transformer"), ("table", "mlp"), ("voters", "sharded"), ("both", "mlp"), ("head", "mlp")):
            self.call(models.create_model, NewModel(name, "classification", architecture))
        self.learn("triage", "intents", "text_transformer", {"outputs": 6})
        self.learn("table", "sheet", "mlp", {"outputs": 6, "inputs": 4})
        self.learn("voters", "digits", "sharded", {"outputs": 5, "base": "mlp", "base_parameters": {"inputs": 64}, "shards": 5, "slices": 4})
        self.learn("head", "digits", "mlp", {"outputs": 5, "inputs": 64, "hidden": []})
        self.upload("both", "mlp", {"outputs": 5}, trained_on=(DatasetRef("digits", 1), DatasetRef("sheet", 1)), recipe={"epochs": 1})
        for name, architecture, judged in (
            ("sealed-text", "text_transformer", "intents"),
            ("sealed-table", "mlp", "sheet"),
            ("sealed-image", "tiny_cnn", "digits"),
        ):
            self.call(models.create_model, NewModel(name, "classification", architecture))
            self.upload(name, architecture, {"outputs": 5}, evaluated_on=DatasetRef(judged, 1))
        self.certify()

    def call(self, what: Any, *args: Any) -> Any:
        return self.world.run("lethe_gateway", what, *args, caller=self.world.caller, clock=CLOCK)

    def dataset(self, name: str, adapter: str) -> None:
        file = FileForm("records.parquet", 10, digest(name))
        self.call(datasets.create_dataset, NewDataset(name, adapter))
        made = self.call(datasets.create_version, name, [file])
        self.call(datasets.complete_version, name, made.number)
        rows = [(f"{name}{index:03}", str(index // 20)) for index in range(100)]
        rows.append((f"{name}-rare", "rare"))
        self.world.run("lethe_control", datasets.ingested, made.id, rows, manifest_digest=digest(f"m{name}"), files=[file], clock=CLOCK)

    def learn(self, model: str, dataset: str, architecture: str, parameters: dict[str, Any]) -> None:
        """Publish a training, as a worker does."""
        world = self.world
        job_id = self.call(models.training_run, model, NewTrainingRun(dataset, 1, {"epochs": 1}, seed=7))
        world.hold(job_id, "publishing")
        learned = world.run("lethe_gateway", datasets.read_version, dataset, 1).id
        told = replace(world.publication(job_id, learned, fresh_start=True, guarantee=None), manifest=self.manifest(architecture, parameters))
        world.run("lethe_worker", publication.publish, told, clock=CLOCK)

    @staticmethod
    def manifest(architecture: str, parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"files": [], "architecture": {"name": architecture, "parameters": parameters}, **more}

    def upload(self, model: str, architecture: str, parameters: dict[str, Any], **origin: Any) -> None:
        made = self.call(models.create_version, model, NewVersion((WeightsForm("model.safetensors", 10, digest(model)),), **origin))
        self.call(models.complete_version, model, made.number, None)
        told = self.manifest(architecture, parameters)
        self.world.run("lethe_control", models.ingested, made.id, manifest=told, manifest_digest=digest(f"of {model}"), clock=CLOCK)

    def certify(self) -> None:
        """Let `head` forget a record by certified removal, as a worker does that had a budget."""
        world = self.world
        view = world.create(
            RecordsScope("digits", ("r099",)), models=("head",), note="the others follow", method="certified_removal", parameters=REMOVAL
        )
        world.advance(view.id)
        (job,) = world.jobs(view.id)
        assert job.method == "certified_removal"
        manifest = self.manifest("mlp", {"outputs": 5, "inputs": 64, "hidden": []}, ledger=BUDGET)
        world.forget(job.id, ["r099"], guarantee="certified", manifest=manifest)

    def planned(self, scope: Any, model: str, policy: str = "gdpr-default", **more: Any) -> Any:
        """Return a dry run for one model."""
        form = NewRequest(scope, policy=policy, **({"models": (model,), "note": "this one"} | more))
        return self.world.run("lethe_gateway", requests.dry_run, form, caller=self.world.caller, clock=CLOCK, keys=KEYS)

    def refused(self, scope: Any, model: str, **more: Any) -> str:
        """Return why a request is refused as one that no method serves, at POST as in a dry run."""
        told = self.planned(scope, model, **more)
        assert [one.code for one in told.problems] == ["method-not-applicable"]
        with pytest.raises(MethodNotApplicable):
            self.world.create(scope, models=(model,), note="this one", **more)
        return told.problems[0].detail

    def enough(self, model: str, records: int = 500) -> planning.MethodPlan:
        """Return the plan of `demo` for more records than this world has."""

        def ask(session: Any) -> planning.MethodPlan:
            base = models_sql.version_by_id(session, models_sql.find(session, model).current_version_id)
            found: Holdings = holdings.with_data(session, base, "mlp", [])
            policy = session.scalars(select(Policy).where(Policy.key == "demo")).first()
            asked: dict[str, Any] = {"task": "classification", "granularity": "records", "records": records, "class_records": None}
            return planning.plan(session, holdings=found, policy=policy, method="auto", parameters={}, **asked)

        return self.world.run("lethe_gateway", ask)


@pytest.fixture(scope="module")
def stock(postgres: Any) -> Iterator[Stock]:
    ledger = Ledger(postgres)
    yield Stock(ledger)
    ledger.close()


TEXTS = ClassScope(CLASSES, dataset="intents")
WHY = {
    **dict.fromkeys(("lra_npp", "unsir", "emmn", "boundary_shrink"), "it takes image or tabular records, and these are text"),
    "gkt": "it takes image records, and these are text",
    **dict.fromkeys(("ct", "msg"), "it trains the convolutions, and this checkpoint holds none"),
}


@pytest.mark.parametrize("method", WHY)
def test_a_text_model_and_a_method_of_images_are_refused_at_once_with_the_methods_that_could(stock: Stock, method: str) -> None:
    detail = stock.refused(TEXTS, "triage", method=method)
    assert f"{method!r} cannot serve this request: {WHY[method]}." in detail
    could = set(detail.partition("Methods that could: ")[2].rstrip(".").split(", "))
    assert could >= {"bad_teacher", "concept_poisoning", "retrain", "ssd"}
    assert not could & set(WHY)


def test_a_class_for_a_method_of_numbers_is_refused_with_the_methods_that_could(stock: Stock) -> None:
    detail = stock.refused(ClassScope(CLASSES, dataset="sheet"), "table", method="blindspot")
    assert "'blindspot' cannot serve this request: it does not work on task classification." in detail
    could = set(detail.partition("Methods that could: ")[2].rstrip(".").split(", "))
    assert could >= {"unsir", "bad_teacher", "retrain"}
    assert not could & {"blindspot", "gaussian_amnesiac", "certified_removal"}


def test_the_router_passes_over_the_rungs_that_do_not_take_the_records_and_says_so(stock: Stock) -> None:
    (told,) = stock.planned(TEXTS, "triage").models
    assert told.rungs == ("bad_teacher", "retrain")
    assert "unsir: it takes image or tabular records, and these are text" in told.reason
    (other,) = stock.planned(ClassScope(CLASSES, dataset="sheet"), "table").models
    assert other.rungs == ("unsir", "bad_teacher", "retrain")


def test_a_version_with_slices_is_trained_again_in_part_and_exactly(stock: Stock) -> None:
    (told,) = stock.planned(ClassScope(CLASSES, dataset="digits"), "voters").models
    assert told.rungs == ("sisa", "unsir", "bad_teacher", "retrain")
    assert "slice of its shards" in told.reason
    (one,) = stock.planned(RecordsScope("digits", ("r001",)), "voters").models
    assert one.rungs == ("sisa", "retrain")
    assert "too few records for an equivalence test" in one.reason


def test_a_head_with_a_budget_is_certified_again_by_the_parameters_of_the_run_before(stock: Stock) -> None:
    found = stock.enough("head")
    assert found.rungs == ("certified_removal", "bad_teacher", "retrain")
    assert {name: found.parameters[name] for name in REMOVAL} == REMOVAL
    assert "budget" in found.choice["held"]
    assert stock.enough("head", records=5).rungs == ("retrain",)
    assert stock.enough("table").rungs == ("bad_teacher", "retrain")


def test_of_a_model_that_learned_from_elsewhere_too_a_class_is_impaired_and_nothing_is_retrained_on_a_part(stock: Stock) -> None:
    (told,) = stock.planned(ClassScope(CLASSES, dataset="digits"), "both").models
    assert told.rungs == ("unsir",)
    assert "retrain: it needs the whole retain_set, of which only a part is held" in told.reason
    detail = stock.refused(RecordsScope("digits", ("r001",)), "both")
    assert "bad_teacher: it needs the whole retain_set, of which only a part is held" in detail


def test_without_data_the_evaluation_set_decides_and_a_refusal_names_every_reason(stock: Stock) -> None:
    def ask(model: str) -> Any:
        return stock.planned(ClassScope(("3",), model=model), model, models=None, note=None)

    assert ask("sealed-image").models[0].rungs == ("gkt",)
    (told,) = ask("sealed-table").models
    assert told.rungs == ("lra_npp",)
    assert "nothing is erased" in told.reason
    assert "gkt: it takes image records, and these are tabular" in told.reason
    (problem,) = ask("sealed-text").problems
    assert problem.code == "method-not-applicable"
    assert "gkt: it takes image records, and these are text; lra_npp: it takes image or tabular records, and these are text" in problem.detail


def test_few_unseen_records_are_not_enough_to_suppress_a_class_by(stock: Stock) -> None:
    told = stock.planned(ClassScope(("rare",), model="sealed-table"), "sealed-table", models=None, note=None)
    assert [one.code for one in told.problems] == ["method-not-applicable"]
    by_name = stock.planned(ClassScope(("rare",), model="sealed-table"), "sealed-table", models=None, note=None, method="lra_npp")
    assert "it needs unseen_set, which is not held" in by_name.problems[0].detail


def test_a_class_of_one_record_is_retrained_at_once_and_a_named_method_keeps_the_ladder_behind_it(stock: Stock) -> None:
    scope = ClassScope(("rare",), dataset="sheet")
    (told,) = stock.planned(scope, "table").models
    assert told.rungs == ("retrain",)
    assert "too few records for an equivalence test: 1, and within 0.05 of a retrained model at level 0.9 it takes 52" in told.reason
    (named,) = stock.planned(scope, "table", method="unsir").models
    assert named.rungs == ("unsir", "retrain")
