"""One OS process per device: the only place where torch exists. Start with `gpuworker/wire.py`, the contract."""
