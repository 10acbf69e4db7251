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
};

#define GB_LONGTERM	1u	/* flags of GB_PIN: with FOLL_LONGTERM */

/* Time-stamp counter from call to return, less an empty pair of readings. */
struct gb_times {
	__u64 least, median, most;
};

struct gb_request {
	__u32 op;
	__u32 flags;
	__u64 addr;		/* GET, PIN: where, in the caller's address space */
	__u64 pages;		/* GET, PIN: pages of each call; FAILURE: frames from `pfn` on */
	__u64 turns;		/* GET, PIN: calls that are measured */
	__u64 warm;		/* GET, PIN: calls before those */
	__u64 pfn;		/* FAILURE: first frame; answer of GET and PIN: frame of the first page */
	__u64 stride;		/* FAILURE: from one frame to the next */
	__u64 done;		/* answer: calls that did all that was asked */
	struct gb_times take;	/* answer: the call itself */
	struct gb_times give;	/* answer: its opposite */
};

#define GB_RUN _IOWR('G', 2, struct gb_request)
#endif
