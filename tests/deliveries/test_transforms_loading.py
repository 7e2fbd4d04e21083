"""Loading `FILE_TRANSFORMS`: a system check reports at startup what is wrong."""

import pytest
from django.core.checks.registry import registry

from deliveries_app.planning import transforms
from deliveries_app.planning.plan import DeliveryRules
from deliveries_app.planning.transforms import SourceFile, check_transforms
from tests.support import transforms as samples
from tests.support.transforms import use_transforms


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Missing", "cannot be imported"),
        ("not_callable", "is not callable"),
        ("Nameless", "has no attribute `name`"),
        ("Unversioned", "has no attribute `version`"),
        ("Broken", "cannot be imported: no licence"),
    ],
)
def test_check_reports_the_problem(settings, name: str, message: str) -> None:
    problem = use_transforms(settings, "Shout", name).problem
    assert problem.startswith(f"FILE_TRANSFORMS names 'tests.support.transforms.{name}', which")
    assert message in problem
    assert [(error.id, error.msg) for error in check_transforms(None)] == [("docora.E010", problem)]


@pytest.mark.parametrize("name", ["no_such_module.x", "nodots", "1/2"])
def test_malformed_dotted_path_is_reported(settings, name: str) -> None:
    settings.FILE_TRANSFORMS = [name]
    assert "cannot be imported" in transforms.active().problem


def test_class_is_instantiated_and_function_is_used_directly(settings) -> None:
    active = use_transforms(settings, "Shout", "as_function")
    assert active.problem == ""
    assert active.steps[1] is samples.as_function
    assert active.apply(SourceFile("a", b"a")) == SourceFile("a", b"A")
    assert check_transforms(None) == []
    assert check_transforms in registry.get_checks()


def test_fingerprint_covers_names_versions_and_order(settings, monkeypatch) -> None:
    fingerprints = {
        use_transforms(settings, *names).fingerprint
        for names in ([], ["Shout"], ["Swap"], ["Shout", "Swap"], ["Swap", "Shout"])
    }
    for version in (2, "2.1"):
        monkeypatch.setattr(samples.Shout, "version", version)
        active = use_transforms(settings, "Shout")
        assert not active.problem
        fingerprints.add(active.fingerprint)
    assert len(fingerprints) == 7
    assert "" in fingerprints  # without transforms


def test_source_key_fits_its_column_and_depends_on_the_path(settings) -> None:
    delivery_rules = DeliveryRules(1, 1, 1, transforms=use_transforms(settings, "Swap"))
    blob = "f" * 64  # SHA-256
    assert len(delivery_rules.source_key(blob, "a" * 1024)) <= 128
    assert delivery_rules.source_key(blob, "a") != delivery_rules.source_key(blob, "b")
    assert DeliveryRules(1, 1, 1).source_key(blob) == blob
