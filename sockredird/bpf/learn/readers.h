/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which programs read by an ordinary recv(2), as far as connections have shown: what is sent to them
 * may be redirected from the first message on (carry/begin.h: has_read()). The map `known_readers`
 * has how many connections have shown it; who makes other calls is taken out again (leave/detect.c).
 *
 * One that lasted until a direction began shows enough. One that was too short for that counts once:
 * HAProxy reads a request by recv(2) on most connections, and splices it where it comes late.
 */
#pragma once
#include "listener.h"

#define CONNECTIONS_SHOWN 64

/*
 * Under which the program that reads what this end sends is known: the listener, or, of a client,
 * the listener and the user.
 */
inline_fn struct listener reader_of(const struct sock_state *st)
{
	struct listener l;

	if (st->self.side == CLIENT)
		return listener_of(st);
	l = listener_in(&st->flow);
	return listener_for_user_of(&l, st->peer_sk);
}

inline_fn int is_known_reader(const struct sock_state *st)
{
	struct listener l = reader_of(st);
	__u32 *shown = known_readers.lookup(&l);

	return shown && *shown >= CONNECTIONS_SHOWN;
}

inline_fn void note_reader(const struct sock_state *st)
{
	struct listener l = reader_of(st);
	__u32 enough = CONNECTIONS_SHOWN;

	known_readers.update(&l, &enough);
}

/* Of a connection that was too short; it matters little if two that end at a time count once. */
inline_fn void note_short(struct listener *l)
{
	__u32 *shown = known_readers.lookup(l);
	__u32 one = 1;

	if (!shown)
		known_readers.update(l, &one);
	else if (*shown < CONNECTIONS_SHOWN)
		(*shown)++;
}

/*
 * Whether the end `sk` has read what its peer, by the address of its state, has sent by TCP before a
 * direction that was too short to begin. Pairs with has_read(), which writes `awaits` last.
 */
inline_fn int may_have_read(__u64 sk, __u64 sender_st, struct sock_state *st)
{
	__u32 awaits = AWAITS_NOTHING, begin_after = 0;

	STATE_FIELD(awaits, sender_st, awaits);
	if (awaits != AWAITS_READ)
		return 0;
	load_barrier(st);
	STATE_FIELD(begin_after, sender_st, begin_after);
	return kernel_copied_seq(sk) != begin_after;
}

/*
 * The same as a server's connection ends, of whichever end has read all the same in a direction that
 * was too short to begin: of one request and one answer for example. How an end has read shows only
 * while it is on the sockhash: no guard has refused the pair, and no walk has stopped it. That is
 * looked at last: pairs with announce_change(), before which a refused call cannot have read.
 */
inline_fn void note_readers(struct sock_state *st, __u64 sk)
{
	struct end peer = st->peer;
	__u64 peer_st = st->peer_st;
	__u8 stopped = 1;
	int zero = 0, client_read, server_read;
	struct settings *s = settings.lookup(&zero);
	struct listener l;

	if (!s || !s->begin_late || st->joined || st->self.side != SERVER ||
	    !is_state_of(peer_st, &peer))
		return;
	client_read = may_have_read(st->peer_sk, (__u64)st, st);
	server_read = may_have_read(sk, peer_st, st);
	load_barrier(st);
	STATE_FIELD(stopped, peer_st, stop);
	if (stopped || READ_ONCE(st->stop) || guard_cause_of(st, peer_st))
		return;
	if (client_read) {
		l = reader_of(st);
		note_short(&l);
	}
	if (server_read) {
		l = listener_of(st);
		note_short(&l);
	}
}
