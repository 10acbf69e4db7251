// SPDX-License-Identifier: GPL-2.0
/*
 * Measures in the guest what Linux's own calls cost, and prints for each
 *     @peer name=NAME value=MEDIAN least=L most=M turns=N counted=WHAT
 * in guest instructions (QEMU's "-icount shift=0"). "counted" says what is in
 * it: "call" from call to return, everything that the one CPU executes
 * meanwhile; "caller" what the calling task executes, waiting left out;
 * "tasks" what all tasks execute until the call returns; "elapsed" the same
 * and the time that nobody needed. "commands" is no instructions: invalidations
 * of the IOTLB, in all.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "gupbench.h"

#define MIB2	(2UL << 20)
#define GIB	(1UL << 30)
#define TURNS	3	/* of what takes millions of instructions, after one to warm up */

static void fail(const char *what)
{
	printf("@peer failed=%s errno=%d\n", what, errno);
	fflush(stdout);
	exit(1);
}

static void print(const char *name, const char *more, struct gb_times t, double share, int turns, const char *counted)
{
	printf("@peer name=%s%s value=%.2f least=%.2f most=%.2f turns=%d counted=%s\n", name, more,
	       t.median / share, t.least / share, t.most / share, turns, counted);
	fflush(stdout);
}

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* Prints least, median and most of `turns` figures. */
static void print_of(const char *name, const char *more, uint64_t *each, int turns, double share, const char *counted)
{
	qsort(each, turns, sizeof *each, by_size);
	print(name, more, (struct gb_times){ each[0], each[turns / 2], each[turns - 1] }, share, turns, counted);
}

static uint64_t tsc(void)
{
	uint32_t low, high;

	__asm__ volatile("lfence; rdtsc; lfence" : "=a"(low), "=d"(high) :: "memory");
	return (uint64_t)high << 32 | low;
}

/* What this task has executed: the scheduler's account, read by the time-stamp counter. */
static uint64_t caller(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* What all tasks of the one CPU have executed, up to their last switch. */
static uint64_t tasks(void)
{
	static const struct timespec moment = { .tv_nsec = 1 };
	unsigned long long running = 0;
	char line[512];
	FILE *f;

	/* To the idle task and back: what this one has executed is in the account then. */
	nanosleep(&moment, 0);
	f = fopen("/proc/schedstat", "r");
	if (!f)
		fail("schedstat");
	while (fgets(line, sizeof line, f))
		if (sscanf(line, "cpu0 %*u %*u %*u %*u %*u %*u %llu", &running) == 1)
			break;
	fclose(f);
	return running;
}

struct costs {
	uint64_t caller, tasks, elapsed;
};

static void begin(struct costs *c)
{
	c->tasks = tasks();
	c->caller = caller();
	c->elapsed = tsc();
}

static void end(struct costs *c)
{
	c->elapsed = tsc() - c->elapsed;
	c->caller = caller() - c->caller;
	c->tasks = tasks() - c->tasks;
}

static struct costs empty_costs(void)
{
	struct costs least = { UINT64_MAX, UINT64_MAX, UINT64_MAX }, c;
	int i;

	for (i = 0; i < 16; i++) {
		begin(&c);
		end(&c);
		least.caller = c.caller < least.caller ? c.caller : least.caller;
		least.tasks = c.tasks < least.tasks ? c.tasks : least.tasks;
		least.elapsed = c.elapsed < least.elapsed ? c.elapsed : least.elapsed;
	}
	return least;
}

static uint64_t less(uint64_t a, uint64_t b)
{
	return a > b ? a - b : 0;
}

static void print_costs(const char *name, const struct costs *c, int turns, double share)
{
	struct costs empty = empty_costs();
	uint64_t t[3][TURNS];
	int i;

	for (i = 0; i < turns; i++) {
		t[0][i] = less(c[i].caller, empty.caller);
		t[1][i] = less(c[i].tasks, empty.tasks);
		t[2][i] = less(c[i].elapsed, empty.elapsed);
	}
	print_of(name, "", t[0], turns, share, "caller");
	print_of(name, "_tasks", t[1], turns, share, "tasks");
	print_of(name, "_elapsed", t[2], turns, share, "elapsed");
}

/* Writes to a file of sysfs. */
static void tell(const char *path, const char *word, struct costs *c)
{
	int fd = open(path, O_WRONLY);
	struct costs unused;
	ssize_t n;

	if (fd < 0)
		fail(path);
	begin(c ? c : &unused);
	n = write(fd, word, strlen(word));
	end(c ? c : &unused);
	if (n < 0)
		fail(word);
	close(fd);
}

#define DRIVER "/sys/bus/dax/drivers/device_dax/"

/* Address space for `len` bytes at a multiple of 1 GiB. */
static char *window(size_t len)
{
	char *p = mmap(0, len + GIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		fail("address_space");
	return (char *)(((uintptr_t)p + GIB - 1) & ~(GIB - 1));
}

static int open_device(const char *name)
{
	char path[64];
	int fd;

	snprintf(path, sizeof path, "/dev/%s", name);
	fd = open(path, O_RDWR);
	if (fd < 0)
		fail(path);
	return fd;
}

static void map(int fd, char *at, size_t len, size_t from, size_t leaf)
{
	size_t o;

	if (mmap(at, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, from) == MAP_FAILED)
		fail("mmap");
	for (o = 0; o < len; o += leaf)
		*(volatile char *)(at + o) = 1;
}

static size_t size_of(const char *word)
{
	char *unit;
	size_t n = strtoul(word, &unit, 10);

	return *unit == 'G' ? n << 30 : *unit == 'M' ? n << 20 : *unit == 'K' ? n << 10 : n;
}

/* idle NAME DEVICE: takes the driver off an unused device, and gives it back. */
static void idle(char **a)
{
	struct costs gone[TURNS], back[TURNS];
	char name[64];
	int i;

	tell(DRIVER "unbind", a[1], 0);
	tell(DRIVER "bind", a[1], 0);
	for (i = 0; i < TURNS; i++) {
		tell(DRIVER "unbind", a[1], &gone[i]);
		tell(DRIVER "bind", a[1], &back[i]);
	}
	snprintf(name, sizeof name, "attach_%s", a[0]);
	print_costs(name, back, TURNS, 1);
	snprintf(name, sizeof name, "removal_%s", a[0]);
	print_costs(name, gone, TURNS, 1);
}

/* once NAME DEVICE: the same of a device that has no driver, without a turn to warm up. */
static void once(char **a)
{
	struct costs gone, back;
	char name[64];

	tell(DRIVER "bind", a[1], &back);
	tell(DRIVER "unbind", a[1], &gone);
	snprintf(name, sizeof name, "attach_%s", a[0]);
	print_costs(name, &back, 1, 1);
	snprintf(name, sizeof name, "removal_%s", a[0]);
	print_costs(name, &gone, 1, 1);
}

/* Maps the first `len` bytes of a device, all present, in as many mappings as
 * are asked for, each away from the other; says so, and waits for its end. */
static pid_t mapper(const char *device, size_t len, size_t leaf, size_t nr)
{
	int ready[2];
	char c;
	pid_t pid;

	if (pipe(ready))
		fail("pipe");
	pid = fork();
	if (pid < 0)
		fail("fork");
	if (!pid) {
		size_t piece = len / nr, apart = nr > 1 ? 2 * piece : piece, i;
		char *at = window(nr * apart);
		int fd = open_device(device);

		for (i = 0; i < nr; i++)
			map(fd, at + i * apart, piece, i * piece, leaf);
		if (write(ready[1], "x", 1) != 1)
			_exit(2);
		for (;;)
			pause();
	}
	close(ready[1]);
	if (read(ready[0], &c, 1) != 1)
		fail("mapper");
	close(ready[0]);
	return pid;
}

/* mapped NAME DEVICE BYTES LEAF MAPPINGS SHARE: the removal of a device of which
 * another process has mapped that much. */
static void mapped(char **a)
{
	size_t len = size_of(a[2]), leaf = size_of(a[3]), nr = strtoul(a[4], 0, 10);
	struct costs c[TURNS];
	int i, status;

	for (i = -1; i < TURNS; i++) {
		pid_t pid = mapper(a[1], len, leaf, nr);

		tell(DRIVER "unbind", a[1], i < 0 ? 0 : &c[i]);
		kill(pid, SIGKILL);
		waitpid(pid, &status, 0);
		tell(DRIVER "bind", a[1], 0);
	}
	print_costs(a[0], c, TURNS, strtod(a[5], 0));
}

/* unmap NAME DEVICE LEAF: 1 GiB, every page present. */
static void unmap(char **a)
{
	size_t leaf = size_of(a[2]);
	struct costs c[TURNS], warm;
	int i, fd = open_device(a[1]);
	char *at = window(GIB);

	for (i = -1; i < TURNS; i++) {
		map(fd, at, GIB, 0, leaf);
		begin(i < 0 ? &warm : &c[i]);
		if (munmap(at, GIB))
			fail("munmap");
		end(i < 0 ? &warm : &c[i]);
	}
	print_costs(a[0], c, TURNS, (double)GIB / leaf);
}

static void gup(int fd, struct gb_request r, const char *take, const char *give)
{
	double share = r.pages;

	r.turns = r.pages == 1 ? 1000 : 50;
	r.warm = 10;
	if (ioctl(fd, GB_RUN, &r) || r.done != r.turns)
		fail(take);
	print(take, "", r.take, share, r.turns, "call");
	if (give)
		print(give, "", r.give, share, r.turns, "call");
}

/* pin LEAFNAME DEVICE LEAF */
static void pin(char **a)
{
	size_t leaf = size_of(a[2]);
	int fd = open_device("gupbench");
	char *at = window(GIB), take[64], give[64];
	struct gb_request r = { .op = GB_PIN, .addr = (uintptr_t)at, .pages = 1 };

	map(open_device(a[1]), at, GIB, 0, leaf);
	snprintf(take, sizeof take, "pin_%s", a[0]);
	snprintf(give, sizeof give, "unpin_%s", a[0]);
	gup(fd, r, take, give);
	r.flags = GB_LONGTERM;
	snprintf(take, sizeof take, "pin_longterm_%s", a[0]);
	gup(fd, r, take, 0);
	r.flags = 0;
	r.op = GB_GET;
	snprintf(take, sizeof take, "get_%s", a[0]);
	snprintf(give, sizeof give, "put_%s", a[0]);
	gup(fd, r, take, give);
	r.op = GB_PIN;
	r.pages = 512;
	snprintf(take, sizeof take, "pin_512_of_%s_each", a[0]);
	snprintf(give, sizeof give, "unpin_512_of_%s_each", a[0]);
	gup(fd, r, take, give);
}

/* failure NAME DEVICE FIRST TOLD: memory_failure() of 1,024 frames, each mapped with
 * a 4 KiB leaf by another process, which is told nothing (TOLD 0) or, where
 * vm.memory_failure_early_kill says so, takes SIGBUS (1). */
static volatile uint64_t *signals;
static void count(int signal)
{
	(void)signal;
	++*signals;
}

static void failure(char **a)
{
	enum { FRAMES = 1024 };
	size_t first = size_of(a[2]);
	int module = open_device("gupbench"), ready[2], status;
	struct gb_request r = { .op = GB_FAILURE, .pages = FRAMES, .stride = 1 };
	char what[80];
	pid_t pid;

	signals = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (signals == MAP_FAILED || pipe(ready))
		fail("pipe");
	pid = fork();
	if (!pid) {
		struct gb_request q = { .op = GB_GET, .pages = 1, .turns = 1 };
		char *at = window(GIB);

		signal(SIGBUS, count);
		map(open_device(a[1]), at, FRAMES * 4096, first, 4096);
		q.addr = (uintptr_t)at;
		if (ioctl(module, GB_RUN, &q) || write(ready[1], &q.pfn, sizeof q.pfn) != sizeof q.pfn)
			_exit(2);
		for (;;)
			pause();
	}
	close(ready[1]);
	if (read(ready[0], &r.pfn, sizeof r.pfn) != sizeof r.pfn)
		fail("mapper");
	if (ioctl(module, GB_RUN, &r))
		fail(a[0]);
	print(a[0], "", r.take, 1, FRAMES, "call");
	usleep(100000);
	printf("@peer fact=%s_done value=%llu\n@peer fact=%s_signals value=%llu\n", a[0],
	       (unsigned long long)r.done, a[0], (unsigned long long)*signals);
	fflush(stdout);
	if (r.done != FRAMES || !*signals != (*a[3] == '0')) {
		snprintf(what, sizeof what, "%s_done_%llu_signals_%llu", a[0], (unsigned long long)r.done,
			 (unsigned long long)*signals);
		fail(what);
	}
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
}

/* iommu MAP UNMAP REGISTERS PIECES LEAF CALLS: 1 GiB of I/O addresses, mapped in
 * so many calls, with leaves of that size, and unmapped in one call ("one"), in as
 * many ("each"), or with one invalidation for 512 ("batch"). MAP is "-" where that
 * is not told. No memory lies at these physical addresses: nothing goes there. */
static void iommu(char **a)
{
	size_t leaf = size_of(a[4]);
	struct gb_request r = {
		.op = GB_IOMMU, .addr = 64 * GIB, .phys = 8 * GIB, .registers = strtoull(a[2], 0, 16),
		.pages = strtoul(a[3], 0, 10),
	};
	double commands;

	if (!strcmp(a[5], "each"))
		r.flags = GB_EACH;
	else if (!strcmp(a[5], "batch"))
		r.flags = GB_BATCH;
	if (!r.pages || !r.registers || (!r.flags && strcmp(a[5], "one")))
		fail("arguments");
	r.bytes = GIB / r.pages;
	r.turns = r.pages == 1 ? 1000 : TURNS;
	r.warm = r.pages == 1 ? 10 : 1;
	/* Aligned to such a leaf and to no larger one. */
	if (leaf < GIB)
		r.phys += leaf;
	if (ioctl(open_device("gupbench"), GB_RUN, &r) || r.done != r.turns)
		fail(a[1]);
	if (r.leaf != leaf)
		fail("size_of_leaf");
	if (!r.commands)
		fail("no_invalidation");
	if (strcmp(a[0], "-"))
		print(a[0], "", r.take, r.pages, r.turns, "call");
	print(a[1], "", r.give, r.pages, r.turns, "call");
	commands = r.commands;
	printf("@peer name=%s_commands value=%.2f least=%.2f most=%.2f turns=1 counted=commands\n", a[1], commands,
	       commands, commands);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int args;
		void (*run)(char **);
	} jobs[] = {
		{ "idle", 2, idle }, { "once", 2, once }, { "mapped", 6, mapped }, { "unmap", 3, unmap },
		{ "pin", 3, pin }, { "failure", 4, failure }, { "iommu", 6, iommu },
	};
	size_t i;

	for (i = 0; i < sizeof jobs / sizeof *jobs; i++)
		if (argc >= 2 && !strcmp(argv[1], jobs[i].name) && argc - 2 == jobs[i].args) {
			jobs[i].run(argv + 2);
			return 0;
		}
	fprintf(stderr, "usage: peerbench idle|once|mapped|unmap|pin|failure|iommu ...\n");
	return 2;
}
