"""Whose turn it is, among fits that each act at their own next iteration."""

from __future__ import annotations

from nifcore.turns import Turns


def test_each_has_one_turn_in_a_pause_and_the_last_completes_the_round() -> None:
    turns = Turns(begin=0.0)

    assert not turns.due(0, 4.0, pause=5.0)
    assert turns.due(0, 5.0, pause=5.0)
    assert not turns.taken(0, 5.0, 5.0, working=[0, 1])
    assert not turns.due(0, 5.5, pause=5.0)
    assert turns.due(1, 5.5, pause=5.0)
    assert turns.taken(1, 5.5, 5.0, working=[0, 1])
    assert not turns.due(1, 10.0, pause=5.0)
    assert turns.due(1, 10.5, pause=5.0)


def test_one_that_does_not_come_is_not_waited_for_longer_than_another_pause() -> None:
    turns = Turns(begin=0.0)

    assert not turns.taken(0, 5.0, 5.0, working=[0, 1])
    assert turns.taken(0, 10.0, 5.0, working=[0, 1])


def test_without_a_beginning_the_first_turn_is_at_once() -> None:
    turns = Turns()

    assert turns.due(3, 0.0, pause=5.0)
    assert turns.taken(3, 0.0, 5.0, working=[3])
    assert not turns.due(3, 1.0, pause=5.0)


def test_other_tiles_wait_for_the_pause_that_was_begun() -> None:
    turns = Turns()
    assert turns.taken(0, 1.0, 5.0, working=[0])
    turns.forget()

    assert not turns.due(0, 5.0, pause=5.0)
    assert turns.due(0, 6.0, pause=5.0)
