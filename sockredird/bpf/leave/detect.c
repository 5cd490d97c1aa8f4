/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fentry and fexit, on kernels with ftrace: a program uses an accelerated socket in a way that no
 * setsockopt announces and that no member of a sockhash can do. No message is redirected to it from
 * then on, and the daemon takes the pair off the map.
 *
 * What arrives after that is TCP's, and the call that was seen waits for it as it should. Only what
 * was in the queue before can go wrong: splice(2) and MSG_OOB do not find it, and MSG_WAITALL and
 * MSG_TRUNC end there. So a direction begins only after its reader has read by an ordinary recv(2),
 * unless others of its kind have (carry/begin.h), and a program that makes such calls from the start
 * finds nothing redirected.
 *
 * If one does, the listener is learned: for all if its own program did it, for the connections of
 * that user's clients if a client did. TCP must not overtake what splice(2) or MSG_OOB do not find,
 * so the daemon resets such a connection (`reset_at`). A call that was right teaches only that
 * pairing does not pay there, if the listener's own program makes it again and again.
 *
 * Arguments and result of the kernel's function are in ctx, 8 bytes each.
 */
#pragma once
#include "guard.c"
#include "in_flight.h"

#define MSG_OOB 0x1
#define MSG_TRUNC 0x20
#define MSG_DONTWAIT 0x40
#define MSG_WAITALL 0x100
#define EAGAIN 11
#define FOR_EVER 0x7fffffffffffffffLL /* MAX_SCHEDULE_TIMEOUT: no SO_RCVTIMEO */

#ifndef ARGS_tcp_bpf_recvmsg
#define ARGS_tcp_bpf_recvmsg 5
#endif

struct sock;
struct socket;

#define COUNTED_MESSAGES 16

/* Redirected bytes that are unread, as far as it takes to see that they are not fewer than `enough`. */
inline_fn __u64 unread_up_to(struct sock *sk, __u64 enough)
{
	__u64 psock = psock_of((__u64)sk), head = psock_queue(psock), at, total = 0;

	if (!psock)
		return 0;
	at = kernel_list_next(head);
#pragma clang loop unroll(disable)
	for (int i = 0; i < COUNTED_MESSAGES && at && at != head && total < enough; i++) {
		total += queued_bytes(at);
		at = kernel_list_next(at);
	}
	return total;
}

/* When to reset the connection, in ms: a reader that has to be woken to read on is stuck. */
#define NEVER 0
#define AT_ONCE 1
#define IF_STUCK 1000

/* The listener, or that for the connections of this client's user, as detected calls count. */
inline_fn struct listener whose_calls(struct sock *sk, const struct sock_state *st)
{
	struct listener l;

	if (st->self.side == SERVER)
		return listener_of(st);
	l = listener_in(&st->flow);
	return listener_for_user_of(&l, (__u64)sk);
}

/* The state of a member that no such call was seen of, or has to be reset for the first time. */
inline_fn struct sock_state *state_of_member(struct sock *sk, __u32 patience)
{
	struct sock_state *st;

	if (!psock_of((__u64)sk))
		return NULL;
	st = sockets.sk_storage_get(sk, NULL, 0);
	return st && (!st->guard_cause || patience == AT_ONCE) ? st : NULL;
}

/* The call does not do what it does on TCP, as redirected data is unread, or it has done so. */
inline_fn void harmed(struct sock *sk, enum cause cause, __u32 patience)
{
	struct sock_state *st = state_of_member(sk, patience);
	struct owner o = {};
	struct listener l;

	if (!st)
		return;
	if (patience)
		WRITE_ONCE(st->reset_at, (now_ms() + patience) | 1);
	store_barrier(st); /* pairs with would_be_overtaken() and is_stuck_in_splice() */
	refuse(st, cause);
	l = whose_calls(sk, st);
	owner_of_task(&o, bpf_get_current_task());
	if (st->self.side == SERVER)
		add_learned(cause, &l, &st->flow, (__u64)sk, SERVER, &o);
	else
		add_learned(cause, &l, &st->flow, server_of(st), CLIENT, &o);
}

/* The call finds all that was sent, so it is right, and so will be those after it. */
inline_fn void in_time(struct sock *sk, enum cause cause)
{
	struct sock_state *st = state_of_member(sk, NEVER);
	struct listener l;
	__s32 cost;

	if (!st)
		return;
	refuse(st, cause);
	l = whose_calls(sk, st);
	known_readers.delete(&l);
	/* what a client does costs its own connection only */
	if (st->self.side != SERVER)
		return;
	cost = REFUSED_COST + (st->joined ? JOINED_SAVES : 0);
	add_to_balance(&l, &st->flow, (__u64)sk, st->peer_sk, -cost, CAUSE_TCP_CALLS);
}

/*
 * Senders go on to redirect while `reset_at` says that something is unread, or may be: TCP's data would
 * overtake it. It is written first, then the cause, then the change announced, and senders looked for
 * after that, with whatever end has been found by then. Pairs with would_be_overtaken() and
 * is_stuck_in_splice().
 */
int sockredir_spliced(unsigned long long *ctx)
{
	struct socket *sock = (void *)ctx[0];
	struct sock *sk = sock_of(sock);
	struct sock_state *st = sk ? state_of_member(sk, AT_ONCE) : NULL;
	struct other_end other = {};

	if (!st)
		return 0;
	if (has_redirected((__u64)sk)) {
		harmed(sk, CAUSE_SPLICE, AT_ONCE);
	} else if (!st->guard_cause) {
		WRITE_ONCE(st->reset_at, now_ms() | 1);
		store_barrier(st);
		in_time(sk, CAUSE_SPLICE);
		find_other_end(&other, st);
		if (idle_sender(other.sk, st) && !has_redirected((__u64)sk))
			WRITE_ONCE(st->reset_at, 0);
	}
	return 0;
}

/* MSG_WAITALL, for so many bytes: what is there is a part of them, none, or enough. */
inline_fn void waits_for_all(struct sock *sk, __u64 bytes)
{
	__u64 unread = unread_up_to(sk, bytes);

	if (!unread)
		in_time(sk, CAUSE_WAITALL);
	else if (unread < bytes)
		harmed(sk, CAUSE_WAITALL, NEVER);
}

int sockredir_receiving(unsigned long long *ctx)
{
	struct sock *sk = (void *)ctx[0];
	__u32 flags = ctx[3];

	if (!(flags & (MSG_OOB | MSG_TRUNC | MSG_WAITALL)))
		return 0;
	if (!(flags & (MSG_OOB | MSG_TRUNC)))
		waits_for_all(sk, ctx[2]);
	else if (!has_redirected((__u64)sk))
		in_time(sk, flags & MSG_OOB ? CAUSE_OOB : CAUSE_TRUNC);
	else if (flags & MSG_OOB)
		harmed(sk, CAUSE_OOB, AT_ONCE);
	else
		harmed(sk, CAUSE_TRUNC, NEVER);
	return 0;
}

/* Urgent data goes by TCP, so that it is urgent there; it must not overtake what waits before it. */
int sockredir_sending(unsigned long long *ctx)
{
	struct sock *sk = (void *)ctx[0];
	void *msg = (void *)ctx[1];
	struct sock_state *st;

	if (!(msghdr_flags(msg) & MSG_OOB))
		return 0;
	st = state_of_member(sk, NEVER);
	if (!st)
		return 0;
	if (has_redirected(st->peer_sk))
		harmed(sk, CAUSE_OOB, NEVER);
	else
		in_time(sk, CAUSE_OOB);
	return 0;
}

/* A blocking recv() that was woken without data: TCP's would have gone back to wait. */
int sockredir_received(unsigned long long *ctx)
{
	struct sock *sk = (void *)ctx[0];
	__u32 flags = ctx[3];

	if ((__s32)ctx[ARGS_tcp_bpf_recvmsg] != -EAGAIN || flags & MSG_DONTWAIT)
		return 0;
	if (kernel_rcvtimeo((__u64)sk) == FOR_EVER)
		harmed(sk, CAUSE_WOKEN, NEVER);
	return 0;
}
