"""Attention over pages: one contract (backend.py), a body for each kind of device, and the choice between them.

Called by the engine. Bodies know page tables and tokens; never add files, sampling or model code here.
"""
