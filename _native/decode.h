/*
 * The check that a launcher program stays within its bounds.
 *
 * It is apart from the rest so that it can be built into an ordinary program
 * too, for the sanitizers and the fuzzer. A program that passes can be carried
 * out without looking at a length again.
 */
#ifndef SANDBOXLIB_DECODE_H
#define SANDBOXLIB_DECODE_H

#include "protocol.h"

#define SBX_SERVE_SIZE	65536u	/* of a program that comes over the control socket */

static inline char *next_string(char *s)
{
	while (*s)
		s++;
	return s + 1;
}

/* Do *count* strings begin at *at* and end within the record? */
static inline int strings_fit(const char *record, uint64_t at, uint64_t size, uint64_t count)
{
	for (; count; count--) {
		if (at >= size)
			return 0;
		while (record[at])	/* the record's last byte is NUL */
			at++;
		at++;
	}
	return 1;
}

/* Does a run of *len* bytes at offset *at* lie behind the header and in the record? */
static inline int range_fits(uint64_t at, uint64_t len, uint64_t size)
{
	return at >= sizeof(struct sbx_record) && at <= size && len <= size - at;
}

/* Is there a whole record with *left* bytes to go, and does its header stand where a header may? */
static inline int record_fits(const struct sbx_record *r, uint64_t left)
{
	return left >= sizeof *r && r->size >= sizeof *r && r->size <= left && r->size % 8 == 0;
}

/* *next* is the record behind this one, or 0. */
static inline int check_record(const char *base, const struct sbx_record *r, uint64_t left, const struct sbx_record *next)
{
	uint64_t size = r->size;

	if (r->op < SBX_SYSCALL || r->op > SBX_WATCH || r->pointers > 63)
		return 0;
	if (size > sizeof *r && base[size - 1])
		return 0;
	for (int i = 0; i < 6; i++)
		if (r->pointers >> i & 1 && !range_fits(r->args[i], 1, size))
			return 0;
	if (r->flags & SBX_ABSOLUTE && !(r->pointers & 1))
		return 0;
	if (r->flags & SBX_TELL && (r->op != SBX_SYSCALL || r->out < 0 || r->out > 5 || !(r->pointers >> r->out & 1)
				    || r->flags & SBX_EACH || size - r->args[r->out] > SBX_ROOM))
		return 0;
	switch (r->op) {
	case SBX_WRITE:
	case SBX_CHILD_WRITE:
		/* These two and no other: a length is not an address. */
		return r->pointers == (1 << 1 | 1 << 4) && range_fits(r->args[4], r->args[5], size);
	case SBX_POINTER:
		/* In a call's buffer only: an address over the ends of strings that were counted would join them. */
		return next && next->op == SBX_SYSCALL && range_fits(r->args[0], 8, next->size)
			&& range_fits(r->args[1], 1, next->size) && r->args[0] % 8 == 0;
	case SBX_EXEC: {
		uint64_t n = r->args[0], argc = r->args[1], envc = r->args[2];

		/* Counted apart: their sum must not wrap. */
		if (!n || !argc || n > size || argc > size || envc > size || !range_fits(r->args[3], 1, size))
			return 0;
		return strings_fit(base, r->args[3], size, n + argc + envc);
	}
	case SBX_CHILD_OPEN:
		return r->pointers == 2;
	case SBX_STATS:
		return r->pointers == 2 && r->args[2] <= SBX_ROOM / SBX_STAT
			&& strings_fit(base, r->args[1], size, r->args[2]);
	case SBX_FILES:
		return r->pointers == 1 && strings_fit(base, r->args[0], size, r->args[1]);
	case SBX_READ:
	case SBX_EXTENTS:
	case SBX_FITS:
		return r->pointers == 0;
	case SBX_CONNECT:
		return r->pointers == 2 && range_fits(r->args[1], r->args[2], size);
	case SBX_CLONE:
		/* The child's part has to be whole: check_program looks at where it ends. */
		return r->args[2] <= left - size;
	default:
		return 1;
	}
}

/* Is *program* a run of records, each within its bounds, up to exactly *size*? */
static inline int check_program(const char *program, uint64_t size, int depth)
{
	uint64_t at = 0;

	while (at < size) {
		const struct sbx_record *r = (const struct sbx_record *)(program + at);
		const struct sbx_record *next;
		uint64_t left = size - at;

		if (!record_fits(r, left))
			return 0;
		next = (const struct sbx_record *)(program + at + r->size);
		if (!check_record(program + at, r, left, record_fits(next, left - r->size) ? next : 0))
			return 0;
		if (r->op == SBX_CLONE) {
			if (!depth || !check_program(program + at + r->size, r->args[2], depth - 1))
				return 0;
			at += r->args[2];
		}
		at += r->size;
	}
	return 1;
}

#endif
