/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Listeners whose connections are left alone. The map `learned` is the list; the daemon keeps a
 * copy on disk, shows it, and removes entries when a user asks for that.
 *
 * Some are on it for good, since a program did what no member of a sockhash can (leave/guard.c).
 * Others are on it because acceleration costs them more than it saves, for as long as that is so:
 * pairing a connection costs about what PAIRING_COST redirected messages save, and a listener's
 * balance is what its connections saved less what they cost. A listener whose balance falls to
 * -BALANCE_LIMIT is left alone but for samples, and accelerated again when those bring the balance
 * back to 0.
 */
#pragma once
#include "../peer_state.h"
#include "../show/events.h"

#define PAIRING_COST 4	   /* messages */
#define EARLY_DATA_COST 16 /* a pair undone: 128 in a row, as with TCP_DEFER_ACCEPT */
#define BALANCE_LIMIT 2048 /* 1024 connections of one request and one answer in a row */
#define LOOK_EVERY 4	   /* connections: whether a sample is due, which takes the time of day */
#define SAMPLE_EVERY 64	   /* connections */
/* and ten a second: parting a single pair wakes kernel threads, 3 % of what short ones cost */
#define SAMPLE_GAP_NS 100000000LL
#define SAMPLE_AFTER_NS 1000000000LL /* at the latest, where they are few */

inline_fn struct listener listener_in(const struct flow *flow)
{
	struct listener l = { .netns = flow->netns, .port = flow->server_port };

	return l;
}

/* As the server end sees itself; as the client does where that is not known (yet). */
inline_fn struct listener listener_of(const struct sock_state *st)
{
	struct listener l = listener_in(&st->flow);
	struct end peer = st->peer;
	__u64 peer_st = st->peer_st;
	struct server_address server = st->server;

	if (st->self.side == CLIENT && is_state_of(peer_st, &peer))
		STATE_FIELD(server, peer_st, server);
	if (server.netns) {
		l.netns = server.netns;
		l.port = server.port;
	}
	return l;
}

/* The entry of a listener, if it was learned. */
inline_fn struct learned_entry *learned_of(__u64 netns, __u16 port)
{
	struct listener l = { .netns = netns, .port = port };

	return learned.lookup(&l);
}

/*
 * Whether it is too early for the next sample. Early data comes from an option of the listener
 * (TCP_DEFER_ACCEPT) more than from what its clients do, and the daemon has to part each such pair.
 */
inline_fn int too_early(const struct learned_entry *e, __u64 now)
{
	__s64 since = now - e->sampled;

	if (since >= SAMPLE_AFTER_NS)
		return 0;
	return e->cause == CAUSE_EARLY_DATA || e->skipped < SAMPLE_EVERY || since < SAMPLE_GAP_NS;
}

/*
 * Whether the connection that begins with this SYN is left alone. Its SYN is not recorded then, so
 * both ends find nothing when they are established.
 */
inline_fn int left_alone(struct learned_entry *e)
{
	__u64 now;

	if (!e)
		return 0;
	e->skipped++; /* two CPUs may count one connection for two */
	if (!is_unprofitable(e->cause) || e->skipped % LOOK_EVERY)
		return 1;
	now = recent_time();
	if (too_early(e, now))
		return 1;
	e->skipped = 0;
	e->sampled = now;
	return 0;
}

/*
 * Leaves the listener's connections alone from now on. `o` names who did it, on `side`, or is NULL;
 * `server_sk` is the server end's socket, or 0.
 */
inline_fn void add_learned(enum cause cause, struct listener *l, struct flow *flow, __u64 server_sk,
			   enum side side, const struct owner *o)
{
	struct learned_entry new = { .cause = cause }, *old = learned.lookup(l);

	/* what is there for good is not replaced */
	if (old && (!is_unprofitable(old->cause) || is_unprofitable(cause)))
		return;
	new.time = bpf_ktime_get_ns();
	new.sampled = new.time;
	if (server_sk)
		new.cgroup = cgroup_of(server_sk);
	if (o)
		new.owner = *o;
	learned.update(l, &new);
	report_by(EVENT_LEARNED, cause, flow, NULL, new.time, NULL, side, o);
	ask(REQUEST_LEARNED);
}

/* Adds `saved` messages, or fewer than 0, to a listener's balance. Once per connection. */
inline_fn void add_to_balance(struct listener *l, struct flow *flow, __u64 server_sk, __s32 saved,
			      enum cause cause)
{
	struct learned_entry *entry;
	__s32 before = 0, after, *known;
	int zero = 0;
	struct settings *s = settings.lookup(&zero);

	if (!s || !s->learn)
		return;
	known = balances.lookup(l);
	if (known) {
		before = *known;
	} else {
		entry = learned.lookup(l);
		if (entry && is_unprofitable(entry->cause))
			before = -BALANCE_LIMIT;
	}
	/* two CPUs may lose one of two amounts: this is an estimate */
	after = before + saved;
	if (after > BALANCE_LIMIT)
		after = BALANCE_LIMIT;
	if (after <= -BALANCE_LIMIT) {
		after = -BALANCE_LIMIT;
		add_learned(cause, l, flow, server_sk, SERVER, NULL);
	}
	if (known)
		*known = after;
	else
		balances.update(l, &after);
	if (before >= 0 || after < 0)
		return;
	entry = learned.lookup(l);
	if (entry && is_unprofitable(entry->cause)) {
		learned.delete(l);
		ask(REQUEST_LEARNED);
	}
}

/*
 * Adds to its listener's balance what a connection saved; when the server end of a pair leaves
 * ESTABLISHED, as the client's state is still there.
 */
inline_fn void account_connection(struct bpf_sock_ops *skops)
{
	struct bpf_sock *sk = skops->sk;
	struct sock_state *st;
	struct tcp_sock *tp;
	struct listener l;
	struct end peer;
	__u64 messages = 0, peer_st;
	__u8 mode = BY_TCP;

	if (!sk)
		return;
	st = sockets.sk_storage_get(sk, NULL, 0);
	tp = bpf_skc_to_tcp_sock(sk);
	if (!st || !tp || st->self.side != SERVER || st->mode == NATIVE || st->guard_cause)
		return;
	peer = st->peer;
	peer_st = st->peer_st;
	if (!is_state_of(peer_st, &peer))
		return;
	/* one that is leaving is no fair sample */
	STATE_FIELD(mode, peer_st, mode);
	STATE_FIELD(messages, peer_st, sent_messages);
	messages += st->sent_messages;
	if (mode == NATIVE)
		return;
	if (messages > BALANCE_LIMIT + PAIRING_COST)
		messages = BALANCE_LIMIT + PAIRING_COST;
	l = listener_of(st);
	add_to_balance(&l, &st->flow, (__u64)tp, (__s32)messages - PAIRING_COST,
		       CAUSE_SHORT_CONNECTIONS);
}
