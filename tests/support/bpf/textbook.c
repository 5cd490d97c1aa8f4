/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The datapath found in tutorials, and wrong: every established socket goes on a sockhash keyed by
 * its 4-tuple, every message is redirected to the mirrored tuple. The tests run their traffic
 * against it first: a test that cannot see it fail sees nothing.
 */
#include <linux/types.h>
#include <uapi/linux/bpf.h>

struct tuple {
	__u32 local_ip;
	__u32 remote_ip;
	__u32 local_port;
	__u32 remote_port;
};

BPF_SOCKHASH(members, struct tuple, 65536);

int textbook_sockops(struct bpf_sock_ops *skops)
{
	volatile __u32 remote_port = skops->remote_port;
	struct tuple self = {};

	if (skops->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB &&
	    skops->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return 1;
	if (skops->family != 2)		/* AF_INET */
		return 1;
	self.local_ip = skops->local_ip4;
	self.remote_ip = skops->remote_ip4;
	self.local_port = skops->local_port;
	self.remote_port = bpf_ntohl(remote_port);
	members.sock_hash_update(skops, &self, BPF_ANY);
	return 1;
}

int textbook_msg(struct sk_msg_md *msg)
{
	volatile __u32 remote_port = msg->remote_port;
	struct tuple peer = {};

	peer.local_ip = msg->remote_ip4;
	peer.remote_ip = msg->local_ip4;
	peer.local_port = bpf_ntohl(remote_port);
	peer.remote_port = msg->local_port;
	/* A miss is passed to TCP: tutorials return the helper's verdict, which drops instead. */
	members.msg_redirect_hash(msg, &peer, BPF_F_INGRESS);
	return SK_PASS;
}
