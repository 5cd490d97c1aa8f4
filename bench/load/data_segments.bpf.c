/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * sock_ops: counts the data segments that connections of a cgroup have sent by TCP, at each end, as
 * they close. A message of a request or an answer is one: the loopback takes 64 KiB in a segment.
 */
#include <linux/types.h>
#include <uapi/linux/bpf.h>

BPF_ARRAY(segments, __u64, 1);

int data_segments(struct bpf_sock_ops *skops)
{
	int zero = 0;
	__u64 *total;

	switch (skops->op) {
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		bpf_sock_ops_cb_flags_set(skops, skops->bpf_sock_ops_cb_flags |
							 BPF_SOCK_OPS_STATE_CB_FLAG);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		total = segments.lookup(&zero);
		if (total && skops->args[1] == BPF_TCP_CLOSE)
			__sync_fetch_and_add(total, skops->data_segs_out);
		break;
	}
	return 1;
}
