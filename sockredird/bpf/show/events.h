/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Events for those who subscribed, with the programs behind both ends and, at the close, what went
 * each way; and the last reason recorded for each connection that was declined or retired.
 *
 * While nobody listens this costs a connection one load of `settings.trace`, and a message nothing.
 */
#pragma once
#include "../peer_state.h"

#define CONNECTING_NS 60000000000ULL /* a connect() takes no longer than its SYNs do */

inline_fn int tracing(void)
{
	int zero = 0;
	struct settings *s = settings.lookup(&zero);

	return s && s->trace;
}

inline_fn void owner_of_task(struct owner *o, __u64 task)
{
	o->pid = kernel_task_tgid(task);
	read_comm(o->comm, task);
}

/* In the context of connect(); what runs when the connection is established may be anybody. */
inline_fn void note_caller(struct flow *flow)
{
	struct caller c = {};

	c.time = bpf_ktime_get_ns();
	owner_of_task(&c.owner, bpf_get_current_task());
	callers.update(flow, &c);
}

/* In the context of listen(), which is too rare to ask whether somebody traces. */
inline_fn void note_listener(__u64 netns, __u16 port)
{
	struct listener l = { .netns = netns, .port = port };
	struct owner o = {};

	owner_of_task(&o, bpf_get_current_task());
	listeners.update(&l, &o);
}

inline_fn void name_owners(struct event *e, struct flow *flow, const struct server_address *server,
			   __u64 since)
{
	struct listener l = { .netns = flow->netns, .port = flow->server_port };
	struct caller *c = callers.lookup(flow);
	struct owner *o;

	if (server && server->netns) {
		l.netns = server->netns;
		l.port = server->port;
	}
	o = listeners.lookup(&l);

	/* not the caller of an older connection between the same ports */
	if (c && since - c->time < CONNECTING_NS)
		e->owner[CLIENT] = c->owner;
	if (o)
		e->owner[SERVER] = *o;
}

inline_fn __u32 events_lost(void)
{
	struct counters *c = counters_here();

	return c ? c->dropped_events : 0;
}

#define NOW 0 /* whose clock is not read while nobody listens */

/*
 * `reason` is an enum cause; `totals` are of both ends, or NULL; `since` is when
 * the connection was established, or NOW; `server` where that is known, or NULL; `by` is who uses
 * the socket on `side`, or NULL.
 */
inline_fn void report_by(enum event_kind kind, __u32 reason, struct flow *flow,
			 const struct server_address *server, __u64 since,
			 const struct totals *totals, enum side side, const struct owner *by)
{
	struct counters *c;
	struct event *e;

	if (!tracing())
		return;
	e = events.ringbuf_reserve(sizeof(*e));
	if (!e) {
		c = counters_here();
		if (c)
			count(&c->dropped_events, 1);
		return;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->time = bpf_ktime_get_ns();
	e->kind = kind;
	e->reason = reason;
	e->cpu = bpf_get_smp_processor_id();
	e->lost = events_lost();
	e->flow = *flow;
	if (totals) {
		e->totals[CLIENT] = totals[CLIENT];
		e->totals[SERVER] = totals[SERVER];
	}
	name_owners(e, flow, server, since == NOW ? e->time : since);
	if (by)
		e->owner[side] = *by;
	events.ringbuf_submit(e, 0);
}

inline_fn void report(enum event_kind kind, enum cause reason, struct flow *flow,
		      const struct server_address *server, __u64 since, const struct totals *totals)
{
	report_by(kind, reason, flow, server, since, totals, CLIENT, NULL);
}

/* Keeps for `explain` why a connection was declined or retired. Not on the path of a message. */
inline_fn void record_reason(enum cause reason, struct flow *flow)
{
	__u32 slot = hash_of(flow) & (REASONS - 1);
	struct recorded_reason *v = reasons.lookup(&slot);

	if (!v)
		return;
	v->flow = *flow;
	v->reason = reason;
}

inline_fn int fin_queued(__u8 state)
{
	return state == BPF_TCP_FIN_WAIT1 || state == BPF_TCP_FIN_WAIT2 ||
	       state == BPF_TCP_CLOSING || state == BPF_TCP_LAST_ACK;
}

/* Bytes given to TCP since ISN + 1: what was not redirected. A FIN takes a number, too. */
inline_fn __u64 tcp_bytes(__u64 sk, __u32 isn_1, __u8 state)
{
	__u32 write_seq = kernel_write_seq(sk), low;
	__u64 acked = kernel_bytes_acked(sk);

	low = write_seq - isn_1 - fin_queued(state);
	/* sequence numbers go round every 4 GiB; bytes_acked, a little off, says how often */
	return acked + (__s32)(low - (__u32)acked);
}

inline_fn __u32 isn_1_of(const struct end *end)
{
	__u32 client = end->pair.client_seq, server = end->pair.server_seq;

	/* Both are loaded: LLVM 19 would make one load of it, from a stack address with a bit OR-ed in,
	 * which the verifier refuses. */
	asm volatile("" : "+r"(client), "+r"(server));
	return end->side == CLIENT ? client : server;
}

/* An end of a pair is closed. The one that closes second reports for both. */
inline_fn void closed(struct bpf_sock_ops *skops)
{
	__u32 before = skops->args[0];
	struct bpf_sock *sk = skops->sk;
	struct sock_state *st;
	struct tcp_sock *tp;
	struct closing mine = {}, *other;
	struct totals totals[2];
	struct pair pair;

	if (!sk)
		return;
	st = sockets.sk_storage_get(sk, NULL, 0);
	tp = bpf_skc_to_tcp_sock(sk);
	if (!st || !tp)
		return;
	pair = st->self.pair;
	mine.side = st->self.side & 1;
	mine.totals.bytes = st->sent_bytes;
	mine.totals.messages = st->sent_messages;
	mine.totals.tcp_bytes = tcp_bytes((__u64)tp, isn_1_of(&st->self), before);
	/* insert() fails if the other end was here: of two at the same time, one is first */
	if (!closing.insert(&pair, &mine))
		return;
	other = closing.lookup(&pair);
	if (!other || other->side == mine.side)
		return;
	if (mine.side == CLIENT) {
		totals[CLIENT] = mine.totals;
		totals[SERVER] = other->totals;
	} else {
		totals[CLIENT] = other->totals;
		totals[SERVER] = mine.totals;
	}
	closing.delete(&pair);
	report(EVENT_CLOSED, 0, &st->flow, &st->server, st->since, totals);
}
