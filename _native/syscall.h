/* System calls without a libc, for the two architectures that the launcher knows. */
#ifndef SANDBOXLIB_SYSCALL_H
#define SANDBOXLIB_SYSCALL_H

#include <asm/unistd.h>

#define SYS_clock_gettime	__NR_clock_gettime
#define SYS_clone		__NR_clone
#define SYS_clone3		__NR_clone3
#define SYS_close		__NR_close
#define SYS_connect		__NR_connect
#define SYS_dup3		__NR_dup3
#define SYS_execve		__NR_execve
#define SYS_exit_group		__NR_exit_group
#define SYS_faccessat		__NR_faccessat
#define SYS_lseek		__NR_lseek
#define SYS_mmap		__NR_mmap
#define SYS_munmap		__NR_munmap
#define SYS_nanosleep		__NR_nanosleep
#define SYS_openat		__NR_openat
#define SYS_ppoll		__NR_ppoll
#define SYS_pread64		__NR_pread64
#define SYS_prctl		__NR_prctl
#define SYS_prlimit64		__NR_prlimit64
#define SYS_read		__NR_read
#define SYS_recvfrom		__NR_recvfrom
#define SYS_rt_sigaction	__NR_rt_sigaction
#define SYS_rt_sigprocmask	__NR_rt_sigprocmask
#define SYS_sendmsg		__NR_sendmsg
#define SYS_statx		__NR_statx
#define SYS_write		__NR_write
/* On all machines the same; headers before Linux 5.1, 5.3, 5.6 and 5.9 lack them. */
#define SYS_pidfd_send_signal	424
#define SYS_pidfd_open		434
#define SYS_close_range		436
#define SYS_openat2		437

#if defined(__x86_64__)
static inline long sys6(long nr, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long rv;

	__asm__ volatile("syscall" : "=a"(rv) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return rv;
}

/* clone or clone3, whose other arguments are 0: the child, on whichever stack, calls enter(what), which never returns. */
static inline long clone_apart(long nr, long a, long b, void (*enter)(void *), void *what)
{
	register long r10 __asm__("r10") = 0;
	register long r8 __asm__("r8") = 0;
	register long r12 __asm__("r12") = (long)enter;
	register long r13 __asm__("r13") = (long)what;
	long rv;

	__asm__ volatile("syscall\n\ttest %%rax, %%rax\n\tjnz 1f\n\t"
			 "xor %%ebp, %%ebp\n\tand $-16, %%rsp\n\tmov %%r13, %%rdi\n\tcall *%%r12\n\tud2\n1:"
			 : "=a"(rv) : "a"(nr), "D"(a), "S"(b), "d"(0l), "r"(r10), "r"(r8), "r"(r12), "r"(r13)
			 : "rcx", "r11", "memory");
	return rv;
}
#elif defined(__aarch64__)
static inline long sys6(long nr, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;

	__asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}

static inline long clone_apart(long nr, long a, long b, void (*enter)(void *), void *what)
{
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = 0;
	register long x3 __asm__("x3") = 0;
	register long x4 __asm__("x4") = 0;
	register long x19 __asm__("x19") = (long)enter;
	register long x20 __asm__("x20") = (long)what;

	__asm__ volatile("svc #0\n\tcbnz x0, 1f\n\tmov x29, #0\n\tmov x0, x20\n\tblr x19\n\tbrk #0\n1:"
			 : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x19), "r"(x20) : "memory");
	return x0;
}
#else
#error "sandboxlib knows x86_64 and aarch64"
#endif

static inline long sys1(long nr, long a) { return sys6(nr, a, 0, 0, 0, 0, 0); }
static inline long sys2(long nr, long a, long b) { return sys6(nr, a, b, 0, 0, 0, 0); }
static inline long sys3(long nr, long a, long b, long c) { return sys6(nr, a, b, c, 0, 0, 0); }
static inline long sys4(long nr, long a, long b, long c, long d) { return sys6(nr, a, b, c, d, 0, 0); }
static inline long sys5(long nr, long a, long b, long c, long d, long e) { return sys6(nr, a, b, c, d, e, 0); }

#endif
