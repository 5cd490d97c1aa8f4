/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Listeners whose connections are left alone. The map `learned` is the list; the daemon keeps a
 * copy on disk, shows it, and removes entries when a user asks for that.
 *
 * Some are on it for good, since a program did what no member of a sockhash can (leave/guard.c).
 * Others are on it because acceleration costs them more than it saves, for as long as that is so:
 * pairing a connection costs about what PAIRING_COST redirected messages save, and a listener's
 * balance is what its connections saved less what they cost. A listener whose balance falls to
 * -BALANCE_LIMIT is left alone. A connection to it that lives on and carries messages is joined all
 * the same (pair/join.c), and once enough of them have been, the balance is 0 again, and connections
 * to the listener are paired at their handshakes.
 */
#pragma once
#include "readers.h"
#include "../show/events.h"

#define PAIRING_COST 4	   /* messages */
#define REFUSED_COST 8	   /* a pair whose program is served by TCP only: 256 in a row */
#define EARLY_DATA_COST 16 /* a pair undone: 128 in a row, as with TCP_DEFER_ACCEPT */
#define BALANCE_LIMIT 2048 /* 1024 connections of one request and one answer in a row */
#define JOINED_SAVES 256   /* a connection that was joined: eight of them outweigh the limit */

/* The entry of a listener, if it was learned. */
inline_fn struct learned_entry *learned_of(__u64 netns, __u16 port)
{
	struct listener l = { .netns = netns, .port = port };

	return learned.lookup(&l);
}

/* The entry of a listener for the connections of the user who has this client end. */
inline_fn struct learned_entry *learned_of_user(const struct flow *flow, __u64 client_sk)
{
	struct listener l = listener_in(flow), one = listener_for_user_of(&l, client_sk);

	return learned.lookup(&one);
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
	if (server_sk) {
		new.cgroup = cgroup_of(server_sk);
		new.uid = kernel_uid(server_sk);
	}
	if (l->user)
		new.uid = l->user - 1;
	if (o)
		new.owner = *o;
	learned.update(l, &new);
	report_by(EVENT_LEARNED, cause, flow, NULL, new.time, NULL, side, o);
	ask(REQUEST_LEARNED);
}

inline_fn __s32 bounded(__s32 balance)
{
	if (balance > BALANCE_LIMIT)
		return BALANCE_LIMIT;
	return balance < -BALANCE_LIMIT ? -BALANCE_LIMIT : balance;
}

/*
 * What is left of `saved` once the clients of that user have moved the listener's balance as far as
 * one user may: others can make up for it, and nobody turns acceleration off for them for good.
 */
inline_fn __s32 share_of_user(const struct listener *l, __u64 client_sk, __s32 saved)
{
	struct listener one = listener_for_user_of(l, client_sk);
	__s32 before = 0, after, *known = balances.lookup(&one);

	if (known)
		before = *known;
	after = bounded(before + saved);
	if (known)
		*known = after;
	else
		balances.update(&one, &after);
	return after - before;
}

/* Adds `saved` messages, or fewer than 0, to a listener's balance. Once per connection. */
inline_fn void add_to_balance(struct listener *l, struct flow *flow, __u64 server_sk,
			      __u64 client_sk, __s32 saved, enum cause cause)
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
	after = bounded(before + share_of_user(l, client_sk, saved));
	if (after == -BALANCE_LIMIT)
		add_learned(cause, l, flow, server_sk, SERVER, NULL);
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

/* A connection to a listener that does not pay was joined, so it lives on and carries messages. */
inline_fn void joined_to(struct listener *l, struct flow *flow, __u64 client_sk)
{
	struct learned_entry *e = learned_of(l->netns, l->port);

	if (e && is_unprofitable(e->cause))
		add_to_balance(l, flow, 0, client_sk, JOINED_SAVES, CAUSE_NONE);
}

/*
 * Messages that a pair saved, as the server end's state and its peer's say; -1 if there is no saying,
 * or it has been accounted for.
 */
inline_fn __s64 saved_by(const struct sock_state *st)
{
	struct end peer = st->peer;
	__u64 messages = 0, peer_st = st->peer_st;
	__u8 mode = BY_TCP;

	if (st->self.side != SERVER || st->mode == NATIVE || st->guard_cause || st->accounted ||
	    !is_state_of(peer_st, &peer))
		return -1;
	/* one that is leaving is no fair sample */
	STATE_FIELD(mode, peer_st, mode);
	STATE_FIELD(messages, peer_st, sent_messages);
	messages += st->sent_messages;
	if (mode == NATIVE)
		return -1;
	return messages > BALANCE_LIMIT + PAIRING_COST ? BALANCE_LIMIT + PAIRING_COST : messages;
}

/*
 * Adds to its listener's balance what a connection saved, and notes who has read; when the server end
 * of a pair leaves ESTABLISHED, as the client's state is still there.
 */
inline_fn void account_connection(struct bpf_sock_ops *skops)
{
	struct bpf_sock *sk = skops->sk;
	struct sock_state *st;
	struct tcp_sock *tp;
	struct listener l;
	__s64 saved;

	if (!sk)
		return;
	st = sockets.sk_storage_get(sk, NULL, 0);
	tp = bpf_skc_to_tcp_sock(sk);
	if (!st || !tp)
		return;
	note_readers(st, (__u64)tp);
	saved = saved_by(st);
	if (saved < 0)
		return;
	l = listener_of(st);
	add_to_balance(&l, &st->flow, (__u64)tp, st->peer_sk, (__s32)saved - PAIRING_COST,
		       CAUSE_SHORT_CONNECTIONS);
}

/* The same for one that goes on, once it alone has made up for all that short ones may cost. */
inline_fn void account_live(__u64 sk, struct sock_state *st)
{
	struct listener l;

	if (saved_by(st) < BALANCE_LIMIT + PAIRING_COST)
		return;
	st->accounted = 1;
	l = listener_of(st);
	add_to_balance(&l, &st->flow, sk, st->peer_sk, BALANCE_LIMIT, CAUSE_SHORT_CONNECTIONS);
}
