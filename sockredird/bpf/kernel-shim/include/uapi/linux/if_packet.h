/* SPDX-License-Identifier: GPL-2.0-only */
/* Empty: BCC includes it, the programs need nothing of it (BCC brings its own bpf.h). */
