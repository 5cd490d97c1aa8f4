/* SPDX-License-Identifier: GPL-2.0-only */
/* BCC's helpers.h asks for one; kernels ignore it for every program type used here. */
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(6, 1, 0)
