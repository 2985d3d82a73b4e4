"""A file with a decorator is all a new component needs."""

import sys

import pytest

from services.errors import UnknownComponent
from services.learning.data import Splits
from services.registry import NameTaken, Registry
from services.unlearning.method import METHODS, UnlearningMethod

METHOD = '''
from services.unlearning.method import METHODS, MethodParameters, Needs, UnlearningMethod


@METHODS.register("leave_as_it_is")
class LeaveAsItIs(UnlearningMethod):
    """Forget nothing."""

    tasks = frozenset({"classification"})
    granularities = frozenset({"records"})
    guarantee = "approximate"
    needs = Needs(retain_set=False)

    def unlearn(self, model, data, task, run):
        return model
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    home = tmp_path / "somebody_elses_methods"
    home.mkdir()
    (home / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield home
    for name in [name for name in sys.modules if name.startswith(home.name)]:
        del sys.modules[name]
    METHODS._entries.pop("leave_as_it_is", None)
    METHODS.broken.pop(f"{home.name}.broken", None)


def test_a_method_written_to_a_package_is_found_by_its_file_alone(package):
    (package / "leave_as_it_is.py").write_text(METHOD)
    METHODS.discover(package.name)
    found = METHODS["leave_as_it_is"]
    assert issubclass(found, UnlearningMethod)
    assert found.name == "leave_as_it_is"
    assert "leave_as_it_is" in list(METHODS)
    assert found(found.Parameters()).unlearn("model", Splits, None, None) == "model"


def test_a_file_that_cannot_be_imported_is_listed_with_its_error_and_stops_nobody(package):
    (package / "broken.py").write_text("import a_package_that_is_nowhere\n")
    (package / "leave_as_it_is.py").write_text(METHOD)
    METHODS.discover(package.name)
    assert "a_package_that_is_nowhere" in METHODS.broken[f"{package.name}.broken"]
    assert "leave_as_it_is" in METHODS


def test_a_second_claim_to_a_name_is_an_error(package):
    (package / "first.py").write_text(METHOD)
    (package / "second.py").write_text(METHOD)
    with pytest.raises(NameTaken, match="leave_as_it_is"):
        METHODS.discover(package.name)


def test_an_unknown_name_is_answered_with_those_that_exist():
    registry: Registry[object] = Registry("metric")

    @registry.register("zrf")
    class Zrf:
        """A metric."""

    assert registry["zrf"] is Zrf
    with pytest.raises(UnknownComponent, match="zrf"):
        registry["zrg"]


def test_entry_points_of_distributions_that_are_not_allowed_are_not_loaded():
    registry: Registry[object] = Registry("console_scripts")
    registry.discover_entry_points("console_scripts", allowed=[])
    assert list(registry) == []
    assert "is not in LETHE_PLUGINS__ALLOWED" in registry.broken["pytest"]
