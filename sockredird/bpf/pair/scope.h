/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which connections are in scope, by their addresses and port; and how a client end knows, before it
 * is put on the sockhash, that its server end is on this host. When a listener in scope answers a SYN
 * it records the flow in `flow_syns`, and with addresses = "any" the client's address in
 * `client_syns`; the client end looks there.
 *
 * addresses    in scope                                      SYN recorded under
 * loopback     both ends on loopback addresses               flow and netns
 * host         both ends on addresses of this host           flow and netns
 * any          all; NAT may translate the server's address   that, and the client's address alone
 *
 * The client's address alone proves little: anybody may have the same in another netns. It only
 * decides whether the client end is put on the sockhash and waits; the pair of sequence numbers
 * decides what it is paired with.
 */
#pragma once
#include "../maps.h"

#define AF_INET 2
#define AF_INET6 10
#define SYN_VALID_NS 60000000000ULL /* SYN-ACK retransmissions included */

inline_fn __u16 local_port(struct bpf_sock_ops *skops)
{
	return skops->local_port;
}

inline_fn __u16 remote_port(struct bpf_sock_ops *skops)
{
	/* volatile: the compiler would narrow the load, which the verifier refuses here */
	volatile __u32 port = skops->remote_port;

	return bpf_ntohl(port);
}

inline_fn int is_loopback4(__u32 ip)
{
	return (ip & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
}

inline_fn void map_v4(__u32 *ip6, __u32 ip4)
{
	ip6[0] = 0;
	ip6[1] = 0;
	ip6[2] = bpf_htonl(0x0000ffff);
	ip6[3] = ip4;
}

inline_fn int is_loopback(const __u32 *ip6)
{
	if (ip6[0] || ip6[1])
		return 0;
	if (ip6[2] == bpf_htonl(0x0000ffff))
		return is_loopback4(ip6[3]);
	return !ip6[2] && ip6[3] == bpf_htonl(1);
}

inline_fn int same_ip(const __u32 *a, const __u32 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

inline_fn int same_client(const struct flow *a, const struct flow *b)
{
	return same_ip(a->client_ip, b->client_ip) && a->client_port == b->client_port;
}

inline_fn int same_flow(const struct flow *a, const struct flow *b)
{
	return same_client(a, b) && same_ip(a->server_ip, b->server_ip) &&
	       a->server_port == b->server_port && a->netns == b->netns;
}

/* The connection as this socket sees it; `side` is the side of this socket, `netns` its own. */
inline_fn int read_flow(struct bpf_sock_ops *skops, __u64 netns, enum side side, struct flow *flow)
{
	__u32 local[4], remote[4], local4 = skops->local_ip4, remote4 = skops->remote_ip4;

	/* loaded before the branch: the compiler would make one load of two, at an address it chose */
	asm volatile("" : "+r"(local4), "+r"(remote4));
	if (skops->family == AF_INET) {
		map_v4(local, local4);
		map_v4(remote, remote4);
	} else if (skops->family == AF_INET6) {
		local[0] = skops->local_ip6[0];
		local[1] = skops->local_ip6[1];
		local[2] = skops->local_ip6[2];
		local[3] = skops->local_ip6[3];
		remote[0] = skops->remote_ip6[0];
		remote[1] = skops->remote_ip6[1];
		remote[2] = skops->remote_ip6[2];
		remote[3] = skops->remote_ip6[3];
	} else {
		return 0;
	}
	__builtin_memset(flow, 0, sizeof(*flow));
	if (side == CLIENT) {
		__builtin_memcpy(flow->client_ip, local, 16);
		__builtin_memcpy(flow->server_ip, remote, 16);
		flow->client_port = local_port(skops);
		flow->server_port = remote_port(skops);
	} else {
		__builtin_memcpy(flow->client_ip, remote, 16);
		__builtin_memcpy(flow->server_ip, local, 16);
		flow->client_port = remote_port(skops);
		flow->server_port = local_port(skops);
	}
	flow->netns = netns;
	return 1;
}

inline_fn int port_in_scope(__u16 port)
{
	int zero = 0;
	struct ports *p = ports.lookup(&zero);
	__u32 at = port >> 3;

	OPTIMIZER_HIDE_VAR(at); /* else one shift is made of this and of the byte order's */
	if (!p || at >= sizeof(p->bits))
		return 0;
	return (p->bits[at] >> (port & 7)) & 1;
}

enum reach {
	OUT_OF_SCOPE, /* by its addresses */
	NEAR,	      /* both ends have addresses of this netns, as far as that is known */
	FAR, /* another address of it, another netns, a translated address, or another host */
};

/* Whether the other end has an address of the daemon's netns, where this one is. */
inline_fn int is_own(const __u32 *remote_ip, __u64 netns)
{
	struct address remote = { .netns = netns };

	__builtin_memcpy(remote.ip, remote_ip, 16);
	return own_addresses.lookup(&remote) != NULL;
}

/*
 * Without asking the routing table: a program that connects to an address of its host has that
 * address itself, unless it chose another. Under `any` that makes no difference to what is paired,
 * so no look-up is spent on it.
 */
inline_fn enum reach reach_of(const struct flow *flow, enum side side)
{
	const __u32 *remote_ip = side == CLIENT ? flow->server_ip : flow->client_ip;
	int zero = 0;
	struct settings *s = settings.lookup(&zero);

	if (!s)
		return OUT_OF_SCOPE;
	if (s->addresses == ADDRESSES_LOOPBACK)
		return is_loopback(flow->client_ip) && is_loopback(flow->server_ip) ? NEAR :
										      OUT_OF_SCOPE;
	if (same_ip(flow->client_ip, flow->server_ip) || is_loopback(remote_ip))
		return NEAR;
	if (s->addresses == ADDRESSES_ANY)
		return FAR;
	return is_own(remote_ip, flow->netns) ? NEAR : OUT_OF_SCOPE;
}

inline_fn int translation_in_scope(void)
{
	int zero = 0;
	struct settings *s = settings.lookup(&zero);

	return s && s->addresses == ADDRESSES_ANY;
}

/* For a client's address, all that both ends see alike through DNAT and across netns. */
inline_fn struct client_syn *client_syn_for(const struct flow *flow)
{
	int zero = 0;
	struct settings *s = settings.lookup(&zero);
	__u64 hash;
	__u32 slot;

	if (!s)
		return NULL;
	hash = (s->seed ^ flow->client_port) * MIX;
	hash = (hash ^ hash >> 32 ^ flow->client_ip[0] ^ (__u64)flow->client_ip[1] << 32) * MIX;
	hash = (hash ^ hash >> 32 ^ flow->client_ip[2] ^ (__u64)flow->client_ip[3] << 32) * MIX;
	slot = hash >> 32 & (SYN_RECORDS - 1);
	return client_syns.lookup(&slot);
}

inline_fn struct flow_syn *flow_syn_for(const struct flow *flow)
{
	__u32 slot = hash_of(flow) & (SYN_RECORDS - 1);

	return flow_syns.lookup(&slot);
}

inline_fn struct unmatched_client *unmatched_for(const struct pair *pair)
{
	__u32 slot = (pair->client_seq ^ pair->server_seq) & (UNMATCHED_CLIENTS - 1);

	return unmatched.lookup(&slot);
}

/* Records that a listener in scope answers this SYN. */
inline_fn void note_syn(const struct flow *flow, enum reach reach)
{
	__u64 now = recent_time();

	if (reach == NEAR) {
		struct flow_syn *syn = flow_syn_for(flow);

		if (!syn)
			return;
		syn->flow = *flow;
		syn->time = now;
	}
	if (translation_in_scope()) {
		struct client_syn *syn = client_syn_for(flow);

		if (!syn)
			return;
		__builtin_memcpy(syn->client_ip, flow->client_ip, 16);
		syn->client_port = flow->client_port;
		syn->time = now;
	}
}

/* Whether there is a record of this client's SYN; removes it, so that it serves one connection. */
inline_fn int claim_client_syn(const struct flow *flow)
{
	struct client_syn *syn = client_syn_for(flow);
	__u64 then;

	if (!syn || !same_ip(syn->client_ip, flow->client_ip) ||
	    syn->client_port != flow->client_port)
		return 0;
	then = syn->time;
	syn->time = 0;
	return then && recent_time() - then <= SYN_VALID_NS;
}

inline_fn int claim_flow_syn(const struct flow *flow)
{
	struct flow_syn *syn = flow_syn_for(flow);
	__u64 then;

	if (!syn || !same_flow(&syn->flow, flow))
		return 0;
	then = syn->time;
	syn->time = 0;
	return then && recent_time() - then <= SYN_VALID_NS;
}

/* Which records there were of a client's SYN, ored. */
enum syn_claim {
	NO_SYN = 0,
	CLIENT_SYN = 1, /* a listener answered this client's address, under whatever address */
	FLOW_SYN = 2,	/* a listener in this netns answered this very SYN */
};

inline_fn __u32 claim_syn(const struct flow *flow, enum reach reach)
{
	__u32 claimed = NO_SYN;

	if (translation_in_scope() && claim_client_syn(flow))
		claimed |= CLIENT_SYN;
	if (reach == NEAR && claim_flow_syn(flow))
		claimed |= FLOW_SYN;
	return claimed;
}

/*
 * Server side: whether the record of its client's SYN is still there, so that no client in scope
 * has claimed it. Clients are established before servers. The client is not in scope then, or SNAT
 * hides it; claim_syn() removes the record all the same, since a client in scope that gets this
 * address and port next would believe it.
 */
inline_fn int client_in_scope(__u32 unclaimed)
{
	return !(unclaimed & (translation_in_scope() ? CLIENT_SYN : FLOW_SYN));
}
