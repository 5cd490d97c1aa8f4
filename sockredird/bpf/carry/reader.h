/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the peer's program does about its socket: does it poll, does it sleep inside recv(), is one
 * of its calls under way?
 *
 * A blocking recv() on a member of a sockhash that is woken for nothing (a signal, the cgroup
 * freezer, a debugger) returns EAGAIN, where TCP's goes back to wait (tcp_bpf_recvmsg() waits
 * once). So unless blocking_readers = "accelerate" the pair of such a reader leaves the sockhash,
 * redirected or not.
 */
#pragma once
#include "../leave/in_flight.h"
#include "../peer_state.h"

#define MAX_POLLERS 4	    /* entries looked at for one that is not a task's */
#define SPIN_NS 20000	    /* longer than a recv() of a small message holds the lock */
#define LONG_SPIN_NS 200000 /* than one of a megabyte does */
#define LONG_SPIN_BYTES 16384
#define MAX_SPINS 1000

/* Whether somebody polls the socket now, or its descriptor is O_NONBLOCK. */
inline_fn int polls(__u64 sk)
{
	__u64 head = wait_queue_of(sk), at;

	if (!head)
		return 0;
	at = kernel_list_next(head);
#pragma unroll
	for (int i = 0; i < MAX_POLLERS; i++) {
		if (!at || at == head)
			break;
		if (!names_a_task(wait_entry(at)))
			return 1;
		at = kernel_list_next(at);
	}
	return (file_flags(sk) & O_NONBLOCK) != 0;
}

/* Whether no program has the socket yet: it is in the listener's queue. */
inline_fn int not_accepted(__u64 sk)
{
	return !wait_queue_of(sk);
}

/*
 * Whether a task sleeps inside recv() on a member. It has a reference to the psock meanwhile
 * (tcp_bpf_recvmsg()), so where the sockhash has the only one, this looks no further. Who sleeps
 * without one is in TCP's own code, or in connect(): see nobody_in_tcp_recvmsg().
 *
 * A sender has a reference as well, and may wait for room on the same wait queue. It is counted in
 * sk_write_pending while it sleeps there, and has the lock at any other time. One that wakes is seen
 * by the count, the lock, then the wait queue; one that falls asleep by the lock, then the count.
 * Pairs with sk_stream_wait_memory().
 */
inline_fn int reader_sleeps(__u64 sk, struct sock_state *st)
{
	__u64 sleeper;

	if (kernel_psock_refcnt(psock_of(sk)) <= 1)
		return 0;
	if (kernel_write_pending(sk))
		return 0;
	load_barrier(st);
	if (kernel_lock_owned(sk))
		return 0;
	load_barrier(st);
	sleeper = sleeper_on(sk, st);
	return sleeper && sleeper != UNSEEN && !kernel_write_pending(sk);
}

/* Whether the sender at the other end is itself waiting for our lock: it gives up its own soon. */
inline_fn int waits_for_us(const struct sock_state *st)
{
	__u8 waiting = 0;

	STATE_FIELD(waiting, st->peer_st, waiting);
	return waiting;
}

/*
 * 100 ns or so between two looks at a lock. The verifier goes through each look, so there cannot be
 * many, but does not mind how long a helper takes.
 */
inline_fn void rest(void)
{
#pragma unroll
	for (int i = 0; i < 4; i++)
		bpf_ktime_get_ns();
}

/*
 * A redirect takes the peer's socket lock (bpf_tcp_ingress()), which a reader holds while its
 * recv() faults on memory that is slow to come (swap, NFS, FUSE, userfaultfd). So this waits for
 * the lock, but not for long; then the message goes by TCP, which queues it without the lock
 * (sk_backlog).
 */
inline_fn int peer_stays_busy(struct sock_state *st, __u32 size)
{
	__u64 until;
	int busy = 1;

	if (!kernel_lock_owned(st->peer_sk))
		return 0;
	until = bpf_ktime_get_ns() + (size < LONG_SPIN_BYTES ? SPIN_NS : LONG_SPIN_NS);
	WRITE_ONCE(st->waiting, 1);
	for (int i = 0; i < MAX_SPINS; i++) {
		if (!kernel_lock_owned(st->peer_sk) || waits_for_us(st)) {
			busy = 0;
			break;
		}
		if (bpf_ktime_get_ns() > until)
			break;
		rest();
	}
	WRITE_ONCE(st->waiting, 0);
	return busy;
}
