"""What only an engine over a Ray cluster can meet: placement, nodes, the cluster's own life, code that is not there."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from clusters import add_node, living_actors
from engines import Engine, each, named
from gymnasium import spaces
from partial_loop import PartialLoop
from scripts import run_script, running_script
from world import is_running, notes_of, wait_until, wait_until_gone, within

import rayvec
from rayvec import PlacementError, RayVectorEnv, TransportError, WorkerLostError, actors
from rayvec.testing import CountingEnv, GateEnv, PlainLoop, SlowEnv, assert_same

pytestmark = [pytest.mark.timeout(120), pytest.mark.ray]

FNS = [partial(CountingEnv, index) for index in range(4)]
CARTPOLES = [partial(gym.make, "CartPole-v1")] * 4
ACTIONS = np.zeros(4, np.int64)
TRANSPORTS = named("ray-shared-memory", "ray-object-store")


class WideEnv(gym.Env[Any, Any]):
    """Takes a large action, writes into it and says what it was."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-np.inf, np.inf, (40_000,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins."""
        super().reset(seed=seed)
        return np.zeros(2), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Gives the first and the last number of the action."""
        seen = np.array([action[0], action[-1]], np.float64)
        action[:] = -1
        return seen, float(action.sum()), False, False, {}


# --- placement ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"num_cpus": 1000}, {"num_gpus": 1}, {"resources": {"robot": 1}}])
def test_what_cannot_be_placed(options: dict[str, Any]) -> None:
    """Within placement_timeout an error says what was asked, what there is, what to change; nothing is left pending."""
    before = living_actors()
    with within(8), pytest.raises(PlacementError) as caught:
        RayVectorEnv(FNS, placement_timeout=1.0, **options)
    (name, asked) = next(iter(options.items()))
    for part in (f"{name}={asked!r}", "placement_timeout=1.0", "CPU", "2 nodes", "num_actors", "sub-envs [0]"):
        assert part in str(caught.value)
    wait_until(lambda: living_actors() == before, "no actor is left")


def test_some_are_placed_and_others_are_not() -> None:
    """Those that were placed are gone again with the others."""
    before = living_actors()
    with pytest.raises(PlacementError):
        RayVectorEnv(FNS * 2, num_cpus=1, placement_timeout=2.0)
    wait_until(lambda: living_actors() == before, "no actor is left")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_actors": 0}, "num_actors: expected 1 or more, got 0"),
        ({"num_actors": 1.5}, "num_actors: expected None or a number of actors, got 1.5"),
        ({"num_cpus": -1}, "num_cpus: expected 0 or more, got -1"),
        ({"num_gpus": "two"}, "num_gpus: expected None or a number, got 'two'"),
        ({"resources": {"CPU": 1}}, "asked for with num_cpus"),
        ({"resources": 3}, "resources: expected a dict"),
        ({"runtime_env": "conda"}, "runtime_env: expected a dict"),
        ({"scheduling_strategy": "spread"}, "scheduling_strategy: expected one of"),
        ({"transport": "pigeon"}, "transport: expected one of"),
    ],
)
def test_wrong_options(options: dict[str, Any], told: str) -> None:
    """They are told before any actor is asked for."""
    with pytest.raises((TypeError, ValueError)) as caught:
        RayVectorEnv(FNS, **options)
    assert told in str(caught.value)


def test_options_of_actors() -> None:
    """Fractions, strategies and a runtime_env reach Ray."""
    runtime_env = {"env_vars": {"RAYVEC_TEST": "7"}}
    with closing(RayVectorEnv([EnvVarEnv] * 4, num_cpus=0.25, scheduling_strategy="SPREAD", runtime_env=runtime_env)) as envs:
        assert envs.get_attr("value") == ("7",) * 4


class EnvVarEnv(CountingEnv):
    """Knows an environment variable of its process."""

    @property
    def value(self) -> str | None:
        """The variable."""
        return os.environ.get("RAYVEC_TEST")


@each(named("ray-two-nodes"))
def test_on_two_nodes(engine: Engine) -> None:
    """The actor on the caller's node shares its memory, the other goes through the object store; both know where."""
    import ray

    with closing(engine.make(FNS)) as envs:
        nodes = {actor.node_id: actor.transport for actor in envs.actors}
        here = ray.get_runtime_context().get_node_id()
        assert len(nodes) == 2
        assert nodes.pop(here) == "shared_memory"
        assert list(nodes.values()) == ["object_store"]


def test_shared_memory_on_another_node() -> None:
    """What cannot share the caller's memory and has to says so."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    other = next(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here)
    strategy = NodeAffinitySchedulingStrategy(other, soft=False)
    with pytest.raises(TransportError, match=f"on node {other}.*transport='auto'"):
        RayVectorEnv(FNS, num_actors=1, transport="shared_memory", scheduling_strategy=strategy)


# --- by name ------------------------------------------------------------------------------------------------


def test_make_vec() -> None:
    """``make_vec`` gives the engine with its options, and again from the vector env's own spec."""
    with closing(rayvec.make_vec("CartPole-v1", 3, "ray", vector_kwargs={"num_actors": 2, "num_cpus": 0.1})) as envs:
        assert isinstance(envs, RayVectorEnv)
        assert [list(actor.envs) for actor in envs.actors] == [[0, 1], [2]]
        spec = envs.spec
    assert spec is not None
    with closing(rayvec.make_vec(spec)) as again:
        assert isinstance(again, RayVectorEnv)
        assert (again.num_envs, again.spec) == (3, spec)
    with pytest.raises(TypeError, match="did you mean 'num_actors'"):
        rayvec.make_vec("CartPole-v1", 3, "ray", vector_kwargs={"num_actor": 2})


def test_register() -> None:
    """Whatever asks Gymnasium for a vector env gets Ray underneath."""
    name = rayvec.register("CartPole-v1", engine="ray", namespace="on-ray", num_cpus=0.1)
    try:
        with closing(gym.make_vec(name, num_envs=8)) as envs:
            assert isinstance(envs.unwrapped, RayVectorEnv)
            assert len(envs.unwrapped.actors) == envs.num_envs == 8
            with closing(PlainLoop([partial(gym.make, "CartPole-v1")] * 8, "NextStep")) as loop:
                assert_same(loop.reset(seed=5)[0], envs.reset(seed=5)[0], "reset")
    finally:
        gym.registry.pop(name)


# --- deaths -------------------------------------------------------------------------------------------------


@each(TRANSPORTS)
def test_rounds_of_kills(engine: Engine, request: pytest.FixtureRequest) -> None:
    """Whichever actor is killed in the middle of steps, and however: a reset, and all data is right again."""
    import ray

    rng = np.random.default_rng(0)
    rounds = 20 if request.config.getoption("--all-engines") else 4
    with closing(engine.make(CARTPOLES)) as envs:
        for number in range(rounds):
            envs.reset(seed=number)
            victim = envs.actors[rng.integers(len(envs.actors))]
            assert victim.pid is not None
            envs.step_async(ACTIONS)
            if number % 2:
                ray.kill(victim.handle)
            else:
                os.kill(victim.pid, signal.SIGKILL)
            with pytest.raises(WorkerLostError) as caught:
                step_on(envs)
            assert caught.value.env_indices == tuple(victim.envs)
            assert caught.value.actor_id == victim.actor_id
            assert_right(envs, seed=number)


def step_on(envs: RayVectorEnv) -> None:
    """Waits for the pending step, then steps on until something happens."""
    for _ in range(10_000):
        envs.step_wait()
        envs.step_async(ACTIONS)


def assert_right(envs: RayVectorEnv, seed: int) -> None:
    """A reset, and 100 steps, against a plain loop."""
    with closing(PlainLoop(CARTPOLES, envs.autoreset_mode)) as loop:
        assert_same(loop.reset(seed=seed), envs.reset(seed=seed), "reset")
        for step in range(100):
            assert_same(loop.step(ACTIONS), envs.step(ACTIONS), f"step {step}")


def test_a_node_is_removed() -> None:
    """The error names the node; reset() finds the actors another place."""
    spare = {"spare": 1.0}
    with add_node(spare) as node, closing(RayVectorEnv(CARTPOLES, num_actors=2, resources={"spare": 0.1})) as envs:
        assert [actor.node_id for actor in envs.actors] == [node.id] * 2
        envs.reset(seed=1)
        envs.step_async(ACTIONS)
        node.remove()
        with within(10), pytest.raises(WorkerLostError, match=node.id):
            step_on(envs)
        with add_node(spare) as other:
            assert_right(envs, seed=2)
            assert [actor.node_id for actor in envs.actors] == [other.id] * 2
            envs.close()


@pytest.mark.parametrize("way", ["step", "recv"])
def test_sub_envs_of_a_removed_node_move(way: str) -> None:
    """Under ``on_failure="restart"`` they go on elsewhere from the end of their episodes; others do not notice."""
    spare = {"spare": 1.0}
    moved: list[int] = []
    with closing(PartialLoop(FNS)) as loop, add_node(spare) as stays, add_node(spare) as node:
        envs: Any = RayVectorEnv(FNS, num_actors=2, resources=spare, on_failure="restart")
        with closing(envs), add_node(spare) as other:
            places = [actor.node_id for actor in envs.actors]
            assert sorted(places) == sorted([stays.id, node.id])
            share = [[0, 1], [2, 3]][places.index(node.id)]
            assert_same(loop.follow_reset({}, [0] * 4, seed=7), envs.reset(seed=7), "reset")
            for turn in range(8):
                if turn == 3:
                    node.remove()
                if way == "step":
                    result = envs.step(ACTIONS)
                    due = loop.follow_step(list(ACTIONS), result[-1], envs.num_restarts)
                    assert_same(due, result, f"step {turn}")
                else:
                    envs.send(ACTIONS, range(4))
                    loop.send(ACTIONS, range(4))
                    result = envs.recv()
                    loop.check(result, envs.num_restarts)
                moved += np.flatnonzero(result[-1].get("restarted", ())).tolist()
                assert result[3].tolist() == [turn == 3 and index in share for index in range(4)]
            assert moved == share
            assert [actor.node_id for actor in envs.actors] == [other.id if place == node.id else place for place in places]
            envs.close()


@each(TRANSPORTS)
def test_large_requests_to_a_new_actor(engine: Engine) -> None:
    """A reset that starts an actor anew has to tell it more than a socket holds at once (its spaces), and hung."""
    actions = np.ones((3, 40_000), np.float32)
    with closing(engine.make([WideEnv] * 3, reset_timeout=30)) as envs:
        envs.reset(seed=1)
        os.kill(envs.actors[0].pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            envs.step(actions)
        envs.reset(seed=1)
        assert envs.step(actions)[0].tolist() == [[1, 1]] * 3


@each(TRANSPORTS)
def test_asked_to_end_in_a_step(engine: Engine, tmp_path: Path) -> None:
    """SIGTERM ends an actor; Ray made it a SystemExit of the env, which ended the caller."""
    gate = tmp_path / "gate"
    fns: list[Any] = [CountingEnv, partial(GateEnv, gate)]
    with closing(engine.make(fns)) as envs:
        envs.reset(seed=1)
        envs.step_async(np.zeros(2, np.int64))
        os.kill(envs.actors[1].pid, signal.SIGTERM)
        with within(3), pytest.raises(WorkerLostError):
            envs.step_wait()
        gate.touch()


@each(named("ray-two-nodes"))
def test_a_death_far_away_is_told_at_once(engine: Engine) -> None:
    """Not only when the actors on the caller's node have finished their long steps."""
    with closing(engine.make([partial(SlowEnv, 5.0), CountingEnv])) as envs:
        far = next(actor for actor in envs.actors if actor.transport == "object_store")
        near_is_slow = list(far.envs) == [1]
        envs.reset(seed=1)
        envs.step_async(np.zeros(2, np.int64))
        os.kill(far.pid, signal.SIGKILL)
        with within(3 if near_is_slow else 8), pytest.raises(WorkerLostError):
            envs.step_wait()
        envs.close(terminate=True)


def test_many_deaths_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's silence about why is waited out once, not for each actor."""
    with closing(RayVectorEnv(FNS * 2, num_actors=6, transport="shared_memory")) as envs:
        envs.reset(seed=1)
        for worker in envs._workers:
            monkeypatch.setattr(worker, "_serving", Future())
        for actor in envs.actors:
            os.kill(actor.pid, signal.SIGKILL)  # type: ignore[arg-type]
        with within(2.0), pytest.raises(WorkerLostError, match="has not said why"):
            envs.step(np.zeros(8, np.int64))


@each(TRANSPORTS)
def test_a_process_that_cannot_be_told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the process of that id is not known to be the actor (another had its id before), Ray alone tells of its end."""
    monkeypatch.setattr(actors, "_start_of", lambda pid: "another")
    with closing(engine.make(CARTPOLES)) as envs:
        envs.reset(seed=1)
        envs.step_async(ACTIONS)
        os.kill(envs.actors[0].pid, signal.SIGKILL)
        with within(5.0), pytest.raises(WorkerLostError) as caught:
            step_on(envs)
        assert caught.value.exitcode is None
        assert_right(envs, seed=2)


def test_whose_process_it_is() -> None:
    """The one of that id which began when the actor says that it did, and no other."""
    here = actors.EnvActor().place()
    pidfd = actors._follow_process(here)
    assert pidfd >= 0
    os.close(pidfd)
    assert actors._follow_process(here._replace(started="1")) == -1
    assert actors._follow_process(here._replace(machine="another")) == -1


@pytest.mark.parametrize("transport", ["auto", "shared_memory"])
def test_ray_refuses_to_place(transport: str) -> None:
    """What Ray refuses at once is told in the same words as what it never places."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nowhere = NodeAffinitySchedulingStrategy("0" * 56, soft=False)
    with pytest.raises(PlacementError, match=r"not placed.*the cluster has"):
        RayVectorEnv(FNS, num_actors=1, transport=transport, scheduling_strategy=nowhere)


# --- code and data ------------------------------------------------------------------------------------------


def test_an_env_fn_that_cannot_be_pickled() -> None:
    """It is named, and no actor is started."""
    held = threading.Lock()
    with pytest.raises(TypeError, match=r"env_fns\[3\] cannot be pickled"):
        RayVectorEnv([*FNS[:3], lambda: held], num_actors=2)  # type: ignore[list-item, return-value]


def test_a_module_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the module and points at runtime_env; with that it works."""
    (tmp_path / "only_here.py").write_text("from rayvec.testing import CountingEnv\nclass HereEnv(CountingEnv): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # type: ignore[import-not-found]

    with pytest.raises(ModuleNotFoundError, match=r"'only_here'.*runtime_env") as caught:
        RayVectorEnv([only_here.HereEnv] * 2, num_actors=1)
    assert caught.value.name == "only_here"
    there = {"env_vars": {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(rayvec.__file__).parents[1]}"}}
    with closing(RayVectorEnv([only_here.HereEnv] * 2, num_actors=1, runtime_env=there)) as envs:
        envs.reset(seed=1)
    sys.modules.pop("only_here")


def test_rayvec_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that cannot import the actor's class is told of in a line, not as a place that could not be found."""
    module = ModuleType("only_in_the_caller")
    there = type("EnvActor", (actors.EnvActor,), {"__module__": module.__name__})
    monkeypatch.setattr(module, "EnvActor", there, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(actors, "EnvActor", there)
    with pytest.raises(PlacementError, match=r"could not begin: ModuleNotFoundError.*rayvec has to be on every node"):
        RayVectorEnv(FNS, num_actors=1)


def import_in_vain() -> Any:
    """An env_fn that needs what is nowhere."""
    import no_such_simulator  # type: ignore[import-not-found]

    return no_such_simulator


def test_a_module_that_an_env_fn_imports() -> None:
    """The error is the env_fn's own; a note points at runtime_env."""
    with pytest.raises(ModuleNotFoundError, match="no_such_simulator") as caught:
        RayVectorEnv([import_in_vain], num_actors=1)
    assert "runtime_env" in notes_of(caught.value)


@each(TRANSPORTS)
def test_large_actions(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """They arrive, writable, and the caller's stay as they are; where they are stored, that is once for all actors."""
    import ray

    puts: list[Any] = []
    put = ray.put

    def counted(value: Any) -> Any:
        puts.append(value)
        return put(value)

    monkeypatch.setattr(ray, "put", counted)
    with closing(engine.make([WideEnv] * 3)) as envs:
        envs.reset(seed=1)
        for step in range(3):
            actions = np.arange(3 * 40_000, dtype=np.float32).reshape(3, -1) + step
            before = actions.copy()
            observations = envs.step(actions)[0]
            assert observations.tolist() == [[row[0], row[-1]] for row in before.tolist()]
            assert (actions == before).all()
    assert len(puts) == (3 if engine.id == "ray-object-store" else 0)


# --- the caller and the cluster -----------------------------------------------------------------------------


def test_inside_an_actor() -> None:
    """A task or an actor may be the caller."""
    import ray

    def run() -> Any:
        with closing(RayVectorEnv(FNS, num_actors=2)) as envs:
            envs.reset(seed=3)
            return envs.step(ACTIONS)

    came = ray.get(ray.remote(num_cpus=0)(run).remote())
    with closing(PlainLoop(FNS, "NextStep")) as loop:
        loop.reset(seed=3)
        assert_same(loop.step(ACTIONS), came, "step")


def test_several_side_by_side() -> None:
    """They do not disturb each other, nor does closing one."""
    with closing(RayVectorEnv(FNS, num_actors=1)) as kept:
        first = kept.reset(seed=1)
        with closing(RayVectorEnv(FNS, num_actors=2, transport="object_store")) as other:
            assert_same(first, other.reset(seed=1), "reset")
        assert kept.step(ACTIONS)[0].shape == first[0].shape


OWN_RAY = """
import ray
envs = rayvec.RayVectorEnv(FNS, num_actors=2)
envs.reset(seed=1)
assert ray.is_initialized()
"""


LOSES_AN_ACTOR = """
os.kill(envs.actors[0].pid, signal.SIGKILL)
try:
    envs.step(ACTIONS)
except rayvec.WorkerLostError:
    envs.reset(seed=1)
"""


@pytest.fixture
def own_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scripts find no other Ray than their own. The path is short, for it is part of the names of sockets."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield


@pytest.mark.usefixtures("own_ray")
@pytest.mark.parametrize("end", ["closed", "left open"])
def test_a_ray_of_its_own(end: str, tmp_path: Path) -> None:
    """With no Ray running one is started, without a word, and ends with the vector env."""
    rest = "envs.close()\nassert not ray.is_initialized()" if end == "closed" else LOSES_AN_ACTOR
    script = run_script(tmp_path, OWN_RAY + rest, timeout=60)
    assert script.returncode == 0, script.stderr
    assert script.stdout + script.stderr == ""


@pytest.mark.usefixtures("own_ray")
def test_a_ray_that_is_there_stays(tmp_path: Path) -> None:
    """What the caller has started is the caller's to end."""
    script = run_script(
        tmp_path,
        """
        import logging, ray
        ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
        for _ in range(2):
            with rayvec.RayVectorEnv(FNS, num_actors=2) as envs:
                envs.reset(seed=1)
        assert ray.is_initialized()
        ray.shutdown()
        """,
    )
    assert script.returncode == 0, script.stderr


@pytest.mark.usefixtures("own_ray")
def test_ray_ends_first(tmp_path: Path) -> None:
    """Closing works though the caller has ended Ray before, and ends the script."""
    script = run_script(tmp_path, OWN_RAY + "ray.shutdown()\nenvs.close()")
    assert script.returncode == 0, script.stderr


@pytest.mark.usefixtures("own_ray")
def test_another_ray_meanwhile(tmp_path: Path) -> None:
    """A vector env whose Ray was ended says so, ends no other Ray, and starts none."""
    script = run_script(
        tmp_path,
        OWN_RAY
        + """
import logging
ray.shutdown()
for call in (lambda: envs.step(ACTIONS), envs.reset):
    try:
        call()
    except rayvec.RayvecError as error:
        print(type(error).__name__)
    assert not ray.is_initialized()
ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
envs.close()
assert ray.is_initialized()
""",
        timeout=60,
    )
    assert script.returncode == 0, script.stderr
    assert script.stdout.split() == ["WorkerLostError", "PlacementError"]


@pytest.mark.usefixtures("own_ray")
def test_a_forked_process_closes(tmp_path: Path) -> None:
    """It disturbs neither the vector env nor Ray, and ends."""
    script = run_script(
        tmp_path,
        OWN_RAY
        + """
child = os.fork()
if child == 0:
    envs.close()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
envs.step(ACTIONS)
envs.close()
""",
        timeout=60,
    )
    assert script.returncode == 0, script.stderr


GONE = """
import logging, ray
address = ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)
envs = rayvec.RayVectorEnv(FNS, num_actors=2, transport=TRANSPORT, placement_timeout=20)
envs.reset(seed=1)
actors, heard = envs.actors, []
for process in ray._private.worker._global_node.all_processes[PROCESS]:
    os.kill(process.process.pid, signal.SIGKILL)
envs.step(ACTIONS)
if PROCESS == "gcs_server":
    os.kill(actors[0].pid, signal.SIGKILL)
started = time.monotonic()
try:
    while time.monotonic() < started + 30:
        envs.step(ACTIONS)
        time.sleep(0.001)
except rayvec.WorkerLostError as error:
    lost = [actor for actor in actors if actor.actor_id == error.actor_id][0]
    assert error.env_indices == tuple(lost.envs) and error.node_id == lost.node_id
    assert lost.actor_id in str(error) and lost.node_id in str(error), error
    heard.append("lost")
for attempt in (envs.reset, lambda: rayvec.RayVectorEnv(FNS, num_actors=2)):
    started = time.monotonic()
    try:
        attempt()
    except rayvec.PlacementError as error:
        assert TOLD in str(error) and "ray.shutdown()" in str(error), error
        assert time.monotonic() - started < 10
        heard.append("told")
started = time.monotonic()
envs.close(timeout=2)
assert time.monotonic() - started < 5, time.monotonic() - started
assert heard == ["lost", "told", "told"], heard
(FOLDER / "pids").write_text(" ".join(str(actor.pid) for actor in actors))
"""


@pytest.mark.usefixtures("own_ray")
@pytest.mark.parametrize(
    ("process", "transport", "told"), [("raylet", "object_store", "its raylet is gone"), ("gcs_server", "auto", "(GCS)")]
)
def test_ray_itself_dies(process: str, transport: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node's raylet, or the cluster's control service: all that needs it says so in bounded time, and close() works."""
    monkeypatch.setenv("RAY_health_check_initial_delay_ms", "0")
    monkeypatch.setenv("RAY_health_check_period_ms", "300")
    monkeypatch.setenv("RAY_health_check_timeout_ms", "1000")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    named = f"PROCESS, TRANSPORT, TOLD = {process!r}, {transport!r}, {told!r}"
    script = run_script(tmp_path, GONE, top=named, timeout=90)
    assert script.returncode == 0, script.stderr
    wait_until_gone([int(pid) for pid in (tmp_path / "pids").read_text().split()], 3.0)


@pytest.mark.parametrize(
    ("address", "error", "told"),
    [
        ("127.0.0.1:1", "ConnectionError", "RAY_ADDRESS='127.0.0.1:1': no Ray cluster answers"),
        ("ray://127.0.0.1:1", "TransportError", "Ray Client"),
    ],
)
def test_an_address_of_no_use(address: str, error: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is there, or only a proxy for calls: told at once, where Ray would try for minutes."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    main = """
    try:
        rayvec.RayVectorEnv(FNS)
    except Exception as error:
        print(type(error).__name__, error)
    """
    script = run_script(tmp_path, main)
    assert script.stdout.startswith(f"{error} "), script.stderr
    assert told in script.stdout


def test_ray_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """One who is connected by Ray Client is told what to do instead."""
    monkeypatch.setattr("ray.util.client.ray.is_connected", lambda: True)
    with pytest.raises(TransportError, match=r"Ray Client.*ray job submit"):
        RayVectorEnv(FNS, num_actors=1)


@pytest.mark.usefixtures("own_ray")
def test_the_caller_is_killed(tmp_path: Path) -> None:
    """Its actors are gone within three seconds."""
    main = OWN_RAY + "(FOLDER / 'pids').write_text(' '.join(str(a.pid) for a in envs.actors))\nsay('ready')\ntime.sleep(60)"
    with running_script(tmp_path, main) as script:
        wait_until((tmp_path / "ready").exists, "the script is ready", 30)
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        assert all(is_running(pid) for pid in pids)
        script.kill()
        wait_until_gone(pids, 3.0)
