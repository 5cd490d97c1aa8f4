/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * When a direction may begin to be redirected (I1), and when it may pause.
 *
 * A reader empties its psock queue before it looks at TCP's queue, so a message may be redirected
 * only if the reader has read every byte that went by TCP: its copied_seq is our write_seq. Each
 * condition below stands for a way in which that alone goes wrong.
 */
#pragma once
#include "reader.h"
#include "../learn/readers.h"

/*
 * Whether no thread is in TCP's own receive code on `sk`, where it would not see redirected data.
 * Reads copied_seq before and after, so that a reader that came and went in between is noticed; the
 * lock's owner before and after the wait queue, as a reader is on one or the other. Pairs with
 * sk_wait_data(), which goes on the wait queue before it gives the lock away, and takes the lock
 * before it comes off the queue; and with tcp_recvmsg(), which moves copied_seq on with the lock.
 * Lock and queue are looked at twice, since a reader that wakes for nothing, as when its connection becomes
 * established, may come off the queue between two looks and be back on it, without the lock.
 *
 * One sleeper may be there if it has a reference to the psock: it sleeps in tcp_bpf_recvmsg(),
 * which sees both queues, while a sleeper in tcp_recvmsg(), or in connect(), has none. The reference
 * is read after the sleeper, since tcp_bpf_recvmsg() gives it back before it calls tcp_recvmsg().
 */
inline_fn int nobody_in_tcp_recvmsg(__u64 sk, struct sock_state *st, __u32 copied)
{
	__u64 sleeper;

	load_barrier(st);
	for (int i = 0; i < 2; i++) {
		if (kernel_lock_owned(sk))
			return 0;
		load_barrier(st);
		sleeper = sleeper_on(sk, st);
		load_barrier(st);
		if (sleeper && (sleeper >= UNSEEN || kernel_psock_refcnt(psock_of(sk)) != 2))
			return 0;
	}
	return !kernel_lock_owned(sk) && kernel_copied_seq(sk) == copied;
}

/*
 * Finds the other end, which a client end does not know until it sends, nor does a joined end. A
 * joined pair's entry goes when the second end has found the first. Pairs with find_other_end(),
 * which reads the other way round.
 */
inline_fn int find_peer(struct sock_state *st)
{
	struct pair pair = st->self.pair;
	struct handshake *hs = handshakes.lookup(&pair);
	struct other_end other = {};

	if (!hs || !READ_ONCE(hs->server_sk) || (st->joined && READ_ONCE(hs->joined) < 3))
		return 0;
	read_handshake(&other, hs, st);
	WRITE_ONCE(st->peer_st, other.st);
	store_barrier(st);
	WRITE_ONCE(st->peer_sk, other.sk);
	store_barrier(st);
	if (!st->joined || READ_ONCE(hs->joined) > 3)
		handshakes.delete(&pair);
	else
		WRITE_ONCE(hs->joined, 4); /* one end has found the other */
	return 1;
}

/*
 * This message is TCP's, on a member. Where FIONREAD does not tell of it, a reader may stop too
 * early: walks wake it until it has read everything. One is asked for if the last of them has seen
 * that, and pairs with at_border(): each side writes, then reads what the other has written. The
 * mode is written before the count, which the walk reads first.
 */
inline_fn void by_tcp_on_member(struct sock_state *st)
{
	__u32 borders = st->borders;

	if (!fionread_omits_tcp())
		return;
	store_barrier(st);
	WRITE_ONCE(st->borders, borders + 1);
	full_barrier(st);
	if (READ_ONCE(st->borders_seen) == borders)
		ask(REQUEST_WALK);
}

/* A proxy may read a request's head, or a TLS ClientHello, before it begins to splice. */
#define READS_SHOWN 16 /* messages */

/*
 * Whether the reader has read since the first message, where the direction waits for that.
 *
 * Of an end that was joined, as a recv() may have begun in TCP's code before, and wait for the lock
 * unseen: it is over once a later byte has been read. Of others, where leave/detect.c sees which
 * call reads: nothing is redirected to a program that splices from the start or soon after, or
 * receives with flags that a member does not know, so it finds all that was sent. What to wait for is
 * written last: pairs with may_have_read() in learn/readers.h.
 */
inline_fn int has_read(struct sock_state *st, __u32 copied)
{
	if (st->awaits == AWAITS_MESSAGE) {
		if (!st->joined && is_known_reader(st)) {
			st->awaits = AWAITS_NOTHING;
			return 1;
		}
		st->begin_after = copied;
		store_barrier(st);
		WRITE_ONCE(st->awaits, AWAITS_READ);
	}
	if (st->awaits == AWAITS_NOTHING)
		return 1;
	if (!st->joined && st->late_messages < READS_SHOWN) {
		st->late_messages++;
		return 0;
	}
	return copied != st->begin_after;
}

/* Under the sender's socket lock: may the next byte of this direction be redirected? */
inline_fn int may_begin(struct bpf_sock *sk, struct sock_state *st)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	__u64 peer;
	__u32 copied;

	if (!tp)
		return 0;
	peer = st->peer_sk;
	/* a FIN takes a sequence number: behind it a redirect would be read after the end */
	if (kernel_state(peer) != BPF_TCP_ESTABLISHED || !psock_of(peer))
		return 0;
	copied = kernel_copied_seq(peer);
	/* both together: each end has what the other one sent, so the two are one connection (I4) */
	if (!has_read(st, copied) || copied != own_write_seq(tp) ||
	    own_rcv_nxt(tp) != kernel_write_seq(peer))
		return 0;
	/* sequence numbers mean something else while these last */
	if (own_urg_data(tp) || kernel_urg_data(peer) || own_repair(tp) || kernel_repairs(peer))
		return 0;
	return nobody_in_tcp_recvmsg(peer, st, copied);
}

/*
 * Whether the reader splices although redirected data is unread, or was on its way: splice(2) takes
 * TCP's data only, so what follows must not go by TCP until the rest is read, or the daemon has reset
 * the connection (leave/detect.c). A reader of ours that sleeps has a reference to our psock as well.
 * Pairs with harmed() and sockredir_spliced(), which write reset_at before the cause.
 */
inline_fn int would_be_overtaken(struct bpf_sock *sk, struct sock_state *st)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	__u64 psock = psock_of(st->peer_sk);
	struct end peer = st->peer;
	__u32 cause = 0, reset_at = 0;

	if (st->mode != REDIRECT || !tp || !psock || !is_state_of(st->peer_st, &peer))
		return 0;
	STATE_FIELD(cause, st->peer_st, guard_cause);
	if (cause != CAUSE_SPLICE)
		return 0;
	load_barrier(st);
	STATE_FIELD(reset_at, st->peer_st, reset_at);
	if (!reset_at)
		return 0;
	return !psock_queue_empty(psock) ||
	       kernel_psock_refcnt(psock_of((__u64)tp)) > 2 + (sleeper_on((__u64)tp, st) != 0);
}

/*
 * Whether nothing redirected is unread or on its way, so that the direction may go to TCP and no
 * reader notices: one that takes a short recv() for the end of what there is (epoll(7) allows it)
 * would otherwise wait for ever. Two references to our psock are the sockhash's and this call's. A
 * send() of another thread gives its own back after it has had our socket lock once more
 * (tcp_bpf_sendmsg()), so that lock orders the two looks.
 */
inline_fn int may_pause(struct bpf_sock *sk, const struct sock_state *st)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	__u64 psock = psock_of(st->peer_sk);

	return tp && psock && kernel_psock_refcnt(psock_of((__u64)tp)) == 2 &&
	       psock_queue_empty(psock);
}
