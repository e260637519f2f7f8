"""The steps for each kind of root file system, for /proc, /dev, and for mounts."""

from __future__ import annotations

from typing import NamedTuple

from sandboxlib.host import Entry, Host
from sandboxlib.mount import Mount, below
from sandboxlib.plan import layers, names, network, tree
from sandboxlib.plan.flags import (
    AT_FDCWD,
    MOUNT_ATTR_IDMAP,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MOVE_MOUNT_F_EMPTY_PATH,
    MS_PRIVATE,
    NOTHING,
    O_CLOEXEC,
    Named,
)
from sandboxlib.plan.identity import WORK, check_user, identity, user_of
from sandboxlib.plan.steps import Call, OpenChild, Step, Template
from sandboxlib.rootfs import WRITABLE, Rootfs
from sandboxlib.spec import SandboxSpec

SHM_SIZE = 64 << 20
#: Terminals of a sandbox: all devpts together have 4096 (kernel.pty.max), less 1024 for the host.
PTYS = 256
USERNS = Named(14, "<user namespace>")


class Roots(NamedTuple):
    """
    Steps by who makes them, and when.

    Attributes:
        sources: The launcher, before the child is cloned: what needs the caller's rights.
        with_user_namespace: The launcher, once the child's ID maps are written.
        build: The child.
        keep: What the program gets with the report that the sandbox stands, or -1: where the
            upper layer is.
    """

    sources: tuple[Step, ...] = ()
    with_user_namespace: tuple[Step, ...] = ()
    build: tuple[Step, ...] = ()
    keep: int = -1


def roots(spec: SandboxSpec, host: Host, on: frozenset[str]) -> Roots:
    """
    Plan the file tree.

    Raises:
        UnsupportedError: This host cannot build it.
    """
    builder = Builder(spec, host, on)
    rootfs = spec.rootfs or Rootfs.host()
    check_user(spec, host)
    builder.root(rootfs)
    builder.proc()
    builder.dev()
    layers.mount_files(builder, rootfs)
    if network.is_made(spec):
        names.of_network(builder, rootfs)
    elif spec.network is not None and spec.network.kind == "host":
        names.of_host(builder, rootfs)
    for mount in spec.mounts:
        builder.mount(mount)
    for folder in rootfs.wanted:
        # What lies in a mount is made there, as by other engines.
        if any(below(folder.path, mount.destination) and not mount.readonly for mount in spec.mounts):
            builder.build.extend(
                tree.make_target(folder.path, "the image's working directory", folder=True, follow=True)
            )
    builder.masks()
    # Without the protection the host view's root can be written; what was asked to be read-only stays so.
    builder.build.extend(tree.enter(rootfs.readonly and (rootfs.kind != "host" or "read-only-root" in on)))
    return builder.roots()


def alone(rootfs: Rootfs, host: Host) -> Roots:
    """
    Plan a file tree without a sandbox: it has the caller's owners, and neither /proc nor /dev.

    The last step of the child has it as a detached mount at `tree.MOUNT`.

    Raises:
        UnsupportedError: This host cannot build it.
    """
    builder = Builder(SandboxSpec(rootfs=rootfs), host, frozenset(), owned=False, lone=True)
    builder.root(rootfs)
    why = "what is handed out"
    if rootfs.readonly:
        builder.build.append(tree.setattr_(tree.ROOT, why, set_=MOUNT_ATTR_RDONLY, recursive=False))
    # A copy: what is attached here goes with this process's mount namespace.
    builder.build.append(tree.open_tree("", tree.MOUNT, why, directory=tree.ROOT))
    return builder.roots()


class Builder:
    """
    Collects steps.

    Attributes:
        trusted: The root is a tree that we make ourselves, so no link in it is another's.
        owned: Files on disk belong to the sandbox's users, by ID-mapped mounts.
        lone: The tree stands without a sandbox: nothing is mounted in it.
        files: Numbers of the small files of its own, by the paths that they are mounted on.
    """

    def __init__(
        self,
        spec: SandboxSpec,
        host: Host,
        on: frozenset[str],
        *,
        owned: bool = True,
        lone: bool = False,
    ) -> None:
        self.spec = spec
        self.host = host
        self.on = on
        self.early: list[Step] = []
        self.late: list[Step] = []
        self.build: list[Step] = []
        self.trusted = True
        self.keep = -1
        self.lone = lone
        self.files: dict[str, Named] = {}
        user = spec.namespace("user")
        self.owned = owned and host.privileged and (user is None or user.mode != "host")
        self._next = tree.SOURCES
        self._made: set[str] = set()

    def roots(self) -> Roots:
        """All that was collected."""
        return Roots(tuple(self.early), tuple(self.late), tuple(self.build), self.keep)

    def root(self, rootfs: Rootfs) -> None:
        """The root of the tree, at "/"."""
        # Folders of the sandbox do not depend on what the program lets its own files be.
        self.early.append(Call("umask", (0,), "modes as given"))
        self.build.append(tree.private())
        kinds = {"host": self.host_view, "empty": self.empty, "directory": self.directory}
        # An image is an overlay, too.
        kinds.get(rootfs.kind, self.overlay)(rootfs)

    # ---- sources --------------------------------------------------------------------------

    def source(
        self, path: str, why: str, attributes: Named, *, recursive: bool = True, idmap: bool = False
    ) -> Named:
        """
        Open a tree of the host's, with *attributes*; returns its number.

        Root's launcher does it with root's rights, before the child exists: a source may
        lie in a folder that nobody else may enter. A user's cannot, for the mounts have to
        be those of the new namespace: there the child does it.
        """
        fd = self.number(path)
        steps = self.early if self.host.privileged else self.build
        steps.append(tree.open_tree(path, fd, why, recursive=recursive))
        # A copy of a shared mount is its peer: what the host mounts below it later would show up here.
        steps.append(tree.setattr_(fd, why, set_=attributes, propagation=MS_PRIVATE, recursive=recursive))
        if idmap and self.owned:
            self._userns()
            why = "its files have the right owners inside"
            self.late.append(
                tree.setattr_(fd, why, set_=MOUNT_ATTR_IDMAP, userns=USERNS, recursive=recursive)
            )
        return fd

    def number(self, path: str) -> Named:
        """A number for what will be opened at *path*."""
        self._next += 1
        return Named(self._next - 1, f"<{path}>")

    def _userns(self) -> None:
        if not any(isinstance(step, OpenChild) for step in self.late):
            self.late.append(OpenChild("ns/user", "ID-mapped mounts are mapped by it", USERNS))

    # ---- the tree -------------------------------------------------------------------------

    def folder(self, path: str, mode: int = 0o755) -> None:
        """Make a folder, and those above it, in a tree of ours."""
        for parent in (*tree.parents(path), path):
            if parent not in self._made:
                self._made.add(parent)
                self.build.append(tree.mkdir(parent, "skeleton", mode if parent == path else 0o755))

    def above(self, path: str) -> None:
        """Make the folders above *path*."""
        for parent in tree.parents(path):
            self.folder(parent)

    def file(self, path: str, text: str | bytes, why: str) -> None:
        """Make a file in a tree of ours."""
        self.above(path)
        self.build.append(tree.file(path, text, why) if text else tree.touch(path, why))

    def place(self, path: str, fd: int, why: str, *, folder: bool = True, follow: bool = False) -> None:
        """Attach *fd* at *path*, which is made where it is missing."""
        if self.trusted and not follow:
            self.folder(path) if folder else self.file(path, "", why)
            self.build.append(tree.attach(fd, path, why))
        else:
            self.build.extend(tree.make_target(path, why, folder=folder, follow=follow))
            self.build.append(tree.attach_fd(fd, tree.TARGET, why))

    def _tmpfs_root(self, rootfs: Rootfs, why: str) -> None:
        self.build.extend(tree.filesystem("tmpfs", tree.limits(rootfs), tree.SAFE, why, out=tree.ROOT))
        self.attach_root()

    def attach_root(self) -> None:
        # On top of the host's root: whatever the host's tree looks like, "/" is there.
        args = (tree.ROOT, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH)
        self.build.append(Call("move_mount", args, "the new root, on top of the host's"))

    def host_view(self, rootfs: Rootfs) -> None:
        """The host's system folders, read-only, and private folders to write in."""
        self._tmpfs_root(rootfs, "a root of its own, with a size")
        why = "private, empty and writable"
        owner = user_of(self.spec)
        # First these: what the host shows may have to be mounted inside one of them.
        for path in WRITABLE:
            shared = path in ("/tmp", "/var/tmp")
            self.folder(path, 0o1777 if shared else 0o755)
            if any(owner) and not shared and path != "/root":
                self.build.append(Call("fchownat", (tree.ROOT, path.lstrip("/"), *owner, 0), "the user's"))
            self.build.append(tree.open_tree(path.lstrip("/"), tree.MOUNT, why, directory=tree.ROOT))
            self.build.append(tree.attach(tree.MOUNT, path, why))
        why = "the host's, read-only"
        files = self.host.files
        asked = [Entry(kind="file" if path in files else "dir", path=path) for path in rootfs.paths]
        for entry in (*self.host.view, *asked):
            if entry.kind == "link":
                self.above(entry.path)
                self.build.append(tree.symlink(entry.target, entry.path, "as on the host"))
            elif entry.kind == "copy":
                self.file(entry.path, entry.content, "the host's, which is being replaced by others")
            else:
                fd = self.source(entry.path, why, MOUNT_ATTR_RDONLY | tree.SAFE)
                self.place(entry.path, fd, why, folder=entry.kind == "dir")
        for path, text in identity(self.spec).items():
            made = network.is_made(self.spec) and path in network.FILES
            if path not in rootfs.paths and not made:
                self.file(path, text, "made anew: the host's names nobody inside")

    def empty(self, rootfs: Rootfs) -> None:
        """Nothing but /proc and /dev."""
        self._tmpfs_root(rootfs, "an empty root, with a size")

    def directory(self, rootfs: Rootfs) -> None:
        """A folder of the host's as root."""
        self.trusted = False
        attributes = tree.SAFE | (MOUNT_ATTR_RDONLY if rootfs.readonly else NOTHING)
        assert rootfs.path is not None
        fd = self.source(rootfs.path, "the folder that becomes the root", attributes, idmap=True)
        self.build.append(Call("dup3", (fd, tree.ROOT, O_CLOEXEC), "it is the root from here on"))
        self.attach_root()

    def overlay(self, rootfs: Rootfs) -> None:
        """Layers of the host's below, and one to write in."""
        self.trusted = False
        layers.lay(self, rootfs)

    # ---- what every root has --------------------------------------------------------------

    def proc(self) -> None:
        """Its own /proc."""
        options = {}
        if "proc-subset" in self.on:
            options["subset"] = "pid"
        if "hidden-processes" in self.on:
            options["hidepid"] = "invisible"
        why = "its own processes, and nothing of the kernel's"
        self.build.extend(tree.filesystem("proc", options, tree.SAFE | MOUNT_ATTR_NOEXEC, why))
        self.place("/proc", tree.MOUNT, why)

    def dev(self) -> None:
        """A minimal /dev: device nodes are bound, for none can be made in a user namespace."""
        quiet = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC
        why = "a minimal /dev"
        if self.trusted:
            self.folder("/dev")
        else:
            self.build.extend(
                tree.filesystem("tmpfs", tree.tmpfs_options(1 << 20, 256), quiet | MOUNT_ATTR_NODEV, why)
            )
            self.place("/dev", tree.MOUNT, why)
            # It is ours from here on, whatever the root is.
            self.trusted = True
        extra = self.spec.security.devices if self.spec.security else ()
        for path in (*(f"/dev/{name}" for name in tree.DEVICES), *extra):
            fd = self.source(path, "a device of the host's", quiet, recursive=False)
            self.place(path, fd, why, folder=False)
        for target, path in tree.DEV_LINKS:
            self.build.append(tree.symlink(target, path, why))
        rootfs = self.spec.rootfs
        if rootfs is not None:
            layers.write_files(self, rootfs)
        shm = tree.tmpfs_options(SHM_SIZE, 4096, 0o1777)
        systems: list[tuple[str, str, dict[str, str], Named]] = [
            ("/dev/pts", "devpts", {"ptmxmode": "0666", "mode": "0620", "max": str(PTYS)}, quiet),
            ("/dev/shm", "tmpfs", shm, quiet | MOUNT_ATTR_NODEV),
        ]
        # The queues of an IPC namespace that is not ours can only be mounted by its owner.
        if all(namespace.mode == "new" for namespace in self.spec.namespaces if namespace.kind == "ipc"):
            systems.append(("/dev/mqueue", "mqueue", {}, quiet | MOUNT_ATTR_NODEV))
        for path, kind, options, attributes in systems:
            self.build.extend(tree.filesystem(kind, options, attributes, f"{path} of its own"))
            self.place(path, tree.MOUNT, f"{path} of its own")
        self.trusted = rootfs is None or rootfs.kind in ("host", "empty")

    def masks(self) -> None:
        """Where the whole of /proc is asked for: OCI's masked and read-only paths."""
        if "proc-subset" in self.on or "masked-paths" not in self.on:
            return
        security = self.spec.security
        masked = tree.MASKED if security is None or security.masked_paths is None else security.masked_paths
        readonly = (
            tree.READONLY if security is None or security.readonly_paths is None else security.readonly_paths
        )
        for path in readonly:
            self.build.extend(tree.readonly(path))
        for path in masked:
            self.build.extend(tree.mask(path))

    def mount(self, mount: Mount) -> None:
        """One that was asked for."""
        attributes = tree.SAFE
        if mount.readonly:
            attributes |= MOUNT_ATTR_RDONLY
        if mount.noexec:
            attributes |= MOUNT_ATTR_NOEXEC
        why = f"{mount.destination}, as asked for"
        if mount.kind == "tmpfs":
            options = tree.tmpfs_options(mount.size or 64 << 20, mount.nr_inodes or 65536, mount.mode)
            self.build.extend(tree.filesystem("tmpfs", options, attributes, why, out=tree.EXTRA))
            self.place(mount.destination, tree.EXTRA, why, follow=True)
            return
        volume = mount.kind == "volume"
        assert mount.source is not None
        source = Template(f"{{volumes}}/{mount.source}") if volume else mount.source
        fd = self.source(source, why, attributes, recursive=mount.recursive, idmap=volume)
        # Whether it is a folder is known when it is opened; the engine has looked.
        self.place(
            mount.destination, fd, why, follow=True, folder=volume or mount.source not in self.host.files
        )


__all__ = ["WORK", "Roots", "identity", "roots", "user_of"]
