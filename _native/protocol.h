/*
 * The language between the program and the launcher.
 *
 * A launcher program is a run of records in a sealed memfd. A record is one
 * system call with its arguments, or one of the few operations that a list of
 * calls cannot express. There is no policy here: which calls, in which order
 * and with which flags is decided by the planner, and every record can be
 * printed as the call that it makes.
 *
 * Arguments named in `pointers` are offsets from the record's own start, so
 * records can be cut, cached and joined without being rewritten. The last
 * byte of each record is NUL: a string cannot run out of it.
 */
#ifndef SANDBOXLIB_PROTOCOL_H
#define SANDBOXLIB_PROTOCOL_H

#include <stdint.h>

enum sbx_op {
	SBX_SYSCALL = 1,	/* nr(args...) */
	SBX_WRITE = 2,		/* openat(args[0], path args[1], args[2], args[3]); write args[4], args[5] bytes; close */
	SBX_POINTER = 3,	/* in the next record: put the address of offset args[1] at offset args[0] */
	SBX_CLONE = 4,		/* clone3(args[0], cgroup args[1]); the child runs the next args[2] bytes; args[3]: look at the clock */
	SBX_CHILD_WRITE = 5,	/* write args[4], args[5] bytes to /proc/<child>/<args[1]> */
	SBX_REPORT = 6,		/* tell the program: kind args[0], with descriptor args[1] if >= 0 */
	SBX_EXEC = 7,		/* execve: args[0] paths, args[1] arguments, args[2] variables at offset args[3] */
	SBX_SERVE = 8,		/* carry out programs that come over the control socket until it is closed */
	SBX_INIT = 9,		/* be pid 1 until one of args[0] and args[2] has ended, or args[1] ms, if not 0 */
	SBX_CONNECT = 10,	/* connect to args[1] (args[2] bytes), again until it listens or args[3] ms are over */
	SBX_CHILD_OPEN = 11,	/* openat /proc/<child>/<args[1]> with flags args[2] */
	SBX_READ = 12,		/* nr(args[0], <own buffer>, its size, 0): tell what comes, until none does or args[1] bytes have */
	SBX_EXTENTS = 13,	/* tell where file args[0] has data from args[1] on: begin and end of each, at most args[2] */
	SBX_STATS = 14,		/* tell what each of the args[2] names at args[1] in the folder args[0] is, by flags args[3] */
	SBX_FITS = 15,		/* EAGAIN if the number in file args[0], such as pids.current, is above args[1] */
	SBX_FILES = 16,		/* tell what stands in the args[1] files whose names args[0] is, args[2] bytes at most of each; `value` is which */
	SBX_WATCH = 17,		/* kill the child, and by cgroup.kill args[2] if >= 0 its group, args[0] ns after its start if not 0;
				 * write the ns that it lived to args[1] */
};

enum sbx_flag {
	SBX_POSITIVE = 1,	/* a result of 0 is a failure: the other end of a pipe has gone */
	SBX_ABSOLUTE = 2,	/* the buffer args[0] must hold an absolute path: getcwd has not left the root */
	SBX_EACH = 4,		/* once for every bit that is set in args[5], with its number as args[1] */
	SBX_TELL = 8,		/* tell what stands in the buffer args[out]; `value` is the call's result */
};

enum sbx_report_kind {
	SBX_DONE = 1,		/* a served program has ended; value: its last result */
	SBX_CHILD = 2,		/* value: the child's pid */
	SBX_READY = 3,		/* the sandbox stands; or, from a served program, here is a descriptor */
	SBX_FAILED = 4,		/* index: the record; error: its errno */
	SBX_NOT_FOUND = 5,	/* nothing to execute; error: errno; value: the path's index, + SBX_INTERPRETER */
	SBX_DATA = 6,		/* bytes that a record brought stand behind the report; value: its result */
};

#define SBX_ANY		0xffff	/* as the first of a record's `ignore`: it may fail for whatever reason */

#define SBX_INTERPRETER	0x10000	/* the file is there, what it names after #! or as its ELF interpreter is not */

#define SBX_LIFETIME_OVER	3	/* pid 1's exit status when its time was up */

struct sbx_record {
	uint8_t op;
	uint8_t pointers;	/* bit i: args[i] is an offset from this record's start */
	uint16_t flags;
	uint32_t size;		/* of the whole record, a multiple of 8 */
	int32_t nr;		/* of the system call */
	int32_t out;		/* where a descriptor that comes back shall stand, or -1; see SBX_TELL */
	uint16_t ignore[2];	/* errnos that are no failure */
	uint32_t index;		/* what the program calls this record when it fails */
	uint64_t args[6];
};

struct sbx_report {
	uint32_t kind;
	uint32_t index;
	int32_t error;		/* of a READY: it could not be sent (ETOOMANYREFS), and is to be taken: descriptor `value` */
	int32_t spare;
	int64_t value;
};

#define SBX_CONTROL	3	/* the control socket */
#define SBX_PROGRAM	4	/* the memfd with the records */
#define SBX_FIRST	5	/* the first further descriptor */
#define SBX_SOCKET	(-2)	/* where the program gives descriptors: the launcher's end of the control socket */
#define SBX_ROOM	24576	/* bytes that a report has behind it at most: what one SBX_READ brings */
#define SBX_STAT	256	/* of it for each name of SBX_STATS: a struct statx, or an errno in place of its mask, negative */
#define SBX_MAX_SIZE	(16u << 20)	/* of a program: room for the kernel's own limit on argv and envp */

#endif
