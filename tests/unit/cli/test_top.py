"""Keys and frames of `hostler top`: from literal data, without a terminal."""

import pytest

from hostler.cli.glimpse import Glimpse, InstanceGlimpse, ModelGlimpse, glimpse
from hostler.cli.measured import Spread
from hostler.cli.terminal import ansi, is_partial, read_keys
from hostler.cli.top_frame import Logs, frame, whole
from hostler.cli.top_keys import Action, Deed, Mode, Screen, press
from hostler.cli.watch import Pace, Watch
from hostler.core.lifecycle import State
from hostler.core.model import WorkerType
from hostler.core.timeline import RequestList
from hostler.core.worker import WorkerRunData

LLM = WorkerType.LLM


def model(name: str, *, ready: int = 1, wanted: int = 1, state: str = "ready") -> ModelGlimpse:
    pace = Pace(in_flight=3, waiting=2, requests_per_s=1.5, tokens_per_s=82.0,
                ttft=Spread(p50_s=0.12, p99_s=1.9))  # fmt: skip
    return ModelGlimpse(worker_key=f"{name}@llm", name=name, worker_type=LLM, state=state,
                        ready=ready, wanted=wanted, pace=pace)  # fmt: skip


def instance(name: str, of: str, *, host_id: str = "", host: str = "localhost") -> InstanceGlimpse:
    return InstanceGlimpse(
        instance_id=name, worker_key=f"{of}@llm", model_name=of, worker_type=LLM, state=State.READY,
        host=host, host_id=host_id, in_flight=3, slots=8, memory_bytes=586_000_000, beat_s=0.4,
    )  # fmt: skip


SHOWN = Glimpse(
    url="http://127.0.0.1:8100",
    at_s=0.0,
    models=(model("qwen", ready=2, wanted=2), model("idle", ready=0, wanted=0, state="stopped")),
    instances=(instance("i0", "qwen"), instance("i1", "qwen", host_id="h1", host="shed")),
)


def after(*keys: str, shown: Glimpse = SHOWN) -> tuple[Screen, Action | None]:
    screen, action = Screen(), None
    for key in keys:
        screen, action = press(screen, key, shown, 10)
    return screen, action


def lines(width: int = 80, height: int = 24, screen: Screen | None = None) -> list[str]:
    made = frame(SHOWN, screen or Screen(), width, height)
    return [line.plain for line in made]


# Keys


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        (["j"], "model idle@llm"),
        (["down", "down"], "instance i0"),
        (["j", "k"], "model qwen@llm"),
        (["up"], "model qwen@llm"),
        (["end"], "instance i1"),
        (["G", "j"], "instance i1"),
        (["G", "g"], "model qwen@llm"),
        (["pagedown"], "instance i1"),
        (["x"], "model qwen@llm"),
    ],
)
def test_keys_choose_a_row(keys: list[str], chosen: str) -> None:
    screen, action = after(*keys)
    assert (screen.chosen, action) == (chosen, None)


def test_a_row_that_is_gone_leaves_the_first_one_chosen() -> None:
    screen = Screen(chosen="instance gone")
    screen, _ = press(screen, "j", SHOWN, 10)
    assert screen.chosen == "model idle@llm"


@pytest.mark.parametrize("key", ["r", "d"])
def test_nothing_is_done_without_a_yes(key: str) -> None:
    screen, action = after(key)
    assert (screen.mode, action) == (Mode.CONFIRM, None)
    assert "qwen@llm (2 instances" in screen.question
    for no in ("n", "esc", "q"):
        refused, action = press(screen, no, SHOWN, 10)
        assert (refused.mode, refused.asked, action) == (Mode.LIST, None, None)
    for other in ("j", "enter", "Y", "r", " "):
        assert press(screen, other, SHOWN, 10) == (screen, None)


def test_a_yes_gives_the_order_once() -> None:
    screen, action = after("r", "y")
    assert action is not None
    assert (action.deed, action.name, action.worker_type) == (Deed.RESTART, "qwen", LLM)
    assert (screen.mode, screen.asked) == (Mode.LIST, None)
    assert press(screen, "y", SHOWN, 10)[1] is None
    drained = after("d", "y")[1]
    assert drained is not None
    assert (drained.deed, drained.name) == (Deed.DRAIN, "qwen")


@pytest.mark.parametrize("keys", [("j", "j", "r"), ("j", "j", "d"), ("G", "r")])
def test_an_instance_is_replaced_alone(keys: tuple[str, ...]) -> None:
    chosen = "i1" if "G" in keys else "i0"
    screen, _ = after(*keys)
    assert screen.question == f"drain {chosen} of qwen@llm, and start another in its place?"
    action = after(*keys, "y")[1]
    assert action is not None
    assert (action.deed, action.name, action.instance_id, action.worker_type) == (
        Deed.REPLACE,
        "qwen",
        chosen,
        LLM,
    )


def test_an_instance_elsewhere_is_drained_with_its_machine() -> None:
    action = after("G", "d", "y")[1]
    assert action is not None
    assert (action.deed, action.name) == (Deed.DRAIN_HOST, "h1")
    assert "machine shed (1 instance move" in after("G", "d")[0].question


@pytest.mark.parametrize("key", ["r", "d"])
def test_a_stopped_model_is_neither_restarted_nor_drained(key: str) -> None:
    screen, _ = after("j", key)
    assert (screen.mode, screen.message) == (Mode.LIST, "idle@llm: nothing runs")


def test_logs_and_help_lead_back() -> None:
    screen, _ = after("j", "j", "l")
    assert (screen.mode, screen.chosen) == (Mode.LOGS, "instance i0")
    screen, _ = press(screen, "up", SHOWN, 10)
    screen, _ = press(screen, "pageup", SHOWN, 10)
    assert screen.back == 11
    assert press(screen, "end", SHOWN, 10)[0].back == 0
    assert press(screen, "esc", SHOWN, 10)[0].mode is Mode.LIST
    assert after("?")[0].mode is Mode.HELP
    assert after("?", "q") == (Screen(), None)


def test_q_quits_also_with_nothing_to_choose() -> None:
    empty = Glimpse(url="", at_s=0.0)
    assert after("q", shown=empty)[1] == Action(deed=Deed.QUIT)
    for key in ("j", "l", "d", "r"):
        assert after(key, shown=empty) == (Screen(), None)


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"jq", ["j", "q"]),
        (b"\x1b[A\x1b[B", ["up", "down"]),
        (b"\x1bOA", ["up"]),
        (b"\x1b", ["esc"]),
        (b"\x1b\x1b[6~d", ["esc", "pagedown", "d"]),
        (b"\x1b[1;5Cx", ["x"]),
        (b"\r", ["enter"]),
        (b"\x00\x7f", []),
        ("é".encode(), ["é"]),
    ],
)
def test_what_a_terminal_sends_is_keys(data: bytes, keys: list[str]) -> None:
    assert read_keys(data) == keys


def test_a_key_in_parts_is_waited_for() -> None:
    assert all(map(is_partial, (b"\x1b", b"j\x1b", b"\x1b[", b"\x1b[6", b"\x1bO")))
    assert not any(map(is_partial, (b"", b"j", b"\x1b[A", b"\x1b[6~", b"\x1bOA")))


# Frames


def test_a_frame_tells_models_instances_and_keys() -> None:
    shown = lines()
    assert len(shown) == 24
    assert "2 models  6 under way  4 waiting" in shown[0]
    assert shown[2].split() == ["MODEL", "READY", "STATE", "BUSY", "QUEUE", "REQ/S", "TOKENS/S",
                                "TTFT", "P50", "P99"]  # fmt: skip
    assert shown[3].split() == ["qwen", "2/2", "ready", "3", "2", "1.50", "82.0", "120", "ms",
                                "1.90", "s"]  # fmt: skip
    assert shown[6].split() == ["INSTANCE", "MODEL", "HOST", "STATE", "BUSY", "MEMORY", "BEAT"]
    assert shown[8].split() == ["i1", "qwen", "shed", "ready", "3/8", "586", "MB", "0.4", "s"]
    assert shown[-1].startswith("q quit")


@pytest.mark.parametrize("width", [1, 5, 20, 40, 60, 80, 200])
@pytest.mark.parametrize("height", [1, 2, 3, 5, 12, 24])
@pytest.mark.parametrize("mode", list(Mode))
def test_a_frame_fits_whatever_the_terminal_is(width: int, height: int, mode: Mode) -> None:
    screen = Screen(mode=mode, question="restart 漢字 (2 instances)?", chosen="instance i1")
    made = frame(SHOWN, screen, width, height, Logs("log", ["x" * 300, "漢" * 90, "a\tb\x1b[2J"]))
    assert len(made) <= height
    assert max(line.cell_len for line in made) <= width
    assert "\x1b[2J" not in "".join(ansi(line, width) for line in made)


def test_a_narrow_terminal_loses_columns_before_names() -> None:
    shown = lines(width=30)
    assert shown[2].split()[:2] == ["MODEL", "READY"]
    assert shown[3].split()[0] == "qwen"
    assert shown[7].split()[0] == "i0"


def test_the_chosen_row_is_marked_and_stays_in_sight() -> None:
    rows = tuple(instance(f"i{number}", "qwen") for number in range(100))
    many = Glimpse(url="u", at_s=0.0, models=SHOWN.models, instances=rows)
    made = frame(many, Screen(chosen="instance i99"), 80, 24)
    marked = [
        line.plain.split()[0] for line in made if any(s.style == "reverse" for s in line.spans)
    ]
    assert marked == ["i99"]
    assert len(made) == 24


def test_a_question_and_a_message_are_in_the_last_line() -> None:
    screen = Screen(mode=Mode.CONFIRM, question="restart qwen@llm?")
    assert lines(screen=screen)[-1] == "restart qwen@llm? y/n"
    assert lines(screen=Screen(message="done\x1b[2J"))[-1] == "done\ufffd[2J"


def test_the_end_of_a_log_is_shown_and_what_is_above_it_on_demand() -> None:
    logs = Logs("log of i0", [f"line {number}" for number in range(100)])
    made = frame(SHOWN, Screen(mode=Mode.LOGS), 80, 10, logs)
    assert [line.plain for line in made][2:4] == ["log of i0", "line 94"]
    assert made[-2].plain == "line 99"
    above = frame(SHOWN, Screen(mode=Mode.LOGS, back=10_000), 80, 10, logs)
    assert above[3].plain == "line 0"
    assert frame(SHOWN, Screen(mode=Mode.LOGS), 80, 10)[2].plain == "…"


def test_a_server_without_models_says_what_to_do() -> None:
    made = whole(Glimpse(url="u", at_s=0.0), 80)
    assert "hostler model start" in made[-1].plain


def test_nothing_is_cut_where_there_is_room() -> None:
    long = Glimpse(url="u", at_s=0.0, models=(model("x" * 200),), notes=("2 gateway(s) ...",))
    made = [line.plain for line in whole(long, 10_000)]
    assert "x" * 200 in "\n".join(made)
    assert "2 gateway(s) ..." in made


def test_stopped_instances_are_left_out_and_doubts_are_noted() -> None:
    data = [
        WorkerRunData(worker_key="m@llm", worker_type=LLM, model_name="m", instance_id=name,
                      state=state, stopped=state is State.STOPPED)
        for name, state in (("a", State.READY), ("b", State.STOPPED), ("c", State.PENDING))
    ]  # fmt: skip
    watch = Watch()
    watch.look(RequestList(requests=()), 0.0)
    shown = glimpse("u", 0.0, [], data, watch, silent=1)
    assert [(one.instance_id, one.host) for one in shown.instances] == [
        ("a", "localhost"),
        ("c", ""),
    ]
    assert shown.notes == ("1 gateway(s) did not answer: rates are without theirs",)
