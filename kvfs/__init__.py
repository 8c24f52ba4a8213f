"""The KV cache as a file system: pure, synchronous, no torch. Start with `kvfs/fs.py`."""
