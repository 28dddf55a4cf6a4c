"""The status store: one writer, frozen snapshots, a timeline that adds up."""

from servekit.serve.status import Phase, State, StatusStore
from servekit.serve.watch.running_contract import ContractItem


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_timeline_counts_each_phase_until_ready() -> None:
    """Each phase lasts until the next begins, the last one until the endpoint is ready."""
    clock = Clock()
    store = StatusStore(clock, lambda: 5.0)
    store.enter(State.STARTING, "checking")
    store.enter_phase(Phase.PREFLIGHT)
    clock.now = 101
    store.enter_phase(Phase.IMPORTS)
    clock.now = 104
    assert store.read().phase is Phase.IMPORTS
    assert store.read().timeline(104) == {Phase.PREFLIGHT: 1.0, Phase.IMPORTS: 3.0}
    store.enter(State.READY, "answers")
    assert store.read().timeline(999) == {Phase.PREFLIGHT: 1.0, Phase.IMPORTS: 3.0}
    assert store.read().start_seconds(999) == 4.0
    assert store.read().phase is None


def test_phases_only_go_forward() -> None:
    """A phase announced late or twice does not move the timeline back."""
    store = StatusStore(Clock())
    assert store.enter_phase(Phase.WEIGHTS)
    assert not store.enter_phase(Phase.WEIGHTS)
    assert not store.enter_phase(Phase.IMPORTS)
    assert [phase for phase, _ in store.read().starts] == [Phase.WEIGHTS]


def test_a_failed_start_stops_the_timeline() -> None:
    """The duration of a failed start stops growing."""
    clock = Clock()
    store = StatusStore(clock)
    store.enter_phase(Phase.IMPORTS)
    clock.now = 107
    store.enter(State.FAILED, "no", exit_code=4)
    assert store.read().start_seconds(500) == 7.0
    assert store.read().exit_code == 4


def test_transitions_are_kept_with_time_and_reason() -> None:
    """The history holds each state with its time and reason, and an earlier snapshot does not change."""
    store = StatusStore(Clock(), lambda: 12.5)
    before = store.read()
    store.enter(State.READY, "answers")
    store.enter(State.DRAINING, "SIGTERM")
    assert [(t.time_s, t.state, t.reason) for t in store.read().transitions] == [
        (12.5, State.READY, "answers"),
        (12.5, State.DRAINING, "SIGTERM"),
    ]
    assert before.transitions == ()


def test_records_add_up() -> None:
    """New records about the engine are added to the existing ones."""
    store = StatusStore(Clock())
    store.record(engine_pid=7)
    items = (ContractItem("max-num-seqs", 1024, 1024),)
    store.record(contract=items)
    assert store.read().engine_pid == 7
    assert store.read().contract == items


def test_history_is_bounded() -> None:
    """A server that turns silent again and again does not fill the memory with its history."""
    store = StatusStore(Clock())
    for _ in range(500):
        store.enter(State.SILENT, "why")
        store.enter(State.READY, "answers")
    assert len(store.read().transitions) == 200
    assert store.read().over_s == 100.0
