/* SPDX-License-Identifier: GPL-2.0-only */
/* BCC includes this first. bpf.h hides part of itself without CONFIG_BPF_SYSCALL. */
#define CONFIG_BPF_SYSCALL 1
