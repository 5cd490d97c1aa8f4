/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * sk_msg: hands a message to the peer socket's psock queue, or leaves it to TCP. Runs under the
 * sender's socket lock, so one message of a direction is decided at a time.
 */
#pragma once
#include "../leave/in_flight.h"
#include "../learn/learn.h"

#define ANSWER_BYTES 1048576	/* after a half-close: more than most have to say */

/*
 * Below these a redirected message costs more than one by TCP, which merges small ones (make bench,
 * "Streams"): 1.3 against 0.7 us at 64 B, 1.2 against 0.8 at 1 KiB, the same at 4 KiB.
 */
#define STREAM_BYTES 3072	/* per message */
#define STREAM_NS 4000		/* CPU time from message to message: with more, there is little to merge */
#define STREAM_MESSAGES 1024	/* after these it is one */

/*
 * The kernel numbers a MSG_ZEROCOPY send once for each piece that tcp_bpf_push() hands to TCP, until
 * the socket is off the map. In one piece it has the one completion that the program waits for.
 */
inline_fn int by_tcp(struct sk_msg_md *msg, const struct sock_state *st)
{
	if (st->guard_cause == CAUSE_ZEROCOPY)
		bpf_msg_pull_data(msg, 0, msg->size, 0);
	return SK_PASS;
}

/* This direction is TCP from here on, and the daemon is asked to take the pair off the map. */
inline_fn int leave(struct sock_state *st, enum cause reason)
{
	st->reason = reason;
	st->mode = NATIVE;
	ask(REQUEST_WALK);
	if (reason == CAUSE_WINDOW || reason == CAUSE_MESSAGES ||
	    reason == CAUSE_SMALL_STREAM) {
		struct listener l = listener_of(st);

		add_to_balance(&l, &st->flow, server_of(st), -SPILL_COST, CAUSE_SPILLS);
	}
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
 * Whether something happened to either end that makes this direction TCP: the peer has called
 * shutdown(2), see half_closed(), or a guard has refused one, see leave/guard.c. Looking costs 100 ns, as
 * much as the rest of the program, so a message looks only if anything happened to any accelerated
 * socket since the last one did.
 */
inline_fn int stays_redirected(struct sock_state *st)
{
	int zero = 0;
	__u64 *changes = change_count.lookup(&zero), now;
	enum cause reason;

	if (!changes)
		return 0;
#ifndef __x86_64__	/* where taking the reference was one */
	full_barrier(st);
#endif
	now = READ_ONCE(*changes);
	if (now == st->change_count)
		return 0;
	reason = guard_cause_of(st, st->peer_st);
	if (reason) {
		leave(st, reason);
		return 1;
	}
	if (!kernel_shutdown(st->peer_sk)) {
		st->change_count = now;
		return 0;
	}
	st->reason = CAUSE_HALF_CLOSED;
	st->mode = NATIVE;
	/* with unread data it is on the map still, where FIONREAD leaves out what comes behind that */
	st->budget_bytes = psock_of(st->peer_sk) ? 0 : ANSWER_BYTES;
	if (!st->budget_bytes)
		ask(REQUEST_WALK);
	return 1;
}

/*
 * TCP for good. The end that outlives its peer's half-close is taken off the map by the next walk;
 * one is asked for only if much follows: for each short answer, walks would cost more than they save.
 */
inline_fn int pass_native(struct sk_msg_md *msg, struct sock_state *st, __u32 size)
{
	if (st->reason != CAUSE_HALF_CLOSED || !st->budget_bytes)
		return by_tcp(msg, st);
	st->budget_bytes -= size < st->budget_bytes ? size : st->budget_bytes;
	if (!st->budget_bytes)
		ask(REQUEST_WALK);
	return by_tcp(msg, st);
}

/* Whether a thread has waited on the client end, in TCP's code, since before it was established. */
inline_fn int early_sleeper(const struct sock_state *st, __u64 sk)
{
	__u64 early = st->early;

	if (st->self.side == SERVER) {
		sk = st->peer_sk;
		STATE_FIELD(early, st->peer_st, early);
	}
	return early && sleeps_on(sk, early);
}

/* The first message of a direction: may it, and all that follow, be redirected (I1)? */
inline_fn int first_message(struct bpf_sock *sk, struct sock_state *st)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	__u32 isn_1 = st->self.side == CLIENT ? st->self.pair.client_seq : st->self.pair.server_seq;

	if (!tp || own_write_seq(tp) != isn_1)
		return 0;
	if (!st->peer_sk) {
		struct pair pair = st->self.pair;
		struct handshake *hs = handshakes.lookup(&pair);

		if (!hs || !hs->server_sk)
			return 0;
		st->peer_sk = hs->server_sk;
		st->peer_st = hs->server_st;
		handshakes.delete(&pair);
	}
	if (early_sleeper(st, (__u64)tp))
		return 0;
	st->early = 0;
	st->mode = REDIRECT;
	return 1;
}

/* Redirected bytes the peer has not read. Exact where the kernel counts them, else from above. */
inline_fn __u64 unread_bytes(struct sock_state *st, __u64 psock)
{
#ifdef PSOCK_COUNTS_BYTES
	return kernel_psock_msg_tot_len(psock);
#else
	if (psock_queue_empty(psock))
		st->drained_bytes = st->sent_bytes;
	return st->sent_bytes - st->drained_bytes;
#endif
}

/* The window, or less where the receiving program set SO_RCVBUF (kept doubled, socket(7)). */
inline_fn __u32 window(__u64 peer_sk, const struct settings *s)
{
	__u32 rcvbuf = has_rcvbuf_lock(peer_sk) ? kernel_rcvbuf(peer_sk) / 2 : 0;

	return rcvbuf && rcvbuf < s->window_bytes ? rcvbuf : s->window_bytes;
}

/*
 * Whether an sk_skb program, of a sockmap of somebody else, takes what comes in from TCP
 * (sk_psock_start_verdict()); redirected messages would pass it by.
 */
inline_fn int has_sk_skb(__u64 psock)
{
	return kernel_psock_saved_data_ready(psock) != 0;
}

/*
 * Whether this direction is a stream of small messages: one task sends them as fast as it can,
 * without ever waiting for anything, to a reader that keeps up and does not answer. By CPU time, as
 * the scheduler takes the CPU from fast senders, too. Called once for MESSAGES_PER_SAMPLE messages.
 */
inline_fn int small_stream(struct sock_state *st, __u64 unread)
{
	struct stream now = { .task = bpf_get_current_task(), .bytes = st->sent_bytes };
	__u64 read = st->sent_bytes - unread;

	now.messages = st->sent_messages;
	STATE_FIELD(now.answers, st->peer_st, sent_messages);
	now.cpu_ns = kernel_task_cpu_ns(now.task);
	now.waits = kernel_task_waits(now.task);
	if (now.task != st->stream.task || now.waits != st->stream.waits ||
	    (now.answers - st->stream.answers) * 16 > now.messages - st->stream.messages) {
		st->stream = now;
		return 0;
	}
	now.messages -= st->stream.messages;
	return now.messages >= STREAM_MESSAGES &&
	       now.cpu_ns - st->stream.cpu_ns < now.messages * STREAM_NS &&
	       now.bytes - st->stream.bytes < now.messages * STREAM_BYTES &&
	       read >= st->checkpoint[(st->checkpoints - 1) & 15];
}

/*
 * Looks at the peer's queue and grants the next budget; 0, or why there is none (I3). Messages are
 * bounded as well as bytes: a 1-byte message costs about 1 KiB of kernel memory. If the byte
 * position of 16 x MESSAGES_PER_SAMPLE messages ago is not read yet, that many are unread.
 */
inline_fn enum cause refill(struct sock_state *st, const struct settings *s)
{
	__u64 psock = psock_of(st->peer_sk);
	__u64 unread;
	__u32 limit;

	if (!psock)
		return CAUSE_PEER_GONE;
	if (has_sk_skb(psock))
		return CAUSE_OTHER_SOCKMAP;
	unread = unread_bytes(st, psock);
	limit = window(st->peer_sk, s);
	if (unread >= limit)
		return CAUSE_WINDOW;
	if (!st->budget_messages) {
		__u32 slot = st->checkpoints & 15;

		if (st->checkpoints >= 16 && st->checkpoint[slot] > st->sent_bytes - unread)
			return CAUSE_MESSAGES;
		if (small_stream(st, unread))
			return CAUSE_SMALL_STREAM;
		st->checkpoint[slot] = st->sent_bytes;
		st->checkpoints++;
		st->budget_messages = MESSAGES_PER_SAMPLE;
	}
	limit -= unread;
	st->budget_bytes = limit < BYTES_PER_SAMPLE ? limit : BYTES_PER_SAMPLE;
	return 0;
}

/*
 * What a message pays for, in ns on an AMD EPYC of 2025 (make bench, "The programs"): the state of
 * the socket 30, which says where to; the redirect itself 70, which hashes the peer's key; the rest
 * together 5. Array maps are looked up without a call, and the per-CPU counters bounce between no
 * caches. Reading any kernel memory by address is 50, so that is for every 256th message.
 */
int sockredir_msg(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	__u32 size = msg->size;
	struct sock_state *st;
	struct settings *s;
	struct counters *c;
	struct end peer;
	int zero = 0;
	int verdict;

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
		st->mode = NATIVE;
		return SK_PASS;
	}
	if (st->mode == UNDECIDED && !first_message(sk, st))
		return leave(st, CAUSE_LATE_PAIRING);
	if (stays_redirected(st))
		return by_tcp(msg, st);
	if (!st->budget_bytes || !st->budget_messages) {
		enum cause reason = refill(st, s);

		if (reason == CAUSE_PEER_GONE)
			return peer_gone(sk, st);
		if (reason)
			return leave(st, reason);
	}

	peer = st->peer;
	verdict = peers.msg_redirect_hash(msg, &peer, BPF_F_INGRESS);
	/* SK_DROP here means the peer left the map; dropping would be EACCES to the program (I7). */
	if (verdict != SK_PASS)
		return peer_gone(sk, st);

	st->budget_bytes -= size < st->budget_bytes ? size : st->budget_bytes;
	st->budget_messages--;
	st->sent_bytes += size;
	st->sent_messages++;
	c = counters_here();
	if (c) {
		count(&c->redirected_messages, 1);
		count(&c->redirected_bytes, size);
	}
	return SK_PASS;
}
