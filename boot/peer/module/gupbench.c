// SPDX-License-Identifier: GPL-2.0
/*
 * A device that measures, in the kernel, what has no system call of its own:
 * get_user_pages_fast(), pin_user_pages_fast() and their opposites on the
 * caller's pages, memory_failure() of frames, and iommu_map() and iommu_unmap()
 * for a device behind Intel's IOMMU.
 *
 * A call is measured from before it to after its return by the time-stamp
 * counter, which QEMU advances by one for each guest instruction under
 * "-icount shift=0"; an empty pair of readings is taken off.
 */
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/iommu.h>
#include <linux/log2.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <asm/msr.h>
#include "gupbench.h"

#define MOST_PAGES	(1UL << 13)
#define MOST_TURNS	(1UL << 16)
#define MOST_PIECES	(1UL << 18)

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

/* QEMU's `edu`, for which Linux has no driver: nobody else uses its group. */
#define EDU_VENDOR	0x1234
#define EDU_DEVICE	0x11e8

/* The VT-d specification: Invalidation Queue Tail Register and Invalidation Queue Address Register; and of a command
 * (6.5.2, Queued Invalidation Interface) its size, and the type of one that invalidates the IOTLB. */
#define QUEUE_TAIL	0x88
#define QUEUE_ADDRESS	0x90
#define QUEUE_SIZE	0x7	/* log2 of its pages */
#define QUEUE_WIDE	BIT(11)	/* commands of 32 bytes */
#define COMMAND_BYTES	16
#define COMMAND_TYPE	0xf
#define IOTLB_COMMAND	0x2

struct dma {
	struct iommu_domain *domain;
	struct pci_dev *device;
	void __iomem *registers;
	void *queue;
	u64 queue_bytes;
};

static struct iommu_domain *new_domain(struct device *device)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
	return iommu_paging_domain_alloc(device);
#else
	return iommu_domain_alloc(device->bus) ?: ERR_PTR(-ENOMEM);
#endif
}

static __always_inline int map_piece(const struct dma *d, const struct gb_request *r, u64 i, phys_addr_t phys)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	return iommu_map(d->domain, r->addr + i * r->bytes, phys, r->bytes, IOMMU_READ | IOMMU_WRITE, GFP_KERNEL);
#else
	return iommu_map(d->domain, r->addr + i * r->bytes, phys, r->bytes, IOMMU_READ | IOMMU_WRITE);
#endif
}

/* An odd factor takes each place once; twice it leaves a gap, so that no two pieces are neighbours. */
static __always_inline phys_addr_t place(const struct gb_request *r, u64 i)
{
	return r->phys + (i * 40503 & (r->pages - 1)) * 2 * r->bytes;
}

static int map_all(const struct dma *d, const struct gb_request *r)
{
	u64 i;
	int rc;

	for (i = 0; i < r->pages; i++) {
		rc = map_piece(d, r, i, place(r, i));
		if (rc)
			return rc;
	}
	return 0;
}

/* The invalidations of the IOTLB among the commands from `*tail` on, which moves to the end of them. A command stays in
 * the ring until another is written over it, 256 later; a call of iommu_unmap() writes two or, with its wait, three. */
static u64 invalidations(const struct dma *d, u64 *tail)
{
	u64 end = readq(d->registers + QUEUE_TAIL), nr = 0;

	for (; *tail != end; *tail = (*tail + COMMAND_BYTES) & (d->queue_bytes - 1))
		nr += (READ_ONCE(*(u64 *)(d->queue + *tail)) & COMMAND_TYPE) == IOTLB_COMMAND;
	return nr;
}

/* As VFIO unmaps pages that do not lie side by side in memory (vfio_unmap_unpin(), unmap_unpin_fast()), but for what it
 * does to the pages: looks up which page it is, takes out its entry, and after 512 of them invalidates. */
static __always_inline u64 unmap_batches(const struct dma *d, const struct gb_request *r, u64 *nr)
{
	u64 tail = nr ? readq(d->registers + QUEUE_TAIL) : 0, i, at = r->addr, gone = 0;
	struct iommu_iotlb_gather gather;

	iommu_iotlb_gather_init(&gather);
	for (i = 1; i <= r->pages; i++, at += r->bytes) {
		if (!iommu_iova_to_phys(d->domain, at))
			break;
		gone += iommu_unmap_fast(d->domain, at, r->bytes, &gather);
		if (i % GB_BATCHED && i < r->pages)
			continue;
		iommu_iotlb_sync(d->domain, &gather);
		if (nr)
			*nr += invalidations(d, &tail);
	}
	return gone;
}

/* Counts commands where `nr` is not 0: never in a turn that is measured. */
static __always_inline int unmap_all(const struct dma *d, const struct gb_request *r, u64 *nr)
{
	u64 calls = r->flags & GB_EACH ? r->pages : 1, bytes = r->pages * r->bytes / calls;
	u64 tail = nr ? readq(d->registers + QUEUE_TAIL) : 0, i, gone = 0;

	if (r->flags & GB_BATCH)
		return unmap_batches(d, r, nr) == r->pages * r->bytes ? 0 : -EIO;
	for (i = 0; i < calls; i++) {
		gone += iommu_unmap(d->domain, r->addr + i * bytes, bytes);
		if (nr)
			*nr += invalidations(d, &tail);
	}
	return gone == r->pages * r->bytes ? 0 : -EIO;
}

/* A turn that is not measured: is all mapped where it belongs, with leaves of which size, and how many invalidations
 * does it take until nothing is? VT-d's driver unmaps, and answers, a whole leaf where a part of one is asked for. */
static int look(const struct dma *d, struct gb_request *r)
{
	u64 last = r->pages - 1, all = r->pages * r->bytes;
	int rc = map_all(d, r);

	if (rc)
		return rc;
	if (iommu_iova_to_phys(d->domain, r->addr + all - 1) != place(r, last) + r->bytes - 1)
		return -EXDEV;
	r->leaf = iommu_unmap(d->domain, r->addr, PAGE_SIZE);
	if (!r->leaf || r->leaf > all)
		return -EXDEV;
	if (r->leaf < all && iommu_unmap(d->domain, r->addr + r->leaf, all - r->leaf) != all - r->leaf)
		return -EIO;
	rc = map_all(d, r);
	if (rc)
		return rc;
	r->commands = 0;
	rc = unmap_all(d, r, &r->commands);
	if (rc)
		return rc;
	return iommu_iova_to_phys(d->domain, r->addr) || iommu_iova_to_phys(d->domain, r->addr + all - 1) ? -EXDEV : 0;
}

static int turns(const struct dma *d, struct gb_request *r)
{
	u64 empty = empty_pair(), *take, *give, start, mapped, end;
	unsigned long turn;
	int rc = 0;

	take = kvcalloc(2 * r->turns, sizeof(*take), GFP_KERNEL);
	if (!take)
		return -ENOMEM;
	give = take + r->turns;
	for (turn = 0; turn < r->turns + r->warm && !rc; turn++) {
		start = rdtsc_ordered();
		rc = map_all(d, r);
		mapped = rdtsc_ordered() - start;
		if (rc)
			break;
		start = rdtsc_ordered();
		rc = unmap_all(d, r, NULL);
		end = rdtsc_ordered();
		if (turn >= r->warm) {
			take[turn - r->warm] = mapped;
			give[turn - r->warm] = end - start;
			r->done++;
		}
		cond_resched();
	}
	if (!rc) {
		sum_up(&r->take, take, r->turns, empty);
		sum_up(&r->give, give, r->turns, empty);
	}
	kvfree(take);
	return rc;
}

/* The ring of commands lies in RAM. */
static int find_queue(struct dma *d, const struct gb_request *r)
{
	u64 address;

	d->registers = ioremap(r->registers, PAGE_SIZE);
	if (!d->registers)
		return -ENOMEM;
	address = readq(d->registers + QUEUE_ADDRESS);
	d->queue_bytes = PAGE_SIZE << (address & QUEUE_SIZE);
	if (address & QUEUE_WIDE || !pfn_valid(PHYS_PFN(address)) || !PHYS_PFN(address))
		return -EOPNOTSUPP;
	d->queue = phys_to_virt(address & PAGE_MASK);
	return 0;
}

/* A device uses the domain, so that what is unmapped has to be invalidated, although it transfers nothing. */
static int mappings(struct gb_request *r)
{
	struct dma d = { };
	int rc;

	if (!is_power_of_2(r->pages) || r->pages > MOST_PIECES || !r->bytes || !r->turns || r->turns + r->warm > MOST_TURNS)
		return -EINVAL;
	d.device = pci_get_device(EDU_VENDOR, EDU_DEVICE, NULL);
	if (!d.device)
		return -ENODEV;
	rc = find_queue(&d, r);
	if (rc)
		goto put;
	d.domain = new_domain(&d.device->dev);
	if (IS_ERR(d.domain)) {
		rc = PTR_ERR(d.domain);
		goto put;
	}
	rc = iommu_attach_device(d.domain, &d.device->dev);
	if (!rc) {
		rc = look(&d, r) ?: turns(&d, r);
		iommu_detach_device(d.domain, &d.device->dev);
	}
	iommu_domain_free(d.domain);
put:
	if (d.registers)
		iounmap(d.registers);
	pci_dev_put(d.device);
	return rc;
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
	case GB_IOMMU:
		rc = mappings(&r);
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
MODULE_DESCRIPTION("What get_user_pages_fast(), memory_failure() and iommu_unmap() cost");
