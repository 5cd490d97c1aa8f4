/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Whether a socket's cgroup is left alone: the one in which the daemon tries another datapath, and
 * those that are excluded.
 */
#pragma once
#include "../maps.h"

/* The daemon tries the kernel with another datapath there: nothing for this one to see or count. */
inline_fn int on_trial(struct bpf_sock *sk)
{
	int zero = 0;
	struct settings *s = settings.lookup(&zero);
	struct tcp_sock *tp;

	if (!s || !s->trial)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	return tp && cgroup_of((__u64)tp) == s->trial;
}

/*
 * Whether the socket belongs to an excluded cgroup, or below. They are found by their names from
 * the root down, as a service's cgroup is made anew each time it starts.
 */
#define EXCLUDED 0x80000000 /* in a value of `excluded`: the path ends here */
#define MAX_EXCLUDED_DEPTH 16

inline_fn int is_excluded(__u64 sk)
{
	int zero = 0;
	struct settings *s = settings.lookup(&zero);

	if (!s || !s->excludes)
		return 0;
#ifdef CGROUP_NAMES
	__u64 cgroup = cgroup_address_of(sk);
	__s32 depth = cgroup_level(cgroup);
	struct step step;
	__u32 directory = 0;

	if (depth < 0)
		return 1;
#pragma clang loop unroll(disable)
	for (__s32 level = 1; level <= MAX_EXCLUDED_DEPTH; level++) {
		__u32 *next;

		OPTIMIZER_HIDE_VAR(depth); /* else it counts down from the smaller of the two */
		if (level > depth)
			return 0;
		__builtin_memset(&step, 0, sizeof(step));
		step.directory = directory;
		if (read_ancestor_name(step.name, sizeof(step.name), cgroup, level))
			return 1;
		next = excluded.lookup(&step);
		if (!next)
			return 0;
		if (*next & EXCLUDED)
			return 1;
		directory = *next;
	}
	return 0;
#else
	return 1; /* the daemon refuses exclude_cgroups on such a kernel */
#endif
}
