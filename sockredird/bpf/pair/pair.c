/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * sock_ops: pairs the two ends of a same-host connection as it is established.
 *
 * A listener in scope answers a SYN      -> records the SYN (pair/scope.h)
 * the client end is established          -> goes on the sockhash, leaves a `handshake`
 * the server end finds that handshake    -> goes on the sockhash: the pair is complete
 *
 * Whatever does not fit leaves both ends plain TCP sockets. Always returns 1 and never writes
 * `reply`: returning 0 would turn the callbacks of other sock_ops programs into errors.
 */
#pragma once
#include "scope.h"
#include "cgroup.h"
#include "suitable.h"
#include "../leave/half_closed.h"
#include "../carry/bounds.h"
#include "../learn/learn.h"

#define TCPHDR_SYN 0x02

inline_fn void decline(enum cause reason, struct flow *flow)
{
	count_declined(reason);
	record_reason(reason, flow);
	report(EVENT_DECLINED, reason, flow, NULL, NOW, NULL);
}

/* A peer that is out of scope: on another host, most probably, and there may be many. */
inline_fn void decline_outside(struct flow *flow, enum reach reach)
{
	if (reach == NEAR)
		return decline(CAUSE_PEER_OUTSIDE, flow);
	count_declined(CAUSE_PEER_OUTSIDE);
	report(EVENT_DECLINED, CAUSE_PEER_OUTSIDE, flow, NULL, NOW, NULL);
}

/* Declines on behalf of the server end, which knows both views of the connection. */
inline_fn void decline_both(enum cause reason, struct flow *of_client, struct flow *of_server)
{
	struct server_address here;

	read_server_address(&here, of_server);
	count_declined(reason);
	record_reason(reason, of_client);
	if (!same_flow(of_client, of_server))
		record_reason(reason, of_server);
	report(EVENT_DECLINED, reason, of_client, &here, NOW, NULL);
}

/* 0, or what a program asked for between connect() and now, see guard.c. */
inline_fn enum cause asked_while_connecting(struct bpf_sock *sk)
{
	struct sock_state *st = sockets.sk_storage_get(sk, NULL, 0);

	return st ? st->guard_cause : CAUSE_NONE;
}

/* Puts one end on the sockhash; CAUSE_NONE, or why it could not. */
inline_fn enum cause join(struct bpf_sock_ops *skops, struct bpf_sock *sk, struct tcp_sock *tp,
			  enum side side, const struct flow *flow, const struct pair *pair,
			  struct handshake *hs)
{
	struct sock_state *st = sockets.sk_storage_get(sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	struct end self = { .pair = *pair, .side = side };
	int err, flags, zero = 0;
	struct settings *s = settings.lookup(&zero);

	if (!st || !s)
		return CAUSE_NO_MEMORY;
	__builtin_memset(st, 0, sizeof(*st));
	st->self = self;
	st->peer.pair = *pair;
	st->peer.side = !side;
	if (side == SERVER) {
		st->peer_sk = hs->client_sk;
		st->peer_st = hs->client_st;
		hs->server_st = (__u64)st;
	} else {
		hs->client_st = (__u64)st;
	}
	st->since = bpf_ktime_get_ns();
	st->flow = hs->flow; /* the client's view on both ends */
	if (side == SERVER)
		read_server_address(&st->server, flow);
	st->provisional = side == CLIENT && !hs->answered;
	st->awaits = s->begin_late ? AWAITS_MESSAGE : AWAITS_NOTHING;
	/* NOEXIST: a collision of sequence numbers, or a forged one, must not displace anybody */
	err = peers.sock_hash_update(skops, &self, BPF_NOEXIST);
	if (err) {
		sockets.sk_storage_delete(sk);
		return cause_of_error(err);
	}
	flags = skops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG;
	if (st->provisional)
		flags |= BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG;
	bpf_sock_ops_cb_flags_set(skops, flags);
	store_barrier(st); /* comes before server_sk; pairs with read_handshake() */
	return 0;
}

/*
 * The first segment that a provisional client end receives. Its server end was established before
 * it could send one: if that has not joined by now, it is not in scope, and never will.
 */
inline_fn void segment_received(struct bpf_sock_ops *skops)
{
	struct bpf_sock *sk = skops->sk;
	struct sock_state *st;
	struct handshake *hs;
	struct flow flow;
	struct end self;

	bpf_sock_ops_cb_flags_set(skops, skops->bpf_sock_ops_cb_flags &
						 ~BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG);
	if (!sk)
		return;
	st = sockets.sk_storage_get(sk, NULL, 0);
	if (!st || !st->provisional || st->peer_sk || READ_ONCE(st->stop))
		return;
	self = st->self;
	flow = st->flow;
	hs = handshakes.lookup(&self.pair);
	if (hs && hs->server_sk)
		return;
	/* nothing was ever redirected to it */
	peers.delete(&self);
	handshakes.delete(&self.pair);
	sockets.sk_storage_delete(sk);
	decline(CAUSE_PEER_OUTSIDE, &flow);
}

/* The accepting side speaks first: raised for each SYN a listener in scope answers. */
inline_fn void syn_answered(struct bpf_sock_ops *skops, __u64 netns)
{
	enum reach reach;
	struct flow flow;

	if (!read_flow(skops, netns, SERVER, &flow))
		return;
	reach = reach_of(&flow, SERVER);
	if (reach != OUT_OF_SCOPE)
		note_syn(&flow, reach);
}

/*
 * No listener in scope has answered this client's address. One may have answered another that SNAT
 * gave it: then the server end is in scope, and finds out by what is left here, too late.
 */
inline_fn void unanswered(const struct pair *pair, struct flow *flow, enum reach reach)
{
	if (translation_in_scope()) {
		struct unmatched_client *u = unmatched_for(pair);

		if (u) {
			u->pair = *pair;
			u->flow = *flow;
		}
	}
	if (port_in_scope(flow->server_port))
		decline_outside(flow, reach);
}

/* Its SYN was left alone. Counted here and not at the server end. */
inline_fn void decline_learned(struct flow *flow)
{
	if (!port_in_scope(flow->server_port))
		return;
	count_declined(CAUSE_LEARNED);
	report(EVENT_DECLINED, CAUSE_LEARNED, flow, NULL, NOW, NULL);
}

inline_fn void client_established(struct bpf_sock_ops *skops, __u64 netns)
{
	struct handshake hs = {};
	struct pair pair = {};
	struct bpf_sock *sk = skops->sk;
	struct tcp_sock *tp;
	enum cause reason;
	enum reach reach;
	__u32 claimed;

	if (!sk || !read_flow(skops, netns, CLIENT, &hs.flow))
		return;
	reach = reach_of(&hs.flow, CLIENT);
	if (reach == OUT_OF_SCOPE)
		return;
	pair.client_seq = skops->snd_nxt;
	pair.server_seq = skops->rcv_nxt;
	claimed = claim_syn(&hs.flow, reach);
	if (!claimed && learned_of(netns, hs.flow.server_port))
		return decline_learned(&hs.flow);
	if (!claimed)
		return unanswered(&pair, &hs.flow, reach);
	if (on_trial(sk))
		return;

	/*
	 * TCP Fast Open. The SYN's data was taken: the server end was established, and declined,
	 * before us; the connection may join. It was not: it still waits in the write queue (checked
	 * below).
	 */
	if (skops->bytes_acked > 1)
		return ask(REQUEST_JOIN);

	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp || is_excluded((__u64)tp))
		return;
	hs.answered = claimed & FLOW_SYN;
	reason = unsuitable(tp);
	if (!reason)
		reason = asked_while_connecting(sk);
	if (!reason && learned_of_user(&hs.flow, (__u64)tp))
		reason = CAUSE_LEARNED;
	if (!reason && own_write_seq(tp) != pair.client_seq && fionread_omits_tcp())
		reason = CAUSE_EARLY_DATA;
	if (!reason)
		reason = join(skops, sk, tp, CLIENT, &hs.flow, &pair, &hs);
	if (!reason)
		hs.client_sk = (__u64)tp;
	/*
	 * A declined client leaves a handshake, too (client_sk 0), so that the pair is counted once.
	 * It displaces no other: sequence numbers can be chosen (TCP_REPAIR, raw sockets).
	 */
	if (handshakes.insert(&pair, &hs) && !reason) {
		struct end self = { .pair = pair, .side = CLIENT };

		peers.delete(&self);
		sockets.sk_storage_delete(sk);
		reason = CAUSE_MISMATCH;
	}
	if (reason)
		decline(reason, &hs.flow);
	else
		report(EVENT_ACTIVE, 0, &hs.flow, NULL, NOW, NULL);
}

/* Whether the segment that completed the handshake carries data (TCP_DEFER_ACCEPT, Fast Open). */
inline_fn int segment_has_data(struct bpf_sock_ops *skops)
{
	__u8 *tcp = skops->skb_data;
	void *end = skops->skb_data_end;

	if (skops->skb_tcp_flags & TCPHDR_SYN)
		return 1;
	if ((void *)(tcp + 20) > end)
		return 1;
	return skops->skb_len > (tcp[12] >> 4) * 4; /* data offset, RFC 9293 3.1 */
}

/* No client end in scope has left a handshake. */
inline_fn void client_outside(const struct pair *pair, struct flow *flow, enum reach reach,
			      int learned_listener)
{
	struct flow of_client = {};
	struct unmatched_client *u;

	if (learned_listener)
		return; /* the client end has counted it */
	u = translation_in_scope() ? unmatched_for(pair) : NULL;
	if (!u || u->pair.client_seq != pair->client_seq || u->pair.server_seq != pair->server_seq)
		return decline_outside(flow, reach);
	of_client = u->flow;
	ask(REQUEST_JOIN);
	/* the same address: its SYN was answered with a cookie, or before acceleration was enabled */
	decline_both(same_client(&of_client, flow) ? CAUSE_PEER_OUTSIDE : CAUSE_UNDECIDABLE,
		     &of_client, flow);
}

/*
 * Whether data went by TCP before the pair was complete. The client's first message may even have
 * overtaken its ACK (RPS). The direction is redirected once that is read (carry/begin.h), except
 * where a reader that asks FIONREAD would not learn of it.
 */
inline_fn int has_early_data(struct bpf_sock_ops *skops, const struct handshake *hs,
			     const struct pair *pair)
{
	return (segment_has_data(skops) || kernel_write_seq(hs->client_sk) != pair->client_seq) &&
	       fionread_omits_tcp();
}

/* CAUSE_NONE, or why the server end does not join the client end that has left `hs`. */
inline_fn enum cause unfit_for(struct bpf_sock_ops *skops, struct tcp_sock *tp,
			       const struct handshake *hs, const struct pair *pair)
{
	enum cause cause = is_excluded((__u64)tp) ? CAUSE_PEER_OUTSIDE : unsuitable(tp);
	__u32 asked = CAUSE_NONE;

	if (!cause && has_early_data(skops, hs, pair))
		cause = CAUSE_EARLY_DATA;
	if (!cause) {
		STATE_FIELD(asked, hs->client_st, guard_cause);
		cause = asked;
	}
	return cause;
}

/* Takes the client end off again. Nothing was ever redirected to it, so this loses nothing (I5). */
inline_fn void part(enum cause cause, struct handshake *hs, const struct pair *pair,
		    struct flow *flow, struct tcp_sock *tp)
{
	struct end client = { .pair = *pair, .side = CLIENT };
	struct flow client_flow = hs->flow;
	__u64 client_sk = hs->client_sk;

	peers.delete(&client);
	handshakes.delete((struct pair *)pair);
	if (cause == CAUSE_EARLY_DATA) {
		struct listener l = listener_in(flow);

		add_to_balance(&l, &client_flow, (__u64)tp, client_sk, -EARLY_DATA_COST,
			       CAUSE_EARLY_DATA);
		ask(REQUEST_JOIN); /* once that data is read, nothing keeps the pair on TCP */
	}
	decline_both(cause, &client_flow, flow);
}

inline_fn void server_established(struct bpf_sock_ops *skops, __u64 netns)
{
	struct flow flow;
	struct pair pair = {};
	struct bpf_sock *sk = skops->sk;
	struct server_address here;
	struct handshake *hs;
	struct tcp_sock *tp;
	enum cause cause;
	enum reach reach;

	if (!sk || !read_flow(skops, netns, SERVER, &flow) || on_trial(sk))
		return;
	reach = reach_of(&flow, SERVER);
	if (reach == OUT_OF_SCOPE)
		return;
	if (skops->skb_tcp_flags & TCPHDR_SYN)
		return decline(CAUSE_EARLY_DATA, &flow);
	pair.client_seq = skops->rcv_nxt;
	pair.server_seq = skops->snd_nxt;
	/* the first look-up, a fraction of the second, answers for most clients that are out of scope */
	hs = client_in_scope(claim_syn(&flow, reach)) ? handshakes.lookup(&pair) : NULL;
	if (!hs)
		return client_outside(&pair, &flow, reach,
				      learned_of(netns, flow.server_port) != NULL);
	if (hs->server_sk ||
	    !(hs->answered ? same_flow(&flow, &hs->flow) : same_client(&flow, &hs->flow)))
		return decline(CAUSE_MISMATCH, &flow);
	if (!hs->client_sk) { /* the client has declined, and counted it */
		handshakes.delete(&pair);
		return;
	}
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return;
	cause = unfit_for(skops, tp, hs, &pair);
	if (!cause)
		cause = join(skops, sk, tp, SERVER, &flow, &pair, hs);
	if (cause)
		return part(cause, hs, &pair, &flow, tp);
	/* The client's first message finds the pair complete through this. */
	WRITE_ONCE(hs->server_sk, (__u64)tp);
	count_accelerated();
	read_server_address(&here, &flow);
	report(EVENT_ACCELERATED, 0, &hs->flow, &here, NOW, NULL);
}

/* A client end is closed that never sent anything: see find_peer(). */
inline_fn void forget_handshake(struct bpf_sock_ops *skops)
{
	struct bpf_sock *sk = skops->sk;
	struct handshake *hs;
	struct sock_state *st;
	struct pair pair;

	if (!sk)
		return;
	st = sockets.sk_storage_get(sk, NULL, 0);
	if (!st || st->peer_sk)
		return;
	pair = st->self.pair;
	hs = handshakes.lookup(&pair);
	/* a server end that is about to join has its address: leave it that */
	if (hs && hs->server_sk)
		handshakes.delete(&pair);
}

/* Called in the context of connect(). */
inline_fn void connecting(struct bpf_sock_ops *skops)
{
	struct flow flow;

	if (tracing() && read_flow(skops, bpf_get_netns_cookie(skops), CLIENT, &flow) &&
	    reach_of(&flow, CLIENT) != OUT_OF_SCOPE)
		note_caller(&flow);
}

/* Whether connections to this listening port may be accelerated. */
inline_fn int accepts(__u16 port)
{
	int zero = 0;
	struct settings *s = settings.lookup(&zero);

	return s && !s->stopped && port_in_scope(port);
}

inline_fn int accepts_translated(void)
{
	int zero = 0;
	struct settings *s = settings.lookup(&zero);

	return s && !s->stopped && translation_in_scope();
}

inline_fn void syn_received(struct bpf_sock_ops *skops)
{
	__u64 netns;

	/* is_fullsock: a client's own window, in connect() */
	if (skops->is_fullsock || !accepts(local_port(skops)))
		return;
	netns = bpf_get_netns_cookie(skops);
	/* without a record of the SYN both ends find nothing when they are established */
	if (!learned_of(netns, local_port(skops)))
		syn_answered(skops, netns);
}

inline_fn void give_back_memory(struct bpf_sock_ops *skops)
{
	struct bpf_sock *sk = skops->sk;
	int zero = 0;
	struct settings *s = settings.lookup(&zero);
	struct sock_state *st;

	if (!sk || !s)
		return;
	st = sockets.sk_storage_get(sk, NULL, 0);
	if (st)
		discharge(st, s);
}

inline_fn void state_changed(struct bpf_sock_ops *skops)
{
	if (skops->args[0] == BPF_TCP_ESTABLISHED)
		account_connection(skops);
	if (skops->args[1] == BPF_TCP_FIN_WAIT1)
		half_closed(skops);
	if (skops->args[1] == BPF_TCP_CLOSE) {
		forget_handshake(skops);
		give_back_memory(skops);
		if (tracing())
			closed(skops);
		ended(skops);
	}
}

int sockredir_pair(struct bpf_sock_ops *skops)
{
	switch (skops->op) {
	case BPF_SOCK_OPS_RWND_INIT:
		syn_received(skops);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		/* through DNAT the listening port is another one */
		if (accepts(remote_port(skops)) || accepts_translated())
			client_established(skops, bpf_get_netns_cookie(skops));
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		if (accepts(local_port(skops)))
			server_established(skops, bpf_get_netns_cookie(skops));
		break;
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		leave_before_reconnect(skops);
		connecting(skops);
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		leave_before_reconnect(skops);
		note_listener(bpf_get_netns_cookie(skops), local_port(skops));
		break;
	case BPF_SOCK_OPS_STATE_CB:
		state_changed(skops);
		break;
	case BPF_SOCK_OPS_PARSE_HDR_OPT_CB:
		segment_received(skops);
		break;
	}
	return 1;
}
