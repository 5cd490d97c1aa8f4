/* SPDX-License-Identifier: GPL-2.0-only */
/* The cgroup of a socket; and the one whose sockets are left to a datapath that is being tried. */

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
