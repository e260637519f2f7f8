/*
 * The launcher: what stands between the program and a sandboxed process.
 *
 * It is freestanding (no libc, no allocation, no environment) so that it starts in the time of one
 * exec, has nothing in its memory that came from the program, and stays small
 * enough to be pid 1 of every sandbox. It reads records (protocol.h), checks
 * that they stay within their bounds, carries them out in order, and reports
 * the first that fails.
 */
#include "decode.h"
#include "syscall.h"

#include <linux/close_range.h>
#include <linux/sched.h>

#define O_WRONLY	1
#define O_NONBLOCK	04000
#define O_CLOEXEC	02000000
#define EINTR		4
#define EAGAIN		11
#define ENOENT		2
#define ENXIO		6
#define EACCES		13
#define ENOTDIR		20
#define EINVAL		22
#define EPIPE		32
#define EPERM		1
#define ENOSYS		38
#define EXDEV		18
#define ETOOMANYREFS	109
#define ECONNREFUSED	111
#define SIGKILL		9
#define SIGCHLD		17
#define CLOCK_MONOTONIC	1
#define POLLIN		1
#define MSG_NOSIGNAL	0x4000
#define MSG_CMSG_CLOEXEC 0x40000000
#define SOL_SOCKET	1
#define SCM_RIGHTS	1
#define PROT_READ	1
#define PROT_WRITE	2
#define MAP_PRIVATE	2
#define MAP_ANONYMOUS	0x20
#define STATX_BASIC_STATS 0x7ff
#define SEEK_END	2
#define SEEK_DATA	3
#define SEEK_HOLE	4
#define AT_FDCWD	(-100)
#define WATCHED		8	/* the child that is watched, behind it who is told, and its group's cgroup.kill */
#define SIG_SETMASK	2
#define RLIMIT_NOFILE	7
#define PR_GET_DUMPABLE	3
#define PR_SET_DUMPABLE	4

struct iovec { void *base; uint64_t len; };
struct msghdr {
	void *name; uint32_t namelen; struct iovec *iov; uint64_t iovlen;
	void *control; uint64_t controllen; int32_t flags;
};
struct cmsg { uint64_t len; int32_t level, type; int32_t fd; int32_t pad; };
struct pollfd { int32_t fd; int16_t events, revents; };
struct timespec { int64_t sec, nsec; };

static int32_t child;		/* the last that was cloned */
static uint64_t began;		/* when, if that was asked for */

/* ---- reports ------------------------------------------------------------ */

static long send_report(struct sbx_report r, long fd, const void *data, uint64_t size)
{
	struct iovec iov[2] = { { &r, sizeof r }, { (void *)data, size } };
	struct cmsg c = { 20, SOL_SOCKET, SCM_RIGHTS, (int32_t)fd, 0 };
	struct msghdr m = { 0, 0, iov, size ? 2 : 1, 0, 0, 0 };
	long rv;

	if (fd >= 0) {
		m.control = &c;
		m.controllen = sizeof c;
	}
	do {
		rv = sys3(SYS_sendmsg, SBX_CONTROL, (long)&m, MSG_NOSIGNAL);
	} while (rv == -EINTR);
	return rv;
}

/* Nothing can be done when the program has gone: it will not miss the word. */
static void report(uint32_t kind, uint32_t index, long error, long value)
{
	send_report((struct sbx_report){ kind, index, (int32_t)error, 0, value }, -1, 0, 0);
}

static long tell(uint32_t index, long value, const void *data, uint64_t size)
{
	return send_report((struct sbx_report){ SBX_DATA, index, 0, 0, value }, -1, data, size);
}

/*
 * Too many descriptors are on their way between processes of this user (unix(7)), which what is inside can
 * bring about where its user is the program's. So the program takes this one out of here, pidfd_getfd(2), for
 * which it has to be let in as long as that takes. It answers with a byte, which is 1 if it has it.
 */
static long have_taken(struct sbx_report r, long fd)
{
	long dumpable = sys5(SYS_prctl, PR_GET_DUMPABLE, 0, 0, 0, 0), rv;
	char has = 0;

	sys5(SYS_prctl, PR_SET_DUMPABLE, 1, 0, 0, 0);
	r.error = ETOOMANYREFS;
	r.value = fd;
	rv = send_report(r, -1, 0, 0);
	while (rv >= 0 && (rv = sys6(SYS_recvfrom, SBX_CONTROL, (long)&has, 1, 0, 0, 0)) == -EINTR)
		continue;
	if (dumpable != 1)
		sys5(SYS_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
	return rv == 1 && has == 1 ? 0 : -ETOOMANYREFS;
}

static __attribute__((noreturn)) void quit(int status)
{
	for (;;)
		sys1(SYS_exit_group, status);
}

/* ---- operations --------------------------------------------------------- */

static long place(long fd, int32_t out)
{
	long rv;

	if (out < 0 || fd < 0 || fd == out)
		return fd;
	rv = sys3(SYS_dup3, fd, out, O_CLOEXEC);
	sys1(SYS_close, fd);
	return rv;
}

static long write_all(long fd, const char *data, uint64_t len)
{
	/* One write: the files of /proc and of cgroupfs take a value whole or not at all. */
	long rv = sys3(SYS_write, fd, (long)data, (long)len);

	if (rv >= 0 && (uint64_t)rv != len)
		return -EINVAL;
	return rv;
}

static long write_file(long dir, const char *path, long flags, long mode, const char *data, uint64_t len)
{
	long fd = sys4(SYS_openat, dir, (long)path, flags | O_CLOEXEC, mode), rv;

	if (fd < 0)
		return fd;
	rv = write_all(fd, data, len);
	sys1(SYS_close, fd);
	return rv < 0 ? rv : 0;
}

/* "/proc/<child>/<name>"; the check has seen to it that *name* ends. */
static char *child_path(char path[64], const char *name)
{
	static const char proc[] = "/proc/";
	char digits[12];
	int at = 0, n = 0;
	int32_t pid = child;

	for (; proc[at]; at++)
		path[at] = proc[at];
	do {
		digits[n++] = (char)('0' + pid % 10);
	} while (pid /= 10);
	while (n)
		path[at++] = digits[--n];
	path[at++] = '/';
	while (*name && at < 63)
		path[at++] = *name++;
	path[at] = 0;
	return path;
}

static long call(struct sbx_record *r, uint64_t *a)
{
	int tries = 1000;
	long rv = 0;

	if (!(r->flags & SBX_EACH)) {
		do {	/* a rename or mount anywhere on the machine unsettles openat2's look at ".." */
			rv = sys6(r->nr, (long)a[0], (long)a[1], (long)a[2], (long)a[3], (long)a[4], (long)a[5]);
		} while (rv == -EAGAIN && r->nr == SYS_openat2 && --tries);
		return rv;
	}
	for (uint64_t bit = 0, left = a[5]; left && rv >= 0; bit++, left >>= 1)
		if (left & 1)
			rv = sys6(r->nr, (long)a[0], (long)bit, (long)a[2], (long)a[3], (long)a[4], 0);
	return rv;
}

/* What a child that shares the memory has as its stack; what a helper, which has no such child, reads into. */
static char room[SBX_ROOM] __attribute__((aligned(16)));

static long read_and_tell(struct sbx_record *r)
{
	uint64_t told = 0;
	long rv = 1;

	while (told < r->args[1] && rv > 0) {
		uint64_t left = r->args[1] - told;

		rv = sys6(r->nr, (long)r->args[0], (long)room, (long)(left < sizeof room ? left : sizeof room), 0, 0, 0);
		if (rv > 0) {
			long sent = tell(r->index, rv, room, (uint64_t)rv);

			if (sent < 0)
				return sent;
			told += (uint64_t)rv;
		}
	}
	return rv < 0 ? rv : (long)told;
}

static long tell_extents(struct sbx_record *r)
{
	int64_t *at = (int64_t *)room, *end = (int64_t *)(room + sizeof room);
	uint64_t most = r->args[2];
	long begin = (long)r->args[1], hole;

	for (; at < end && most; at += 2, most--, begin = hole) {
		begin = sys3(SYS_lseek, (long)r->args[0], begin, SEEK_DATA);
		if (begin == -ENXIO)
			break;	/* a hole up to the end */
		hole = begin < 0 ? begin : sys3(SYS_lseek, (long)r->args[0], begin, SEEK_HOLE);
		if (hole < 0)
			return hole;
		at[0] = begin;
		at[1] = hole;
	}
	return tell(r->index, at - (int64_t *)room, room, (uint64_t)((char *)at - room));
}

static long tell_stats(struct sbx_record *r, char *name)
{
	char *to = room;

	for (uint64_t left = r->args[2]; left; left--, to += SBX_STAT, name = next_string(name)) {
		long rv = sys5(SYS_statx, (long)r->args[0], (long)name, (long)r->args[3], STATX_BASIC_STATS, (long)to);

		if (rv < 0)
			*(int32_t *)to = (int32_t)rv;
	}
	return tell(r->index, 0, room, (uint64_t)(to - room));
}

static long tell_files(struct sbx_record *r, char *name)
{
	for (uint64_t i = 0; i < r->args[1]; i++, name = next_string(name)) {
		long fd = sys4(SYS_openat, AT_FDCWD, (long)name, O_NONBLOCK | O_CLOEXEC, 0), sent = 0;

		for (uint64_t left = r->args[2]; fd >= 0 && left && sent >= 0;) {
			long n = sys3(SYS_read, fd, (long)room, (long)(left < sizeof room ? left : sizeof room));

			if (n <= 0)
				break;
			sent = tell(r->index, (long)i, room, (uint64_t)n);
			left -= (uint64_t)n;
		}
		if (fd >= 0)
			sys1(SYS_close, fd);
		if (sent < 0)
			return sent;
	}
	return 0;
}

static long fits(long fd, uint64_t most)
{
	char text[24];
	long n = sys4(SYS_pread64, fd, (long)text, sizeof text, 0);
	uint64_t number = 0;

	for (long i = 0; i < n && text[i] >= '0' && text[i] <= '9'; i++)
		number = number * 10 + (uint64_t)(text[i] - '0');
	if (n < 0)
		return n;
	return number > most ? -EAGAIN : 0;
}

static void reset_signals(void)
{
	/* An ignored signal survives exec; whoever is started here begins with none ignored. */
	struct { uint64_t handler, flags, restorer, mask; } action = { 0, 0, 0, 0 };

	for (int n = 1; n <= 64; n++)
		sys4(SYS_rt_sigaction, n, (long)&action, 0, 8);
}

static void raise_descriptors(void)
{
	/*
	 * As far as the program may: what is inside may have less, so what counts for all of a user together,
	 * such as descriptors on their way, it cannot use up for us. A command's own limit is in its plan.
	 */
	uint64_t limit[2];

	if (sys4(SYS_prlimit64, 0, RLIMIT_NOFILE, 0, (long)limit) < 0 || limit[0] == limit[1])
		return;
	limit[0] = limit[1];
	sys4(SYS_prlimit64, 0, RLIMIT_NOFILE, (long)limit, 0);
}

static void ignore_children(void)
{
	/* With SIGCHLD ignored the kernel reaps orphans itself: no wake-up, no zombie. */
	struct { uint64_t handler, flags, restorer, mask; } action = { 1, 0, 0, 0 };

	sys4(SYS_rt_sigaction, SIGCHLD, (long)&action, 0, 8);
}

/*
 * Until the program ends, behind the pidfd *owner*; or lets go of its end of the pipe *tie*, which it also
 * does by executing another program.
 */
static __attribute__((noreturn)) void be_init(int32_t owner, uint64_t ms, int32_t tie, void *program, uint64_t size)
{
	struct pollfd p[2] = { { owner, POLLIN, 0 }, { tie, 0, 0 } };
	struct timespec left = { (int64_t)(ms / 1000), (int64_t)(ms % 1000) * 1000000 };
	long rv;

	sys2(SYS_munmap, (long)program, (long)size);
	ignore_children();
	do {	/* the kernel writes back what is left of the time */
		rv = sys5(SYS_ppoll, (long)p, 2, ms ? (long)&left : 0, 0, 8);
	} while (rv < 0);
	quit(rv ? 0 : SBX_LIFETIME_OVER);	/* and the kernel kills all that is left in the PID namespace */
}

static uint64_t nanoseconds(void)
{
	struct timespec t = { 0, 0 };

	sys2(SYS_clock_gettime, CLOCK_MONOTONIC, (long)&t);
	return (uint64_t)t.sec * 1000000000 + (uint64_t)t.nsec;
}

/*
 * See the child's end, whatever the program is busy with, and be it by ending it. Nothing is kept that
 * somebody could wait for to be closed: the child's streams above all.
 */
static void watch(uint64_t limit, long tell, long group)
{
	struct pollfd p = { WATCHED, POLLIN, 0 };
	uint64_t lived = nanoseconds() - began, left = limit > lived ? limit - lived : 0;
	struct timespec t = { (int64_t)(left / 1000000000), (int64_t)(left % 1000000000) };
	long rv = place(sys2(SYS_pidfd_open, child, 0), WATCHED);	/* nothing: it has ended, and been reaped by the kernel */

	sys3(SYS_dup3, tell, WATCHED + 1, 0);
	if (group >= 0)
		sys3(SYS_dup3, group, WATCHED + 2, 0);
	sys3(SYS_close_range, 0, WATCHED - 1, 0);
	sys3(SYS_close_range, WATCHED + (group >= 0 ? 3 : 2), ~0u, 0);
	while (rv >= 0 && (rv = sys5(SYS_ppoll, (long)&p, 1, limit ? (long)&t : 0, 0, 8)) <= 0) {
		if (rv < 0)
			continue;
		if (group >= 0)
			sys3(SYS_write, WATCHED + 2, (long)"1", 1);
		sys4(SYS_pidfd_send_signal, WATCHED, SIGKILL, 0, 0);
		limit = 0;	/* and see it end */
	}
	lived = nanoseconds() - began;
	sys3(SYS_write, WATCHED + 1, (long)&lived, sizeof lived);
}

static long connect_until(long fd, const void *address, long len, uint64_t ms)
{
	/* A listening socket tells nobody that it has begun to listen. */
	for (uint64_t waited = 0, pause = 1;; waited += pause, pause = pause < 16 ? pause * 2 : 16) {
		struct timespec t = { 0, (int64_t)pause * 1000000 };
		long rv = sys3(SYS_connect, fd, (long)address, len);

		if ((rv != -ECONNREFUSED && rv != -ENOENT) || waited >= ms)
			return rv;
		sys2(SYS_nanosleep, (long)&t, 0);
	}
}

static long execute(struct sbx_record *r, int *report_value)
{
	uint64_t paths = r->args[0], argc = r->args[1], envc = r->args[2], mask = 0;
	char *text = (char *)r + r->args[3], *path = text;
	long rv, best = -ENOENT, best_path = 0;
	char **vector;

	rv = sys6(SYS_mmap, 0, (long)((argc + envc + 2) * sizeof *vector), PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (rv < 0 && rv > -4096)
		return rv;
	vector = (char **)rv;
	for (uint64_t i = 0; i < paths; i++)
		text = next_string(text);
	for (uint64_t i = 0; i < argc; i++, text = next_string(text))
		vector[i] = text;
	for (uint64_t i = 0; i < envc; i++, text = next_string(text))
		vector[argc + 1 + i] = text;
	vector[argc] = vector[argc + 1 + envc] = 0;

	sys4(SYS_rt_sigprocmask, SIG_SETMASK, (long)&mask, 0, 8);
	for (uint64_t i = 0; i < paths; i++, path = next_string(path)) {
		rv = sys3(SYS_execve, (long)path, (long)vector, (long)(vector + argc + 1));
		if (rv == -ENOENT && sys3(SYS_faccessat, AT_FDCWD, (long)path, 0) == 0) {
			*report_value = (int)i | SBX_INTERPRETER;
			return rv;
		}
		/* As execvp(3): go on past what is not there, but remember what was not allowed. */
		if (rv == -EACCES) {
			best = rv;
			best_path = (long)i;
		} else if (rv != -ENOENT && rv != -ENOTDIR) {
			*report_value = (int)i;
			return rv;
		}
	}
	*report_value = (int)best_path;
	return best;
}

static long run(char *at, char *end, char *mapping, uint64_t mapped, int serving);

/* What a child is to carry out. */
struct part { char *at, *end, *mapping; uint64_t mapped; };

static __attribute__((noreturn)) void begin_child(void *what)
{
	const struct part *p = what;

	run(p->at, p->end, p->mapping, p->mapped, 0);
	quit(1);
}

/*
 * A child that shares the memory has a stack of its own, and its parent goes on at once. It does not wait
 * as vfork's would, for what is inside can stop the child, or hold it in its execve, as long as it likes.
 * Both may use the memory at once: each writes to its own part of the program only, and to its own stack.
 */
static long clone_and_run(struct sbx_record *r, char *from, char *mapping, uint64_t mapped)
{
	struct clone_args args = { .flags = r->args[0], .exit_signal = SIGCHLD };
	static struct part part;	/* a child looks at it when the parent may have left this frame */
	char *top = 0;
	long rv;

	part = (struct part){ from, from + r->args[2], mapping, mapped };
	if (args.flags & CLONE_VM) {
		args.stack = (uint64_t)room;
		args.stack_size = sizeof room;
		top = room + sizeof room;
	}
	if (args.flags & CLONE_PARENT)
		args.exit_signal = 0;	/* inherited; clone3 refuses another one */
	if (args.flags & CLONE_INTO_CGROUP)
		args.cgroup = r->args[1];
	rv = clone_apart(SYS_clone3, (long)&args, sizeof args, begin_child, &part);
	if ((rv == -ENOSYS || rv == -EPERM) && !(args.flags >> 32) && !(args.flags & CLONE_NEWTIME))
		/*
		 * Container engines hide clone3 behind ENOSYS, or refuse it, to be able to filter clone's
		 * flags. Where it is the namespaces that are forbidden, clone says so once more.
		 */
		rv = clone_apart(SYS_clone, (long)(args.flags | (args.flags & CLONE_PARENT ? 0 : SIGCHLD)), (long)top,
				 begin_child, &part);
	return rv;
}

static long carry_out(struct sbx_record *r, char *mapping, uint64_t mapped, int *value)
{
	char *base = (char *)r, path[64];
	uint64_t a[6];

	for (int i = 0; i < 6; i++)
		a[i] = r->args[i] + (r->pointers >> i & 1 ? (uint64_t)base : 0);
	switch (r->op) {
	case SBX_SYSCALL: {
		long rv = call(r, a);

		if (!(r->flags & SBX_TELL))
			return place(rv, r->out);
		if (rv >= 0) {
			/* What came, or where the result is no length, all that there is room for. */
			uint64_t size = r->size - r->args[r->out];
			long sent = tell(r->index, rv, (void *)a[r->out], rv > 0 && (uint64_t)rv < size ? (uint64_t)rv : size);

			return sent < 0 ? sent : rv;
		}
		return rv;
	}
	case SBX_READ:
		return read_and_tell(r);
	case SBX_EXTENTS:
		return tell_extents(r);
	case SBX_STATS:
		return tell_stats(r, (char *)a[1]);
	case SBX_FILES:
		return tell_files(r, (char *)a[0]);
	case SBX_FITS:
		return fits((long)a[0], a[1]);
	case SBX_WRITE:
		return write_file((long)a[0], (char *)a[1], (long)a[2], (long)a[3], (char *)a[4], a[5]);
	case SBX_POINTER:
		*(uint64_t *)(base + r->size + r->args[0]) = (uint64_t)(base + r->size + r->args[1]);
		return 0;
	case SBX_WATCH:
		watch(a[0], (long)a[1], (int32_t)a[2]);
		return 0;
	case SBX_CLONE: {
		long rv;

		if (a[3])
			began = nanoseconds();
		rv = clone_and_run(r, base + r->size, mapping, mapped);
		child = (int32_t)rv;
		return rv;
	}
	case SBX_CHILD_WRITE:
		return write_file(AT_FDCWD, child_path(path, (char *)a[1]), O_WRONLY, 0, (char *)a[4], a[5]);
	case SBX_CHILD_OPEN:
		return place(sys4(SYS_openat, AT_FDCWD, (long)child_path(path, (char *)a[1]), (long)a[2] | O_CLOEXEC, 0), r->out);
	case SBX_REPORT: {
		struct sbx_report said = { (uint32_t)a[0], r->index, 0, 0, child };
		long rv = send_report(said, (int32_t)a[1], 0, 0);

		if (rv == -ETOOMANYREFS)
			rv = have_taken(said, (int32_t)a[1]);
		return rv < 0 ? rv : 0;
	}
	case SBX_EXEC:
		return execute(r, value);
	case SBX_CONNECT:
		return connect_until((long)a[0], (void *)a[1], (long)a[2], a[3]);
	case SBX_INIT:
		be_init((int32_t)a[0], a[1], (int32_t)a[2], mapping, mapped);
	default:
		return -EINVAL;
	}
}

static void serve(void)
{
	/* Each message is a whole program; the sender keeps it below this. */
	static char buffer[SBX_SERVE_SIZE] __attribute__((aligned(8)));

	for (;;) {
		long n = sys6(SYS_recvfrom, SBX_CONTROL, (long)buffer, sizeof buffer, 0, 0, 0);

		if (n == -EINTR)
			continue;
		if (n <= 0)
			quit(0);
		if (!check_program(buffer, (uint64_t)n, 1)) {
			report(SBX_FAILED, 0, EINVAL, 0);
			continue;
		}
		n = run(buffer, buffer + n, buffer, sizeof buffer, 1);
		if (n >= 0)
			report(SBX_DONE, 0, 0, n);
	}
}

/* Carry out the records from *at* to *end*. Returns the last result, or -errno when serving. */
static long run(char *at, char *end, char *mapping, uint64_t mapped, int serving)
{
	long rv = 0;

	while (at < end) {
		struct sbx_record *r = (struct sbx_record *)at;
		int value = 0;

		if (r->op == SBX_SERVE)
			serve();
		rv = carry_out(r, mapping, mapped, &value);
		if (rv == 0 && r->flags & SBX_POSITIVE)
			rv = -EPIPE;
		if (rv >= 0 && r->flags & SBX_ABSOLUTE && *((char *)r + r->args[0]) != '/')
			rv = -EXDEV;
		if (rv < 0 && r->ignore[0] != SBX_ANY && -rv != r->ignore[0] && -rv != r->ignore[1]) {
			/* A descriptor that the program could not take is nothing new to it. */
			if (r->op != SBX_REPORT || rv != -ETOOMANYREFS)
				report(r->op == SBX_EXEC ? SBX_NOT_FOUND : SBX_FAILED, r->index, -rv, value);
			if (serving)
				return rv;
			quit(1);
		}
		at += r->size;
		if (r->op == SBX_CLONE)
			at += r->args[2];
	}
	return rv < 0 ? 0 : rv;
}

__attribute__((noreturn, used)) void launcher_main(void)
{
	long size = sys3(SYS_lseek, SBX_PROGRAM, 0, SEEK_END), map;

	reset_signals();
	raise_descriptors();
	if (size <= 0 || size > (long)SBX_MAX_SIZE)
		quit(2);
	/* Private and writable: addresses are put into it, and the memfd itself is sealed. */
	map = sys6(SYS_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, SBX_PROGRAM, 0);
	if (map < 0 && map > -4096)
		quit(2);
	sys1(SYS_close, SBX_PROGRAM);
	if (!check_program((char *)map, (uint64_t)size, 1)) {
		report(SBX_FAILED, 0, EINVAL, 0);
		quit(2);
	}
	run((char *)map, (char *)map + size, (char *)map, (uint64_t)size, 0);
	quit(0);
}

/* The kernel enters here with the stack aligned; the compiler may use that for vectors. */
#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp,%ebp\n\tand $-16,%rsp\n\tcall launcher_main\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x30, #0\n\tb launcher_main\n");
#endif

/* The compiler may ask for these even of a freestanding program. */
void *memset(void *to, int c, unsigned long n)
{
	for (unsigned char *p = to; n--; p++)
		*p = (unsigned char)c;
	return to;
}

void *memcpy(void *to, const void *from, unsigned long n)
{
	unsigned char *p = to;

	for (const unsigned char *q = from; n--;)
		*p++ = *q++;
	return to;
}
