/* SPDX-License-Identifier: GPL-2.0 */
/* What the guest's program asks of the module, by one ioctl. */
#ifndef GUPBENCH_H
#define GUPBENCH_H
#include <linux/types.h>
#include <linux/ioctl.h>

enum gb_op {
	GB_GET,		/* get_user_pages_fast(), and put_page() for each page */
	GB_PIN,		/* pin_user_pages_fast(), and unpin_user_pages() */
	GB_FAILURE,	/* memory_failure() of one frame after the other */
	GB_IOMMU,	/* iommu_map() for a device, and iommu_unmap() */
};

#define GB_LONGTERM	1u	/* flags of GB_PIN: with FOLL_LONGTERM */
#define GB_EACH		2u	/* flags of GB_IOMMU: unmap piece by piece, not all in one call */
#define GB_BATCH	4u	/* … so that the invalidations of GB_BATCHED pieces are one */
#define GB_BATCHED	512

/* Time-stamp counter from call to return, less an empty pair of readings. */
struct gb_times {
	__u64 least, median, most;
};

struct gb_request {
	__u32 op;
	__u32 flags;
	__u64 addr;		/* GET, PIN: where, in the caller's address space; IOMMU: I/O address of the first piece */
	__u64 pages;		/* GET, PIN: pages of each call; FAILURE: frames from `pfn` on; IOMMU: pieces, a power of two */
	__u64 turns;		/* GET, PIN: calls that are measured; IOMMU: times that all is mapped and unmapped */
	__u64 warm;		/* GET, PIN, IOMMU: such before those */
	__u64 pfn;		/* FAILURE: first frame; answer of GET and PIN: frame of the first page */
	__u64 stride;		/* FAILURE: from one frame to the next */
	__u64 bytes;		/* IOMMU: of each piece; their I/O addresses follow each other */
	__u64 phys;		/* IOMMU: the physical address of the first; the others lie apart, in no order, above it */
	__u64 registers;	/* IOMMU: the physical address of those of the VT-d unit */
	__u64 leaf;		/* answer of IOMMU: bytes that one entry of the page table maps */
	__u64 commands;		/* answer of IOMMU: IOTLB invalidations for all pieces unmapped */
	__u64 done;		/* answer: calls that did all that was asked */
	struct gb_times take;	/* answer: the call itself (IOMMU: all of a turn) */
	struct gb_times give;	/* answer: its opposite */
};

#define GB_RUN _IOWR('G', 3, struct gb_request)
#endif
