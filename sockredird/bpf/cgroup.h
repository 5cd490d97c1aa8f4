/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The cgroup of a socket; the one whose sockets are left to a datapath that is being tried, and those
 * that are excluded.
 */

inline_fn __u64 cgroup_of(__u64 sk)
{
	__u64 cgroup = 0, node = 0, id = 0;

	KERNEL_FIELD(cgroup, sk, OFF_sock_sk_cgrp_data + OFF_sock_cgroup_data_cgroup);
	if (cgroup)
		KERNEL_FIELD(node, cgroup, OFF_cgroup_kn);
	if (node)
		KERNEL_FIELD(id, node, OFF_kernfs_node_id);
	return id;
}

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
#define EXCLUDED 0x80000000	/* in a value of `excluded`: the path ends here */
#define MAX_EXCLUDED_DEPTH 16

static long (*read_kernel_str)(void *dst, __u32 size, const void *src) =
	(void *)BPF_FUNC_probe_read_kernel_str;

inline_fn int is_excluded(__u64 sk)
{
	int zero = 0;
	struct settings *s = settings.lookup(&zero);
	struct step step;
	__u64 cgroup = 0;
	__u32 depth = 0, directory = 0;

	if (!s || !s->excludes)
		return 0;
#ifdef OFF_cgroup_ancestors
	if (KERNEL_FIELD(cgroup, sk, OFF_sock_sk_cgrp_data + OFF_sock_cgroup_data_cgroup) ||
	    KERNEL_FIELD(depth, cgroup, OFF_cgroup_level))
		return 1;
#pragma clang loop unroll(disable)
	for (__u32 level = 1; level <= MAX_EXCLUDED_DEPTH && level <= depth; level++) {
		__u64 at = cgroup + OFF_cgroup_ancestors + 8 * level;
		__u64 ancestor = 0, node = 0, name = 0;
		__u32 *next;

		__builtin_memset(&step, 0, sizeof(step));
		step.directory = directory;
		if (KERNEL_FIELD(ancestor, at, 0) || KERNEL_FIELD(node, ancestor, OFF_cgroup_kn) ||
		    KERNEL_FIELD(name, node, OFF_kernfs_node_name) ||
		    read_kernel_str(step.name, sizeof(step.name), (void *)name) < 0)
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
	return 1;	/* the daemon does not let it come to that */
#endif
}
