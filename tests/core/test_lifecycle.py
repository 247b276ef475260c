"""The states of a run: one table, and a drawing that agrees with it."""

from __future__ import annotations

import itertools
import re

import pytest

from lockstep.core import lifecycle
from lockstep.core.lifecycle import FINISHED, TRANSITIONS, RunStatus, may_move

PENDING, RUNNING, FAILED = RunStatus.PENDING, RunStatus.RUNNING, RunStatus.FAILED


def drawn_moves() -> set[tuple[RunStatus, RunStatus]]:
    """The arrows of the docstring, `a, b ──> c, d` being each to each; a line that begins with an arrow leaves `running`."""
    moves = set()
    for line in (lifecycle.__doc__ or "").splitlines():
        if "─>" in line:
            parts = re.split("─+>", re.sub(r"\(.*?\)", "", line))
            groups = [[RunStatus(name) for name in re.findall("[a-z]+", part)] for part in parts]
            groups[0] = groups[0] or [RUNNING]
            for one, other in itertools.pairwise(groups):
                moves |= set(itertools.product(one, other))
    return moves


def test_the_statuses_are_those_of_the_design() -> None:
    assert [str(status) for status in RunStatus] == [
        "pending",
        "running",
        "interrupted",
        "paused",
        "succeeded",
        "failed",
        "cancelled",
    ]


def test_the_drawing_names_each_status() -> None:
    drawn = {status for move in drawn_moves() for status in move}
    assert drawn == set(RunStatus)


def test_every_arrow_that_is_drawn_is_in_the_table() -> None:
    moves = drawn_moves()
    assert len(moves) >= 8
    for old, new in sorted(moves):
        assert may_move(old, new), f"{old} -> {new} is drawn, but not in the table"


def test_every_move_in_the_table_is_drawn() -> None:
    # given the table, then a reader of the drawing misses none of its moves, but for a run that stays as it is
    table = {(old, new) for old, following in TRANSITIONS.items() for new in following if old is not new}
    assert sorted(table - drawn_moves()) == []


def test_the_table_has_a_row_for_each_status() -> None:
    assert set(TRANSITIONS) == set(RunStatus)


def test_nothing_becomes_pending_again() -> None:
    assert not any(may_move(status, PENDING) for status in RunStatus)


def test_every_status_can_be_reached_and_every_unfinished_run_can_finish() -> None:
    # given the moves, when they are followed from pending, then every status is reached
    def reached_from(status: RunStatus) -> set[RunStatus]:
        reached, waiting = {status}, [status]
        while waiting:
            new = TRANSITIONS[waiting.pop()] - reached
            reached |= new
            waiting += new
        return reached

    assert reached_from(PENDING) == set(RunStatus)
    # and from every one that is not finished, each end can be reached
    for status in set(RunStatus) - FINISHED:
        assert reached_from(status) >= FINISHED


def test_a_finished_run_moves_only_when_a_failed_one_is_retried() -> None:
    moves = {(old, new) for old in FINISHED for new in RunStatus if may_move(old, new)}
    assert moves == {(FAILED, RUNNING)}


@pytest.mark.parametrize("status", [RunStatus.INTERRUPTED, RunStatus.PAUSED])
def test_a_halted_run_can_go_on_fail_or_be_cancelled_but_not_succeed_by_itself(status: RunStatus) -> None:
    # What waits for people may have spent its budget when they have answered.
    assert TRANSITIONS[status] - {RunStatus.PAUSED} == {RUNNING, FAILED, RunStatus.CANCELLED}


def test_any_unfinished_run_can_be_cancelled() -> None:
    assert all(may_move(status, RunStatus.CANCELLED) for status in set(RunStatus) - FINISHED)
