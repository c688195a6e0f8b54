"""What drives some sub-envs, seen from the caller. A vector env is a list of these.

A worker is told requests (:meth:`Worker.send`) and asked for replies (:meth:`Worker.poll`); it does not block the caller
in either (but for a custom one, whose pipe does). Kinds differ only in where the sub-envs live and how bytes get there:
:class:`InlineWorker` below is the caller itself, :mod:`rayvec.local.process` another process, :mod:`rayvec.local.custom` a
process that runs a user's function.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gymnasium.vector import AutoresetMode

from rayvec.batch import Batch
from rayvec.failures import Failure
from rayvec.local.memory import SharedBlock
from rayvec.protocol import REQUESTS, Verb, perform
from rayvec.sub_envs import CallOutcome, EnvFn, Outcome, SubEnvs

__all__ = ["BareLine", "InlineWorker", "Reply", "Worker", "shares"]

Reply = Any
"""What came back for a request: the type in the table of requests, or a Failure for a START that failed."""


class BareLine(NamedTuple):
    """The shortest way to tell a worker that owes nothing to step, and to hear that it has.

    Attributes:
        tell: tells it; raises OSError if that cannot be done at once.
        take: takes its reply if that says only that it is done; raises OSError if there is none of that kind yet. Gives
            :data:`~rayvec.local.bells.SETTLED` if the batch has infos too, and something false if more has come, which
            :meth:`Worker.poll` will tell.
        descriptors: what becomes readable when there is a reply of any kind.
        watch: waits actively for a moment for a reply that says only that it is done; None where nobody may.
    """

    tell: Callable[[], object]
    take: Callable[[], object]
    descriptors: Sequence[int]
    watch: Callable[[], bool] | None


class Worker(ABC):
    """Owns the sub-envs ``envs`` of a vector env.

    Attributes:
        envs: the indices of its sub-envs.
        owed: the requests whose replies have not been taken yet, oldest first. Replies come in the same order.
        lost: it has died; :meth:`start` makes it anew.
        is_caller: it is the caller itself, and answers when polled.
        blocks: telling it and taking its replies may block: Ctrl-C must come through.
        spins: there is a core for each worker: it waits actively for a moment before it sleeps.
        patience: until when, of ``time.monotonic``, nothing can be expected of a worker that starts: then it is polled
            once more, though nothing became readable; None: until something does.
    """

    is_caller = False
    blocks = False

    def __init__(self, envs: range) -> None:
        self.envs = envs
        self.owed: deque[Verb] = deque()
        self.lost = False
        self.spins = False
        self.patience: float | None = None

    @abstractmethod
    def start(self) -> None:
        """Makes it anew, with new sub-envs; owes a START. What was there before is gone first."""

    @classmethod
    def start_all(cls, workers: Sequence[Worker]) -> None:
        """Starts several, all of this class."""
        for worker in workers:
            worker.start()

    @abstractmethod
    def attach(self, batch: Batch, block: SharedBlock | None) -> None:
        """Gives it its memory; owes an ATTACH, unless there is nobody to tell.

        Args:
            batch: whose rows it fills.
            block: that they lie in, if it is shared.
        """

    def prepare(self, verb: Verb, payload: tuple[Any, ...] | None) -> Any:
        """Turns a payload into what :meth:`send` takes; whatever cannot be sent raises here, before anything is."""
        return payload

    @abstractmethod
    def send(self, verb: Verb, prepared: Any) -> bool:
        """Passes a request on; owes ``verb``. A worker that has died says so at :meth:`poll`, not here.

        Returns:
            Whether all of it has left; if not, :meth:`poll` sends more.
        """

    def bare_line(self) -> BareLine | None:
        """The shortest way to have it step; None where that needs more than being told."""
        return None

    @abstractmethod
    def poll(self) -> Reply | None:
        """The next reply, to the oldest request in ``owed``, if it is here; who takes it strikes that off.

        Raises:
            EOFError: it has died and no reply is to come any more.
        """

    def is_flushed(self) -> bool:
        """Whether all that was sent has left."""
        return True

    @abstractmethod
    def descriptors(self) -> Sequence[int]:
        """What becomes readable when :meth:`poll` may have something to say; none: it answers when polled.

        They may be others once it is attached or the reply to START is taken.
        """

    def exit_descriptor(self) -> int | None:
        """What becomes readable when it has ended; None: it is no process of its own."""
        return None

    @abstractmethod
    def is_alive(self) -> bool:
        """Whether it can still answer; asks the system."""

    @abstractmethod
    def terminate(self) -> None:
        """Asks the system to end it."""

    @abstractmethod
    def kill(self) -> None:
        """Has the system end it, whether it likes it or not."""

    @abstractmethod
    def release(self) -> None:
        """Frees all that the caller holds of it; it has ended, or is the caller itself."""

    @abstractmethod
    def describe(self) -> str:
        """Who it is and, if it has died, how: for messages."""

    def name(self) -> str:
        """Whose worker it is, and who: for messages."""
        envs = self.envs
        which = f"sub-env {envs.start}" if len(envs) == 1 else f"sub-envs {envs.start} to {envs.stop - 1}"
        return f"the worker of {which} ({self.describe()})"

    def start_hint(self) -> str:
        """What the user might do about one that dies while it builds its sub-envs."""
        return "An env_fn may have ended its process."

    @property
    def pid(self) -> int | None:
        """Its process id, if it has one of its own."""
        return None

    @property
    def actor_id(self) -> str | None:
        """Its id, if it is a Ray actor."""
        return None

    @property
    def node_id(self) -> str | None:
        """The id of the Ray node that it is on, if it is an actor that was placed."""
        return None

    @property
    def exitcode(self) -> int | None:
        """How it ended, as ``multiprocessing`` tells it; None where that is not known."""
        return None


class InlineWorker(Worker):
    """The caller steps these sub-envs itself, when it waits for them."""

    is_caller = True

    def __init__(self, env_fns: Sequence[EnvFn], first: int, autoreset_mode: AutoresetMode) -> None:
        super().__init__(range(first, first + len(env_fns)))
        self._env_fns = env_fns
        self._autoreset_mode = autoreset_mode
        self._asked: deque[tuple[Verb, tuple[Any, ...] | None]] = deque()
        self._batch: Batch | None = None
        self.sub_envs: SubEnvs | None = None

    def start(self) -> None:
        self._asked.clear()
        self.lost = False
        self.send(Verb.START, None)

    def attach(self, batch: Batch, block: SharedBlock | None) -> None:
        self._batch = batch
        if self.sub_envs is not None:
            self.sub_envs.attach(batch, self.envs.start, settles=True)

    def send(self, verb: Verb, prepared: tuple[Any, ...] | None) -> bool:
        self.owed.append(verb)
        self._asked.append((verb, prepared))
        return True

    def poll(self) -> Reply | None:
        if not self._asked:
            if self.owed:
                # Ctrl-C came between a request and its reply.
                raise EOFError
            return None
        verb, payload = self._asked.popleft()
        while len(self.owed) > len(self._asked) + 1:
            # So it did for these, which nobody waits for any more.
            self.owed.popleft()
        if verb is Verb.START:
            return self._start()
        if self.sub_envs is None:
            # They could not be built.
            return CallOutcome([])
        if verb is Verb.CLOSE:
            return CallOutcome([], self.sub_envs.close())
        assert payload is not None
        if verb is Verb.STEP:
            return self.step(payload[0])
        try:
            return perform(self.sub_envs, verb, payload)
        except KeyboardInterrupt as error:
            if REQUESTS[verb].reply is not Outcome:
                raise
            return self.sub_envs.interrupted(verb.name.lower(), error)

    def step(self, actions: Sequence[Any] | None = None) -> Outcome:
        """Steps the sub-envs now, with these actions or those in the batch's rows; :meth:`poll` does so when it was asked."""
        sub_envs = self.sub_envs
        assert sub_envs is not None
        try:
            return sub_envs.step(actions)
        except KeyboardInterrupt as error:
            return sub_envs.interrupted("step", error)

    def _start(self) -> Reply:
        if self.sub_envs is not None:
            self.sub_envs.close()
        built = SubEnvs.build(lambda: self._env_fns, self.envs.start, self._autoreset_mode)
        if isinstance(built, Failure):
            return built
        built.stops_at_interrupt = True
        if self._batch is not None:
            built.attach(self._batch, self.envs.start, settles=True)
        self.sub_envs = built
        return built.describe()

    def descriptors(self) -> Sequence[int]:
        return ()

    def is_alive(self) -> bool:
        return True

    def terminate(self) -> None:
        pass

    def kill(self) -> None:
        pass

    def release(self) -> None:
        self._asked.clear()
        self.owed.clear()
        if self.sub_envs is not None:
            self.sub_envs.close()
            self.sub_envs = None
        self._batch = None

    def describe(self) -> str:
        return "the calling process"


def shares(num_envs: int, num_workers: int) -> list[range]:
    """Consecutive runs of ``num_envs`` sub-envs, as even as they can be, longer ones first; none is empty."""
    num_workers = min(num_workers, num_envs)
    size, longer = divmod(num_envs, num_workers)
    bounds = [index * size + min(index, longer) for index in range(num_workers + 1)]
    return [range(start, stop) for start, stop in itertools.pairwise(bounds)]
