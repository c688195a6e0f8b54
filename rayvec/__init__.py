"""rayvec: fast and dependable vector environments behind Gymnasium's API.

Importing it does not import Ray.
"""

from rayvec.errors import (
    CallTimeoutError,
    InvalidObservationError,
    InvalidRewardError,
    QuotedEnvError,
    RayvecError,
    UnsupportedEngineError,
    WorkerLostError,
)
from rayvec.local.async_vector_env import AsyncVectorEnv
from rayvec.local.sync_vector_env import SyncVectorEnv
from rayvec.registration import make_vec, register

__all__ = [
    "AsyncVectorEnv",
    "CallTimeoutError",
    "InvalidObservationError",
    "InvalidRewardError",
    "QuotedEnvError",
    "RayvecError",
    "SyncVectorEnv",
    "UnsupportedEngineError",
    "WorkerLostError",
    "make_vec",
    "register",
]

__version__ = "0.1.0"
