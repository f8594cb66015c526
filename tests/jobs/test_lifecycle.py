"""The table of transitions, and that the scripts obey it and nothing else writes a state."""

from __future__ import annotations

import re
from importlib import resources

import pytest

from jobs import TRANSITIONS, JobService, State
from jobs.lifecycle import lua_table

SCRIPTS = {
    path.name: path.read_text("utf-8")
    for path in (resources.files("jobs") / "lua").iterdir()
    if path.name.endswith(".lua")
}


def test_names_are_unique() -> None:
    names = [each.name for each in TRANSITIONS]
    assert len(set(names)) == len(names)


def test_the_states_are_connected_as_designed() -> None:
    edges = {(each.source, each.target) for each in TRANSITIONS}
    queued, running = State.QUEUED, State.RUNNING
    assert edges == {
        (None, queued),
        (queued, running),
        (queued, State.CANCELLED),
        (running, queued),
        (running, State.SUCCEEDED),
        (running, State.FAILED),
        (running, State.CANCELLED),
        (State.FAILED, queued),
        (State.CANCELLED, queued),
    }


def test_a_success_is_final() -> None:
    assert not [each for each in TRANSITIONS if each.source is State.SUCCEEDED]


def test_every_end_is_told_to_webhooks() -> None:
    for each in TRANSITIONS:
        if each.target.terminal:
            assert each.webhook, each.name
        assert (each.end is not None) == (each.source is State.RUNNING), each.name


def test_what_the_service_decides_is_journalled() -> None:
    # A worker journals its own ends before it reports them.
    by_worker = {"succeed", "fail"}
    for each in TRANSITIONS:
        ended_or_reopened = each.target.terminal or (each.source and each.source.terminal)
        assert each.journal == bool(ended_or_reopened and each.name not in by_worker), each.name


def test_the_scripts_use_every_transition_and_no_other() -> None:
    used = set()
    for text in SCRIPTS.values():
        used |= set(re.findall(r"move\(job, '(\w+)'", text))
        used |= set(re.findall(r"give_up\(job, [^,]+, '(\w+)'", text))
    # Two names are put together: retry_<state>, and what the worker says to finish.lua.
    assert "move(job, 'retry_' .. job.state" in SCRIPTS["retry.lua"]
    used = {name for name in used if name != "retry_"}
    used |= {"retry_failed", "retry_cancelled", "succeed", "fail"}
    assert used == {each.name for each in TRANSITIONS}


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_only_move_and_import_write_a_state(name: str) -> None:
    # `job.state = x`, also as one of several on the left, but no comparison.
    writes = re.findall(r"\.state\b[^=~\n]*=(?!=)", SCRIPTS[name])
    assert bool(writes) == (name in ("common.lua", "import.lua"))


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_every_script_says_what_it_takes_and_returns(name: str) -> None:
    if name != "common.lua":
        assert re.match(r"-- .*ARGV: prefix", SCRIPTS[name], re.DOTALL)
    assert max(len(line) for line in SCRIPTS[name].splitlines()) <= 100


def test_a_move_that_is_not_in_the_table_is_an_error_before_any_write(service: JobService) -> None:
    script = (
        f"local TRANSITIONS = {lua_table()}\n"
        "local LIMITS = {events_per_job = 10, events_per_tenant = 10}\n"
        + SCRIPTS["common.lua"]
        + "move({id = 'x', tenant = 't', state = 'succeeded'}, ARGV[2], {})"
    )
    client = service.database.client
    before = client.dbsize()
    for transition in ("cancel", "claim", "no_such"):
        with pytest.raises(Exception, match=r"leads from|no transition"):
            client.eval(script, 0, "nif", transition)
    assert client.dbsize() == before
