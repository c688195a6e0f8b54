"""The two tables of the protocol: every request has its handler, every order of calls its one answer."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError
from gymnasium.vector import AutoresetMode

from rayvec import SyncVectorEnv
from rayvec.batch import Batch
from rayvec.protocol import (
    REQUESTS,
    CallPayload,
    GetStatePayload,
    PendingCall,
    ResetPayload,
    RestartPayload,
    SetAttrPayload,
    SetStatePayload,
    StepPayload,
    Verb,
    perform,
)
from rayvec.restarts import Goal, RestartOrder
from rayvec.sub_envs import CallOutcome, Outcome, SubEnvs
from rayvec.testing.envs import CountingEnv

# Requests


@pytest.fixture(autouse=True)
def clean_world() -> None:
    """Nothing here reaches the world outside: there is nothing to look for after each test."""


def test_the_table_covers_every_verb() -> None:
    """Each verb has its row, under its own name; each code fits the wire's seven bits and is its own."""
    assert list(REQUESTS) == list(Verb)
    assert all(REQUESTS[verb].verb is verb for verb in Verb)
    assert len({int(verb) for verb in Verb}) == len(Verb)
    assert all(0 < verb < 0x80 for verb in Verb)


@pytest.mark.parametrize("verb", Verb)
def test_every_handler_exists_and_takes_the_payload(verb: Verb) -> None:
    """A row's handler is a method of SubEnvs that takes the payload's fields by name, in their order."""
    row = REQUESTS[verb]
    assert (row.handler is None) == (row.payload is None)
    if row.handler is not None and row.payload is not None:
        parameters = list(inspect.signature(getattr(SubEnvs, row.handler)).parameters)
        assert parameters == ["self", *row.payload._fields]  # type: ignore[attr-defined]


def test_only_what_steps_or_resets_is_limited() -> None:
    """``max_concurrency`` counts resets and steps; attributes and the end never wait for it."""
    assert [verb for verb in Verb if REQUESTS[verb].limited] == [Verb.RESET, Verb.STEP, Verb.RESTART]


def attached() -> SubEnvs:
    """Two sub-envs with their rows."""
    built = SubEnvs.build(lambda: [lambda: CountingEnv(0, infos="numbers"), lambda: CountingEnv(1)], 0, AutoresetMode.NEXT_STEP)
    assert isinstance(built, SubEnvs)
    spaces = built.describe().spaces[0]
    batch = Batch(*spaces, 2)
    built.attach(batch, 0)
    batch.place_actions([0, 1])
    return built


PAYLOADS: dict[Verb, tuple[Any, ...]] = {
    Verb.RESTART: RestartPayload([RestartOrder(1, Goal.END, 3, None, "bad luck", False)], None),
    Verb.RESET: ResetPayload([1, 2], None, None),
    Verb.STEP: StepPayload(None),
    Verb.GET_STATE: GetStatePayload([True, False]),
    Verb.SET_STATE: SetStatePayload(attached().get_state([False, True]).results),
    Verb.CALL: CallPayload("add", (1,), {"times": 2}),
    Verb.SET_ATTR: SetAttrPayload("level", [1, 2]),
}


def test_requests_are_performed_through_the_table() -> None:
    """The worker's side answers each with the reply that its row names."""
    assert {verb for verb in Verb if REQUESTS[verb].handler} == set(PAYLOADS)
    sub_envs = attached()
    for verb, payload in PAYLOADS.items():
        assert type(payload) is REQUESTS[verb].payload
        reply: Outcome | CallOutcome = perform(sub_envs, verb, payload)
        assert REQUESTS[verb].reply is type(reply)
        assert not reply.failures
    assert perform(sub_envs, Verb.CALL, CallPayload("level", (), {})).results == [1, 2]
    assert isinstance(perform(sub_envs, Verb.STEP, StepPayload([0, 0])), Outcome)
    sub_envs.close()


@pytest.mark.parametrize("verb", [verb for verb in Verb if verb not in PAYLOADS])
def test_the_transports_own_requests_are_not_performed(verb: Verb) -> None:
    """Starting, attaching and closing are the transport's own to answer."""
    with pytest.raises(ValueError, match=f"the transport answers {verb.name} itself"):
        perform(attached(), verb, ())


# Pending calls

CALLS = ["reset", "step", "call"]
MOVES = [*(f"{name}_async" for name in CALLS), *(f"{name}_wait" for name in CALLS), "close"]
SEQUENCES = [sequence for length in range(1, 5) for sequence in itertools.product(MOVES, repeat=length)]


def due(state: str, move: str) -> tuple[type[Any] | None, str]:
    """What ``move`` raises in ``state`` ("idle", "closed", or the call that is pending), and the state after it."""
    if move == "close":
        return None, "closed"
    name, kind = move.split("_")
    if state == "closed":
        return ClosedEnvironmentError, state
    if kind == "async":
        return (None, name) if state == "idle" else (AlreadyPendingCallError, state)
    return (None, "idle") if state == name else (NoAsyncCallError, state)


def play(pending: PendingCall, move: str) -> None:
    """Makes a move as the vector env does."""
    if move == "close":
        pending.closed = True
        return
    name, kind = move.split("_")
    if kind == "async":
        pending.check_idle(move)
        pending.begin(name)
    else:
        pending.check_pending(name)
        pending.end()


def follow(sequence: tuple[str, ...], make_move: Callable[[str], object]) -> None:
    """Makes all moves of a sequence, and compares each with what is due."""
    state = "idle"
    for number, move in enumerate(sequence):
        expected, after = due(state, move)
        where = f"move {number} of {sequence}, {state}"
        if expected is None:
            make_move(move)
        else:
            with pytest.raises(expected) as info:
                make_move(move)
            if expected is not ClosedEnvironmentError:
                assert info.value.name == (state if expected is AlreadyPendingCallError else move.split("_")[0]), where
                assert move in str(info.value), where
                assert state in str(info.value) or state == "idle", where
        state = after


def test_every_order_of_calls() -> None:
    """All 2,800 sequences of up to four calls do what the state diagram says, illegal ones included."""
    assert len(SEQUENCES) == 7 + 7**2 + 7**3 + 7**4
    for sequence in SEQUENCES:
        pending = PendingCall("Owner")
        follow(sequence, lambda move, pending=pending: play(pending, move))  # type: ignore[misc]


def test_every_order_of_calls_of_a_vector_env() -> None:
    """A vector env answers every sequence of up to three calls as the table says, the calls being real."""
    for sequence in SEQUENCES:
        if len(sequence) > 3:
            continue
        envs = SyncVectorEnv([CountingEnv])
        envs.reset()
        moves: dict[str, Callable[[], object]] = {
            "step_async": lambda envs=envs: envs.step_async([0]),  # type: ignore[misc]
            "call_async": lambda envs=envs: envs.call_async("where"),  # type: ignore[misc]
        }
        follow(sequence, lambda move, envs=envs, moves=moves: moves.get(move, getattr(envs, move))())  # type: ignore[misc]
        envs.close()


def test_the_messages_name_the_calls() -> None:
    """They tell what was asked, what is pending, and what to do."""
    pending = PendingCall("SyncVectorEnv")
    with pytest.raises(NoAsyncCallError, match="Calling `step_wait` without `step_async` before it: no call is pending"):
        pending.check_pending("step")
    pending.begin("reset")
    with pytest.raises(NoAsyncCallError, match="a call to `reset` is pending"):
        pending.check_pending("step")
    with pytest.raises(AlreadyPendingCallError, match=r"Calling `call_async` while a call to `reset` is pending.*`reset_wait`"):
        pending.check_idle("call_async")
    pending.closed = True
    with pytest.raises(ClosedEnvironmentError, match="SyncVectorEnv was closed"):
        pending.check_open()
