"""What ``import rayvec`` gives, what it costs, and that its signatures are Gymnasium's."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from gymnasium.vector import AutoresetMode
from world import child_environment

import rayvec
from rayvec import errors

AT_LEAST_1_4 = tuple(int(part) for part in version("gymnasium").split(".")[:2]) >= (1, 4)


def run(script: str) -> Any:
    """What a script prints as JSON, in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        env=child_environment(),
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


IMPORT = """
import json, sys, time
import gymnasium, gymnasium.vector
before = set(sys.modules)
begin = time.process_time()
import rayvec
took = time.process_time() - begin
print(json.dumps({"new": sorted(set(sys.modules) - before), "all": sorted(sys.modules), "took": took}))
"""


@pytest.fixture(scope="module")
def imported() -> Any:
    """What importing rayvec imports besides, and how long it takes."""
    return run(IMPORT)


def test_importing_does_not_import_ray(imported: Any) -> None:
    """Ray is imported when a Ray engine is asked for, and not before."""
    assert not [name for name in imported["all"] if name.split(".")[0] == "ray"]


def test_importing_costs_little_beyond_gymnasium(imported: Any) -> None:
    """Only rayvec itself, cloudpickle and the standard library come in beyond what Gymnasium imports; no test kit either."""
    foreign = {name.split(".")[0] for name in imported["new"]} - set(sys.stdlib_module_names)
    assert {name for name in foreign if not name.startswith("_")} <= {"rayvec", "cloudpickle"}
    assert not [name for name in imported["new"] if name.startswith("rayvec.testing")]
    # Some 20 ms on an idle machine; this is a bound for one that is not.
    assert imported["took"] < 0.5


def test_using_the_local_engines_does_not_import_ray() -> None:
    """Neither in the caller nor in a worker."""
    script = """
import json, sys
import rayvec
from rayvec.testing.envs import CountingEnv

class SeesModules(CountingEnv):
    def modules(self):
        return sorted(sys.modules)

with rayvec.AsyncVectorEnv([SeesModules] * 2, num_workers=1, context="fork") as envs:
    envs.reset(seed=0)
    envs.step([0, 0])
    (there, _) = envs.call("modules")
print(json.dumps([name for name in [*there, *sys.modules] if name.split(".")[0] == "ray"]))
"""
    assert run(script) == []


def test_all_names_are_there() -> None:
    """``__all__`` lists what there is, in order, each once."""
    names = rayvec.__all__
    assert names == sorted(names)
    assert len(set(names)) == len(names)
    assert all(hasattr(rayvec, name) for name in names)
    assert isinstance(rayvec.__version__, str)


def test_every_error_is_exported() -> None:
    """All of rayvec's errors can be caught by a name of the package, and all stand in the tree of the module's docstring."""
    kinds = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and kind.__module__ == errors.__name__}
    assert set(errors.__all__) == set(kinds)
    own = {name for name, kind in kinds.items() if issubclass(kind, errors.RayvecError)}
    exported = {name for name in rayvec.__all__ if name.endswith("Error")}
    assert exported == own
    assert all(getattr(rayvec, name) is kinds[name] for name in own)
    assert errors.__doc__ is not None
    assert all(name in errors.__doc__ for name in own)


def test_the_tree_of_errors_tells_the_bases() -> None:
    """What the docstring says in parentheses is so: ``except`` clauses written for Gymnasium's engines go on working."""
    assert errors.__doc__ is not None
    told = {line.split("── ")[1] for line in errors.__doc__.splitlines() if "Error " in line and "also" in line}
    assert len(told) == 8
    for line in told:
        name, also = line.split("(also ")
        for base in also.split(")")[0].split(","):
            words = base.replace(" and ", " ").split()
            for word in (word for word in words if word.rsplit(".", 1)[-1].endswith("Error")):
                assert word.rsplit(".", 1)[-1] in {kind.__name__ for kind in getattr(errors, name.strip()).__mro__}, line


# Gymnasium 1.4's signatures, which hold for rayvec whichever Gymnasium is installed.
SIGNATURES: dict[str, dict[str, Any]] = {
    "SyncVectorEnv": {
        "env_fns": inspect.Parameter.empty,
        "copy": True,
        "observation_mode": "same",
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    },
    "AsyncVectorEnv": {
        "env_fns": inspect.Parameter.empty,
        "shared_memory": True,
        "copy": True,
        "context": None,
        "daemon": True,
        "worker": None,
        "observation_mode": "same",
        "autoreset_mode": AutoresetMode.NEXT_STEP,
        "max_concurrency": None,
    },
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_begin_with_gymnasiums(name: str) -> None:
    """The same parameters in the same order with the same defaults; what rayvec adds is optional and by keyword only."""
    parameters = list(inspect.signature(getattr(rayvec, name)).parameters.values())
    due = SIGNATURES[name]
    first, more = parameters[: len(due)], parameters[len(due) :]
    assert {parameter.name: parameter.default for parameter in first} == due
    assert [parameter.name for parameter in first] == list(due)
    assert all(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in first)
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in more)
    assert all(parameter.default is not parameter.empty for parameter in more)


@pytest.mark.skipif(not AT_LEAST_1_4, reason="an older Gymnasium has fewer parameters than 1.4, which rayvec follows")
@pytest.mark.parametrize("name", SIGNATURES)
def test_gymnasiums_own_signatures_are_as_written_down(name: str) -> None:
    """The table above is what the installed Gymnasium has."""
    parameters = inspect.signature(getattr(gymnasium.vector, name)).parameters
    assert {key: parameter.default for key, parameter in parameters.items()} == SIGNATURES[name]
    assert list(parameters) == list(SIGNATURES[name])


@pytest.mark.skipif(not AT_LEAST_1_4, reason="methods are compared with Gymnasium 1.4's")
@pytest.mark.parametrize("name", SIGNATURES)
def test_methods_take_what_gymnasiums_take(name: str) -> None:
    """Every public method and property of Gymnasium's engine is there, and takes its parameters."""
    theirs, ours = getattr(gymnasium.vector, name), getattr(rayvec, name)
    for method_name, method in inspect.getmembers(theirs):
        if method_name.startswith("_"):
            continue
        assert hasattr(ours, method_name), method_name
        if inspect.isfunction(method):
            own = inspect.signature(getattr(ours, method_name)).parameters
            for key, parameter in inspect.signature(method).parameters.items():
                assert key in own or parameter.kind is parameter.VAR_KEYWORD, f"{method_name}: {key}"
                if key in own and own[key].default is not own[key].empty:
                    assert own[key].default == parameter.default, f"{method_name}: {key}"


def test_modules_say_what_they_export() -> None:
    """Each module has a docstring, and every name in its ``__all__`` exists."""
    folder = Path(rayvec.__file__).parent
    for file in folder.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), file
        targets = [node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
        if not targets:
            continue
        module = ".".join(("rayvec", *file.relative_to(folder).with_suffix("").parts)).removesuffix(".__init__")
        try:
            __import__(module)
        except ImportError as error:
            # It needs an extra, and says which.
            if "pip install" not in str(error):
                raise
            continue
        assert [name for name in ast.literal_eval(targets[0].value) if not hasattr(sys.modules[module], name)] == [], file
