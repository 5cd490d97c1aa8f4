/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The state of the other end: each end knows the address of the other's sock_state, which is read
 * like all kernel memory and believed only if it says the same pair.
 */
#pragma once
#include "maps.h"

#define STATE_FIELD(dst, st, field) \
	KERNEL_FIELD(dst, st, __builtin_offsetof(struct sock_state, field))

/* Kernel addresses of the other end's socket and state; 0 while they are not known. */
struct other_end {
	__u64 sk;
	__u64 st;
};

/*
 * The socket is read first. Pairs with server_established() and complete(), which write it, or
 * `joined`, last: whoever sees that finds the state, and the socket on the sockhash.
 */
inline_fn void read_handshake(struct other_end *other, const struct handshake *hs,
			      struct sock_state *st)
{
	int is_client = st->self.side == CLIENT;

	other->sk = is_client ? READ_ONCE(hs->server_sk) : READ_ONCE(hs->client_sk);
	load_barrier(st);
	other->st = is_client ? READ_ONCE(hs->server_st) : READ_ONCE(hs->client_st);
}

/*
 * An end that has not sent since it was paired, or joined, finds the other one in the handshake.
 *
 * Pairs with find_peer(), which notes the state's address, then the socket's, then deletes the
 * handshake, whose memory another connection may have at once. So the socket's is read after the
 * handshake, and the state's after that.
 */
inline_fn void find_other_end(struct other_end *other, struct sock_state *st)
{
	struct pair pair = st->self.pair;
	struct handshake *hs = READ_ONCE(st->peer_sk) ? NULL : handshakes.lookup(&pair);
	__u64 sk;

	if (hs)
		read_handshake(other, hs, st);
	load_barrier(st);
	sk = READ_ONCE(st->peer_sk);
	if (hs && !sk)
		return;
	other->sk = sk;
	load_barrier(st);
	other->st = READ_ONCE(st->peer_st);
}

/* Whether the state of an end is at the address, and not what the memory is used for by now. */
inline_fn int is_state_of(__u64 st, const struct end *end)
{
	struct end found = {};

	return st && !STATE_FIELD(found, st, self) && found.side == end->side &&
	       found.pair.client_seq == end->pair.client_seq &&
	       found.pair.server_seq == end->pair.server_seq;
}

/* The same, of an end that no program has closed. */
inline_fn int is_state_of_open(__u64 st, __u64 sk, const struct end *end)
{
	return psock_of(sk) && is_state_of(st, end);
}

/*
 * 0, or why a guard wants no message of this pair redirected: enum cause. A program may have asked
 * at either end. Guards write `guard_cause`, then call announce_change(); a sender reads the count
 * of changes first, then this.
 */
inline_fn __u32 guard_cause_of(const struct sock_state *st, __u64 peer_st)
{
	struct end peer = st->peer;
	__u32 cause = READ_ONCE(st->guard_cause);

	if (!cause && is_state_of(peer_st, &peer))
		STATE_FIELD(cause, peer_st, guard_cause);
	return cause;
}

/*
 * Full barrier, count, full barrier: each sender of the pair sees what was written before this, and
 * we see the psock references taken before it. Pairs with sockredir_msg(), which takes its reference
 * before it reads the count; what_changed(), which looks after that; and begins(), which reads the
 * count after what a refused call may have read.
 */
inline_fn void announce_change(struct sock_state *st)
{
	int zero = 0;
	__u64 *changes = change_count.lookup(&zero);

	full_barrier(st);
	if (changes)
		__sync_fetch_and_add(changes, 1);
	full_barrier(st);
}

/*
 * Whether FIONREAD at a member leaves out what came by TCP. A program that asks it may stop reading
 * too early there, or wait for ever.
 */
inline_fn int fionread_omits_tcp(void)
{
#ifdef FIONREAD_OMITS_TCP
	int zero = 0;
	struct settings *s = settings.lookup(&zero);

	return !s || !s->answers_fionread;
#else
	return 0;
#endif
}

/* Whether FIONREAD at a member leaves out what is redirected, as it does on other kernels. */
inline_fn int fionread_omits_redirected(const struct settings *s)
{
#ifdef FIONREAD_OMITS_TCP
	return 0;
#else
	return !s->answers_fionread;
#endif
}

/* The server end's socket; 0 if it is not known yet, or gone. */
inline_fn __u64 server_of(const struct sock_state *st)
{
	struct end peer = st->peer;
	__u64 peer_st = st->peer_st, sk = 0;

	if (st->self.side == CLIENT)
		return st->peer_sk;
	if (is_state_of(peer_st, &peer))
		STATE_FIELD(sk, peer_st, peer_sk);
	return sk;
}

/*
 * Any user may cause requests, so none is made again before the daemon has begun to carry it out:
 * it clears the mark, then looks (datapath/settings.py: begin_request()). A request comes after
 * what it is about. With a full barrier between each two, one side sees the other: the exchange here
 * is one, and pairs with that of visit(), or with order_requests() where nothing is visited.
 */
inline_fn void ask(enum request what)
{
	__u64 record = what, *made;
	__u32 key = what;

	made = requested.lookup(&key);
	if (!made || __sync_lock_test_and_set(made, 1))
		return;
	requests.ringbuf_output(&record, sizeof(record), 0);
}

/*
 * Neither direction of this pair redirects from here on, and both ends leave the sockhash; with the
 * next walk, if nobody sends at that moment (leave/walk.c: guarded_and_idle()).
 */
inline_fn void refuse(struct sock_state *st, enum cause reason)
{
	if (!st->guard_cause)
		WRITE_ONCE(st->guard_cause, (__u32)reason);
	announce_change(st);
	ask(REQUEST_WALK);
}
