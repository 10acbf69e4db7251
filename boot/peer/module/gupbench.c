// SPDX-License-Identifier: GPL-2.0
/*
 * A device that measures, in the kernel, what has no system call of its own:
 * get_user_pages_fast(), pin_user_pages_fast() and their opposites on the
 * caller's pages, and memory_failure() of frames.
 *
 * A call is measured from before it to after its return by the time-stamp
 * counter, which QEMU advances by one for each guest instruction under
 * "-icount shift=0"; an empty pair of readings is taken off.
 */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/uaccess.h>
#include <asm/msr.h>
#include "gupbench.h"

#define MOST_PAGES	(1UL << 13)
#define MOST_TURNS	(1UL << 16)

static u64 empty_pair(void)
{
	u64 least = U64_MAX, start;
	int i;

	for (i = 0; i < 16; i++) {
		start = rdtsc_ordered();
		least = min_t(u64, least, rdtsc_ordered() - start);
	}
	return least;
}

static int by_size(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

static void sum_up(struct gb_times *times, u64 *each, u64 nr, u64 empty)
{
	sort(each, nr, sizeof(*each), by_size, NULL);
	times->least = each[0] - empty;
	times->median = each[nr / 2] - empty;
	times->most = each[nr - 1] - empty;
}

static void give_back(const struct gb_request *r, struct page **pages, long nr)
{
	long i;

	if (r->op == GB_PIN) {
		unpin_user_pages(pages, nr);
		return;
	}
	for (i = 0; i < nr; i++)
		put_page(pages[i]);
}

static int references(struct gb_request *r)
{
	unsigned int flags = FOLL_WRITE | (r->flags & GB_LONGTERM ? FOLL_LONGTERM : 0);
	u64 empty = empty_pair(), *take, *give, start, taken, given;
	struct page **pages;
	unsigned long turn;
	int rc = 0;
	long got;

	if (!r->pages || r->pages > MOST_PAGES || !r->turns || r->turns + r->warm > MOST_TURNS)
		return -EINVAL;
	pages = kvcalloc(r->pages, sizeof(*pages), GFP_KERNEL);
	take = kvcalloc(2 * r->turns, sizeof(*take), GFP_KERNEL);
	if (!pages || !take) {
		rc = -ENOMEM;
		goto out;
	}
	give = take + r->turns;
	for (turn = 0; turn < r->turns + r->warm; turn++) {
		start = rdtsc_ordered();
		if (r->op == GB_PIN)
			got = pin_user_pages_fast(r->addr, r->pages, flags, pages);
		else
			got = get_user_pages_fast(r->addr, r->pages, flags, pages);
		taken = rdtsc_ordered();
		if (got != (long)r->pages) {
			if (got > 0)
				give_back(r, pages, got);
			rc = got < 0 ? got : -EFAULT;
			goto out;
		}
		r->pfn = page_to_pfn(pages[0]);
		given = rdtsc_ordered();
		give_back(r, pages, got);
		if (turn >= r->warm) {
			give[turn - r->warm] = rdtsc_ordered() - given;
			take[turn - r->warm] = taken - start;
			r->done++;
		}
	}
	sum_up(&r->take, take, r->turns, empty);
	sum_up(&r->give, give, r->turns, empty);
out:
	kvfree(take);
	kvfree(pages);
	return rc;
}

static int failures(struct gb_request *r)
{
	u64 empty = empty_pair(), *each, start;
	unsigned long i;

	if (!r->pages || r->pages > MOST_TURNS)
		return -EINVAL;
	each = kvcalloc(r->pages, sizeof(*each), GFP_KERNEL);
	if (!each)
		return -ENOMEM;
	for (i = 0; i < r->pages; i++) {
		start = rdtsc_ordered();
		r->done += !memory_failure(r->pfn + i * r->stride, 0);
		each[i] = rdtsc_ordered() - start;
	}
	sum_up(&r->take, each, r->pages, empty);
	kvfree(each);
	return 0;
}

static long run(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct gb_request r;
	int rc;

	if (cmd != GB_RUN)
		return -ENOTTY;
	if (copy_from_user(&r, (void __user *)arg, sizeof(r)))
		return -EFAULT;
	r.done = 0;
	switch (r.op) {
	case GB_GET:
	case GB_PIN:
		rc = references(&r);
		break;
	case GB_FAILURE:
		rc = failures(&r);
		break;
	default:
		rc = -EINVAL;
	}
	if (rc)
		return rc;
	return copy_to_user((void __user *)arg, &r, sizeof(r)) ? -EFAULT : 0;
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = run,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "gupbench",
	.fops = &operations,
};

module_misc_device(device);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("What get_user_pages_fast() and memory_failure() cost");
