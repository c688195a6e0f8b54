"""The rules of the contract, by subject. Importing them puts them into the table, in this order."""

from rayvec.testing.rules import identity, resets, autoreset, data, ownership, refusals, calls, errors, ending  # isort: skip

__all__ = ["autoreset", "calls", "data", "ending", "errors", "identity", "ownership", "refusals", "resets"]
