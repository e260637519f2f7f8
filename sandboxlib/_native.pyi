# What `_native/native.cdef.h` declares, for the type checker; tests/native/test_stub.py compares the two.
# Only `sandboxlib.kernel` imports this module: no ``ffi`` object leaves it.
from typing import Any, Final, final

from typing_extensions import Buffer

@final
class _Lib:
    def sbx_syscall(self, nr: int, a: int, b: int, c: int, d: int, e: int, f: int, /) -> int: ...
    def sbx_close(self, fd: object, /) -> None: ...
    def sbx_syscall_fd(
        self, fd: object, nr: int, a: int, b: int, c: int, d: int, e: int, f: int, /
    ) -> int: ...
    def sbx_openat(self, fd: object, dir: int, path: bytes, flags: int, mode: int, /) -> int: ...  # noqa: A002
    def sbx_pipe(self, read_end: object, write_end: object, /) -> int: ...
    def sbx_launcher_open(self, fd: object, /) -> int: ...
    def sbx_launch(
        self, launch: object, launcher: int, program: object, size: int, fds: object, count: int, /
    ) -> int: ...
    def sbx_hear(
        self, launch: object, report: object, data: object, room: int, passed: object, sender: object, /
    ) -> int: ...
    def sbx_reap(self, launch: object, /) -> int: ...
    def sbx_wait(self, launch: object, /) -> int: ...
    def sbx_launch_end(self, launch: object, /) -> None: ...
    def sbx_send(self, fd: int, data: object, size: int, /) -> int: ...
    def sbx_read_file(self, dir: int, path: bytes, buffer: object, size: int, /) -> int: ...  # noqa: A002
    def sbx_write_file(self, dir: int, path: bytes, data: object, size: int, /) -> int: ...  # noqa: A002
    def sbx_limits(self, limits: object, count: int, /) -> None: ...
    SBX_SYSCALL: Final[int]
    SBX_WRITE: Final[int]
    SBX_POINTER: Final[int]
    SBX_CLONE: Final[int]
    SBX_CHILD_WRITE: Final[int]
    SBX_REPORT: Final[int]
    SBX_EXEC: Final[int]
    SBX_SERVE: Final[int]
    SBX_INIT: Final[int]
    SBX_CONNECT: Final[int]
    SBX_CHILD_OPEN: Final[int]
    SBX_READ: Final[int]
    SBX_EXTENTS: Final[int]
    SBX_STATS: Final[int]
    SBX_FITS: Final[int]
    SBX_FILES: Final[int]
    SBX_WATCH: Final[int]
    SBX_POSITIVE: Final[int]
    SBX_ABSOLUTE: Final[int]
    SBX_EACH: Final[int]
    SBX_TELL: Final[int]
    SBX_DONE: Final[int]
    SBX_CHILD: Final[int]
    SBX_READY: Final[int]
    SBX_FAILED: Final[int]
    SBX_NOT_FOUND: Final[int]
    SBX_DATA: Final[int]
    SBX_ANY: Final[int]
    SBX_INTERPRETER: Final[int]
    SBX_ROOM: Final[int]
    SBX_STAT: Final[int]
    SBX_MAX_SIZE: Final[int]
    SBX_LIFETIME_OVER: Final[int]
    SBX_CONTROL: Final[int]
    SBX_PROGRAM: Final[int]
    SBX_FIRST: Final[int]
    SBX_SOCKET: Final[int]
    SBX_MAX_FDS: Final[int]
    SYS_bpf: Final[int]
    SYS_capset: Final[int]
    SYS_chdir: Final[int]
    SYS_clone3: Final[int]
    SYS_close: Final[int]
    SYS_close_range: Final[int]
    SYS_dup3: Final[int]
    SYS_eventfd2: Final[int]
    SYS_execveat: Final[int]
    SYS_fchdir: Final[int]
    SYS_fchmodat: Final[int]
    SYS_fchownat: Final[int]
    SYS_fcntl: Final[int]
    SYS_fgetxattr: Final[int]
    SYS_fsetxattr: Final[int]
    SYS_flock: Final[int]
    SYS_fsconfig: Final[int]
    SYS_fsmount: Final[int]
    SYS_fsopen: Final[int]
    SYS_fstatfs: Final[int]
    SYS_ftruncate: Final[int]
    SYS_getcwd: Final[int]
    SYS_getdents64: Final[int]
    SYS_inotify_add_watch: Final[int]
    SYS_inotify_init1: Final[int]
    SYS_ioctl: Final[int]
    SYS_keyctl: Final[int]
    SYS_landlock_add_rule: Final[int]
    SYS_landlock_create_ruleset: Final[int]
    SYS_landlock_restrict_self: Final[int]
    SYS_linkat: Final[int]
    SYS_lseek: Final[int]
    SYS_memfd_create: Final[int]
    SYS_mkdirat: Final[int]
    SYS_mknodat: Final[int]
    SYS_mount_setattr: Final[int]
    SYS_move_mount: Final[int]
    SYS_openat: Final[int]
    SYS_openat2: Final[int]
    SYS_open_tree: Final[int]
    SYS_pidfd_open: Final[int]
    SYS_pidfd_send_signal: Final[int]
    SYS_pipe2: Final[int]
    SYS_pivot_root: Final[int]
    SYS_ppoll: Final[int]
    SYS_prctl: Final[int]
    SYS_prlimit64: Final[int]
    SYS_read: Final[int]
    SYS_readlinkat: Final[int]
    SYS_renameat2: Final[int]
    SYS_seccomp: Final[int]
    SYS_setdomainname: Final[int]
    SYS_setgroups: Final[int]
    SYS_sethostname: Final[int]
    SYS_setns: Final[int]
    SYS_setresgid: Final[int]
    SYS_setresuid: Final[int]
    SYS_setsid: Final[int]
    SYS_socket: Final[int]
    SYS_statx: Final[int]
    SYS_symlinkat: Final[int]
    SYS_syncfs: Final[int]
    SYS_umask: Final[int]
    SYS_umount2: Final[int]
    SYS_unlinkat: Final[int]
    SYS_unshare: Final[int]
    SYS_utimensat: Final[int]
    SYS_write: Final[int]

@final
class _FFI:
    # What C hands out has the type that the text names, which a checker cannot read.
    def new(self, cdecl: str, init: object = ...) -> Any: ...
    def cast(self, cdecl: str, source: object) -> Any: ...
    def from_buffer(self, python_buffer: Buffer) -> Any: ...
    def sizeof(self, cdecl: str) -> int: ...
    def buffer(self, cdata: object, size: int = ...) -> Buffer: ...
    def new_allocator(self, *, should_clear_after_alloc: bool = ...) -> Any: ...
    def gc(self, cdata: object, destructor: object) -> Any: ...
    def release(self, cdata: object) -> None: ...
    def addressof(self, cdata: object, *fields: str) -> Any: ...

lib: Final[_Lib]
ffi: Final[_FFI]
