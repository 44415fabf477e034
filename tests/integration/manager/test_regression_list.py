"""Each fault that was reproduced in a system with the same contract has a test here that is named for it."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
# The fault there; the file and the test that would fail if it were here.
FAULTS = {
    "restart that stops and never starts": "test_regressions.py::test_a_restart_stops_and_starts",
    "starting a running model removes the running one": (
        "test_regressions.py::test_starting_a_running_model_removes_nothing"
    ),
    "a stop that never stops the heartbeat": (
        "test_regressions.py::test_a_stopped_manager_judges_and_beats_no_more"
    ),
    "a second replica refused": (
        "test_regressions.py::test_a_second_replica_is_let_in_without_touching_the_first"
    ),
    "weight ignored": "test_regressions.py::test_a_weight_that_would_be_ignored_is_refused",
    "half of all calls lost while one of two replicas is dead": (
        "test_regressions.py::test_no_call_is_lost_while_one_of_two_replicas_is_dead"
    ),
    "look-ups that grow a table": (
        "test_regressions.py::test_lookups_of_unknown_models_leave_nothing_behind"
    ),
    "look-ups that grow the metrics": "test_storage.py::test_F85_strangers_cannot_grow_the_metrics",
    "an exception that kills the health thread": (
        "test_regressions.py::test_a_failing_hand_or_probe_stops_no_loop_and_a_dead_loop_is_told"
    ),
    "a late heartbeat that resurrects": "test_regressions.py::test_a_late_heartbeat_revives_nobody",
    "a three-prompt completion that answers the last prompt three times": (
        "test_requests.py::test_three_prompts_get_three_answers_not_the_last_one_thrice"
    ),
    "zero-valued sampling parameters dropped": (
        "test_requests.py::test_every_field_reaches_the_engine_as_it_is_zeros_too"
    ),
    "remote token counting that never worked": (
        "test_requests.py::test_counts_are_what_the_engine_charges"
    ),
    "remote parameter descriptions that never worked": (
        "test_instances.py::test_parameters_are_described_for_models_that_run_and_that_do_not"
    ),
    "the daemon flag that raises KeyError": (
        "test_regressions.py::test_there_is_no_daemon_flag_to_raise_a_key_error"
    ),
    "one bad manager that makes supported_models fail for all": (
        "test_regressions.py::test_one_bad_server_stops_nobody_and_supported_models_answers"
    ),
    "a sync call that bypasses the slots": (
        "test_life.py::test_many_threads_at_once_share_the_slots"
    ),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_the_fault_has_its_test(fault: str) -> None:
    file, _, name = FAULTS[fault].partition("::")
    (path,) = [
        one
        for one in TESTS.rglob(file)
        if name in one.read_text() and one.name != Path(__file__).name
    ]
    functions = [
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]
    assert functions.count(name) == 1
