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
 * The same as a server's connection ends, of whichever end has read all the same in a direction that
 * was too short to begin: of one request and one answer for example. How an end has read shows only
 * while it is on the sockhash: no guard has refused the pair, and no walk has stopped it.
 */
inline_fn void note_readers(const struct sock_state *st, __u64 sk)
{
	struct end peer = st->peer;
	__u64 peer_st = st->peer_st;
	__u32 awaits = AWAITS_NOTHING, begin_after = 0;
	__u8 stopped = 1;
	int zero = 0;
	struct settings *s = settings.lookup(&zero);
	struct listener l;

	if (!s || !s->begin_late || st->joined || st->self.side != SERVER ||
	    !is_state_of(peer_st, &peer) || guard_cause_of(st, peer_st))
		return;
	STATE_FIELD(stopped, peer_st, stop);
	if (stopped || READ_ONCE(st->stop))
		return;
	if (st->awaits == AWAITS_READ && kernel_copied_seq(st->peer_sk) != st->begin_after) {
		l = reader_of(st);
		note_short(&l);
	}
	STATE_FIELD(awaits, peer_st, awaits);
	STATE_FIELD(begin_after, peer_st, begin_after);
	if (awaits == AWAITS_READ && kernel_copied_seq(sk) != begin_after) {
		l = listener_of(st);
		note_short(&l);
	}
}
