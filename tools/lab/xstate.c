/*
 * Preloaded into User-mode Linux: it may hand back less of a thread's extended state than it has.
 *
 * User-mode Linux 6.1 keeps 2696 bytes of it for each of its processes: all up to AVX-512 and the
 * protection keys. To write it back the host's kernel takes the whole or nothing (xstateregs_set() in
 * arch/x86/kernel/fpu/regset.c), and on a CPU with AMX the whole is 11008 bytes. The machine then stops
 * at its first instruction: "ptrace set fp regs failed, errno = 14".
 *
 * What lies behind those bytes is left as the thread has it. Nothing in the machine can have put
 * anything there: AMX has to be asked for by arch_prctl(2), which User-mode Linux does not know.
 */
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* More than any CPU has. Not on the stack: those of User-mode Linux hold 16 KiB; it has one CPU. */
static unsigned char whole[64 << 10];

/* The system call itself: the library's function of this name is the one below. */
static long call(long request, pid_t pid, void *address, void *data)
{
	return syscall(SYS_ptrace, request, pid, address, data);
}

static long write_back(pid_t pid, void *kind, const struct iovec *part)
{
	struct iovec state = { .iov_base = whole, .iov_len = sizeof(whole) };
	long result = call(PTRACE_SETREGSET, pid, kind, (void *)part);

	if (result == 0 || errno != EFAULT)
		return result;
	if (call(PTRACE_GETREGSET, pid, kind, &state) != 0)
		return -1;
	if (part->iov_len >= state.iov_len) {
		/* It was not for its length. */
		errno = EFAULT;
		return -1;
	}
	memcpy(whole, part->iov_base, part->iov_len);
	return call(PTRACE_SETREGSET, pid, kind, &state);
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list rest;
	va_start(rest, request);
	pid_t pid = va_arg(rest, pid_t);
	void *address = va_arg(rest, void *);
	void *data = va_arg(rest, void *);
	va_end(rest);

	if (request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE)
		return write_back(pid, address, data);
	if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
		/* These the library returns, where the kernel stores them: ptrace(2), C library/kernel differences. */
		long word = -1;

		if (call(request, pid, address, &word) != 0)
			return -1;
		errno = 0;
		return word;
	}
	return call(request, pid, address, data);
}
