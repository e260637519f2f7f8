/*
 * The calls that Python lacks. Each returns a value >= 0 or -errno, prints
 * nothing and keeps no state.
 *
 * An exception of a signal handler's may come between a call from Python and the storing of its result.
 * So what a call makes (a descriptor, a child) the call itself enters into memory that has an owner
 * already, and sbx_close or sbx_launch_end is that owner's last act.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "protocol.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/landlock.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "launcher_image.h"
#include "newer.h"

/* One start of the launcher, and the one child that it makes, which is the program's own. */
struct sbx_launch {
	int program;	/* who has started it: a forked child has no say over its parent's children */
	int control;	/* our end of its socket */
	int tie;	/* our end of a pipe: the child ends when it is closed */
	int pidfd;	/* of the child */
	int launcher;	/* its pid */
	int reaped;	/* the launcher was waited for */
	int child;	/* the child's pid, or 0 */
	int ended;	/* the child was waited for; -1: by somebody else, who has its status */
	int status;	/* how it ended, as wait(2) tells it, and what it used */
	int executed;	/* it was the command by then, and no more the launcher's child */
	double user, system;
	long read, written;
};

static long sbx_syscall(long nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
	long rv = syscall(nr, a, b, c, d, e, f);

	return rv < 0 ? -errno : rv;
}

/* ---- descriptors -------------------------------------------------------- */

static void sbx_close(int *fd)
{
	int last = *fd;

	*fd = -1;
	if (last >= 0)
		close(last);
}

/* The same as sbx_syscall, for a call that makes a descriptor. */
static long sbx_syscall_fd(int *fd, long nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
	long rv = syscall(nr, a, b, c, d, e, f);

	if (rv < 0)
		return -errno;
	sbx_close(fd);
	*fd = (int)rv;
	return rv;
}

static int sbx_openat(int *fd, int dir, const char *path, int flags, int mode)
{
	int rv = openat(dir, path, flags | O_CLOEXEC, mode);

	if (rv < 0)
		return -errno;
	sbx_close(fd);
	*fd = rv;
	return rv;
}

static int sbx_pipe(int *read_end, int *write_end)
{
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) < 0)
		return -errno;
	*read_end = ends[0];
	*write_end = ends[1];
	return 0;
}

/* ---- the launcher ------------------------------------------------------- */

/* A sealed memfd with *size* bytes: nobody who gets hold of it can change it (CVE-2019-5736). */
static int sealed_memfd(const char *name, const void *data, size_t size, unsigned extra)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | extra), saved;

	if (fd < 0 && errno == EINVAL)	/* MFD_EXEC and MFD_NOEXEC_SEAL came with Linux 6.3 */
		fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (fd < 0)
		return -errno;
	while (size) {
		ssize_t n = write(fd, data, size);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			goto fail;
		data = (const char *)data + n;
		size -= (size_t)n;
	}
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) == 0)
		return fd;
fail:
	saved = errno ? errno : EIO;
	close(fd);
	return -saved;
}

static int sbx_launcher_open(int *fd)
{
	int rv = sealed_memfd("sandboxlib-launcher", sbx_launcher_image, sizeof sbx_launcher_image, MFD_EXEC);

	if (rv >= 0) {
		sbx_close(fd);
		*fd = rv;
	}
	return rv;
}

/*
 * In the child of a vfork: put fds[i] at number i and execute the launcher.
 *
 * Only system calls happen here: the memory is the program's own, all of whose
 * other threads run on. All signals are blocked, so no handler of the program
 * can run in the child.
 */
static int place_and_exec(int launcher, const int *fds, int count)
{
	static char *const argv[] = { (char *)"sandbox", NULL }, *const envp[] = { NULL };
	int moved[SBX_MAX_FDS];

	/* First out of the way of what is going to be overwritten. */
	if (launcher < count) {
		launcher = fcntl(launcher, F_DUPFD_CLOEXEC, count);
		if (launcher < 0)
			return errno;
	}
	for (int i = 0; i < count; i++) {
		moved[i] = fds[i];
		if (fds[i] < count && fds[i] != i) {
			moved[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, count);
			if (moved[i] < 0)
				return errno;
		}
	}
	for (int i = 0; i < count; i++) {
		if (moved[i] == i) {
			if (fcntl(i, F_SETFD, 0) < 0)
				return errno;
		} else if (dup2(moved[i], i) < 0) {
			return errno;
		}
	}
	/* Whatever else the program has open and forgot to mark: CVE-2024-21626 began with one of those. */
	if (syscall(SYS_close_range, count, ~0U, CLOSE_RANGE_CLOEXEC) < 0)
		return errno;
	syscall(SYS_execveat, launcher, "", argv, envp, AT_EMPTY_PATH);
	return errno;
}

/*
 * Start the launcher with *program* and the descriptors *fds* as its 0, 1, 2, ...;
 * fds[SBX_PROGRAM] is filled in here. Returns its pid. vfork: the cost does not
 * depend on how much memory the program holds.
 */
static int spawn(int launcher, const void *program, size_t size, int *fds, int count)
{
	volatile int failed = 0;
	sigset_t all, before;
	int pid, memfd;

	if (count <= SBX_PROGRAM || count > SBX_MAX_FDS)
		return -EINVAL;
	if (size > SBX_MAX_SIZE)
		return -E2BIG;
	memfd = sealed_memfd("sandboxlib-program", program, size, MFD_NOEXEC_SEAL);
	if (memfd < 0)
		return memfd;
	fds[SBX_PROGRAM] = memfd;
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	pid = vfork();
	if (pid == 0) {
		failed = place_and_exec(launcher, fds, count);
		_exit(127);
	}
	if (pid < 0)
		pid = -errno;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	close(memfd);
	fds[SBX_PROGRAM] = -1;
	if (pid > 0 && failed) {
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
		return -failed;
	}
	return pid;
}

/* The descriptor that came in *c*, or -1; more than one is nothing that the launcher sends, and is closed. */
static int one_descriptor(struct cmsghdr *c)
{
	size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
	int fd;

	for (size_t i = 0; i < count; i++) {
		memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
		if (count == 1)
			return fd;
		close(fd);
	}
	return -1;
}

/*
 * Take the descriptor that *sender*, who waits for that, could not send. It is a child of ours that nobody has
 * waited for, so the number is still its own.
 */
static int take(int control, int sender, int number)
{
	int pidfd = (int)syscall(SYS_pidfd_open, sender, 0), fd = -1;
	char has;

	if (pidfd >= 0) {
		fd = (int)syscall(SYS_pidfd_getfd, pidfd, number, 0);
		close(pidfd);
	}
	has = fd >= 0;
	send(control, &has, 1, MSG_NOSIGNAL);
	return fd;
}

/*
 * Receive one report, at most one descriptor, the sender's pid as the kernel tells it, and up to *room* bytes
 * that stand behind the report. Whoever reports and is not the launcher is the child, also when the launcher
 * had no time to tell of it. Returns the report's size and those bytes', 0 at the end, or -errno: EMFILE if
 * there is no room for a descriptor that was sent.
 */
static int sbx_hear(struct sbx_launch *launch, struct sbx_report *report, void *data, size_t room, int *passed,
		    int *sender)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
	} control_data;
	struct ucred who;
	struct iovec iov[2] = { { report, sizeof *report }, { data, room } };
	struct msghdr message = {
		.msg_iov = iov, .msg_iovlen = 2,
		.msg_control = &control_data, .msg_controllen = sizeof control_data,
	};
	struct cmsghdr *c;
	ssize_t n;

	*sender = 0;
	n = recvmsg(launch->control, &message, MSG_CMSG_CLOEXEC);
	if (n < 0)
		return -errno;
	for (c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
		if (c->cmsg_level != SOL_SOCKET)
			continue;
		if (c->cmsg_type == SCM_RIGHTS) {
			sbx_close(passed);
			*passed = one_descriptor(c);
		} else if (c->cmsg_type == SCM_CREDENTIALS) {
			memcpy(&who, CMSG_DATA(c), sizeof who);
			*sender = who.pid;
		}
	}
	if (n == 0)
		return 0;
	if (n < (ssize_t)sizeof *report || message.msg_flags & MSG_TRUNC) {
		sbx_close(passed);
		return -EBADMSG;
	}
	if (report->kind == SBX_CHILD)
		launch->child = (int)report->value;
	else if (!launch->child && *sender > 0 && *sender != launch->launcher)
		launch->child = *sender;
	if (message.msg_flags & MSG_CTRUNC) {
		sbx_close(passed);
		return -EMFILE;
	}
	if (report->kind == SBX_READY && report->error) {
		sbx_close(passed);
		*passed = take(launch->control, *sender, (int)report->value);
		if (*passed >= 0)
			report->error = 0;
		else
			report->kind = SBX_FAILED;
	}
	return (int)n;
}

/* A pair of sockets; on the first each message comes with its sender's pid, in our own numbers. */
static int pair(int *fds)
{
	int on = 1, saved;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
		return -errno;
	if (setsockopt(fds[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0)
		return 0;
	saved = errno;
	close(fds[0]);
	close(fds[1]);
	return -saved;
}

/*
 * Start the launcher; its end of the socket takes the place of each SBX_SOCKET in *fds*. What is running
 * from then on is in *l*, which is new.
 */
static int sbx_launch(struct sbx_launch *launch, int launcher, const void *program, size_t size, int *fds, int count)
{
	int ends[2], rv = pair(ends);

	if (rv < 0)
		return rv;
	for (int i = 0; i < count; i++)
		if (fds[i] == SBX_SOCKET)
			fds[i] = ends[1];
	launch->program = getpid();
	launch->control = ends[0];
	rv = spawn(launcher, program, size, fds, count);
	close(ends[1]);
	if (rv < 0) {
		sbx_close(&launch->control);
		return rv;
	}
	launch->launcher = rv;
	return 0;
}

/* Has the launcher ended? Returns 1, 0 as long as it runs, or -errno; does not wait, as none of these does. */
static int sbx_reap(struct sbx_launch *launch)
{
	int rv = 1;

	if (launch->launcher && !launch->reaped) {
		rv = waitpid(launch->launcher, NULL, WNOHANG);
		/* ECHILD: the program ignores SIGCHLD, and the kernel has reaped it. */
		if (rv < 0 && errno != ECHILD)
			return -errno;
		launch->reaped = rv != 0;
	}
	return rv != 0;
}

/* Has process *pid*, alive or dead, executed anything since it was made? */
static int has_executed(int pid)
{
	char path[32], text[512], *at;
	unsigned flags = 0;
	int fd;
	ssize_t n;

	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 1;
	n = read(fd, text, sizeof text - 1);
	close(fd);
	text[n > 0 ? n : 0] = 0;
	/* The name may hold spaces and brackets: its flags are the seventh field after the last bracket. */
	at = strrchr(text, ')');
	if (!at || sscanf(at + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) != 1)
		return 1;
	return !(flags & 0x40);	/* PF_FORKNOEXEC of linux/sched.h: proc_pid_stat(5), field 9 */
}

/* The same for the child; its status and what it used stay in *launch*. -ECHILD: somebody else has them. */
static int sbx_wait(struct sbx_launch *launch)
{
	siginfo_t how = { .si_pid = 0 };
	struct rusage used;
	int status, rv;

	if (launch->ended || !launch->child)
		return launch->ended < 0 ? -ECHILD : 1;
	/* As long as it is there it can be asked what killed it, and when. */
	if (waitid(P_PID, (id_t)launch->child, &how, WEXITED | WNOHANG | WNOWAIT) == 0) {
		if (how.si_pid == 0)
			return 0;
		launch->executed = how.si_code != CLD_KILLED || how.si_status != SIGKILL || has_executed(launch->child);
	}
	rv = wait4(launch->child, &status, WNOHANG, &used);
	if (rv < 0) {
		if (errno == ECHILD)
			launch->ended = -1;
		return -errno;
	}
	if (rv == 0)
		return 0;
	launch->status = status;
	launch->user = (double)used.ru_utime.tv_sec + (double)used.ru_utime.tv_usec / 1e6;
	launch->system = (double)used.ru_stime.tv_sec + (double)used.ru_stime.tv_usec / 1e6;
	launch->read = used.ru_inblock;
	launch->written = used.ru_oublock;
	launch->ended = 1;
	return 1;
}

/* What nobody has any more ends. A child that does not end at once is left to whoever reaps strays. */
static void sbx_launch_end(struct sbx_launch *launch)
{
	struct timespec pause = { 0, 1000000 };
	int mine = launch->program == getpid();

	if (mine && launch->launcher && !launch->reaped) {
		kill(launch->launcher, SIGKILL);
		for (int i = 0; i < 1000 && sbx_reap(launch) == 0; i++)
			nanosleep(&pause, NULL);
	}
	if (mine && launch->child && !launch->ended) {
		kill(launch->child, SIGKILL);
		for (int i = 0; i < 100 && sbx_wait(launch) == 0; i++)
			nanosleep(&pause, NULL);
	}
	sbx_close(&launch->control);
	sbx_close(&launch->tie);
	sbx_close(&launch->pidfd);
}

static long sbx_send(int fd, const void *data, size_t size)
{
	ssize_t n = send(fd, data, size, MSG_NOSIGNAL);

	return n < 0 ? -errno : n;
}

/* Open, read and close a file of the kernel's below a directory descriptor. Returns the bytes read. */
static long sbx_read_file(int dir, const char *path, char *buffer, size_t size)
{
	int fd = openat(dir, path, O_RDONLY | O_CLOEXEC);
	ssize_t n, done = 0;

	if (fd < 0)
		return -errno;
	do {	/* they come a page at a time at most: one that ends in the middle of a page is whole */
		n = read(fd, buffer + done, size - (size_t)done);
		if (n < 0)
			done = -errno;
		else
			done += n;
	} while (n > 0 && done % 4096 == 0 && (size_t)done < size);
	close(fd);
	return done;
}

/* Open, write in one go, and close. */
static long sbx_write_file(int dir, const char *path, const char *data, size_t size)
{
	int fd = openat(dir, path, O_WRONLY | O_CLOEXEC);
	ssize_t n, saved;

	if (fd < 0)
		return -errno;
	n = write(fd, data, size);
	saved = n < 0 ? -errno : n;
	close(fd);
	return saved;
}

/* The program's *count* hard resource limits, and behind them its soft one on descriptors. */
static void sbx_limits(uint64_t *limits, int count)
{
	struct rlimit found;

	for (int i = 0; i < count; i++)
		limits[i] = getrlimit(i, &found) < 0 ? RLIM_INFINITY : found.rlim_max;
	limits[count] = getrlimit(RLIMIT_NOFILE, &found) < 0 ? RLIM_INFINITY : found.rlim_cur;
}
