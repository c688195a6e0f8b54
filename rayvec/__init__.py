"""rayvec: fast and dependable vector environments behind Gymnasium's API.

Importing it does not import Ray; the first use of ``RayVectorEnv`` does.
"""

from typing import TYPE_CHECKING, Any

from rayvec.errors import (
    CallTimeoutError,
    InvalidObservationError,
    InvalidRewardError,
    PlacementError,
    QuotedEnvError,
    RayvecError,
    SnapshotError,
    TransportError,
    WorkerLostError,
)
from rayvec.images import tile_images
from rayvec.local.async_vector_env import AsyncVectorEnv
from rayvec.local.sync_vector_env import SyncVectorEnv
from rayvec.registration import make_vec, register
from rayvec.states import VectorEnvState
from rayvec.tuning import TuningReport, tune

if TYPE_CHECKING:
    from rayvec.vector import RayVectorEnv

__all__ = [
    "AsyncVectorEnv",
    "CallTimeoutError",
    "InvalidObservationError",
    "InvalidRewardError",
    "PlacementError",
    "QuotedEnvError",
    "RayVectorEnv",
    "RayvecError",
    "SnapshotError",
    "SyncVectorEnv",
    "TransportError",
    "TuningReport",
    "VectorEnvState",
    "WorkerLostError",
    "make_vec",
    "register",
    "tile_images",
    "tune",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "RayVectorEnv":
        from rayvec.vector import RayVectorEnv

        return RayVectorEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
