"""Every rule of the public conformance kit, on every engine."""

from __future__ import annotations

import pytest
from engines import ENGINES, Engine, each

from rayvec.testing import CHECKS

_SLOW_TO_START = {"async-spawn": ["space_nested", "space_graph", "error_of_sub_env", "odd_errors", "failing_call", "close"]}
"""Rules worth trying where each worker takes a second to start; the rest does not depend on how it was started."""


@pytest.mark.parametrize("name", CHECKS)
@each(ENGINES)
def test_rule(engine: Engine, name: str) -> None:
    """It holds."""
    if name not in _SLOW_TO_START.get(engine.id, CHECKS):
        pytest.skip(f"{engine.id} takes long to start, which has nothing to do with this rule")
    CHECKS[name](engine.make)
