"""Durable KV files: what is on disk of a file system of KV files. Synchronous, over a `Disk`; see store.py."""
