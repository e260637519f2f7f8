/*
 * Carries out launcher programs under the sanitizers, without a single real system call.
 *
 * The launcher's own code runs; whatever it would hand to the kernel is read here instead, to
 * its last byte, and has to lie in the record that it comes from. A program that passes the check
 * and makes the launcher, or what stands for the kernel, leave its bounds ends this process.
 *
 *	harness check      answers each program on stdin (four bytes of length, then itself) with
 *	                   1 or 0 (it passes or not), and carries out those that pass
 *	harness unchecked  carries out all of them, to show what the check is for
 *	harness fuzz SEED COUNT FILE...  mutates pieces of the programs in the files
 *
 * With -DLIBFUZZER it is a target for libFuzzer instead.
 */
#include "protocol.h"

#include <errno.h>
#include <sanitizer/asan_interface.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HEADER		sizeof(struct sbx_record)
#define MAX_VECTORS	64
#define SERVED		65536u
#define OPS		19

extern int unchecked;
int passes(const char *program, uint64_t size);
void launcher_main(void) __attribute__((noreturn));

static struct {
	char *program;		/* as the launcher sees it: exactly as long as it is */
	uint64_t size;
	char *served;		/* the same, when it comes over the control socket */
	const char *message;
	uint32_t *ends;		/* of the record that each eight bytes are in */
	void *vectors[MAX_VECTORS];
	int vector_count;
	int as_child;		/* what a clone returns */
	int refusals;		/* left for connect */
	uint64_t random;
	jmp_buf end;
} now;

static uint64_t carried_out[OPS];
static volatile unsigned char sink;

static uint64_t next_random(void)
{
	now.random ^= now.random << 13;
	now.random ^= now.random >> 7;
	now.random ^= now.random << 17;
	return now.random;
}

static void leave(const char *what)
{
	fprintf(stderr, "harness: %s\n", what);
	abort();
}

static int lies_in(const char *p, const char *program)
{
	return program && p >= program && p < program + now.size;
}

/* Where the record ends that *p* lies in; 0 if *p* is no part of the program, or nobody has checked it. */
static const char *end_of(const char *p)
{
	if (unchecked)
		return 0;
	if (lies_in(p, now.program))
		return now.program + now.ends[(p - now.program) / 8];
	return lies_in(p, now.served) ? now.served + now.ends[(p - now.served) / 8] : 0;
}

static void read_string(long address)
{
	const char *p = (const char *)address, *end = end_of(p);

	do {
		if (p == end)
			leave("a string runs out of its record");
		sink = (unsigned char)*p;
	} while (*p++);
}

static void read_range(long address, uint64_t length)
{
	const char *p = (const char *)address, *end = end_of(p);

	if (end && length > (uint64_t)(end - p))
		leave("a range runs out of its record");
	while (length--)
		sink = (unsigned char)*p++;
}

static void read_vector(long address)
{
	for (char **p = (char **)address; *p; p++)
		read_string((long)*p);
}

static long map(uint64_t length, long fd)
{
	void *p;

	if (fd == SBX_PROGRAM)
		return (long)now.program;
	if (length > SBX_MAX_SIZE * 16ull || now.vector_count == MAX_VECTORS)
		return -ENOMEM;
	p = calloc(1, length);	/* as the kernel's, but with an end that is watched */
	now.vectors[now.vector_count++] = p;
	return (long)p;
}

static long receive(char *buffer, uint64_t size)
{
	if (!now.message || now.size > size)
		return 0;
	ASAN_UNPOISON_MEMORY_REGION(buffer, size);
	memcpy(buffer, now.message, now.size);
	ASAN_POISON_MEMORY_REGION(buffer + now.size, size - now.size);
	now.message = 0;
	now.served = buffer;
	return (long)now.size;
}

/* A system call that a record asks for. */
static long asked(long a, long b, long c, long d, long e, long f)
{
	long args[] = { a, b, c, d, e, f };
	static const long results[] = { 0, 1, 7, 7, 7, 7, 7, -ENOENT, -EEXIST, -ENOSYS };

	for (int i = 0; i < 6; i++)
		if (lies_in((const char *)args[i], now.program) || lies_in((const char *)args[i], now.served))
			read_string(args[i]);
	return results[next_random() % (sizeof results / sizeof *results)];
}

/* The launcher's own struct msghdr. */
struct message {
	void *name; uint32_t namelen; struct { void *base; uint64_t len; } *iov; uint64_t iovlen;
};

/* All that is sent is read, to its last byte; at times nobody takes it. */
static long said(const struct message *m)
{
	uint64_t size = 0;

	for (uint64_t i = 0; i < m->iovlen; i++) {
		read_range((long)m->iov[i].base, m->iov[i].len);
		size += m->iov[i].len;
	}
	return next_random() % 16 ? (long)size : -EPIPE;
}

static long seek(long offset, long whence)
{
	if (whence == SEEK_END)
		return (long)now.size;
	return next_random() % 64 ? offset + (long)(next_random() % 4096) : -ENXIO;
}

/* What stands for the kernel. */
long pretend(const char *name, long nr, long a, long b, long c, long d, long e, long f)
{
	(void)nr;
	if (!strcmp(name, "r->nr"))
		return asked(a, b, c, d, e, f);
	name += 4;	/* SYS_ */
	if (!strcmp(name, "exit_group"))
		longjmp(now.end, 1);
	if (!strcmp(name, "lseek"))
		return seek(b, c);
	if (!strcmp(name, "statx")) {
		read_string(b);
		memset((char *)e, 1, 256);
		return next_random() % 4 ? 0 : -ENOENT;
	}
	if (!strcmp(name, "pread64")) {
		memset((char *)b, '7', (size_t)c);
		return next_random() % 4 ? (long)(next_random() % ((uint64_t)c + 1)) : -EIO;
	}
	if (!strcmp(name, "sendmsg"))
		return said((const struct message *)b);
	if (!strcmp(name, "mmap"))
		return map((uint64_t)b, e);
	if (!strcmp(name, "recvfrom"))
		return receive((char *)b, (uint64_t)c);
	if (!strcmp(name, "openat")) {
		read_string(b);
		return next_random() % 8 ? 9 : -ENOENT;
	}
	if (!strcmp(name, "faccessat")) {
		read_string(b);
		return next_random() % 2 ? 0 : -ENOENT;
	}
	if (!strcmp(name, "execve")) {
		static const long results[] = { -ENOENT, -ENOENT, -EACCES, -ENOTDIR, -ENOEXEC };

		read_string(a);
		read_vector(b);
		read_vector(c);
		return results[next_random() % 5];
	}
	if (!strcmp(name, "write")) {
		read_range(b, (uint64_t)c);
		return c;
	}
	if (!strcmp(name, "connect")) {
		read_range(b, (uint64_t)c);
		return now.refusals-- > 0 ? -ECONNREFUSED : 0;
	}
	if (!strcmp(name, "clone3"))
		return now.as_child ? 0 : 4711;
	if (!strcmp(name, "ppoll"))
		return (long)(next_random() % 2);
	return 0;
}

static void note_records(void)
{
	uint64_t at = 0;

	now.ends = calloc(now.size / 8 + 1, sizeof *now.ends);
	while (!unchecked && at < now.size) {
		const struct sbx_record *r = (const struct sbx_record *)(now.program + at);

		for (uint64_t i = at / 8; i < (at + r->size) / 8; i++)
			now.ends[i] = (uint32_t)(at + r->size);
		carried_out[r->op % OPS]++;
		at += r->size;
	}
}

static void carry_out_as(int child, const char *program, uint64_t size)
{
	/* Nothing before it and nothing after it: a byte too far is seen. */
	now.program = malloc(size ? size : 1);
	memcpy(now.program, program, size);
	now.size = size;
	now.served = 0;
	now.message = program;
	now.as_child = child;
	now.refusals = 3;
	now.vector_count = 0;
	note_records();
	if (!setjmp(now.end))
		launcher_main();
	if (now.served)
		ASAN_UNPOISON_MEMORY_REGION(now.served, SERVED);
	while (now.vector_count)
		free(now.vectors[--now.vector_count]);
	free(now.ends);
	free(now.program);
}

/* Returns whether it passes. */
static int exercise(const char *program, uint64_t size)
{
	char *copy = malloc(size ? size : 1);
	int ok;

	memcpy(copy, program, size);
	ok = passes(copy, size);
	free(copy);
	now.random = 0x9e3779b97f4a7c15ull ^ size;
	if (ok || unchecked) {
		carry_out_as(0, program, size);
		carry_out_as(1, program, size);
	}
	return ok;
}

#ifdef LIBFUZZER

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	exercise((const char *)data, size);
	return 0;
}

#else

#define MAX_FUZZED	(1u << 16)

static struct { char *data; uint64_t size; } corpus[64];
static int corpus_size;

static void load(const char *path)
{
	FILE *file = fopen(path, "rb");
	char *data = malloc(SBX_MAX_SIZE);

	if (!file || corpus_size == 64)
		leave("cannot load a program");
	corpus[corpus_size].data = data;
	corpus[corpus_size++].size = fread(data, 1, SBX_MAX_SIZE, file);
	fclose(file);
}

/* Append some records of a known program; returns how many bytes. */
static uint64_t take(char *to, uint64_t room)
{
	int which = (int)(next_random() % corpus_size);
	uint64_t at = 0, start, skip = next_random() % 64, count = 1 + next_random() % 6;
	const char *data = corpus[which].data;

	while (skip--) {
		at += ((const struct sbx_record *)(data + at))->size;
		if (at >= corpus[which].size)
			at = 0;
	}
	for (start = at; count-- && at < corpus[which].size;)
		at += ((const struct sbx_record *)(data + at))->size;
	if (at - start > room)
		return 0;
	memcpy(to, data + start, at - start);
	return at - start;
}

static struct sbx_record *any_record(char *program, uint64_t size)
{
	uint64_t at = 0, skip = next_random() % 8;

	for (;;) {
		struct sbx_record *r = (struct sbx_record *)(program + at);

		if (!skip-- || r->size < HEADER || r->size % 8 || at + r->size + HEADER > size)
			return r;
		at += r->size;
	}
}

static uint64_t strange(uint64_t size)
{
	uint64_t values[] = {
		0, 1, 7, 8, HEADER - 1, HEADER, HEADER + 1, HEADER + 8, size - 9, size - 8, size - 1, size,
		size + 1, size + 8, 1ull << 32, 1ull << 63, ~0ull, ~0ull - 7, ~0ull - HEADER,
		HEADER + next_random() % (size + 1), next_random() % 64, next_random(),
	};

	return values[next_random() % (sizeof values / sizeof *values)];
}

/* Append a record that nobody wrote, but that is near enough to what passes; returns how many bytes. */
static uint64_t invent(char *to)
{
	struct sbx_record *r = (struct sbx_record *)to;
	uint64_t length = 8 * (next_random() % 40);

	memset(r, 0, HEADER);
	r->op = (uint8_t)(1 + next_random() % 17);
	r->size = (uint32_t)(HEADER + length);
	r->out = -1;
	r->flags = (uint16_t)(next_random() % 8 ? 0 : next_random() % 16);
	if (r->flags & SBX_TELL)
		r->out = (int32_t)(next_random() % 7);
	for (int i = 0; i < 6; i++) {
		r->args[i] = next_random() % 4 ? HEADER + next_random() % (length + 1) : next_random() % 16;
		if (next_random() % 3 == 0 && r->args[i] >= HEADER && r->args[i] < r->size)
			r->pointers |= (uint8_t)(1 << i);
	}
	for (uint64_t i = HEADER; i + 1 < r->size; i++)
		to[i] = (char)(next_random() % 3 ? 0 : 'y');
	if (r->size > HEADER)
		to[r->size - 1] = 0;
	switch (r->op) {
	case SBX_WRITE:
	case SBX_CHILD_WRITE:
		r->pointers |= 1 << 1 | 1 << 4;
		break;
	case SBX_POINTER:
		r->args[0] &= ~7ull;
		break;
	case SBX_EXEC:
		r->args[0] = 1 + next_random() % 4;
		r->args[1] = 1 + next_random() % 16;
		r->args[2] = next_random() % 16;
		break;
	case SBX_STATS:
		r->args[2] = next_random() % 8;
		r->pointers = 2;
		break;
	case SBX_FILES:
		r->args[1] = next_random() % 8;
		r->pointers = 1;
		break;
	case SBX_CHILD_OPEN:
	case SBX_CONNECT:
		r->pointers = 2;
		break;
	}
	return r->size;
}

static uint64_t mutate(char *program, uint64_t size)
{
	struct sbx_record *r = any_record(program, size);
	char *data = (char *)r;

	switch (next_random() % 12) {
	case 0:
		r->op = (uint8_t)(next_random() % 19);
		break;
	case 1:
		r->pointers ^= (uint8_t)(next_random() % 2 ? next_random() : 1u << next_random() % 6);
		break;
	case 2:
		r->flags ^= (uint16_t)(1 << next_random() % 4);
		break;
	case 3:
		r->size = (uint32_t)(next_random() % 4 ? r->size + 8 * (next_random() % 5) - 16 : strange(r->size));
		break;
	case 4:
	case 5:
	case 6:
	case 7:
		r->args[next_random() % 6] = strange(r->size);
		break;
	case 8:
		program[next_random() % size] = (char)next_random();
		break;
	case 9:
		if (r->size > HEADER && data + r->size <= program + size)
			data[HEADER + next_random() % (r->size - HEADER)] = (char)(next_random() % 2 ? 'x' : 0);
		break;
	case 10:
		return next_random() % 8 ? size : 8 * (next_random() % (size / 8 + 1));
	default:
		if (size < MAX_FUZZED / 2)
			return size + take(program + size, MAX_FUZZED / 2);
	}
	return size;
}

static int fuzz(uint64_t seed, long count)
{
	static char program[MAX_FUZZED] __attribute__((aligned(8)));
	long passed = 0;

	now.random = seed * 0x2545f4914f6cdd1dull + 1;
	for (long i = 0; i < count; i++) {
		uint64_t size = 0, changes = next_random() % 4, random;

		for (uint64_t pieces = 1 + next_random() % 3; pieces--;)
			size += next_random() % 2 ? invent(program + size) : take(program + size, MAX_FUZZED / 4);
		while (changes-- && size >= HEADER)
			size = mutate(program, size);
		random = now.random;
		passed += exercise(program, size);
		now.random = random;
	}
	printf("{\"passed\": %ld, \"refused\": %ld, \"records\": [", passed, count - passed);
	for (int i = 0; i < OPS; i++)
		printf("%s%llu", i ? ", " : "", (unsigned long long)carried_out[i]);
	printf("]}\n");
	return 0;
}

static int answer(void)
{
	static char program[SBX_MAX_SIZE] __attribute__((aligned(8)));
	uint32_t size;

	while (fread(&size, sizeof size, 1, stdin) == 1) {
		if (size > sizeof program || fread(program, 1, size, stdin) != size)
			leave("the input ends within a program");
		putchar('0' + exercise(program, size));
		fflush(stdout);
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 2 && (!strcmp(argv[1], "check") || !strcmp(argv[1], "unchecked"))) {
		unchecked = argv[1][0] == 'u';
		return answer();
	}
	if (argc < 5 || strcmp(argv[1], "fuzz"))
		leave("usage: see the top of harness.c");
	for (int i = 4; i < argc; i++)
		load(argv[i]);
	return fuzz(strtoull(argv[2], 0, 10), strtol(argv[3], 0, 10));
}

#endif
