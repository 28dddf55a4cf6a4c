"""The board: one writer, frozen snapshots, a timeline that adds up."""

from servekit.serve.status import Phase, State, StatusStore
from servekit.serve.watch.running_contract import ContractItem


class Clock:
    """A clock that goes when told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_timeline_counts_each_phase_until_ready() -> None:
    """Each phase lasts until the next begins, the last one until the endpoint is ready."""
    clock = Clock()
    board = StatusStore(clock, lambda: 5.0)
    board.enter(State.STARTING, "checking")
    board.enter_phase(Phase.PREFLIGHT)
    clock.now = 101
    board.enter_phase(Phase.IMPORTS)
    clock.now = 104
    assert board.read().phase is Phase.IMPORTS
    assert board.read().timeline(104) == {Phase.PREFLIGHT: 1.0, Phase.IMPORTS: 3.0}
    board.enter(State.READY, "answers")
    assert board.read().timeline(999) == {Phase.PREFLIGHT: 1.0, Phase.IMPORTS: 3.0}
    assert board.read().start_seconds(999) == 4.0
    assert board.read().phase is None


def test_phases_only_go_forward() -> None:
    """A phase announced late or twice does not turn the timeline back."""
    board = StatusStore(Clock())
    assert board.enter_phase(Phase.WEIGHTS)
    assert not board.enter_phase(Phase.WEIGHTS)
    assert not board.enter_phase(Phase.IMPORTS)
    assert [phase for phase, _ in board.read().starts] == [Phase.WEIGHTS]


def test_a_failed_start_stops_the_timeline() -> None:
    """A start that failed does not go on counting."""
    clock = Clock()
    board = StatusStore(clock)
    board.enter_phase(Phase.IMPORTS)
    clock.now = 107
    board.enter(State.FAILED, "no", exit_code=4)
    assert board.read().start_seconds(500) == 7.0
    assert board.read().exit_code == 4


def test_transitions_are_kept_with_time_and_reason() -> None:
    """The history names each state with its time and reason, and a snapshot taken before does not change."""
    board = StatusStore(Clock(), lambda: 12.5)
    before = board.read()
    board.enter(State.READY, "answers")
    board.enter(State.DRAINING, "SIGTERM")
    assert [(t.time_s, t.state, t.reason) for t in board.read().transitions] == [
        (12.5, State.READY, "answers"),
        (12.5, State.DRAINING, "SIGTERM"),
    ]
    assert before.transitions == ()


def test_notes_add_up() -> None:
    """What is learnt about the engine is added to what is known."""
    board = StatusStore(Clock())
    board.record(engine_pid=7)
    items = (ContractItem("max-num-seqs", 1024, 1024),)
    board.record(contract=items)
    assert board.read().engine_pid == 7
    assert board.read().contract == items


def test_history_is_bounded() -> None:
    """A server that is silent again and again does not fill the memory with its history."""
    board = StatusStore(Clock())
    for _ in range(500):
        board.enter(State.SILENT, "why")
        board.enter(State.READY, "answers")
    assert len(board.read().transitions) == 200
    assert board.read().ready_at == 100.0
