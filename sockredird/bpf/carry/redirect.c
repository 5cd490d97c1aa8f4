/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * sk_msg: hands a message to the peer socket's psock queue, or leaves it to TCP. Runs under the
 * sender's socket lock, so one message of a direction is decided at a time.
 *
 * A direction is BY_TCP until it may begin (begin.h), then REDIRECT until it has to pause, which is
 * for the moment, or leaves for good (NATIVE): then the daemon takes the pair off the sockhash.
 */
#pragma once
#include "begin.h"
#include "bounds.h"
#include "../learn/learn.h"

#ifdef RDONLY_CAST /* three loads; with a helper for each, the next grant is soon enough */
#define CHEAP_PRESSURE(sk) tcp_under_pressure(sk)
#else
#define CHEAP_PRESSURE(sk) 0
#endif
#define ANSWER_BYTES 1048576 /* after a half-close: more than most have to say */
#define SMALL_MESSAGE 4096 /* revalidation sends one that is not larger by TCP, if it can choose */

/*
 * The kernel numbers a MSG_ZEROCOPY send once for each piece that tcp_bpf_push() hands to TCP,
 * until the socket is off the map. In one piece it has the one completion that the program waits
 * for.
 */
inline_fn int by_tcp(struct sk_msg_md *msg, const struct sock_state *st)
{
	if (st->guard_cause == CAUSE_ZEROCOPY)
		bpf_msg_pull_data(msg, 0, msg->size, 0);
	return SK_PASS;
}

/*
 * TCP for good. The end that outlives its peer's half-close is taken off by the next walk; one is
 * asked for only if much follows, as for each short answer walks would cost more than they save.
 */
inline_fn int pass_native(struct sk_msg_md *msg, struct sock_state *st, __u32 size)
{
	if (st->reason == CAUSE_HALF_CLOSED && st->budget_bytes) {
		st->budget_bytes -= size < st->budget_bytes ? size : st->budget_bytes;
		if (!st->budget_bytes)
			ask(REQUEST_WALK);
	}
	return by_tcp(msg, st);
}

/* This direction is TCP from here on, and the daemon is asked to take the pair off the sockhash. */
inline_fn int leave(struct sock_state *st, enum cause cause)
{
	st->reason = cause;
	st->mode = NATIVE;
	st->budget_bytes = 0;
	ask(REQUEST_WALK);
	return SK_PASS;
}

/* This message goes by TCP, and those after it until the reader has caught up. */
inline_fn int pause(struct sock_state *st, enum cause cause)
{
	st->reason = cause;
	st->mode = BY_TCP;
	count_paused(cause);
	by_tcp_on_member(st);
	return SK_PASS;
}

/*
 * The same where redirected data may be unread. TCP data then lies behind it, and a reader that
 * takes the end of the one for the end of all has to be woken again at that border
 * (leave/rewake.c). The mode is written first: pairs with at_border(), which takes a direction that
 * is redirected for one that is past its borders.
 */
inline_fn int force_to_tcp(struct sock_state *st, enum cause cause)
{
	pause(st, cause);
	store_barrier(st);
	WRITE_ONCE(st->borders, st->borders + 1);
	ask(REQUEST_WALK);
	return SK_PASS;
}

/*
 * The peer is not on the map. Closed, if its FIN is here: TCP answers that as it always does.
 * Otherwise somebody took it off, and this end has to follow.
 */
inline_fn int peer_gone(struct bpf_sock *sk, struct sock_state *st)
{
	if (sk->state != BPF_TCP_ESTABLISHED)
		return SK_PASS;
	return leave(st, CAUSE_PEER_GONE);
}

/*
 * Whether something happened to either end since the last message that makes this direction TCP:
 * the peer has called shutdown(2), see half_closed(), or a guard has stopped the pair, see
 * leave/guard.c. Looking costs 100 ns, so a message looks only if anything happened to any
 * accelerated socket since the last one did.
 */
inline_fn int changed_since(const struct sock_state *st, __u64 *now)
{
	int zero = 0;
	__u64 *changes = change_count.lookup(&zero);

	if (!changes)
		return 0;
	*now = READ_ONCE(*changes);
	return *now != st->change_count;
}

/*
 * CAUSE_NONE, or why the pair leaves, after changed_since(). Pairs with announce_change(): what was
 * announced with the count that was read is seen, or no later message would look for it.
 */
inline_fn enum cause what_changed(struct sock_state *st)
{
	enum cause cause;

	load_barrier(st);
	cause = guard_cause_of(st, st->peer_st);
	if (!cause && kernel_shutdown(st->peer_sk))
		cause = CAUSE_HALF_CLOSED;
	return cause;
}

/* Whether the pair leaves for that cause; otherwise messages look again once the count is not `now`. */
inline_fn int left_for_change(struct sock_state *st, enum cause cause, __u64 now)
{
	if (!cause) {
		st->change_count = now;
		return 0;
	}
	/* no walk for a short answer, unless TCP data could lie behind redirected data */
	if (cause == CAUSE_HALF_CLOSED && !psock_of(st->peer_sk)) {
		st->reason = cause;
		st->mode = NATIVE;
		st->budget_bytes = ANSWER_BYTES;
	} else {
		leave(st, cause);
	}
	return 1;
}

/*
 * Whether the pair leaves because a program sleeps inside recv(). Where the descriptor is not
 * O_NONBLOCK and nobody polls it as this message comes, the program may poll a moment later, or sleep
 * inside recv() the next time: walks decide, milliseconds later (leave/walk.c: may_block()). A reader
 * that always finds something has to do neither: that is seen from what it has read.
 */
inline_fn int blocking_reader(struct sock_state *st, const struct settings *s)
{
	__u32 copied;

	if (s->blocking)
		return 0;
	if (reader_sleeps(st->peer_sk, st))
		return 1;
	if (st->reader == READER_POLLS || not_accepted(st->peer_sk))
		return 0;
	if (polls(st->peer_sk)) {
		st->reader = READER_POLLS;
		return 0;
	}
	copied = kernel_copied_seq(st->peer_sk);
	if (copied != st->reader_copied) {
		st->reader_copied = copied;
		st->reads_seen++;
	}
	if (!st->unknown_since) {
		st->unknown_since = now_ms() | 1;
		ask(REQUEST_WALK);
	}
	return 0;
}

/* Jiffies between two messages by TCP: often enough for conntrack at either end. */
inline_fn __u64 revalidation_interval(struct tcp_sock *tp, const struct sock_state *st,
				      const struct settings *s)
{
	__u32 interval = s->revalidate, own = conntrack_timeout((__u64)tp),
	      peer = conntrack_timeout(st->peer_sk);

	if (own && own / 5 < interval)
		interval = own / 5;
	if (peer && peer / 5 < interval)
		interval = peer / 5;
	return interval ? interval : 1;
}

/*
 * Sets when the next message by TCP is due: a quarter of the interval before its end, see
 * revalidates(). From the second one on, all directions with one interval are due at the same time,
 * so that one walk, where each such message needs one (by_tcp_on_member()), serves them all.
 */
inline_fn void revalidate_after(struct sock_state *st, __u64 now, __u64 interval)
{
	__u64 period = interval - interval / 4;

	if (st->began)
		now -= now % period;
	st->tcp_due = now + period;
}

/*
 * Whether this message has to show that TCP still gets through, so that conntrack does not forget
 * the connection, and what stops its packets stops it. Due are first small messages at a quiet
 * moment, then those of any size there, and at the end of the interval any message.
 */
inline_fn int revalidates(struct bpf_sock *sk, struct tcp_sock *tp, struct sock_state *st,
			  __u32 size, __u64 now, const struct settings *s)
{
	__u64 interval = revalidation_interval(tp, st, s), late = now - st->tcp_due;
	int quiet = may_pause(sk, st);

	if (late < interval / 4 && (!quiet || (size > SMALL_MESSAGE && late < interval / 8)))
		return 0;
	revalidate_after(st, now, interval);
	if (quiet)
		pause(st, CAUSE_REVALIDATION);
	else
		force_to_tcp(st, CAUSE_REVALIDATION);
	return 1;
}

/* Whether a message of a direction that is redirected goes by TCP all the same; sets its mode then. */
inline_fn int pauses(struct bpf_sock *sk, struct sock_state *st, __u32 size,
		     const struct settings *s)
{
	__u64 now = bpf_jiffies64(), psock;
	struct tcp_sock *tp;
	enum cause cause;

	if (size <= st->budget_bytes && st->budget_messages && st->grants == s->grants &&
	    (__s64)(now - st->tcp_due) < 0 && !CHEAP_PRESSURE(st->peer_sk) &&
	    (!st->charged_cgroup || (__s64)(now - st->room_until) < 0))
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	psock = psock_of(st->peer_sk);
	if (!tp || !psock) {
		peer_gone(sk, st);
		return 1;
	}
	if ((__s64)(now - st->tcp_due) >= 0 && revalidates(sk, tp, st, size, now, s))
		return 1;
	/* an sk_skb program of somebody else's sockmap takes what comes from TCP, and would miss this */
	if (kernel_psock_saved_data_ready(psock)) {
		leave(st, CAUSE_OTHER_SOCKMAP);
		return 1;
	}
	cause = grant(tp, st, psock, size, s);
	if (!cause)
		return 0;
	if (cause == CAUSE_PRESSURE)
		leave(st, cause);
	else if (may_pause(sk, st))
		pause(st, cause);
	else
		force_to_tcp(st, cause);
	return 1;
}

/*
 * Begins to redirect, if the direction may. A call that a guard or a detector refuses may have read
 * what may_begin() waits for: pairs with announce_change(), which comes before that.
 */
inline_fn int begins(struct bpf_sock *sk, struct sock_state *st, const struct settings *s)
{
	struct tcp_sock *tp;
	__u64 now;

	if (!may_begin(sk, st))
		return 0;
	load_barrier(st);
	if (changed_since(st, &now))
		return 0;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	/* of one that was joined, a call that began before that may have read */
	if (st->awaits != AWAITS_NOTHING && s->begin_late && !st->joined)
		note_reader(st);
	st->awaits = AWAITS_NOTHING;
	revalidate_after(st, bpf_jiffies64(), revalidation_interval(tp, st, s));
	st->began = 1; /* after that: its first time is not aligned */
	st->budget_bytes = 0;
	st->mode = REDIRECT;
	return 1;
}

inline_fn void count_redirected(struct sock_state *st, __u32 size)
{
	struct counters *c = counters_here();

	st->budget_bytes -= size < st->budget_bytes ? size : st->budget_bytes;
	st->budget_messages--;
	st->sent_bytes += size;
	st->sent_messages++;
	if (c) {
		count(&c->redirected_messages, 1);
		count(&c->redirected_bytes, size);
	}
}

int sockredir_msg(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	__u32 size = msg->size;
	struct sock_state *st;
	struct settings *s;
	struct end peer;
	int zero = 0, behind = 0, verdict;
	enum cause cause;
	__u64 now = 0;

	if (!sk)
		return SK_PASS;
	st = sockets.sk_storage_get(sk, NULL, 0);
	s = settings.lookup(&zero);
	if (!st || !s)
		return SK_PASS;
	if (st->mode == NATIVE)
		return pass_native(msg, st, size);
	/* after shutdown(SHUT_WR) TCP refuses to send, with EPIPE; a redirect would deliver */
	if (sk->state != BPF_TCP_ESTABLISHED && sk->state != BPF_TCP_CLOSE_WAIT)
		return SK_PASS;
	if (s->stopped || READ_ONCE(st->stop)) {
		if (!READ_ONCE(st->stop))
			st->reason = CAUSE_DISABLE;
		st->mode = NATIVE;
		return SK_PASS;
	}
	if (!st->peer_sk && !find_peer(st))
		return SK_PASS;
#ifndef __x86_64__ /* where taking the psock reference was one; pairs with announce_change() */
	full_barrier(st);
#endif
	if (changed_since(st, &now)) {
		cause = what_changed(st);
		/* after that, so that a splice(2) it tells of is seen; the next message looks again */
		behind = would_be_overtaken(sk, st);
		if (!behind && left_for_change(st, cause, now))
			return by_tcp(msg, st);
	}
	if (!behind && blocking_reader(st, s)) {
		refuse(st, CAUSE_BLOCKING_READER);
		return leave(st, CAUSE_BLOCKING_READER);
	}
	if (st->mode != REDIRECT) {
		if (!psock_of(st->peer_sk))
			return peer_gone(sk, st);
		if (!begins(sk, st, s)) {
			by_tcp_on_member(st);
			return SK_PASS;
		}
	}
	if (pauses(sk, st, size, s))
		return by_tcp(msg, st);
	if (!behind && peer_stays_busy(st, size))
		return may_pause(sk, st) ? pause(st, CAUSE_PEER_BUSY) :
					   force_to_tcp(st, CAUSE_PEER_BUSY);

	peer = st->peer;
	verdict = peers.msg_redirect_hash(msg, &peer, BPF_F_INGRESS);
	/* SK_DROP here means the peer left the map; dropping would be EACCES to the program (I7). */
	if (verdict != SK_PASS)
		return peer_gone(sk, st);
	count_redirected(st, size);
	return SK_PASS;
}
