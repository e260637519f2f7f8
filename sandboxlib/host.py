"""
What a machine can do, as frozen values.

Read once by `sandboxlib.kernel.probe` and handed to the planner, so that a plan can be
made, and tested, for any machine on any machine.
"""

from __future__ import annotations

import attrs

#: RLIM_INFINITY of getrlimit(2).
UNLIMITED = (1 << 64) - 1


@attrs.frozen(kw_only=True)
class CGroupHost:
    """
    Where this program may make cgroups, and with which controllers.

    Attributes:
        version: 2 for the unified hierarchy, 1 for v1 and hybrid machines, 0 for none at all.
        bases: Controller, by its v2 name (v1's blkio is ``io``), to the folder below which groups are
            made; on v2 all are the same folder. Besides controllers ``devices``, ``freezer`` and
            ``cpuacct`` stand here where device rules, freezing and CPU accounting can be had.
        hint: One sentence: why a controller that is not in `bases` is missing, and the way out.
        above: The tightest limits of the groups above, by field of `CGroup`; filled in when a sandbox begins.
        offer: Where there is none, but systemd can be asked for one: what that would be, with the
            folder of the user's systemd for `bases`. It is asked when a sandbox that wants limits begins.
        offered: This is such an offer, and nothing of it is there yet.
    """

    version: int = 0
    bases: dict[str, str] = attrs.field(factory=dict, hash=False)
    hint: str = ""
    above: tuple[tuple[str, int], ...] | None = None
    offer: CGroupHost | None = None
    offered: bool = False


@attrs.frozen(kw_only=True)
class Entry:
    """
    One name of the host that its view shows.

    Attributes:
        kind: ``dir`` and ``file`` are bound read-only, ``link`` and ``copy`` are made anew.
        path: Absolute.
        target: Of a link, as it stands in it.
        content: Of a copy.
    """

    kind: str
    path: str
    target: str = ""
    content: bytes = b""


#: IDs above what systemd gives to containers (up to 1,879,048,191) and SSSD and FreeIPA to users (up to
#: 2,000,200,000), below what is "foreign" to systemd (from 2,147,352,576) and FreeIPA's subordinate IDs
#: (from 2,147,483,648). Spec: systemd's UIDS-GIDS.md; sssd-ldap(5), ldap_idmap_range_max.
UNCLAIMED = (0x77390000, 0x7FFE0000 - 0x77390000)


@attrs.frozen
class IDRanges:
    """
    Ranges of IDs that root may give to sandboxes.

    Attributes:
        free: (start, count) of each, in order.
        source: Who says so, as a phrase.
        fault: What to do where there is none.
    """

    free: tuple[tuple[int, int], ...] = (UNCLAIMED,)
    source: str = "which systemd and SSSD leave"
    fault: str = ""


# Compared by identity: it is read once, and is a key of caches on the hot path.
@attrs.frozen(kw_only=True, eq=False)
class Host:
    """
    What this machine, and this program on it, can do.

    Attributes:
        kernel: (major, minor).
        machine: As uname(2) says, such as ``x86_64``.
        uid, gid: Of the program.
        groups: Supplementary groups of the program.
        privileged: It has the capabilities of root over the whole machine.
        namespaces: Kinds that the kernel has, in OCI's names.
        userns_hint: Why user namespaces cannot be made, or empty.
        landlock: Version of the Landlock ABI, 0 without.
        labels: Security modules that are active and give programs labels: ``apparmor``, ``selinux``.
        hidden: System calls that are not to be had: the kernel is too old, or a filter hides them.
        memory: Bytes of memory that the machine has.
        limits: The program's own hard resource limits by name, those that are finite; filled in when a
            sandbox or a command begins, see `sandboxlib.engine.current`.
        descriptors: Its soft limit on descriptors; filled in as well.
        raises_limits: It may set resource limits above its own, and lower ``oom_score_adj``:
            CAP_SYS_RESOURCE.
        oom_score_adj: The program's own; filled in as well.
        subuids, subgids: Subordinate (start, count), if newuidmap(1) and newgidmap(1) can be used.
        subids_fault: What is wrong with those that the user was given, and what to do; empty where he was
            given none, or can use them.
        ids: What root gives its sandboxes.
        overlay_fault: Why the kernel gives no overlay, in the storage that was asked for; empty where it does
            or nobody asked, see `sandboxlib.engine.current`.
        cgroups: Where cgroups can be made.
        view: What `Rootfs.host` shows.
        search_path: Folders for commands, in order.
        files: Bind sources that are files; filled in for one sandbox, see `sandboxlib.engine.current`.
        run_dir: Folder for locks, below /run or ``$XDG_RUNTIME_DIR``.
        ipv6: The kernel has IPv6.
        nft: ``kernel``, which makes the rules of networks; empty where it is known to have no nf_tables.
        pasta, slirp4netns: Paths of these programs, or empty.
        tun: /dev/net/tun may be opened, which both of them need.
    """

    kernel: tuple[int, int]
    machine: str
    uid: int
    gid: int
    privileged: bool
    namespaces: frozenset[str]
    groups: tuple[int, ...] = ()
    userns_hint: str = ""
    landlock: int = 0
    labels: frozenset[str] = frozenset()
    hidden: frozenset[str] = frozenset()
    memory: int = 8 << 30
    limits: tuple[tuple[str, int], ...] = ()
    descriptors: int = 1024
    raises_limits: bool = False
    oom_score_adj: int = 0
    subuids: tuple[int, int] | None = None
    subgids: tuple[int, int] | None = None
    subids_fault: str = ""
    ids: IDRanges = IDRanges()
    overlay_fault: str = ""
    cgroups: CGroupHost = CGroupHost()
    view: tuple[Entry, ...] = ()
    search_path: tuple[str, ...] = ()
    files: frozenset[str] = frozenset()
    run_dir: str = ""
    ipv6: bool = False
    nft: str = "kernel"
    pasta: str = ""
    slirp4netns: str = ""
    tun: bool = False

    def hard(self, name: str) -> int:
        """The program's own hard limit on a resource; what the kernel calls infinity where it has none."""
        return dict(self.limits).get(name, UNLIMITED)
