"""The microkernel: processes, system calls, batches and workers. Start it with `python -m kernel`."""
