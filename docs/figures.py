"""Draws the figures of autoreset.md from what an engine returns: ``python docs/figures.py``.

Two sub-envs; the episode of the first ends at its second step, that of the second goes on. Observations tell episode and
step (``A2``: the second step of the first episode), rewards the action that was taken. The tests draw the same from every
engine, and compare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

PICTURES = Path(__file__).parent / "pictures"
LENGTHS = (2, 9)
"""Steps of each sub-env's episodes."""


class TellingEnv(gymnasium.Env[NDArray[np.int64], np.int64]):
    """Observes ``[episode, step]``, is rewarded with its action, and has ``step`` as its info.

    Args:
        length: of an episode, in steps.
    """

    observation_space = spaces.Box(0, 100, (2,), np.int64)
    action_space = spaces.Discrete(100)

    def __init__(self, length: int) -> None:
        self.length = length
        self.episode, self.steps = -1, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.int64], dict[str, Any]]:
        """Begins the next episode."""
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return np.array([self.episode, self.steps]), {"step": 0}

    def step(self, action: np.int64) -> tuple[NDArray[np.int64], float, bool, bool, dict[str, Any]]:
        """Terminates at the last step."""
        self.steps += 1
        return np.array([self.episode, self.steps]), float(action), self.steps == self.length, False, {"step": self.steps}


class Call(NamedTuple):
    """What a call was given and what it returned: for each array the text of each row; empty: there is none."""

    title: str
    arrays: dict[str, tuple[str, ...]]


def story(make: Callable[..., Any], mode: AutoresetMode) -> list[Call]:
    """The calls of a short run, until after the first end of an episode.

    Args:
        make: ``make(env_fns, autoreset_mode=...)`` gives a vector env.
        mode: when a sub-env that has ended is reset.
    """
    envs = make([partial(TellingEnv, length) for length in LENGTHS], autoreset_mode=mode)
    try:
        observations, infos = envs.reset()
        calls = [_told("reset()", None, observations, None, None, infos)]
        for number in range(1, 5 if mode is AutoresetMode.NEXT_STEP else 4):
            actions = np.array([number, 10 + number])
            observations, rewards, terminations, _, infos = envs.step(actions)
            calls.append(_told("step", actions, observations, rewards, terminations, infos))
            if mode is AutoresetMode.DISABLED and terminations.any():
                observations, infos = envs.reset(options={"reset_mask": terminations})
                calls.append(_told("reset(mask)", None, observations, None, None, infos))
        return calls
    finally:
        envs.close()


def _told(title: str, actions: Any, observations: Any, rewards: Any, terminations: Any, infos: dict[str, Any]) -> Call:
    def texts(values: Any, told: Callable[[Any], str]) -> tuple[str, ...]:
        return ("",) * len(LENGTHS) if values is None else tuple(told(value) for value in values)

    def infos_of(held: dict[str, Any], key: str, told: Callable[[Any], str]) -> tuple[str, ...]:
        if key not in held:
            return ("",) * len(LENGTHS)
        return tuple(told(value) if there else "" for value, there in zip(held[key], held[f"_{key}"], strict=True))

    final = infos.get("final_info", {})
    return Call(
        title,
        {
            "actions": texts(actions, str),
            "observations": texts(observations, _name_of),
            "rewards": texts(rewards, lambda reward: f"{reward:g}"),
            "terminations": texts(terminations, lambda ended: str(bool(ended))),
            'infos["step"]': infos_of(infos, "step", str),
            'infos["final_obs"]': infos_of(infos, "final_obs", _name_of),
            'infos["final_info"]["step"]': infos_of(final, "step", str),
        },
    )


def _name_of(observation: NDArray[np.int64]) -> str:
    episode, step = observation
    return f"{chr(ord('A') + episode)}{step}"


_LABEL, _CELL, _LINE, _GAP, _TOP = 275, 92, 22, 10, 34
_EPISODES = {"A": "#dbe9f6", "B": "#fde3c8"}
_END = "#f4b6b0"


def draw(calls: Sequence[Call]) -> str:
    """An SVG: a column for each call, a line for each row of each array."""
    arrays = list(calls[0].arrays)
    block = _LINE * len(LENGTHS) + _GAP
    width, height = _LABEL + _CELL * len(calls) + 12, _TOP + block * len(arrays) + 4
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="monospace" font-size="13">',
        f'<rect width="{width}" height="{height}" rx="6" fill="#ffffff" stroke="#cccccc"/>',
    ]
    for column, call in enumerate(calls):
        parts.append(_text(_LABEL + _CELL * (column + 0.5), 22, call.title, "middle", bold=True))
    for number, array in enumerate(arrays):
        for row in range(len(LENGTHS)):
            y = _TOP + block * number + _LINE * row
            if row == 0:
                parts.append(_text(12, y + 15, array, "start", bold=True))
            parts.append(_text(_LABEL - 12, y + 15, f"[{row}]", "end"))
            for column, call in enumerate(calls):
                text = call.arrays[array][row]
                fill = _END if text == "True" else _EPISODES.get(text[:1], "#f4f4f4" if text else "#ffffff")
                x = _LABEL + _CELL * column
                parts.append(f'<rect x="{x}" y="{y}" width="{_CELL - 4}" height="{_LINE - 2}" rx="3" fill="{fill}"/>')
                if text:
                    parts.append(_text(x + _CELL / 2 - 2, y + 15, text, "middle"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, anchor: str, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="#222222"{weight}>{escape(text)}</text>'


def file_of(mode: AutoresetMode) -> Path:
    """Where its figure is."""
    return PICTURES / f"autoreset_{mode.name.lower()}.svg"


if __name__ == "__main__":
    import rayvec

    for each in AutoresetMode:
        file_of(each).write_text(draw(story(rayvec.SyncVectorEnv, each)))
