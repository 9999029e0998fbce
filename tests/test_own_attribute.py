"""What an object is given for a block, and what it has after it."""

from types import SimpleNamespace

import pytest

from sb3_trpo.own_attribute import own_attribute


class Owner(SimpleNamespace):
    """Something with an attribute of its class."""

    method = "the class's"


def test_attribute_is_the_objects_alone_and_goes_with_the_block() -> None:
    owner = Owner()
    with own_attribute(owner, "method", "mine"):
        assert (owner.method, Owner.method) == ("mine", "the class's")
    assert owner.method == "the class's"
    assert not vars(owner)


def test_attribute_that_was_there_comes_back_after_an_exception() -> None:
    owner = Owner(method="before")
    with pytest.raises(KeyError), own_attribute(owner, "method", "mine"):
        raise KeyError
    assert vars(owner) == {"method": "before"}


def test_replacement_that_was_made_in_the_block_stays() -> None:
    owner = Owner()
    with own_attribute(owner, "method", "mine"):
        owner.method = "the user's"
    assert owner.method == "the user's"


def test_attribute_that_was_removed_in_the_block_is_missed_by_nobody() -> None:
    owner = Owner()
    with own_attribute(owner, "method", "mine"):
        del owner.method
    assert owner.method == "the class's"
