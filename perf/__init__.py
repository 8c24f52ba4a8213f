"""Measurements. One file a question: `python -m perf --list` names them, `perf/LOG.md` keeps what they said.

Nothing of the house imports this package; it may import all of the house, through what the rooms make public.
"""
