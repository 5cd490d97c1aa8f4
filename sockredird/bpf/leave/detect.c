/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fentry and fexit, on kernels with ftrace: a program uses an accelerated socket in a way that no
 * setsockopt announces and that no member of a sockhash can do. No message is redirected to it from
 * then on, the daemon takes the pair off the map, and the listener is learned: for all if its own
 * program did it, for the connections of that user's clients if a client did.
 *
 * What arrives after that is TCP's, and the call that was seen waits for it as it should. Only what
 * was in the queue before can go wrong: splice(2) and MSG_OOB do not find it. TCP must not overtake
 * it either, so the daemon resets such a connection (`reset_at`).
 *
 * Arguments and result of the kernel's function are in ctx, 8 bytes each.
 */
#pragma once
#include "guard.c"

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

inline_fn int has_unread(struct sock *sk)
{
	__u64 psock = psock_of((__u64)sk);

	return psock && !psock_queue_empty(psock);
}

/* When to reset the connection, in ms: a reader that has to be woken to read on is stuck. */
#define NEVER 0
#define AT_ONCE 1
#define IF_STUCK 1000

inline_fn void detect(struct sock *sk, enum cause cause, __u32 patience)
{
	struct sock_state *st;
	struct listener l;
	struct owner o = {};

	if (!psock_of((__u64)sk))
		return;
	st = sockets.sk_storage_get(sk, NULL, 0);
	if (!st || (st->guard_cause && patience != AT_ONCE))
		return;
	if (patience)
		WRITE_ONCE(st->reset_at, (now_ms() + patience) | 1);
	refuse(st, cause);
	owner_of_task(&o, bpf_get_current_task());
	if (st->self.side == SERVER) {
		l = listener_of(st);
		add_learned(cause, &l, &st->flow, (__u64)sk, SERVER, &o);
	} else {
		l = listener_in(&st->flow);
		l = listener_for_user_of(&l, (__u64)sk);
		add_learned(cause, &l, &st->flow, server_of(st), CLIENT, &o);
	}
}

int sockredir_spliced(unsigned long long *ctx)
{
	struct socket *sock = (void *)ctx[0];
	struct sock *sk = sock_of(sock);

	if (sk)
		detect(sk, CAUSE_SPLICE, has_unread(sk) ? AT_ONCE : NEVER);
	return 0;
}

int sockredir_receiving(unsigned long long *ctx)
{
	struct sock *sk = (void *)ctx[0];
	__u32 flags = ctx[3];

	if (flags & MSG_OOB)
		detect(sk, CAUSE_OOB, has_unread(sk) ? AT_ONCE : NEVER);
	else if (flags & MSG_TRUNC)
		detect(sk, CAUSE_TRUNC, NEVER);
	else if (flags & MSG_WAITALL)
		detect(sk, CAUSE_WAITALL, NEVER);
	return 0;
}

/* Urgent data goes by TCP, so that it is urgent there; it must not overtake what waits before it. */
int sockredir_sending(unsigned long long *ctx)
{
	struct sock *sk = (void *)ctx[0];
	void *msg = (void *)ctx[1];

	if (msghdr_flags(msg) & MSG_OOB)
		detect(sk, CAUSE_OOB, NEVER);
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
		detect(sk, CAUSE_WOKEN, NEVER);
	return 0;
}
