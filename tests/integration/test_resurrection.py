"""Every way in by which forgotten records could come back, tried."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from services.errors import BuriedBytes, ForgottenBytes, Resurrection, VersionNotReady
from services.model_versions import publication, purge
from services.model_versions import service as models
from services.model_versions.forms import DatasetRef, FileForm, NewModel, NewTrainingRun, NewVersion
from tests.integration.conftest import Ledger
from tests.integration.test_ledger_requests import CLOCK, Sealed, World, digest, person

FORM = NewTrainingRun("digits", 1, {"epochs": 1})


class After:
    """A world in which person p3 was forgotten: version 1 and dataset version 1 hold them, version `clean` and dataset version 2 do not. Some things were begun before."""

    def __init__(self, ledger: Ledger) -> None:
        self.world = World(ledger)
        self.open = self.upload(sha256=self.weights(1))
        self.sealed = Sealed(self.world)
        self.branch, self.late = (self.upload(name, "sealed", parent=1) for name in ("branch", "late"))
        self.begun: UUID = self.run(models.training_run, "reader", FORM)
        self.world.sql(text("UPDATE job SET state = 'cancelled', finished_at = clock_timestamp() WHERE id = :job").bindparams(job=self.begun))
        view = self.world.create(person("p3"), models=("reader",), note="the other one is sealed")
        self.world.advance(view.id)
        self.clean = self.world.forget(self.world.jobs(view.id)[0].id, ["r006", "r007"]).number
        for name in ("other", "own"):
            self.run(models.create_model, NewModel(name, "classification", "mlp"))

    def run(self, call: Any, *args: Any, **named: Any) -> Any:
        return self.world.run("lethe_gateway", call, *args, caller=self.world.caller, clock=CLOCK, **named)

    def weights(self, number: int) -> str:
        return self.world.run("lethe_gateway", models.read_version, "reader", number).files[0].sha256

    def upload(self, name: str = "new", model: str = "reader", *, sha256: str = "", **members: Any) -> Any:
        return self.run(models.create_version, model, NewVersion((FileForm("a/model.safetensors", 10, sha256 or digest(name)),), **members))

    def complete(self, made: Any) -> Any:
        self.run(models.complete_version, made.model, made.number, None)
        return self.world.run("lethe_control", models.ingested, made.id, manifest={}, manifest_digest=digest("m"), clock=CLOCK)


@pytest.fixture(scope="module")
def after(postgres: Any) -> Iterator[After]:
    ledger = Ledger(postgres)
    yield After(ledger)
    ledger.close()


def test_an_alias_cannot_be_made_on_or_moved_to_a_version_that_holds_forgotten_records(after: After) -> None:
    with pytest.raises(Resurrection):
        after.run(models.set_alias, "reader", "live", 1, expected_etag=None, create=True)
    after.run(models.set_alias, "reader", "live", after.clean, expected_etag=None, create=True)
    with pytest.raises(Resurrection):
        after.run(models.set_alias, "reader", "live", 1, expected_etag=1, create=False)


def test_nothing_is_uploaded_with_such_a_version_as_parent_or_such_a_dataset_version_as_data(after: After) -> None:
    with pytest.raises(Resurrection):
        after.upload(parent=1)
    with pytest.raises(Resurrection):
        after.upload(trained_on=(DatasetRef("digits", 1),))
    with pytest.raises(Resurrection):
        after.upload(evaluated_on=DatasetRef("digits", 1))
    assert after.complete(after.upload(parent=after.clean, trained_on=(DatasetRef("digits", 2),))).status == "ready"


def test_nothing_is_trained_on_such_a_dataset_version_and_what_began_before_does_not_publish(after: After) -> None:
    for model in ("reader", "other"):
        with pytest.raises(Resurrection):
            after.run(models.training_run, model, FORM)
    after.world.hold(after.begun, "publishing")
    learned = after.world.run("lethe_gateway", models.read_version, "reader", 1).trained_on[0].version_id
    with pytest.raises(Resurrection):
        after.world.run("lethe_worker", publication.publish, after.world.publication(after.begun, learned), clock=CLOCK)


@pytest.mark.parametrize("model", ["reader", "other"])
def test_weights_of_such_a_version_are_not_uploaded_again_under_any_model_or_path(after: After, model: str) -> None:
    with pytest.raises(ForgottenBytes, match="version 1 of model reader"):
        after.upload(model=model, sha256=after.weights(1))


def test_an_upload_that_was_open_while_its_bytes_were_forgotten_is_refused_at_the_end(after: After) -> None:
    with pytest.raises(ForgottenBytes):
        after.complete(after.open)


def test_weights_that_were_destroyed_for_another_tenant_do_not_come_back_either(after: After) -> None:
    made = after.upload("theirs")
    buried = "INSERT INTO tombstone (digest, size_bytes, reason) VALUES (:d, 10, 'superseded')"
    after.world.sql(text(buried).bindparams(d=digest("theirs")))
    with pytest.raises(BuriedBytes):
        after.complete(made)


def test_a_child_of_a_superseded_version_of_which_no_data_is_held_cannot_come_in_or_be_pointed_to(after: After) -> None:
    number = after.branch.number
    ready = text("UPDATE model_version SET status = 'ready' WHERE id = :id").bindparams(id=after.branch.id)
    after.world.sql(ready)  # beside the line of the current version
    after.sealed.suppress(after.sealed.ask("4").id)
    with pytest.raises(Resurrection):
        after.run(models.set_alias, "sealed", "live", number, expected_etag=None, create=True)
    with pytest.raises(Resurrection):
        after.upload("again", "sealed", parent=number)
    with pytest.raises(Resurrection):
        after.complete(after.late)
    current = after.world.run("lethe_gateway", models.read_model, "sealed").current_version
    assert after.upload("next", "sealed", parent=current).status == "pending"


def test_a_version_that_is_only_to_be_destroyed_taints_nothing_that_came_of_it(after: After) -> None:
    data = (DatasetRef("digits", 2),)
    assert after.complete(after.upload("own-1", "own", trained_on=data)).current
    assert after.complete(after.upload("own-2", "own", parent=1, trained_on=data)).current
    after.run(purge.request_destruction, "own", 1)
    assert not after.world.run("lethe_gateway", models.read_version, "own", 2).contains_forgotten
    with pytest.raises(VersionNotReady):
        after.upload("own-3", "own", parent=1)
    assert after.upload("own-3", "own", parent=2).status == "pending"
