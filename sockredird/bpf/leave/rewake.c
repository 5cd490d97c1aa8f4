/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * iter/tcp: wakes pollers once more for data that is there.
 *
 * A program that reads on edges may ask FIONREAD whether to go on (nginx). On the sockhash that
 * leaves out what came through TCP behind redirected data; the program waits for the next edge, and
 * its peer may have nothing more to send. So a socket that comes off the sockhash with unread TCP
 * data is noted, and here SO_RCVLOWAT is set to what it is, at which the kernel signals what can be
 * read (tcp_set_rcvlowat()). Of all iterators only this one may set options; it is run for a note
 * only, and sees the sockets of the daemon's network namespace.
 */
#pragma once
#include "in_flight.h"
#include "../peer_state.h"

#define SOL_SOCKET 1
#define SO_RCVLOWAT 18

/* The kernel's struct bpf_iter__tcp; every member in an 8-byte slot. */
struct bpf_iter__tcp {
	__u64 meta;
	__u64 sk_common;
	__u64 uid;
};

/* Notes an end that leaves; 1 if it has unread TCP data. */
inline_fn int note_unread_left(__u64 sk, struct end *end)
{
	__u32 one = 1;

	return has_tcp_data(sk) && !unread_left.update(end, &one);
}

int sockredir_rewake(struct bpf_iter__tcp *ctx)
{
	struct sock *sk = (void *)ctx->sk_common;
	struct sock_state *st;
	struct tcp_sock *tp;
	struct end self;
	int lowat;

	if (!sk)
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	st = sockets.sk_storage_get(tp, NULL, 0);
	if (!st)
		return 0;
	self = st->self;
	if (!unread_left.lookup(&self))
		return 0;
	unread_left.delete(&self);
	lowat = kernel_rcvlowat((__u64)tp);
	if (lowat)
		bpf_setsockopt(tp, SOL_SOCKET, SO_RCVLOWAT, &lowat, sizeof(lowat));
	return 0;
}
