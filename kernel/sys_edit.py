"""System calls that edit KV files: extract, merge, splice. Make an edit of kvfs and a job of it, park the caller.

A new file has no name and no descriptor before it is whole, so nobody ever opens half of it. Rights and locks are
kvfs's to check, when an edit is made: `x` on the handles of sources, `w` and the claim on the one that is changed.
"""

from typing import Any

from kernel.core import Kernel
from kernel.dispatch import handles
from kernel.edits import EditJob
from kernel.process import Process
from kernel.sys_file import FileHandle, file_of
from kvfs.editing import Edit
from sdk.abi import calls
from sdk.abi.errors import SyscallError, TooLong
from sdk.abi.trap import Pending
from sdk.abi.values import Fd, PositionMode


@handles(calls.Extract)
def sys_extract(kernel: Kernel, process: Process, call: calls.Extract) -> Fd | Pending:
    file, now = file_of(process, call.fd), kernel.now()
    edit = kernel.fs.extract(file, call.ranges, call.positions, path=call.path, who=process.who, now=now)
    fd: Fd | Pending = NewFile(kernel, process, edit, call.path).begin("extract")
    return fd


@handles(calls.Merge)
def sys_merge(kernel: Kernel, process: Process, call: calls.Merge) -> Fd | Pending:
    files, now = [file_of(process, fd) for fd in call.fds], kernel.now()
    edit = kernel.fs.merge(files, call.positions, path=call.path, who=process.who, now=now)
    fd: Fd | Pending = NewFile(kernel, process, edit, call.path).begin("merge")
    return fd


@handles(calls.Splice)
def sys_splice(kernel: Kernel, process: Process, call: calls.Splice) -> Pending | None:
    file, now = file_of(process, call.fd), kernel.now()
    source = None if call.source is None else file_of(process, call.source)
    positions = call.positions or (PositionMode.KEEP if source is None else PositionMode.PACK)
    edit = kernel.fs.splice(file, call.start, call.stop, source, positions, who=process.who, now=now)
    done: Pending | None = Running(kernel, process, edit).begin("splice")
    return done


class Running:
    """One edit until its caller has the answer."""

    def __init__(self, kernel: Kernel, process: Process, edit: Edit) -> None:
        self._kernel = kernel
        self._process = process
        self._edit = edit
        self._is_over = False

    def begin(self, call: str) -> Any:
        """Do the edit at once if it moves nothing, or submit it: the result of the call, or what it waits for."""
        kernel, process, edit = self._kernel, self._process, self._edit
        try:
            check_room(kernel, edit)
            if kernel.fs.edit_at_once(edit, kernel.now()):
                return self._finish()
            job = EditJob(edit, on_done=lambda _: self._done(future), on_fail=lambda error: self._failed(future, error))
            device = kernel.fs.device_of(job.file)
            for snapshot in edit.snapshots:  # those without KV go where the others are
                if device is not None and kernel.fs.device_of(snapshot) is None:
                    kernel.fs.place(snapshot, device)
            kernel.submit(job, process, claim=False, again=False)
        except SyscallError:
            self._end()
            raise
        future = process.park(call, lambda: self._undo(job), lambda: f"#{job.number}")
        return Pending(future)

    def result(self) -> Any:
        """What the call returns, when the edit is committed. Raises SyscallError."""

    def discard(self) -> None:
        """The edit was not committed, or nobody is there to take its result."""

    def give_back(self, result: Any) -> None:
        """The caller went away before it had the result."""

    def _done(self, future: Any) -> None:
        try:
            result = self._finish()
        except SyscallError as e:
            self._process.fail(future, e)
        else:
            self._process.complete(future, result, self.give_back)

    def _failed(self, future: Any, error: SyscallError) -> None:
        self._end()
        self._process.fail(future, error)

    def _undo(self, job: EditJob) -> None:
        self._kernel.cancel(job)
        if not self._is_over:
            self._end()

    def _finish(self) -> Any:
        self._is_over = True
        self._kernel.fs.end_edit(self._edit, self._kernel.now())
        return self.result()

    def _end(self) -> None:
        self._is_over = True
        self._kernel.fs.end_edit(self._edit, self._kernel.now())
        self.discard()


class NewFile(Running):
    """One that makes a file."""

    def __init__(self, kernel: Kernel, process: Process, edit: Edit, path: str | None) -> None:
        super().__init__(kernel, process, edit)
        self._path = path

    def result(self) -> Fd:
        file, fs = self._edit.file, self._kernel.fs
        if self._path is not None:
            try:
                fs.name(file, self._path, who=self._process.who, now=self._kernel.now())
            except SyscallError:
                self.discard()
                raise
        return self._process.install(FileHandle(self._kernel, file))

    def discard(self) -> None:
        self._kernel.fs.close(self._edit.file, self._kernel.now())

    def give_back(self, result: Fd) -> None:
        self._process.forget(result)


def check_room(kernel: Kernel, edit: Edit) -> None:
    """Raises TooLong when the model's context does not hold the new file."""
    limit, n_tokens = kernel.model_info().max_model_len, len(edit.tokens)
    if n_tokens > limit or (n_tokens and edit.positions[-1] >= limit):
        raise TooLong(f"the model's context is {limit} tokens: these would be {n_tokens}, up to {edit.positions[-1]}")
