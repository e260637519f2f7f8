"""System calls of machines that this library has no tables for; profiles for many machines name them."""

_NAMES = """
atomic_barrier atomic_cmpxchg_32 getpagesize multiplexer riscv_flush_icache riscv_hwprobe rtas
s390_guarded_storage s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr s390_sthyi spu_create
spu_run subpage_prot swapcontext switch_endian sys_debug_setcontext sysmips
"""

#: From libseccomp 2.5's table of all machines; rules that name them are passed over.
FOREIGN_NAMES = frozenset(_NAMES.split())
