/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The datapath of Intel's istio-tcpip-bypass, without its debugging: like the textbook's, but it asks
 * a hash for the peer's tuple, so that it finds an end whose address a proxy's iptables rules have
 * changed. That one is for a mesh only, and leaves a connection alone whose addresses are the same.
 */
#include <linux/types.h>
#include <uapi/linux/bpf.h>

struct address {
	__u32 ip;
	__u32 port;
};

struct tuple {
	struct address local;
	struct address remote;
};

BPF_HASH(clients, struct address, struct address, 65536); /* where each client connects to */
BPF_HASH(others, struct tuple, struct tuple, 65536);
BPF_SOCKHASH(members, struct tuple, 65536);

static inline __attribute__((always_inline)) void server_established(struct bpf_sock_ops *skops,
								     struct tuple *self)
{
	struct address *asked = clients.lookup(&self->remote);
	struct tuple client = { .local = self->remote };

	if (!asked)
		return;
	client.remote = *asked;
	others.update(&client, self);
	others.update(self, &client);
	members.sock_hash_update(skops, self, BPF_ANY);
	clients.delete(&self->remote);
}

int mesh_sockops(struct bpf_sock_ops *skops)
{
	volatile __u32 remote_port = skops->remote_port;
	struct tuple self = {};

	if (skops->family != 2) /* AF_INET */
		return 1;
	self.local.ip = skops->local_ip4;
	self.local.port = skops->local_port;
	self.remote.ip = skops->remote_ip4;
	self.remote.port = bpf_ntohl(remote_port);
	switch (skops->op) {
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		clients.update(&self.local, &self.remote);
		members.sock_hash_update(skops, &self, BPF_ANY);
		bpf_sock_ops_cb_flags_set(skops, BPF_SOCK_OPS_STATE_CB_FLAG);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		server_established(skops, &self);
		bpf_sock_ops_cb_flags_set(skops, BPF_SOCK_OPS_STATE_CB_FLAG);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (skops->args[1] != BPF_TCP_CLOSE)
			break;
		others.delete(&self);
		clients.delete(&self.local);
		break;
	}
	return 1;
}

int mesh_msg(struct sk_msg_md *msg)
{
	volatile __u32 remote_port = msg->remote_port;
	struct tuple self = {}, *other;

	self.local.ip = msg->local_ip4;
	self.local.port = msg->local_port;
	self.remote.ip = msg->remote_ip4;
	self.remote.port = bpf_ntohl(remote_port);
	other = others.lookup(&self);
	if (other)
		members.msg_redirect_hash(msg, other, BPF_F_INGRESS);
	return SK_PASS;
}
