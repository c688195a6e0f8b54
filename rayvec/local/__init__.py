"""The engines on one machine: the caller itself, and processes that share its memory."""
