"""The contract between programs and the kernel, as libc headers are: table, calls, types, errors.

Stdlib and msgspec only. kvfs, kernel and gpuworker import from here; nothing here imports them.
"""
