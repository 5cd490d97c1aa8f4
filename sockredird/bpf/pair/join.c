/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * iter/task_file: puts connections on the sockhash that were established before, or that had to
 * leave.
 *
 * sockredir_candidates lists the ends in scope that have carried data lately, with the cause for
 * which one stays on TCP. The daemon finds the two ends of a connection among them by their initial
 * sequence numbers, which hold through NAT and across network namespaces, and writes the pairs that
 * may join to `joining`. sockredir_join then puts them on the sockhash. What proves a pair is the
 * rule at its first message (carry/begin.h).
 *
 * Sockets that no program has open, and those of cgroups without our programs, are not met.
 */
#pragma once
#include "scope.h"
#include "cgroup.h"
#include "suitable.h"
#include "../carry/reader.h"
#include "../learn/learn.h"
#include "../show/list.c"

#define IPPROTO_TCP 6
#define SCOPE_LEVELS 16 /* cgroups on the way from the root that are looked at */
#define SEQUENCE_READS 4

/* Whether the programs are attached to the socket's cgroup, or above. */
inline_fn int cgroup_in_scope(__u64 sk)
{
#ifdef CGROUP_NAMES
	__u64 cgroup = cgroup_address_of(sk), id;
	__s32 depth = cgroup_level(cgroup);

#pragma clang loop unroll(disable)
	for (__s32 level = 0; level <= SCOPE_LEVELS; level++) {
		OPTIMIZER_HIDE_VAR(depth); /* as in is_excluded() */
		if (level > depth)
			return 0;
		id = ancestor_id(cgroup, level);
		if (scope_cgroups.lookup(&id))
			return 1;
	}
	return 0;
#else
	__u64 id = cgroup_of(sk);

	return scope_cgroups.lookup(&id) != NULL;
#endif
}

inline_fn void read_addresses(struct candidate *c, __u64 sk)
{
	if (kernel_family(sk) == AF_INET) {
		map_v4(c->local_ip, kernel_rcv_saddr(sk));
		map_v4(c->remote_ip, kernel_daddr(sk));
	} else {
		read_ip6(c->local_ip, c->remote_ip, sk);
	}
	c->local_port = kernel_num(sk);
	c->remote_port = bpf_ntohs(kernel_dport(sk));
	c->netns = netns_cookie_of(sk);
}

/* Whether data came or went within the last jiffies that the daemon asks about. */
inline_fn int is_active(__u64 sk, const struct settings *s)
{
	__u32 now = bpf_jiffies64();

	return now - kernel_last_sent(sk) < s->recent || now - last_received(sk) < s->recent;
}

/*
 * The initial sequence numbers + 1. What came in has been counted exactly; of what was
 * acknowledged, the SYN is counted for the client alone (tcp_ack(), tcp_create_openreq_child()).
 * Not 0 if the numbers changed each time that they were read, as those of a stream may.
 */
inline_fn int read_sequence(struct candidate *c, __u64 sk)
{
#pragma unroll
	for (int i = 0; i < SEQUENCE_READS; i++) {
		__u32 rcv_nxt = kernel_rcv_nxt(sk), snd_una = kernel_snd_una(sk);

		c->peer_isn_1 = rcv_nxt - (__u32)kernel_bytes_received(sk);
		c->isn_1 = snd_una - (__u32)kernel_bytes_acked(sk);
		if (rcv_nxt == kernel_rcv_nxt(sk) && snd_una == kernel_snd_una(sk))
			return 0;
	}
	return 1;
}

/* CAUSE_NONE, or why this end stays on TCP. */
inline_fn enum cause unfit_to_join(struct sock *sk, struct tcp_sock *tp)
{
	struct sock_state *st = sockets.sk_storage_get(sk, NULL, 0);

	if (kernel_user_data((__u64)tp))
		return CAUSE_OTHER_SOCKMAP; /* or a member already, or read by the kernel itself */
	if (st && st->guard_cause && st->guard_cause != CAUSE_BLOCKING_READER)
		return st->guard_cause;
	if (is_excluded((__u64)tp))
		return CAUSE_PEER_OUTSIDE;
	return unsuitable(tp);
}

/* The TCP socket behind a file, or NULL. */
inline_fn struct tcp_sock *tcp_of(struct bpf_iter__task_file *ctx, struct sock **sk)
{
	struct file *file = (void *)ctx->file;
	struct socket *socket;
	struct tcp_sock *tp;

	if (!file || !ctx->task)
		return NULL;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return NULL;
	*sk = sock_of(socket);
	if (!*sk || kernel_protocol((__u64)*sk) != IPPROTO_TCP)
		return NULL;
	tp = bpf_skc_to_tcp_sock(*sk);
	return tp;
}

int sockredir_candidates(struct bpf_iter__task_file *ctx)
{
	struct seq_file *seq = *(struct seq_file **)ctx->meta;
	struct candidate c = {};
	struct sock *sk = NULL;
	struct settings *s;
	struct tcp_sock *tp = tcp_of(ctx, &sk);
	__u8 state;
	int zero = 0;

	s = settings.lookup(&zero);
	if (!tp || !s)
		return 0;
	c.sk = (__u64)tp;
	state = kernel_state(c.sk);
	if (state == BPF_TCP_LISTEN) {
		c.netns = netns_cookie_of(c.sk);
		c.local_port = kernel_num(c.sk);
		c.listens = 1;
		bpf_seq_write(seq, &c, sizeof(c));
		return 0;
	}
	if (state != BPF_TCP_ESTABLISHED || !is_active(c.sk, s) || !cgroup_in_scope(c.sk))
		return 0;
	c.cause = unfit_to_join(sk, tp);
	if (c.cause == CAUSE_OTHER_SOCKMAP || c.cause == CAUSE_PEER_OUTSIDE ||
	    read_sequence(&c, c.sk))
		return 0;
	read_addresses(&c, c.sk);
	c.cgroup = cgroup_of(c.sk);
	c.segments = kernel_data_segs_out(c.sk) + kernel_data_segs_in(c.sk);
	c.polls = s->blocking || polls(c.sk);
	bpf_seq_write(seq, &c, sizeof(c));
	return 0;
}

/* Notes that this end is on the sockhash; the one that comes second completes the pair. */
inline_fn void complete(struct sock_state *st, const struct joining *j, __u64 sk)
{
	struct pair pair = j->pair;
	struct handshake *hs = handshakes.lookup(&pair);
	struct flow flow = j->flow;
	struct server_address server = j->server;
	struct counters *c = counters_here();
	struct listener l = { .netns = server.netns, .port = server.port };
	__u32 side = j->side & 1;

	if (!hs)
		return;
	if (side == CLIENT)
		hs->client_st = (__u64)st;
	else
		hs->server_st = (__u64)st;
	store_barrier(st); /* pairs with read_handshake() */
	/* one walk at a time, so nobody else writes this */
	WRITE_ONCE(hs->joined, hs->joined | 1 << side);
	if (hs->joined != 3 || !c)
		return;
	count(&c->accelerated_connections, 1);
	count(&c->joined_connections, 1);
	joined_to(&l, &flow, hs->client_sk);
	report(EVENT_JOINED, 0, &flow, &server, st->since, NULL);
}

/* BCC's update() of a sockhash passes BPF_ANY, which would displace another connection's entry. */
#define BPF_ANY BPF_NOEXIST
inline_fn int put_on_sockhash(struct end *self, struct sock *sk)
{
	return peers.update(self, (int *)sk);
}
#undef BPF_ANY

inline_fn enum cause may_join(struct sock *sk, struct tcp_sock *tp, const struct joining *j)
{
	struct learned_entry *e = learned_of(j->server.netns, j->server.port);

	if (e && !is_unprofitable(e->cause))
		return CAUSE_LEARNED;
	if (j->side == CLIENT && learned_of_user(&j->flow, (__u64)tp))
		return CAUSE_LEARNED;
	return unfit_to_join(sk, tp);
}

int sockredir_join(struct bpf_iter__task_file *ctx)
{
	struct sock *sk = NULL;
	struct tcp_sock *tp = tcp_of(ctx, &sk);
	struct joined result = {};
	struct candidate c = {};
	struct sock_state *st;
	struct joining *j;
	struct end self = {};
	int error;

	if (!tp)
		return 0;
	result.sk = (__u64)tp;
	j = joining.lookup(&result.sk);
	/* another connection may have the address of the struct sock by now */
	if (!j || kernel_state(result.sk) != BPF_TCP_ESTABLISHED || read_sequence(&c, result.sk) ||
	    c.peer_isn_1 != (j->side == CLIENT ? j->pair.server_seq : j->pair.client_seq))
		return 0;
	result.cause = may_join(sk, tp, j);
	if (result.cause)
		goto done;
	st = sockets.sk_storage_get(sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!st) {
		result.cause = CAUSE_NO_MEMORY;
		goto done;
	}
	__builtin_memset(st, 0, sizeof(*st));
	self.pair = j->pair;
	self.side = j->side & 1;
	st->self = self;
	st->peer.pair = j->pair;
	st->peer.side = !self.side;
	st->since = bpf_ktime_get_ns();
	st->flow = j->flow;
	if (self.side == SERVER)
		st->server = j->server;
	st->joined = 1;
	st->awaits = AWAITS_MESSAGE;
	error = put_on_sockhash(&self, sk);
	if (error) {
		result.cause = cause_of_error(error);
		sockets.sk_storage_delete(sk);
	} else {
		complete(st, j, result.sk);
	}
done:
	bpf_seq_write(*(struct seq_file **)ctx->meta, &result, sizeof(result));
	return 0;
}
