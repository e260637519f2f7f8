/*
 * The launcher as it is, in an ordinary program: its system calls go to pretend() of harness.c.
 *
 * A unit of its own, because the launcher defines names that the C library has too.
 */
#include "decode.h"
#include "syscall.h"

#include <linux/close_range.h>
#include <linux/sched.h>

long pretend(const char *name, long nr, long a, long b, long c, long d, long e, long f);

/* The name tells the launcher's own calls from those that a record asks for: there it is "r->nr". */
#define sys1(nr, a)			pretend(#nr, nr, a, 0, 0, 0, 0, 0)
#define sys2(nr, a, b)			pretend(#nr, nr, a, b, 0, 0, 0, 0)
#define sys3(nr, a, b, c)		pretend(#nr, nr, a, b, c, 0, 0, 0)
#define sys4(nr, a, b, c, d)		pretend(#nr, nr, a, b, c, d, 0, 0)
#define sys5(nr, a, b, c, d, e)		pretend(#nr, nr, a, b, c, d, e, 0)
#define sys6(nr, a, b, c, d, e, f)	pretend(#nr, nr, a, b, c, d, e, f)
/* Without a process, and so without a stack of its own: what the child does, or what the parent does. */
#define clone_apart(nr, a, b, enter, what) \
	({ long pid_ = pretend(#nr, nr, a, b, 0, 0, 0, 0); if (pid_ == 0) (enter)(what); pid_; })

/* There to show that the harness notices what the check prevents. */
int unchecked;
#define check_program(program, size, depth) (unchecked || (check_program)(program, size, depth))

/* The C library has these, and brings its own entry point. */
#define memset launcher_memset
#define memcpy launcher_memcpy
#define __asm__(...) struct no_entry_point

#include "launcher.c"

int passes(const char *program, uint64_t size)
{
	return (check_program)(program, size, 1);
}
