"""A `FILE_TRANSFORMS` that cannot be used is told in words when the process starts."""

import pytest
from django.core.checks.registry import registry

from deliveries_app.planning import transforms
from deliveries_app.planning.plan import DeliveryRules
from deliveries_app.planning.transforms import SourceFile, check_transforms
from tests.support import transforms as samples
from tests.support.transforms import put_into_use


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Missing", "cannot be imported"),
        ("not_callable", "cannot be called"),
        ("Nameless", "has no attribute `name`"),
        ("Unversioned", "has no attribute `version`"),
        ("Broken", "cannot be imported: no licence"),
    ],
)
def test_the_check_names_what_is_wrong(settings, name: str, words: str) -> None:
    problem = put_into_use(settings, "Shout", name).problem
    assert problem.startswith(f"FILE_TRANSFORMS names 'tests.support.transforms.{name}', which")
    assert words in problem
    assert [(error.id, error.msg) for error in check_transforms(None)] == [("docora.E010", problem)]


@pytest.mark.parametrize("name", ["no_such_module.x", "nodots", "1/2"])
def test_what_is_no_dotted_path_is_told_too(settings, name: str) -> None:
    settings.FILE_TRANSFORMS = [name]
    assert "cannot be imported" in transforms.active().problem


def test_a_class_is_made_once_and_a_function_is_taken_as_it_is(settings) -> None:
    active = put_into_use(settings, "Shout", "as_function")
    assert active.problem == ""
    assert active.steps[1] is samples.as_function
    assert active.apply(SourceFile("a", b"a")) == SourceFile("a", b"A")
    assert check_transforms(None) == []
    assert check_transforms in registry.get_checks()


def test_the_fingerprint_is_of_names_versions_and_order(settings, monkeypatch) -> None:
    found = {
        put_into_use(settings, *names).fingerprint
        for names in ([], ["Shout"], ["Swap"], ["Shout", "Swap"], ["Swap", "Shout"])
    }
    monkeypatch.setattr(samples.Shout, "version", 2)
    found.add(put_into_use(settings, "Shout").fingerprint)
    assert len(found) == 6
    assert "" in found  # none


def test_a_source_key_fits_its_column_and_knows_the_path(settings) -> None:
    delivery_rules = DeliveryRules(1, 1, 1, transforms=put_into_use(settings, "Swap"))
    blob = "f" * 64  # SHA-256
    assert len(delivery_rules.source_key(blob, "a" * 1024)) <= 128
    assert delivery_rules.source_key(blob, "a") != delivery_rules.source_key(blob, "b")
    assert DeliveryRules(1, 1, 1).source_key(blob) == blob
