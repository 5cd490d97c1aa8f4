/* SPDX-License-Identifier: GPL-2.0-only */
/* Sizes ring buffers only; the loader passes the running machine's page size. */
#define PAGE_SIZE SOCKREDIR_PAGE_SIZE
